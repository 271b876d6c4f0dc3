//! `longshore images`: the node's images, who uses them, and which of them a collection would remove.
//! The collecting itself is the daemon's.

use jiff::Timestamp;
use longshore_core::image::gc::{JudgedImage, Kept, Removal, Verdict};
use longshore_core::wire::ImagesView;

use crate::age::age;
use crate::error::CliError;
use crate::output::{Format, Paint, Rows, Screen, mood, print, structured};
use crate::pods::Node;

/// Lists the images.
pub async fn list(node: &Node, screen: &Screen) -> Result<(), CliError> {
    let mut view: ImagesView = node.daemon.get("/v1/images").await?;
    view.plan.images.sort_by(|a, b| name(a).cmp(name(b)));
    if structured(screen, &view)? {
        return Ok(());
    }
    print(&table(&view.plan.images, screen, Timestamp::now()))
}

/// Says what a collection would do now. Only a dry run: the daemon collects by itself.
pub async fn gc(node: &Node, screen: &Screen, dry_run: bool) -> Result<(), CliError> {
    if !dry_run {
        return Err(CliError::usage("images gc needs --dry-run")
            .hint("the agent collects by itself, by imageGCHighThresholdPercent and imageMaximumGCAge"));
    }
    let view: ImagesView = node.daemon.get("/v1/images").await?;
    if structured(screen, &view)? {
        return Ok(());
    }
    print(&dry(&view, screen, Timestamp::now()))
}

fn name(judged: &JudgedImage) -> &str {
    judged.image.names.first().unwrap_or(&judged.image.id)
}

/// Binary units with one digit, as disks are spoken of.
pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

fn table(images: &[JudgedImage], screen: &Screen, now: Timestamp) -> String {
    let wide = screen.format == Format::Wide;
    let mut headings = vec!["IMAGE", "SIZE", "LAST USED"];
    if wide {
        headings.push("ID");
    }
    headings.push("USED BY");
    let mut rows = Rows::new(&headings);
    for judged in images {
        let used = match judged.used_by.is_empty() {
            true => age(judged.seen.last_used, now),
            false => "now".to_owned(),
        };
        let mut row = vec![name(judged).to_owned(), size(judged.image.size_bytes), used];
        if wide {
            row.push(judged.image.id.clone());
        }
        let mut by: Vec<&str> = judged.used_by.iter().map(String::as_str).collect();
        if judged.image.pinned {
            by.push("(pinned)");
        }
        row.push(by.join(", "));
        rows.push(row);
    }
    rows.render(screen, mood)
}

fn words(verdict: Verdict) -> (&'static str, &'static str) {
    match verdict {
        Verdict::Remove(Removal::DiskFull) => ("remove", "the disk is too full"),
        Verdict::Remove(Removal::TooOld) => ("remove", "unused for longer than imageMaximumGCAge"),
        Verdict::Keep(Kept::InUse) => ("keep", "in use"),
        Verdict::Keep(Kept::Pinned) => ("keep", "pinned in the runtime"),
        Verdict::Keep(Kept::TooYoung) => ("keep", "younger than imageMinimumGCAge"),
        Verdict::Keep(Kept::NotNeeded) => ("keep", "there is room enough"),
    }
}

fn dry(view: &ImagesView, screen: &Screen, now: Timestamp) -> String {
    let plan = &view.plan;
    let disk = match (&view.disk, &view.problem) {
        (Some(disk), _) => format!(
            "disk {} % used, a collection begins at {} % and ends at {} %",
            disk.used_percent(),
            view.policy.high_percent,
            view.policy.low_percent
        ),
        (None, problem) => {
            format!("the disk cannot be measured: {}", problem.as_deref().unwrap_or("no reason given"))
        }
    };
    let removed = plan.images.iter().filter(|judged| matches!(judged.verdict, Verdict::Remove(_))).count();
    let mut text =
        format!("{disk}\n{removed} of {} images would go, {}", plan.images.len(), size(plan.freed_bytes));
    if plan.freed_bytes < plan.wanted_bytes {
        text.push_str(&format!(" of the {} wanted: no other may", size(plan.wanted_bytes)));
    }
    text.push_str("\n\n");
    let mut rows = Rows::new(&["VERDICT", "IMAGE", "SIZE", "LAST USED", "BECAUSE"]);
    for judged in &plan.images {
        let (verdict, why) = words(judged.verdict);
        let used = if judged.used_by.is_empty() { age(judged.seen.last_used, now) } else { "now".to_owned() };
        let by: Vec<&str> = judged.used_by.iter().map(String::as_str).collect();
        let why = if by.is_empty() { why.to_owned() } else { format!("{why} by {}", by.join(", ")) };
        rows.push(vec![verdict.into(), name(judged).to_owned(), size(judged.image.size_bytes), used, why]);
    }
    text.push_str(&rows.render(screen, |index, word| match word {
        "remove" => Paint::Warn,
        _ => mood(index, word),
    }));
    text
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use longshore_core::image::gc::{self, GcPolicy, ImageDisk, ImageLedger, ListedImage};

    use super::*;

    fn view(free_percent: u64) -> ImagesView {
        let image = |id: &str, mib: u64| ListedImage {
            id: format!("sha256:{id}"),
            names: vec![format!("example.org/{id}:1")],
            size_bytes: mib << 20,
            pinned: id == "pause",
        };
        let images = [image("web", 40), image("old", 1500), image("pause", 1)];
        let users = BTreeMap::from([("sha256:web".to_owned(), BTreeSet::from(["default/web".to_owned()]))]);
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut ledger = ImageLedger::default();
        ledger.observe(&images, &BTreeMap::new(), at(0));
        ledger.observe(&images, &users, at(7000));
        let policy =
            GcPolicy { high_percent: 85, low_percent: 80, min_age: Duration::from_secs(120), max_age: None };
        let disk = Some(ImageDisk { total_bytes: 100 << 30, available_bytes: free_percent << 30 });
        let plan = gc::plan(&images, &users, &ledger, disk, (&policy, at(7200)));
        ImagesView { policy, disk, problem: None, plan }
    }

    fn screen() -> Screen {
        Screen { format: Format::Table, colour: false, width: Some(100) }
    }

    #[test]
    fn images_have_their_users() {
        let mut images = view(50).plan.images;
        images.sort_by(|a, b| name(a).cmp(name(b)));
        let now = Timestamp::from_second(7200).unwrap();
        assert_eq!(
            table(&images, &screen(), now),
            "IMAGE                SIZE      LAST USED  USED BY\n\
             example.org/old:1    1.5 GiB   120m       -\n\
             example.org/pause:1  1.0 MiB   120m       (pinned)\n\
             example.org/web:1    40.0 MiB  now        default/web\n"
        );
    }

    #[test]
    fn a_dry_run_says_what_goes_and_why_the_rest_stays() {
        let now = Timestamp::from_second(7200).unwrap();
        assert_eq!(
            dry(&view(10), &screen(), now),
            "disk 90 % used, a collection begins at 85 % and ends at 80 %\n\
             1 of 3 images would go, 1.5 GiB of the 10.0 GiB wanted: no other may\n\n\
             VERDICT  IMAGE                SIZE      LAST USED  BECAUSE\n\
             remove   example.org/old:1    1.5 GiB   120m       the disk is too full\n\
             keep     example.org/pause:1  1.0 MiB   120m       pinned in the runtime\n\
             keep     example.org/web:1    40.0 MiB  now        in use by default/web\n"
        );
    }

    #[test]
    fn sizes_are_short() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(size(bytes), expected);
        }
    }
}
