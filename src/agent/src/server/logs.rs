//! `/containerLogs` and `/logs/`: files become answers piece by piece, as fast as they are read. Which files
//! is decided in core; how they are opened is in `log_files`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use longshore_core::ids::ContainerId;
use longshore_core::kubelet_api::log_source::{NoLog, log_source};
use longshore_core::kubelet_api::query::{LogOptions, Query};
use longshore_core::kubelet_api::route::ContainerTarget;
use longshore_core::wire::PodView;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::body::{self, Answer, Body};
use super::log_files::{Beneath, LogReader, Step};
use super::pods::find;
use crate::pods::{Clock, PodsView};

/// A followed file that is quiet is looked at after this, then twice as late, at most so late.
const SOONEST: Duration = Duration::from_millis(20);
const LATEST: Duration = Duration::from_millis(320);
/// A reader that takes nothing for so long is left.
const STALLED: Duration = Duration::from_secs(30 * 60);
/// Bytes of a node's log file read at once.
const CHUNK: usize = 64 << 10;
/// Where the node's own logs are, as the kubelet has it.
const NODE_LOGS: &str = "/var/log";

/// Answers with logs.
pub(super) struct Logs {
    pub(super) pods: PodsView,
    pub(super) clock: Clock,
    /// `podLogsDir`.
    pub(super) folder: PathBuf,
    /// Logs under way at the same time.
    pub(super) readers: Arc<Semaphore>,
}

impl Logs {
    pub(super) async fn container(&self, target: &ContainerTarget, query: &str) -> Answer {
        let now = self.clock.now();
        let options = match Query::parse(query).and_then(|query| LogOptions::parse(&query, now)) {
            Ok(options) => options,
            Err(why) => return body::text(StatusCode::BAD_REQUEST, format!("{why}\n")),
        };
        let Some(view) = find(&self.pods, &target.pod) else {
            let message = format!("pod \"{}\" does not exist\n", target.pod.pod);
            return body::text(StatusCode::NOT_FOUND, message);
        };
        let id = match log_source(&view.pod, &view.status, &target.container, options.previous) {
            Ok(id) => ContainerId::from(id),
            Err(error) => {
                let status = match error {
                    NoLog::NoContainer { .. } => StatusCode::NOT_FOUND,
                    NoLog::NotThere(_) => StatusCode::BAD_REQUEST,
                };
                return body::text(status, format!("{error}\n"));
            }
        };
        let Some(path) = log_path(&view, &id) else {
            let (container, pod) = (&target.container, &target.pod.pod);
            let message =
                format!("the log of container \"{container}\" in pod \"{pod}\" is gone with its instance\n");
            return body::text(StatusCode::BAD_REQUEST, message);
        };
        let Ok(place) = self.readers.clone().try_acquire_owned() else { return body::busy("logs") };
        let (root, followed) = (self.folder.clone(), options.follow);
        let opened = tokio::task::spawn_blocking(move || LogReader::open(&root, &path, &options)).await;
        match opened.map_err(io::Error::other).and_then(|opened| opened) {
            Ok(reader) => {
                let end = followed.then(|| End { pods: self.pods.clone(), view, id });
                let text = stream(reader, end, place);
                body::answer(StatusCode::OK, "text/plain; charset=utf-8", text)
            }
            Err(error) => {
                let message = format!("cannot read the log of container \"{}\": {error}\n", target.container);
                body::text(StatusCode::INTERNAL_SERVER_ERROR, message)
            }
        }
    }

    /// A file of the node's log folder, or what a folder below it holds.
    pub(super) async fn node(&self, parts: &[String]) -> Answer {
        let Ok(place) = self.readers.clone().try_acquire_owned() else { return body::busy("logs") };
        let below: PathBuf = parts.iter().collect();
        let found = tokio::task::spawn_blocking(move || node_log(Path::new(NODE_LOGS), &below)).await;
        match found.map_err(io::Error::other).and_then(|found| found) {
            Ok(NodeLog::Folder(names)) => {
                body::answer(StatusCode::OK, "text/html; charset=utf-8", body::whole(listing(&names)))
            }
            Ok(NodeLog::File(file, length)) => {
                let (sender, pieces) = mpsc::channel(1);
                tokio::spawn(send_file(file, length, sender, place));
                body::answer(StatusCode::OK, "text/plain; charset=utf-8", body::flow(pieces))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                body::text(StatusCode::NOT_FOUND, "404 page not found\n")
            }
            // What it would lead to is not for the caller to know.
            Err(error) => {
                tracing::debug!(%error, path = parts.join("/"), "a node's log is not shown");
                body::text(StatusCode::FORBIDDEN, "this is not a plain file below the log folder\n")
            }
        }
    }
}

/// Where the runtime writes the log of an instance.
fn log_path(view: &PodView, id: &ContainerId) -> Option<PathBuf> {
    let container = view.observed.containers.iter().find(|container| container.id == *id)?;
    Some(PathBuf::from(&container.log_path))
}

/// When a followed log ends: with its instance.
struct End {
    pods: PodsView,
    view: Arc<PodView>,
    id: ContainerId,
}

impl End {
    fn is_there(&self) -> bool {
        let Some(now) = self.pods.by_uid(&self.view.uid) else { return true };
        let mut instances = now.observed.containers.iter();
        instances.find(|container| container.id == self.id).is_none_or(|container| !container.may_run())
    }
}

fn stream(reader: LogReader, end: Option<End>, place: OwnedSemaphorePermit) -> Body {
    let (sender, pieces) = mpsc::channel(1);
    tokio::spawn(send_log(reader, end, sender, place));
    body::flow(pieces)
}

/// Reads as fast as the pieces are taken; ends with the log or with its reader. The place is given back then, also
/// where the connection never takes the end of the answer.
async fn send_log(
    mut reader: LogReader,
    end: Option<End>,
    sender: mpsc::Sender<io::Result<Bytes>>,
    _place: OwnedSemaphorePermit,
) {
    let mut pause = SOONEST;
    loop {
        let stepped = tokio::task::spawn_blocking(move || {
            let step = reader.step();
            (reader, step)
        });
        let Ok((back, step)) = stepped.await else { return };
        reader = back;
        match step {
            Ok(Step::More(bytes)) => {
                pause = SOONEST;
                if sender.send_timeout(Ok(bytes.into()), STALLED).await.is_err() {
                    return;
                }
            }
            Ok(Step::Idle) => {
                if end.as_ref().is_none_or(End::is_there) {
                    // One more look: its last words may have come between the two.
                    reader.stop_following();
                    continue;
                }
                tokio::select! {
                    () = sender.closed() => return,
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(LATEST),
                }
            }
            Ok(Step::Ended) => return,
            Err(error) => {
                // The reader sees an answer that breaks off, not one that ended well.
                let _ = sender.send_timeout(Err(error), STALLED).await;
                return;
            }
        }
    }
}

enum NodeLog {
    Folder(Vec<(String, bool)>),
    /// With its length of now: a file that grows has an end all the same.
    File(std::fs::File, u64),
}

fn node_log(root: &Path, below: &Path) -> io::Result<NodeLog> {
    if below.as_os_str().is_empty() {
        return Ok(NodeLog::Folder(Beneath::open(root, below)?.names()?));
    }
    let top = Beneath::open(root, Path::new(""))?;
    match Beneath::open(root, below) {
        Ok(folder) => Ok(NodeLog::Folder(folder.names()?)),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            let file = top.file(below)?.ok_or(io::ErrorKind::NotFound)?;
            let length = file.metadata()?.len();
            Ok(NodeLog::File(file, length))
        }
        Err(error) => Err(error),
    }
}

/// As Go's file server shows a folder.
fn listing(names: &[(String, bool)]) -> String {
    let mut html =
        String::from("<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n");
    for (name, is_folder) in names {
        let slash = if *is_folder { "/" } else { "" };
        html.push_str(&format!("<a href=\"{}{slash}\">{}{slash}</a>\n", link(name), escape(name)));
    }
    html.push_str("</pre>\n");
    html
}

fn link(name: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    name.bytes()
        .map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn escape(name: &str) -> String {
    name.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&#34;")
        .replace('\'', "&#39;")
}

async fn send_file(
    file: std::fs::File,
    length: u64,
    sender: mpsc::Sender<io::Result<Bytes>>,
    _place: OwnedSemaphorePermit,
) {
    let mut at = 0;
    let file = Arc::new(file);
    while at < length {
        let (file, wanted) = (file.clone(), usize::try_from(length - at).unwrap_or(CHUNK).min(CHUNK));
        let read = tokio::task::spawn_blocking(move || {
            let mut block = vec![0; wanted];
            let count = std::os::unix::fs::FileExt::read_at(&*file, &mut block, at)?;
            block.truncate(count);
            Ok::<_, io::Error>(block)
        });
        let piece = read.await.map_err(io::Error::other).and_then(|read| read);
        let last = piece.as_ref().map_or(true, Vec::is_empty);
        at += piece.as_ref().map_or(0, Vec::len) as u64;
        if matches!(&piece, Ok(piece) if piece.is_empty()) {
            // Cut meanwhile.
            return;
        }
        if sender.send_timeout(piece.map(Bytes::from), STALLED).await.is_err() || last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_logs_are_shown_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("sub")).unwrap();
        std::fs::write(root.path().join("sub/a.log"), "text").unwrap();
        std::os::unix::fs::symlink("/etc", root.path().join("out")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("passwd")).unwrap();
        let at = |below: &str| node_log(root.path(), Path::new(below));
        assert!(matches!(at("").unwrap(), NodeLog::Folder(names) if names.len() == 3));
        assert!(
            matches!(at("sub").unwrap(), NodeLog::Folder(names) if names == [("a.log".to_owned(), false)])
        );
        assert!(matches!(at("sub/a.log").unwrap(), NodeLog::File(_, 4)));
        for below in
            ["out", "out/passwd", "passwd", "..", "../etc/passwd", "sub/../../etc", "/etc/passwd", "none"]
        {
            assert!(at(below).is_err(), "{below}");
        }
    }

    #[test]
    fn names_do_no_harm_in_a_listing() {
        let html = listing(&[("<script>\"".to_owned(), false), ("pods".to_owned(), true)]);
        assert!(html.contains("<a href=\"%3Cscript%3E%22\">&lt;script&gt;&#34;</a>"), "{html}");
        assert!(html.contains("<a href=\"pods/\">pods/</a>"), "{html}");
    }
}
