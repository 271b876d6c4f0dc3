//! `svc diff`: what is wanted against what the kernel holds now, and its repair on request. The daemon
//! reads the kernel anew for it.

use std::fmt::Write as _;

use longshore_core::ruleset::compare::Difference;
use longshore_core::service::view::DiffView;

use crate::error::{CliError, FAILED};
use crate::output::{Paint, Rows, Screen, mood, print, structured};
use crate::pods::Node;

/// Rows shown without `-o wide`; a flushed table would fill the screen for minutes.
const SHOWN: usize = 40;

/// Shows the differences; with `repair`, asks the daemon to bring the kernel back first. The code is 1
/// while something differs, as with diff(1).
pub async fn run(node: &Node, screen: &Screen, repair: bool) -> Result<u8, CliError> {
    let view: DiffView = if repair {
        node.daemon.post("/v1/dataplane/repair").await?
    } else {
        node.daemon.get("/v1/dataplane/diff").await?
    };
    let code = if view.error.is_some() || faults(&view) > 0 { FAILED } else { 0 };
    if !structured(screen, &view)? {
        print(&text(&view, screen))?;
    }
    Ok(code)
}

fn faults(view: &DiffView) -> usize {
    view.differences.iter().filter(|one| one.deviation.is_fault()).count()
}

fn text(view: &DiffView, screen: &Screen) -> String {
    let mut text = String::new();
    if let Some(count) = view.repaired {
        let objects = if count == 1 { "object" } else { "objects" };
        let _ = writeln!(text, "repaired: {count} {objects}");
    }
    if let Some(error) = &view.error {
        let head = "the kernel could not be compared";
        let why = screen.wrap(error, head.len() + 2);
        let _ = writeln!(text, "{}: {why}", screen.paint(Paint::Bad, head));
        return text;
    }
    let (faults, draining) = (faults(view), view.differences.len() - faults(view));
    let head = match faults {
        0 => format!("the kernel holds what is wanted: {} objects, mode {}", view.wanted, view.mode),
        1 => format!("1 object differs of {} wanted, mode {}", view.wanted, view.mode),
        many => format!("{many} objects differ, {} are wanted, mode {}", view.wanted, view.mode),
    };
    let paint = if faults == 0 { Paint::Good } else { Paint::Bad };
    let _ = writeln!(text, "{}", screen.paint(paint, &head));
    if draining > 0 {
        let _ = writeln!(text, "{draining} real servers drain: they wait for their last connections");
    }
    let all = screen.format == crate::output::Format::Wide;
    let shown: Vec<&Difference> =
        view.differences.iter().take(if all { usize::MAX } else { SHOWN }).collect();
    if !shown.is_empty() {
        let _ = write!(text, "\n{}", table(&shown).render(screen, mood));
    }
    let more = view.differences.len() - shown.len();
    if more > 0 {
        let _ = writeln!(text, "\nand {more} more: -o wide shows all");
    }
    if faults > 0 && view.repaired.is_none() {
        text.push_str("\nwhat to do: longshore svc diff --repair, or wait for the daemon's next audit\n");
    }
    text
}

fn table(differences: &[&Difference]) -> Rows {
    let mut rows = Rows::new(&["STATE", "*SERVICE", "*OBJECT", "WANTED / FOUND"]);
    for one in differences {
        let settings = match (one.wanted.as_str(), one.found.as_str()) {
            ("", "") => String::new(),
            (wanted, "") => wanted.to_owned(),
            ("", found) => format!("/ {found}"),
            (wanted, found) => format!("{wanted} / {found}"),
        };
        rows.push(vec![
            one.deviation.as_str().to_owned(),
            one.service.clone().unwrap_or_default(),
            one.object.clone(),
            settings,
        ]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::screen;
    use super::*;
    use crate::output::Format;

    fn view(differences: serde_json::Value, repaired: Option<u64>) -> DiffView {
        serde_json::from_value(json!({"mode": "nftables", "wanted": 12, "differences": differences,
            "repaired": repaired, "error": null}))
        .unwrap()
    }

    fn lost() -> serde_json::Value {
        json!([
            {"deviation": "missing", "object": "element 10.96.0.80 tcp 80 of services", "wanted": "goto n3",
             "found": "", "service": "default/web:http/tcp"},
            {"deviation": "extra", "object": "chain stranger of table ip longshore", "wanted": "", "found": "",
             "service": null},
        ])
    }

    #[test]
    fn differences_fit_eighty_columns_and_say_what_to_do() {
        assert_eq!(
            text(&view(lost(), None), &screen(Format::Table)),
            "2 objects differ, 12 are wanted, mode nftables\n\
             \n\
             STATE    SERVICE               OBJECT                        WANTED / FOUND\n\
             missing  default/web:http/tcp  element 10.96.0.80 tcp 80 of  goto n3\n\
             \u{20}                              services\n\
             extra    -                     chain stranger of table ip    -\n\
             \u{20}                              longshore\n\
             \nwhat to do: longshore svc diff --repair, or wait for the daemon's next audit\n"
        );
    }

    #[test]
    fn nothing_to_say_is_said_in_one_line() {
        assert_eq!(
            text(&view(json!([]), None), &screen(Format::Table)),
            "the kernel holds what is wanted: 12 objects, mode nftables\n"
        );
        assert_eq!(
            text(&view(json!([]), Some(2)), &screen(Format::Table)),
            "repaired: 2 objects\nthe kernel holds what is wanted: 12 objects, mode nftables\n"
        );
    }
}
