//! What a container said when it ended: the file at its `terminationMessagePath`, or the end of its
//! log where its policy asks for that (behaviours 51). Read once, when the exit is first seen.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use longshore_core::ids::PodUid;
use longshore_core::pod::observed::{ContainerState, OOM_KILLED, ObservedContainer, ObservedPod};
use longshore_core::pod::render::TERMINATION_MESSAGE_POLICY;

use super::oom::OomKills;

/// Bytes of a message file that are kept.
const MAX_FILE: u64 = 4096;
/// Bytes and lines of a log that are kept.
const MAX_LOG: usize = 2048;
const MAX_LOG_LINES: usize = 80;
/// Enough of the log's end for [`MAX_LOG`] bytes of text with their time stamps.
const LOG_TAIL: u64 = 16 * 1024;

/// Exit code of a process that SIGKILL ended, by the shells' and runtimes' rule 128 + signal.
const BY_SIGKILL: i32 = 137;

/// Reads messages below the daemon's root folder, and asks the kernel whether it was the one who ended them.
#[derive(Clone, Debug)]
pub struct ExitMessages {
    root: PathBuf,
    kills: Option<OomKills>,
}

impl ExitMessages {
    pub fn new(root: PathBuf, kills: Option<OomKills>) -> Self {
        Self { root, kills }
    }

    /// A container of the pod is about to start.
    pub async fn begin(&self, uid: &PodUid) {
        if let Some(kills) = &self.kills {
            kills.begin(uid).await;
        }
    }

    /// The pod is gone.
    pub fn forget(&self, uid: &PodUid) {
        if let Some(kills) = &self.kills {
            kills.forget(uid);
        }
    }

    /// Adds the messages of a pod's ended containers.
    pub async fn add_to_pod(&self, pod: &mut ObservedPod) {
        let uid = pod.uid.clone();
        self.add(&uid, &mut pod.containers).await;
    }

    /// Adds the messages of those that have ended and whose runtime said nothing itself, and the reason where it
    /// was the kernel.
    pub async fn add(&self, uid: &PodUid, containers: &mut [ObservedContainer]) {
        self.add_oom_kills(uid, containers).await;
        for container in containers {
            if !matches!(&container.state, ContainerState::Exited { message, .. } if message.is_empty()) {
                continue;
            }
            let (root, uid, copy) = (self.root.clone(), uid.clone(), container.clone());
            let read = tokio::task::spawn_blocking(move || message_of(&root, &uid, &copy)).await;
            if let (Ok(Some(text)), ContainerState::Exited { message, .. }) = (read, &mut container.state) {
                *message = text;
            }
        }
    }

    /// A mark beside the messages keeps what was found for the next run of the daemon, which cannot ask again.
    async fn add_oom_kills(&self, uid: &PodUid, containers: &mut [ObservedContainer]) {
        let Some(kills) = &self.kills else { return };
        let in_doubt: Vec<_> = containers.iter_mut().filter(|container| is_in_doubt(container)).collect();
        let ids: Vec<_> = in_doubt.iter().map(|container| container.id.clone()).collect();
        let by_kernel = kills.ended_by_kernel(uid, &ids).await;
        for container in in_doubt {
            let mark = container_folder(&self.root, uid, container)
                .join(format!("{:08x}.{OOM_KILLED}", container.attempt));
            let found = by_kernel.contains(&container.id);
            let marked = tokio::task::spawn_blocking(move || remembered(&mark, found)).await;
            if let (Ok(true), ContainerState::Exited { reason, .. }) = (marked, &mut container.state) {
                OOM_KILLED.clone_into(reason);
            }
        }
    }
}

/// Whether the kernel ended it, as was found now or by an earlier look.
fn remembered(mark: &Path, found: bool) -> bool {
    if found && let Err(error) = File::create(mark) {
        tracing::warn!(%error, mark = %mark.display(), "the next start of the daemon will not know that the kernel killed this container for memory");
    }
    found || mark.exists()
}

/// Ended by SIGKILL, and the runtime does not say why.
fn is_in_doubt(container: &ObservedContainer) -> bool {
    matches!(&container.state, ContainerState::Exited { exit_code: BY_SIGKILL, reason, .. } if reason != OOM_KILLED)
}

fn container_folder(root: &Path, uid: &PodUid, container: &ObservedContainer) -> PathBuf {
    root.join("pods").join(uid.as_str()).join("containers").join(container.name.as_str())
}

fn message_of(root: &Path, uid: &PodUid, container: &ObservedContainer) -> Option<String> {
    let ContainerState::Exited { exit_code, .. } = container.state else { return None };
    let file = container_folder(root, uid, container).join(format!("{:08x}", container.attempt));
    let said = bounded_file(&file).unwrap_or_default();
    if !said.is_empty() {
        return Some(said);
    }
    let policy = container.annotations.get(TERMINATION_MESSAGE_POLICY);
    let from_log = policy.is_some_and(|policy| policy == "FallbackToLogsOnError") && exit_code != 0;
    from_log
        .then(|| log_end(Path::new(&container.log_path)).unwrap_or_default())
        .filter(|text| !text.is_empty())
}

/// The file is the container's to write: a link or a pipe in its place is not followed or waited for.
fn bounded_file(path: &Path) -> io::Result<String> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let mut data = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut data)?;
    Ok(String::from_utf8_lossy(&data).into_owned())
}

fn log_end(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut data = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut data)?;
    Ok(end_of_log(&String::from_utf8_lossy(&data)))
}

/// The text of the last lines of a CRI log (`time stream tag text`), within the bounds.
fn end_of_log(log: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut bytes = 0;
    for line in log.lines().rev().take(MAX_LOG_LINES) {
        // A line cut off at the front of what was read has no time stamp and says nothing whole.
        let mut parts = line.splitn(4, ' ').skip(2);
        let (Some(tag), Some(text)) = (parts.next(), parts.next()) else { continue };
        // The container's line goes on in the next one where the tag is P.
        let end = if tag.starts_with('P') { "" } else { "\n" };
        bytes += text.len() + end.len();
        if bytes > MAX_LOG {
            break;
        }
        lines.push(format!("{text}{end}"));
    }
    lines.reverse();
    lines.concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use super::*;
    use crate::pods::oom::tests as oom;

    fn exited(code: i32, policy: &str, log: &Path) -> ObservedContainer {
        ObservedContainer {
            id: "id".into(),
            sandbox: "s".into(),
            name: "job".into(),
            attempt: 2,
            state: ContainerState::Exited {
                started_at: None,
                finished_at: Timestamp::UNIX_EPOCH,
                exit_code: code,
                reason: "Error".into(),
                message: String::new(),
            },
            created_at: Timestamp::UNIX_EPOCH,
            image: String::new(),
            image_ref: String::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::from([(TERMINATION_MESSAGE_POLICY.to_owned(), policy.to_owned())]),
            log_path: log.display().to_string(),
        }
    }

    #[tokio::test]
    async fn the_file_comes_first_and_the_log_only_where_asked_for() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("pods/u/containers/job");
        std::fs::create_dir_all(&folder).unwrap();
        let log = root.path().join("2.log");
        std::fs::write(&log, "t stdout F one\nt stderr F two words\n").unwrap();
        let messages = ExitMessages::new(root.path().to_path_buf(), None);
        let cases = [
            ("", 1, "File", ""),
            ("", 0, "FallbackToLogsOnError", ""),
            ("", 1, "FallbackToLogsOnError", "one\ntwo words\n"),
            ("no such database", 1, "FallbackToLogsOnError", "no such database"),
        ];
        for (said, code, policy, wanted) in cases {
            std::fs::write(folder.join("00000002"), said).unwrap();
            let mut containers = [exited(code, policy, &log)];
            messages.add(&"u".into(), &mut containers).await;
            let ContainerState::Exited { message, .. } = &containers[0].state else { panic!() };
            assert_eq!(message, wanted, "{said:?} {code} {policy}");
        }
    }

    #[tokio::test]
    async fn a_kill_that_the_runtime_did_not_tell_of_is_known_and_stays_known_after_a_restart() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("pods/u/containers/job")).unwrap();
        let uid: PodUid = "u".into();
        let reason_after = async |messages: &ExitMessages, code: i32| {
            let mut containers = [exited(code, "File", Path::new(""))];
            messages.add(&uid, &mut containers).await;
            let ContainerState::Exited { reason, .. } = &containers[0].state else { panic!() };
            reason.clone()
        };
        let (kernel, kills) = oom::fake();
        let messages = ExitMessages::new(root.path().to_path_buf(), Some(kills));
        messages.begin(&uid).await;
        kernel.kill();
        assert_eq!(reason_after(&messages, 1).await, "Error", "it ended by itself");
        assert_eq!(reason_after(&messages, 137).await, OOM_KILLED);
        let (_, kills) = oom::fake();
        let restarted = ExitMessages::new(root.path().to_path_buf(), Some(kills));
        assert_eq!(reason_after(&restarted, 137).await, OOM_KILLED);
    }

    #[test]
    fn only_the_end_of_a_long_log_is_kept() {
        let log: String = (0..500).map(|n| format!("t stdout F line {n} {}\n", "x".repeat(40))).collect();
        let end = end_of_log(&log);
        assert!(end.len() <= MAX_LOG && end.contains("line 499") && !end.contains("line 400"), "{end}");
    }

    #[test]
    fn a_link_in_the_place_of_the_file_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("secret", root.path().join("link")).unwrap();
        assert!(bounded_file(&root.path().join("link")).is_err());
    }
}
