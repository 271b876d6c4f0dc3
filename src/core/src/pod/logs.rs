//! Log files of containers: what rotating one takes, and the name of the link beside all others
//! (behaviours 42, kubelet-surface B8; pkg/kubelet/logs/container_log_manager.go). Pure.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::ids::{ContainerId, ContainerName, PodKey};

/// Longest file name of ext4, bytes.
const MAX_NAME: usize = 255;

/// When a log is rotated and how much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// A log of this size or more is rotated, bytes (`containerLogMaxSize`).
    pub max_bytes: u64,
    /// Files of one container, the one being written counted, 2 or more (`containerLogMaxFiles`).
    pub max_files: usize,
}

/// One thing to do to the files beside a log, by file name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogStep {
    Remove(String),
    /// Write `<name>.gz`, then remove `name`.
    Compress(String),
    /// Rename the log itself and have the runtime open a new one; back again where it does not.
    Rotate {
        to: String,
    },
}

/// What to do about the log `name` of `bytes` bytes, where `others` are the names of all files beside it.
/// The newest rotated file stays plain, because a reader may still be at it; older ones are compressed.
/// Nothing while the log is small.
pub fn rotation(
    name: &str,
    bytes: u64,
    others: &[String],
    limits: LogLimits,
    now: Timestamp,
) -> Vec<LogStep> {
    if bytes < limits.max_bytes {
        return Vec::new();
    }
    let mut rotated = rotated_files(name, others);
    // Left by a rotation that was cut off: a half written file, or one that is compressed already.
    let left = others.iter().filter(|other| is_rotated(name, other) && !rotated.contains(other));
    let mut steps: Vec<LogStep> = left.map(|other| LogStep::Remove(other.clone())).collect();
    // With the one that comes now and the one that is written it is as many as may be.
    let excess = rotated.len().saturating_sub(limits.max_files.saturating_sub(2));
    steps.extend(rotated.drain(..excess).map(LogStep::Remove));
    let plain = rotated.into_iter().filter(|old| !is_packed(old));
    steps.extend(plain.map(LogStep::Compress));
    let to = format!("{name}.{}", now.strftime("%Y%m%d-%H%M%S"));
    if !others.contains(&to) {
        steps.push(LogStep::Rotate { to });
    }
    steps
}

/// Whether `other` is a rotated file of the log `name`, or what a rotation left half done.
pub fn is_rotated(name: &str, other: &str) -> bool {
    let suffix = other.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
    suffix.is_some_and(|suffix| suffix.starts_with(|c: char| c.is_ascii_digit()))
}

/// The complete files a log was rotated to, of the names beside it, oldest first: `0.log.20261121-101500`, plain or
/// `.gz`.
pub fn rotated_files(name: &str, others: &[String]) -> Vec<String> {
    let complete = |other: &&String| is_rotated(name, other) && !other.ends_with(".tmp");
    let mut files: Vec<String> = others.iter().filter(complete).cloned().collect();
    // For a moment a file is there twice: compressed, and plain until it is removed.
    let packed: Vec<String> =
        files.iter().filter(|other| is_packed(other)).map(|other| plain_name(other).to_owned()).collect();
    files.retain(|other| !packed.contains(other));
    // The suffix is a time, so the order of names is the order of writing.
    files.sort_unstable();
    files
}

/// Whether a rotated file is compressed.
pub fn is_packed(name: &str) -> bool {
    name.ends_with(".gz")
}

/// What a rotated file was called before it was compressed.
fn plain_name(name: &str) -> &str {
    name.strip_suffix(".gz").unwrap_or(name)
}

/// Where a reader that follows a log stands among the files it is rotated to. Its file may be rotated more than once
/// between two looks, and compressed, which makes another file of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// The newest rotated file when ours was opened, plain.
    newest: Option<String>,
    /// Ours was among them.
    rotated: bool,
}

impl Followed {
    /// After the file was opened: the rotated ones then, oldest first, and which of them is ours, if it was rotated
    /// in that moment.
    pub fn opened(files: &[String], ours: Option<&str>) -> Self {
        let newest = files.last().map(|newest| plain_name(newest).to_owned());
        Self { newest, rotated: ours.is_some() }
    }

    /// The files that were written after ours, oldest first. `ours` is its present name where it is to be found;
    /// `is_copy` says whether a compressed file holds what ours does.
    pub fn later<'a>(
        &self,
        files: &'a [String],
        ours: Option<&str>,
        is_copy: impl FnOnce(&str) -> bool,
    ) -> &'a [String] {
        if let Some(at) = files.iter().position(|file| Some(file.as_str()) == ours) {
            return &files[at + 1..];
        }
        let newest = self.newest.as_deref();
        let fresh = &files[files.partition_point(|file| Some(plain_name(file)) <= newest)..];
        match fresh.split_first() {
            // The first one that came after ours was opened is ours, unless it was removed.
            Some((first, rest)) if !self.rotated && is_packed(first) && is_copy(first) => rest,
            _ => fresh,
        }
    }
}

/// The folder of links to all containers' logs, where log shippers look: beside the folder of pods' logs,
/// `/var/log/containers` for `/var/log/pods`.
pub fn links_folder(pod_logs: &Path) -> PathBuf {
    pod_logs.with_file_name("containers")
}

/// Name of the link to one instance's log, cut as the kubelet cuts it.
pub fn link_name(pod: &PodKey, container: &ContainerName, id: &ContainerId) -> String {
    let mut name = format!("{}_{}_{container}-{id}", pod.name, pod.namespace);
    name.truncate(name.floor_char_boundary(MAX_NAME - ".log".len()));
    name + ".log"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_log_is_rotated_and_old_ones_are_thinned_out() {
        let now: Timestamp = "2026-11-21T10:15:00Z".parse().unwrap();
        let limits = LogLimits { max_bytes: 100, max_files: 4 };
        let remove = |name: &str| LogStep::Remove(name.to_owned());
        let compress = |name: &str| LogStep::Compress(name.to_owned());
        let rotate = || LogStep::Rotate { to: "0.log.20261121-101500".to_owned() };
        let (a, b, c) = ("0.log.20261121-090000", "0.log.20261121-093000", "0.log.20261121-100000");
        let (a_gz, b_gz) = ("0.log.20261121-090000.gz", "0.log.20261121-093000.gz");
        let cases: Vec<(u64, Vec<&str>, Vec<LogStep>)> = vec![
            (99, vec![a, b, c], vec![]),
            (100, vec![], vec![rotate()]),
            (500, vec![a], vec![compress(a), rotate()]),
            (500, vec![a_gz, b], vec![compress(b), rotate()]),
            (500, vec![c, a_gz, b_gz], vec![remove(a_gz), compress(c), rotate()]),
            (500, vec![a, b, c], vec![remove(a), compress(b), compress(c), rotate()]),
            // Cut off between the compressed file's rename and the plain one's removal, and before it.
            (500, vec![b, b_gz], vec![remove(b), rotate()]),
            (
                500,
                vec!["0.log.20261121-093000.tmp", b],
                vec![remove("0.log.20261121-093000.tmp"), compress(b), rotate()],
            ),
            // Another instance's files are its own.
            (500, vec!["10.log", "10.log.20261121-090000", "1.log"], vec![rotate()]),
            // Twice within a second: the first one's file is not written over.
            (500, vec!["0.log.20261121-101500"], vec![compress("0.log.20261121-101500")]),
        ];
        for (bytes, others, expected) in cases {
            let mut all: Vec<String> = others.iter().map(|name| (*name).to_owned()).collect();
            all.push("0.log".to_owned());
            assert_eq!(rotation("0.log", bytes, &all, limits, now), expected, "{bytes} {others:?}");
        }
    }

    #[test]
    fn rotated_files_are_told_from_others() {
        for (other, expected) in [
            ("0.log.20261121-090000", true),
            ("0.log.20261121-090000.gz", true),
            ("0.log.20261121-090000.tmp", true),
            ("0.log", false),
            ("0.log.bak", false),
            ("00.log.20261121-090000", false),
        ] {
            assert_eq!(is_rotated("0.log", other), expected, "{other}");
        }
    }

    #[test]
    fn a_follower_finds_what_came_after_its_file() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (a, b, c) = ("0.log.20261121-090000", "0.log.20261121-093000", "0.log.20261121-100000");
        let (a_gz, b_gz) = ("0.log.20261121-090000.gz", "0.log.20261121-093000.gz");
        assert_eq!(rotated_files("0.log", &names(&[c, "0.log", a, b_gz, b, "0.log.1.tmp"])), [a, b_gz, c]);
        // What was there when ours was opened, ours by its name of now, the compressed copy of ours, and the answer.
        type Case<'a> = (&'a [&'a str], &'a [&'a str], Option<&'a str>, Option<&'a str>, &'a [&'a str]);
        let cases: [Case<'_>; 8] = [
            (&[], &[], None, None, &[]),
            (&[], &[a], Some(a), None, &[]),
            (&[], &[a, b], Some(a), None, &[b]),
            // Compressed meanwhile.
            (&[], &[a_gz, b], None, Some(a_gz), &[b]),
            (&[a], &[a_gz, b_gz, c], None, Some(b_gz), &[c]),
            // Removed meanwhile: nothing that is left is ours.
            (&[], &[b_gz, c], None, None, &[b_gz, c]),
            (&[a], &[a_gz], None, Some(a_gz), &[]),
            // Not there yet, so that nobody opened it.
            (&[], &[a, b], None, None, &[a, b]),
        ];
        for (before, now, ours, copy, expected) in cases {
            let followed = Followed::opened(&names(before), None);
            let now = names(now);
            let later = followed.later(&now, ours, |name| Some(name) == copy);
            assert_eq!(later, names(expected), "{before:?} {now:?} {ours:?}");
        }
        // Ours was renamed in the moment it was opened, and looks like the next one by its length.
        let followed = Followed::opened(&names(&[a]), Some(a));
        assert_eq!(followed.later(&names(&[a_gz, b_gz]), None, |_| true), names(&[b_gz]));
    }

    #[test]
    fn links_are_named_as_shippers_expect_them() {
        let link = |name: &str| link_name(&PodKey::new("shop", name), &"app".into(), &"0123abcd".into());
        assert_eq!(link("web"), "web_shop_app-0123abcd.log");
        let long = link(&"x".repeat(250));
        assert_eq!((long.len(), long.ends_with(".log")), (255, true));
        assert_eq!(links_folder(Path::new("/var/log/pods")), Path::new("/var/log/containers"));
    }
}
