//! Collection of images (behaviours 26; pkg/kubelet/images/image_gc_manager.go): which are removed when
//! the disk fills up or when they were unused for too long, and why each of the others stays. Pure, so
//! that a dry run says exactly what a real one does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// When images are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcPolicy {
    /// Use of the disk that starts a collection, percent; 100 is never (`imageGCHighThresholdPercent`).
    pub high_percent: u8,
    /// Use of the disk that ends it, percent (`imageGCLowThresholdPercent`).
    pub low_percent: u8,
    /// Younger images stay (`imageMinimumGCAge`).
    pub min_age: Duration,
    /// Images unused for longer go, however empty the disk is (`imageMaximumGCAge`).
    pub max_age: Option<Duration>,
}

/// The file system images are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDisk {
    pub total_bytes: u64,
    pub available_bytes: u64,
}

impl ImageDisk {
    /// Use in percent, rounded up as the kubelet rounds it.
    pub fn used_percent(&self) -> u8 {
        let free = self.available_bytes.saturating_mul(100).checked_div(self.total_bytes).unwrap_or(100);
        u8::try_from(100 - free.min(100)).unwrap_or(100)
    }
}

/// An image as the runtime lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedImage {
    pub id: String,
    /// Names with tags, then those with digests.
    pub names: Vec<String>,
    pub size_bytes: u64,
    /// The runtime says that it must stay.
    pub pinned: bool,
}

impl ListedImage {
    /// Whether a pod that names `reference` means this image; names may lack registry and tag.
    pub fn answers_to(&self, reference: &str) -> bool {
        let wanted = full_name(reference);
        self.id == reference || self.names.iter().any(|name| *name == reference || full_name(name) == wanted)
    }
}

/// `nginx` -> `docker.io/library/nginx:latest`, as container runtimes complete a name.
fn full_name(reference: &str) -> String {
    let (first, rest) = reference.split_once('/').unwrap_or(("", reference));
    let has_registry = first.contains(['.', ':']) || first == "localhost";
    let mut name = match (has_registry, first.is_empty()) {
        (true, _) => reference.to_owned(),
        (false, true) => format!("docker.io/library/{rest}"),
        (false, false) => format!("docker.io/{reference}"),
    };
    let last = name.rsplit('/').next().unwrap_or_default();
    if !last.contains([':', '@']) {
        name.push_str(":latest");
    }
    name
}

/// What the agent saw of one image over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// `None`: it was there before the agent.
    pub first: Option<Timestamp>,
    /// When a container last used it; for images from before the agent, when the agent started.
    pub last_used: Timestamp,
}

/// What was seen of all images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageLedger {
    seen: BTreeMap<String, Seen>,
    looked: bool,
}

impl ImageLedger {
    /// One look at the images and at who uses them.
    pub fn observe(
        &mut self,
        images: &[ListedImage],
        users: &BTreeMap<String, BTreeSet<String>>,
        now: Timestamp,
    ) {
        let first = self.looked.then_some(now);
        self.looked = true;
        self.seen.retain(|id, _| images.iter().any(|image| image.id == *id));
        for image in images {
            let seen = self.seen.entry(image.id.clone()).or_insert(Seen { first, last_used: now });
            if users.contains_key(&image.id) {
                seen.last_used = now;
            }
        }
    }
}

/// Why an image is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Removal {
    /// The disk is fuller than the high threshold.
    DiskFull,
    /// Unused for longer than `imageMaximumGCAge`.
    TooOld,
}

/// Why an image stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kept {
    InUse,
    Pinned,
    /// Younger than `imageMinimumGCAge`.
    TooYoung,
    /// There is room enough.
    NotNeeded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    Remove(Removal),
    Keep(Kept),
}

/// One image and what is to happen to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JudgedImage {
    #[serde(flatten)]
    pub image: ListedImage,
    /// Pods that use it, `namespace/name`.
    pub used_by: BTreeSet<String>,
    pub seen: Seen,
    pub verdict: Verdict,
}

/// What a collection would do now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GcPlan {
    /// Bytes to free for the disk's sake; 0 where it is not full.
    pub wanted_bytes: u64,
    /// Bytes of the images to remove.
    pub freed_bytes: u64,
    /// In the order they would go: longest unused first.
    pub images: Vec<JudgedImage>,
}

/// Judges every image. `users` are the pods by image id; without a `disk` only age counts.
pub fn plan(
    images: &[ListedImage],
    users: &BTreeMap<String, BTreeSet<String>>,
    ledger: &ImageLedger,
    disk: Option<ImageDisk>,
    (policy, now): (&GcPolicy, Timestamp),
) -> GcPlan {
    let mut judged: Vec<JudgedImage> = images
        .iter()
        .map(|image| {
            let seen =
                ledger.seen.get(&image.id).copied().unwrap_or(Seen { first: Some(now), last_used: now });
            let used_by = users.get(&image.id).cloned().unwrap_or_default();
            let verdict = Verdict::Keep(Kept::NotNeeded);
            JudgedImage { image: image.clone(), used_by, seen, verdict }
        })
        .collect();
    judged.sort_by(|a, b| order(a).cmp(&order(b)));
    let wanted_bytes = disk.map_or(0, |disk| wanted(disk, policy));
    let mut freed_bytes = 0;
    for image in &mut judged {
        image.verdict = verdict(image, freed_bytes < wanted_bytes, policy, now);
        if matches!(image.verdict, Verdict::Remove(_)) {
            freed_bytes += image.image.size_bytes;
        }
    }
    GcPlan { wanted_bytes, freed_bytes, images: judged }
}

fn order(image: &JudgedImage) -> (Timestamp, Option<Timestamp>, &str) {
    (image.seen.last_used, image.seen.first, &image.image.id)
}

/// Bytes to free until the low threshold is reached.
fn wanted(disk: ImageDisk, policy: &GcPolicy) -> u64 {
    if policy.high_percent >= 100 || disk.used_percent() < policy.high_percent {
        return 0;
    }
    let keep_free = u128::from(disk.total_bytes) * u128::from(100 - policy.low_percent.min(100)) / 100;
    u64::try_from(keep_free).unwrap_or(u64::MAX).saturating_sub(disk.available_bytes)
}

fn verdict(image: &JudgedImage, full: bool, policy: &GcPolicy, now: Timestamp) -> Verdict {
    let longer = |since: Timestamp, span: Duration| {
        now.duration_since(since) > SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX)
    };
    if !image.used_by.is_empty() {
        return Verdict::Keep(Kept::InUse);
    }
    if image.image.pinned {
        return Verdict::Keep(Kept::Pinned);
    }
    if policy.max_age.is_some_and(|max| longer(image.seen.last_used, max)) {
        return Verdict::Remove(Removal::TooOld);
    }
    if image.seen.first.is_some_and(|first| !longer(first, policy.min_age)) {
        return Verdict::Keep(Kept::TooYoung);
    }
    if full { Verdict::Remove(Removal::DiskFull) } else { Verdict::Keep(Kept::NotNeeded) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + second).unwrap()
    }

    fn image(id: &str, gib: u64) -> ListedImage {
        ListedImage {
            id: id.to_owned(),
            names: vec![format!("docker.io/library/{id}:latest")],
            size_bytes: gib << 30,
            pinned: id == "pause",
        }
    }

    fn policy(max_age: Option<u64>) -> GcPolicy {
        GcPolicy {
            high_percent: 85,
            low_percent: 80,
            min_age: Duration::from_secs(120),
            max_age: max_age.map(Duration::from_secs),
        }
    }

    fn disk(free_percent: u64) -> Option<ImageDisk> {
        Some(ImageDisk { total_bytes: 100 << 30, available_bytes: free_percent << 30 })
    }

    #[test]
    fn the_longest_unused_go_first_and_no_more_than_needed() {
        use Kept::{InUse, NotNeeded, Pinned, TooYoung};
        use Removal::{DiskFull, TooOld};
        let images =
            [image("web", 4), image("old", 3), image("older", 4), image("pause", 1), image("new", 5)];
        let users = |ids: &[&str]| {
            ids.iter().map(|id| ((*id).to_owned(), BTreeSet::from(["default/p".to_owned()]))).collect()
        };
        // All but the last were there before the agent; `old` was used for a while.
        let mut ledger = ImageLedger::default();
        ledger.observe(&images[..4], &BTreeMap::new(), at(0));
        ledger.observe(&images[..4], &users(&["web", "old"]), at(1000));
        ledger.observe(&images, &users(&["web"]), at(5000));
        let (keep, remove) = (Verdict::Keep, Verdict::Remove);
        let cases: [(_, _, i64, u64, [Verdict; 5]); 6] = [
            (
                disk(16),
                None,
                5060,
                0,
                [keep(NotNeeded), keep(Pinned), keep(NotNeeded), keep(InUse), keep(TooYoung)],
            ),
            (
                disk(15),
                None,
                5060,
                5,
                [remove(DiskFull), keep(Pinned), remove(DiskFull), keep(InUse), keep(TooYoung)],
            ),
            (
                disk(12),
                None,
                5060,
                8,
                [remove(DiskFull), keep(Pinned), remove(DiskFull), keep(InUse), keep(TooYoung)],
            ),
            (
                disk(12),
                None,
                5121,
                8,
                [remove(DiskFull), keep(Pinned), remove(DiskFull), keep(InUse), remove(DiskFull)],
            ),
            (
                disk(50),
                Some(4500),
                5060,
                0,
                [remove(TooOld), keep(Pinned), keep(NotNeeded), keep(InUse), keep(TooYoung)],
            ),
            (
                None,
                None,
                9000,
                0,
                [keep(NotNeeded), keep(Pinned), keep(NotNeeded), keep(InUse), keep(NotNeeded)],
            ),
        ];
        for (disk, max_age, now, wanted_gib, expected) in cases {
            let made = plan(&images, &users(&["web"]), &ledger, disk, (&policy(max_age), at(now)));
            let ids: Vec<_> = made.images.iter().map(|judged| judged.image.id.as_str()).collect();
            assert_eq!(ids, ["older", "pause", "old", "web", "new"]);
            let verdicts: Vec<_> = made.images.iter().map(|judged| judged.verdict).collect();
            assert_eq!(verdicts, expected, "{disk:?} {max_age:?} {now}");
            assert_eq!(made.wanted_bytes, wanted_gib << 30, "{disk:?}");
        }
        let never = GcPolicy { high_percent: 100, ..policy(None) };
        let made = plan(&images, &users(&[]), &ledger, disk(0), (&never, at(9000)));
        assert_eq!((made.wanted_bytes, made.freed_bytes), (0, 0));
    }

    #[test]
    fn names_are_completed_before_they_are_compared() {
        let known = ListedImage {
            names: vec!["docker.io/library/nginx:latest".into(), "example.org/shop/web:1".into()],
            ..image("sha256:1", 1)
        };
        for (reference, expected) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("library/nginx", true),
            ("docker.io/library/nginx", true),
            ("nginx:1.29", false),
            ("example.org/shop/web:1", true),
            ("example.org/shop/web", false),
            ("sha256:1", true),
        ] {
            assert_eq!(known.answers_to(reference), expected, "{reference}");
        }
    }
}
