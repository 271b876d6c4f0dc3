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
    let prefix = format!("{name}.");
    let mut steps = Vec::new();
    let mut rotated: Vec<&String> = Vec::new();
    for other in others.iter().filter(|other| other.starts_with(&prefix)) {
        // Left by a rotation that was cut off: a half written file, or one that is compressed already.
        let compressed = format!("{other}.gz");
        if other.ends_with(".tmp") || others.contains(&compressed) {
            steps.push(LogStep::Remove(other.clone()));
        } else {
            rotated.push(other);
        }
    }
    // The suffix is a time, so the order of names is the order of writing.
    rotated.sort();
    // With the one that comes now and the one that is written it is as many as may be.
    let excess = rotated.len().saturating_sub(limits.max_files.saturating_sub(2));
    steps.extend(rotated.drain(..excess).map(|old| LogStep::Remove(old.clone())));
    let plain = rotated.iter().filter(|old| !old.ends_with(".gz"));
    steps.extend(plain.map(|old| LogStep::Compress((*old).clone())));
    let to = format!("{prefix}{}", now.strftime("%Y%m%d-%H%M%S"));
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
    fn links_are_named_as_shippers_expect_them() {
        let link = |name: &str| link_name(&PodKey::new("shop", name), &"app".into(), &"0123abcd".into());
        assert_eq!(link("web"), "web_shop_app-0123abcd.log");
        let long = link(&"x".repeat(250));
        assert_eq!((long.len(), long.ends_with(".log")), (255, true));
        assert_eq!(links_folder(Path::new("/var/log/pods")), Path::new("/var/log/containers"));
    }
}
