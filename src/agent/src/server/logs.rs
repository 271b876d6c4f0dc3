//! `/containerLogs`: files become answers piece by piece, as fast as they are read. Which files
//! is decided in core; how they are opened is in `log_files`.

use std::io;
use std::path::PathBuf;
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
use super::log_files::{LogReader, Step};
use super::pods::find;
use crate::pods::{Clock, PodsView};

/// A followed file that is quiet is looked at after this, then twice as late, at most so late.
const SOONEST: Duration = Duration::from_millis(20);
const LATEST: Duration = Duration::from_millis(320);
/// A reader that takes nothing for so long is left.
pub(super) const STALLED: Duration = Duration::from_secs(30 * 60);

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
