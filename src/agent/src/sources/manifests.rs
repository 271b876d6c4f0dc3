//! Watches a folder of manifests: inotify for speed, a regular listing as the audit, and one
//! `Folder` that decides what it all means. Only looking and waiting happen here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchMask};
use jiff::Timestamp;
use longshore_core::pod::desired::DesiredPod;
use longshore_core::wire::SourceProblem;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::folder::{Change, FileContent, Folder, MAX_FILE_BYTES, MAX_FILES, Scan};
use super::memory;
use crate::kept;
use crate::text::error_chain;

/// Quiet time after the last event before the folder is looked at while a file is gone or half there: an editor's
/// rename dance is one change.
const SETTLE: Duration = Duration::from_millis(100);
/// The same where every file that was touched is there in full: only files that came together are waited for.
const SETTLE_ARRIVED: Duration = Duration::from_millis(2);
/// Changes are looked at after this long even while more of them come.
const SETTLE_AT_MOST: Duration = Duration::from_secs(1);
/// A file somebody writes to is not read before it is closed, for at most this long.
const WRITING_AT_MOST: Duration = Duration::from_secs(30);
/// While there is no folder to watch, one looks for it this often.
const MISSING_CHECK: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct ManifestOptions {
    pub folder: PathBuf,
    /// Time between two listings without an event (`fileCheckFrequency`).
    pub audit_period: Duration,
    /// File that keeps what the folder said, for a start with a broken manifest; `None` keeps nothing.
    pub memory: Option<PathBuf>,
}

/// Takes the changes; called from the watching task, must not block.
pub type Sink = Arc<dyn Fn(Change) + Send + Sync>;

/// A watched folder. Dropping it ends the watching.
#[derive(Debug)]
pub struct Manifests {
    task: JoinHandle<()>,
    shared: Arc<Mutex<Shared>>,
    synced: watch::Receiver<bool>,
}

#[derive(Debug, Default)]
struct Shared {
    problems: Vec<SourceProblem>,
    summary: String,
}

impl Manifests {
    /// Starts to watch. The folder need not be there yet.
    /// `remembered` are the pods an earlier run of the daemon had from it: they outlive a file that is
    /// broken at this moment.
    pub fn start(options: ManifestOptions, remembered: Vec<DesiredPod>, sink: Sink) -> Self {
        let mut folder = Folder::new(&options.folder);
        folder.remember(remembered);
        folder.recall(options.memory.iter().flat_map(|path| memory::load(path)));
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (synced_sender, synced) = watch::channel(false);
        let watcher = Watcher {
            folder,
            options,
            sink,
            shared: shared.clone(),
            synced: synced_sender,
            seen: HashMap::new(),
            writing: HashMap::new(),
            unsettled: BTreeSet::new(),
        };
        Self { task: tokio::spawn(watcher.run()), shared, synced }
    }

    /// True from the first listing of the folder on.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.clone()
    }

    /// What is wrong with the folder's files now.
    pub fn problems(&self) -> Vec<SourceProblem> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).problems.clone()
    }

    /// `manifests /etc/longshore/manifests: 12 files, 20 objects`.
    pub fn summary(&self) -> String {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).summary.clone()
    }
}

impl Drop for Manifests {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What tells one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Signature {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

struct Watcher {
    options: ManifestOptions,
    folder: Folder,
    sink: Sink,
    shared: Arc<Mutex<Shared>>,
    synced: watch::Sender<bool>,
    /// What was read of each file.
    seen: HashMap<PathBuf, Signature>,
    /// Files written to and not closed, since when.
    writing: HashMap<OsString, Instant>,
    /// Files that went, or came and were not closed, since the last look: their change may be half done.
    unsettled: BTreeSet<OsString>,
}

/// What an event says of the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    /// Something of a manifest.
    Change,
    /// A file that is none.
    Nothing,
    /// This watch sees nothing more.
    Ended,
}

type Events = EventStream<[u8; 4096]>;

impl Watcher {
    async fn run(mut self) {
        let mut events = None;
        loop {
            if events.is_none() {
                // First the watch, then the listing: what comes in between is seen by both.
                events = watch_folder(&self.options.folder);
            }
            let readable = self.look().await;
            if !readable {
                events = None;
            }
            let pause = self.pause(events.is_some());
            if let Some(stream) = &mut events
                && !self.next_change(stream, pause).await
            {
                events = None;
            } else if events.is_none() {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Lists the folder and tells what changed. `false` where the folder cannot be read.
    async fn look(&mut self) -> bool {
        self.writing.retain(|_, since| since.elapsed() < WRITING_AT_MOST);
        let (root, seen) = (self.options.folder.clone(), std::mem::take(&mut self.seen));
        let writing: Vec<OsString> = self.writing.keys().cloned().collect();
        let listing = tokio::task::spawn_blocking(move || list(&root, seen, &writing)).await;
        let (scan, seen) = match listing {
            Ok(listing) => listing,
            Err(error) => (Scan::Unreadable(error.to_string()), HashMap::new()),
        };
        self.seen = seen;
        let readable = matches!(scan, Scan::Files(_));
        let changes = self.folder.apply(scan, Timestamp::now());
        let keep = changes.iter().any(|change| !matches!(change, Change::Pod(_)));
        for change in changes {
            (self.sink)(change);
            // The first pods of many are on their way before the last ones are looked at.
            tokio::task::yield_now().await;
        }
        if keep {
            self.keep().await;
        }
        self.tell();
        if readable && !*self.synced.borrow() {
            self.synced.send_replace(true);
        }
        readable
    }

    /// A file on the daemon's own disk; what cannot be kept costs nothing until a restart. It is written whole,
    /// with thousands of objects for a while, and nobody but the next look waits for it.
    async fn keep(&self) {
        let Some(path) = self.options.memory.clone() else { return };
        let told = self.folder.to_remember();
        let saved = tokio::task::spawn_blocking(move || kept::save(&path, &told.written_out())).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(error = error_chain(&error), "what the manifests say is not kept for a restart");
        }
    }

    fn tell(&self) {
        let problems = self.folder.problems();
        let (files, objects) = self.folder.counts();
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        for problem in problems.iter().filter(|problem| !shared.problems.contains(problem)) {
            tracing::warn!(place = problem.place, object = problem.object, "{}", problem.message);
        }
        shared.problems = problems;
        let folder = self.options.folder.display();
        shared.summary = format!("manifests {folder}: {files} files, {objects} objects");
    }

    fn pause(&self, watched: bool) -> Duration {
        let now = Timestamp::now();
        let mut pause = self.options.audit_period;
        if !watched {
            pause = pause.min(MISSING_CHECK);
        }
        if !self.writing.is_empty() {
            pause = pause.min(WRITING_AT_MOST);
        }
        if let Some(at) = self.folder.look_again_at(now) {
            pause = pause.min(Duration::try_from(at.duration_since(now)).unwrap_or_default());
        }
        pause
    }

    /// Waits for the next change to settle, or for the audit. `false` where the watch has ended.
    async fn next_change(&mut self, events: &mut Events, pause: Duration) -> bool {
        let audit = Instant::now() + pause;
        loop {
            let Ok(event) = tokio::time::timeout_at(audit, events.next()).await else { return true };
            match self.note(event) {
                Noted::Change => break,
                Noted::Nothing => {}
                Noted::Ended => return false,
            }
        }
        let latest = Instant::now() + SETTLE_AT_MOST;
        loop {
            let settle = if self.unsettled.is_empty() { SETTLE_ARRIVED } else { SETTLE };
            match tokio::time::timeout_at((Instant::now() + settle).min(latest), events.next()).await {
                Err(_) => break,
                Ok(event) => match self.note(event) {
                    Noted::Ended => return false,
                    Noted::Change | Noted::Nothing => {}
                },
            }
        }
        self.unsettled.clear();
        true
    }

    /// Remembers who is writing and what is half done.
    fn note(&mut self, event: Option<std::io::Result<inotify::Event<OsString>>>) -> Noted {
        let Some(Ok(event)) = event else { return Noted::Ended };
        if event.mask.intersects(EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF) {
            return Noted::Ended;
        }
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            self.writing.clear();
        }
        let Some(name) = event.name else { return Noted::Change };
        if !is_manifest_name(Path::new(&name)) {
            return Noted::Nothing;
        }
        if event.mask.contains(EventMask::MODIFY) {
            self.writing.entry(name.clone()).or_insert_with(Instant::now);
        } else if !event.mask.contains(EventMask::CREATE) {
            self.writing.remove(&name);
        }
        if event.mask.intersects(EventMask::CLOSE_WRITE | EventMask::MOVED_TO) {
            self.unsettled.remove(&name);
        } else {
            self.unsettled.insert(name);
        }
        Noted::Change
    }
}

fn watch_folder(folder: &Path) -> Option<Events> {
    let inotify = Inotify::init().ok()?;
    let mask = WatchMask::CREATE
        | WatchMask::MODIFY
        | WatchMask::CLOSE_WRITE
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO
        | WatchMask::DELETE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR;
    inotify.watches().add(folder, mask).ok()?;
    inotify.into_event_stream([0; 4096]).ok()
}

/// Whether a file of this name is a manifest: not hidden, and `.yaml`, `.yml` or `.json`. Copies that
/// editors and people leave beside it (`web.yaml~`, `web.yaml.bak`) are not.
fn is_manifest_name(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// Reads the folder: new contents for files whose signature changed, in the order of their names.
fn list(
    root: &Path,
    mut seen: HashMap<PathBuf, Signature>,
    writing: &[OsString],
) -> (Scan, HashMap<PathBuf, Signature>) {
    let names = match file_names(root) {
        Ok(names) => names,
        Err(error) => return (Scan::Unreadable(error.to_string()), seen),
    };
    let mut files = BTreeMap::new();
    let mut now_seen = HashMap::new();
    for (index, name) in names.into_iter().enumerate() {
        let before = seen.remove(&name);
        if index >= MAX_FILES {
            let why = format!("the folder holds more than {MAX_FILES} manifests; the first by name count");
            files.insert(name, FileContent::Unreadable(why));
            continue;
        }
        let busy = writing.iter().any(|busy| Path::new(busy) == name);
        let (content, signature) =
            if busy { (Ok(FileContent::Same), before) } else { read_file(&root.join(&name), before) };
        let content = match content {
            // Removed since the listing: as if it had not been there.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => FileContent::Unreadable(error.to_string()),
            Ok(content) => content,
        };
        if let Some(signature) = signature {
            now_seen.insert(name.clone(), signature);
        }
        files.insert(name, content);
    }
    (Scan::Files(files), now_seen)
}

fn file_names(root: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root)? {
        let name = PathBuf::from(entry?.file_name());
        if is_manifest_name(&name) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

type Looked = (std::io::Result<FileContent>, Option<Signature>);

fn read_file(path: &Path, before: Option<Signature>) -> Looked {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return (Err(error), None),
    };
    let signature = Signature::of(&metadata);
    if before == Some(signature) {
        return (Ok(FileContent::Same), before);
    }
    (read_content(path, &metadata), Some(signature))
}

fn read_content(path: &Path, metadata: &Metadata) -> std::io::Result<FileContent> {
    if !metadata.is_file() {
        return Ok(FileContent::Unreadable("it is not a regular file".to_owned()));
    }
    let too_large = || FileContent::Unreadable(format!("it is larger than {MAX_FILE_BYTES} bytes; split it"));
    if metadata.len() > MAX_FILE_BYTES {
        return Ok(too_large());
    }
    // Not blocking: should a pipe have taken the file's place since, opening it must not hang.
    let file = std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(if bytes.len() as u64 > MAX_FILE_BYTES { too_large() } else { FileContent::Bytes(bytes) })
}

#[cfg(test)]
#[path = "manifests_tests.rs"]
mod tests;
