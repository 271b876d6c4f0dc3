//! What a folder of manifests wants, as a pure state: contents of files in, changes of objects and
//! problems out. A broken file keeps what it last said; nothing is lost by a mistake in an editor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use longshore_core::ids::{ObjectKey, PodKey, PodUid};
use longshore_core::pod::desired::{Deletion, DesiredPod, EndCause, PodSource};
use longshore_core::service::types::Service;
use longshore_core::wire::SourceProblem;

use super::memory::Remembered;
use super::object::{Fault, KeptSlice, Kind, Object, ObjectId, read_document};
use crate::document;

/// Larger files are a problem and are not read, bytes. The API's own limit of an object is 1.5 MiB.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// More files than this in one folder are a problem; the first by name count.
pub const MAX_FILES: usize = 4096;
/// After the folder was gone and came back, a file still missing is given this long to come back too:
/// `mkdir` and `cp` are two steps, and the pods run.
pub const RETURN_GRACE: SignedDuration = SignedDuration::from_secs(10);

/// One look at the folder.
#[derive(Clone, Debug)]
pub enum Scan {
    Files(BTreeMap<PathBuf, FileContent>),
    /// The folder itself cannot be read; why.
    Unreadable(String),
}

#[derive(Clone, Debug)]
pub enum FileContent {
    /// As at the last look.
    Same,
    Bytes(Vec<u8>),
    /// Too large, no permission, an I/O error; why.
    Unreadable(String),
}

/// One change for the rest of the daemon. `None` means that the object is gone.
#[derive(Clone, Debug)]
pub enum Change {
    ConfigMap(ObjectKey, Option<Arc<ConfigMap>>),
    Secret(ObjectKey, Option<Arc<Secret>>),
    Service(ObjectKey, Option<Arc<Service>>),
    EndpointSlice(ObjectKey, Option<KeptSlice>),
    /// A pod to run, or, with `deletion` set, one to end.
    Pod(Box<DesiredPod>),
}

/// An object and where it was written.
#[derive(Clone, Debug, PartialEq)]
struct Written {
    object: Object,
    /// Of its file; one text for all objects in it.
    path: Arc<Path>,
    document: usize,
}

/// What is to be kept of a folder, cheap to take and not written out yet.
#[derive(Debug)]
pub struct ToRemember(Vec<(ObjectId, Written)>);

impl ToRemember {
    pub fn written_out(&self) -> Vec<Remembered> {
        let of = |(id, written): &(ObjectId, Written)| {
            Remembered::of(id, &written.object, &written.path, written.document)
        };
        self.0.iter().filter_map(of).collect()
    }
}

/// Fewer documents than this are not worth a second thread.
const WORTH_A_THREAD: usize = 24;

/// What each document says, in order. A node that boots with a hundred pods in one file has nothing else to do yet.
fn read_all(documents: &[document::Node]) -> Vec<Vec<Result<(ObjectId, Object), Fault>>> {
    if documents.len() < WORTH_A_THREAD {
        return documents.iter().map(read_document).collect();
    }
    let (front, back) = documents.split_at(documents.len() / 2);
    std::thread::scope(|scope| {
        let back = scope.spawn(|| back.iter().map(read_document).collect::<Vec<_>>());
        let mut read: Vec<_> = front.iter().map(read_document).collect();
        read.extend(back.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        read
    })
}

/// What one file last said.
#[derive(Clone, Debug, Default)]
struct FileState {
    objects: BTreeMap<ObjectId, Written>,
    problems: Vec<Problem>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Problem {
    place: String,
    object: Option<String>,
    message: String,
}

/// The folder as last understood.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
    files: BTreeMap<PathBuf, FileState>,
    /// Which files have an object: the first by path has it, the others are problems.
    holders: BTreeMap<ObjectId, Vec<PathBuf>>,
    duplicates: BTreeMap<ObjectId, Vec<Problem>>,
    /// Objects of files that changed since the daemon was told of them.
    touched: BTreeSet<ObjectId>,
    /// What the daemon was told.
    published: BTreeMap<ObjectId, Written>,
    problems: BTreeMap<Problem, Timestamp>,
    gone: bool,
    returned_at: Option<Timestamp>,
}

impl Folder {
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            files: BTreeMap::new(),
            holders: BTreeMap::new(),
            duplicates: BTreeMap::new(),
            touched: BTreeSet::new(),
            published: BTreeMap::new(),
            problems: BTreeMap::new(),
            gone: false,
            returned_at: None,
        }
    }

    /// What an earlier run of the daemon knew of this folder's pods. A file that cannot be understood
    /// at the first look then keeps them, as it would have kept them without a restart. To be called
    /// before the first look; says nothing by itself.
    pub fn remember(&mut self, pods: impl IntoIterator<Item = DesiredPod>) {
        for pod in pods {
            let PodSource::File { path, document } = pod.source else { continue };
            let Ok(name) = path.strip_prefix(&self.root) else { continue };
            let key = ObjectKey::new(pod.key.namespace, pod.key.name);
            let object = Object::Pod { pod: pod.pod, uid: pod.uid };
            let name = name.to_owned();
            let written = Written { object, path: path.as_path().into(), document };
            self.bring_back(name, ObjectId { kind: Kind::Pod, key }, written);
        }
    }

    /// What an earlier run had beside pods, likewise.
    pub fn recall(&mut self, objects: impl IntoIterator<Item = Remembered>) {
        for remembered in objects {
            let (path, document) = (remembered.path.clone(), remembered.document);
            let Ok(name) = path.strip_prefix(&self.root).map(Path::to_path_buf) else { continue };
            let Some((id, object)) = remembered.recall() else { continue };
            self.bring_back(name, id, Written { object, path: path.into(), document });
        }
    }

    fn bring_back(&mut self, name: PathBuf, id: ObjectId, written: Written) {
        self.hold(&id, &name);
        self.files.entry(name).or_default().objects.insert(id, written);
    }

    /// What the daemon was told beside pods, to be kept for [`Folder::recall`].
    pub fn to_remember(&self) -> ToRemember {
        let told = self.published.iter().filter(|(id, _)| id.kind != Kind::Pod);
        ToRemember(told.map(|(id, written)| (id.clone(), written.clone())).collect())
    }

    /// Takes one look and returns what changed, in the order it should be heard: what pods refer to
    /// first, then ends of pods, then pods.
    pub fn apply(&mut self, scan: Scan, now: Timestamp) -> Vec<Change> {
        let files = match scan {
            Scan::Unreadable(why) => {
                self.gone = true;
                let message = format!(
                    "the manifest folder cannot be read ({why}); what runs goes on, bring the folder back"
                );
                self.note_problems(
                    [Problem { place: self.root.display().to_string(), object: None, message }],
                    now,
                );
                return Vec::new();
            }
            Scan::Files(files) => files,
        };
        if std::mem::take(&mut self.gone) {
            self.returned_at = Some(now);
        }
        let forgiving = self.is_forgiving(now);
        let gone = |path: &&PathBuf| !forgiving && !files.contains_key(*path);
        for path in self.files.keys().filter(gone).cloned().collect::<Vec<_>>() {
            self.forget_file(&path);
        }
        for (path, content) in files {
            self.take_file(path, content);
        }
        let changes = self.publish(now);
        let of_files = self.files.values().flat_map(|file| &file.problems);
        let problems: Vec<Problem> = of_files.chain(self.duplicates.values().flatten()).cloned().collect();
        self.note_problems(problems, now);
        changes
    }

    /// When to look again although nothing happened: the end of the grace after a return.
    pub fn look_again_at(&self, now: Timestamp) -> Option<Timestamp> {
        let end = self.returned_at?.saturating_add(RETURN_GRACE).ok()?;
        (end > now).then_some(end)
    }

    /// What is wrong now, by place.
    pub fn problems(&self) -> Vec<SourceProblem> {
        let show = |(problem, since): (&Problem, &Timestamp)| SourceProblem {
            place: problem.place.clone(),
            object: problem.object.clone(),
            message: problem.message.clone(),
            since: *since,
        };
        self.problems.iter().map(show).collect()
    }

    /// Files and objects, for the node's overview.
    pub fn counts(&self) -> (usize, usize) {
        (self.files.len(), self.published.len())
    }

    fn is_forgiving(&mut self, now: Timestamp) -> bool {
        let forgiving = self.look_again_at(now).is_some();
        if !forgiving {
            self.returned_at = None;
        }
        forgiving
    }

    fn hold(&mut self, id: &ObjectId, path: &Path) {
        let paths = self.holders.entry(id.clone()).or_default();
        if let Err(place) = paths.binary_search_by(|known| known.as_path().cmp(path)) {
            // Nearly always it is the only one.
            paths.reserve_exact(1);
            paths.insert(place, path.to_owned());
        }
        self.touched.insert(id.clone());
    }

    fn release(&mut self, id: &ObjectId, path: &Path) {
        if let Some(paths) = self.holders.get_mut(id) {
            paths.retain(|known| known != path);
            if paths.is_empty() {
                self.holders.remove(id);
            }
        }
        self.touched.insert(id.clone());
    }

    fn forget_file(&mut self, path: &Path) {
        let file = self.files.remove(path).unwrap_or_default();
        file.objects.keys().for_each(|id| self.release(id, path));
    }

    fn take_file(&mut self, path: PathBuf, content: FileContent) {
        let mut file = self.files.remove(&path).unwrap_or_default();
        if !matches!(content, FileContent::Same) {
            file.objects.keys().for_each(|id| self.release(id, &path));
            file.take(&self.root.join(&path), content);
            file.objects.keys().for_each(|id| self.hold(id, &path));
        }
        self.files.insert(path, file);
    }

    /// Tells what of the touched objects changed. The first file by path that has an object has it; a later
    /// one is a problem naming both.
    fn publish(&mut self, now: Timestamp) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut pods = Vec::new();
        for id in std::mem::take(&mut self.touched) {
            self.duplicates.remove(&id);
            let paths = self.holders.get(&id).into_iter().flatten();
            let mut all = paths.filter_map(|path| self.files.get(path)?.objects.get(&id));
            let new = all.next().cloned();
            if let Some(first) = &new {
                let later: Vec<Problem> = all.map(|later| is_taken(&id, first, later)).collect();
                if !later.is_empty() {
                    self.duplicates.insert(id.clone(), later);
                }
            }
            let old = match &new {
                Some(new) => self.published.insert(id.clone(), new.clone()),
                None => self.published.remove(&id),
            };
            if old == new {
                continue;
            }
            if let Some(end) = old.and_then(|old| end_of_pod(&id, &old, new.as_ref(), now)) {
                changes.push(Change::Pod(Box::new(end)));
            }
            match new {
                Some(new) => match change_to(&id, &new, now) {
                    change @ Change::Pod(_) => pods.push(change),
                    change => changes.push(change),
                },
                None => changes.extend(change_to_gone(&id)),
            }
        }
        changes.extend(pods);
        changes
    }
    fn note_problems(&mut self, problems: impl IntoIterator<Item = Problem>, now: Timestamp) {
        let before = std::mem::take(&mut self.problems);
        self.problems = problems
            .into_iter()
            .map(|problem| {
                let since = before.get(&problem).copied().unwrap_or(now);
                (problem, since)
            })
            .collect();
    }
}

impl FileState {
    fn take(&mut self, path: &Path, content: FileContent) {
        let shown = path.display().to_string();
        match content {
            FileContent::Same => {}
            FileContent::Unreadable(why) => self.keep(shown, 0, format!("cannot be read: {why}")),
            FileContent::Bytes(bytes) => match std::str::from_utf8(&bytes) {
                Err(error) => {
                    let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
                    self.keep(shown, line as u32, "is not UTF-8 text; save it as UTF-8".to_owned());
                }
                Ok(text) => self.read(path, shown, text),
            },
        }
    }

    /// The file cannot be understood as a whole: all it last said stays.
    fn keep(&mut self, shown: String, line: u32, message: String) {
        let place = if line > 0 { format!("{shown}:{line}") } else { shown };
        let kept = match self.objects.len() {
            0 => "",
            _ => "; its objects stay as they were",
        };
        self.problems = vec![Problem { place, object: None, message: format!("{message}{kept}") }];
    }

    fn read(&mut self, path: &Path, shown: String, text: &str) {
        let documents = match document::parse(&shown, text) {
            Ok(documents) => documents,
            Err(error) => return self.keep(shown, error.place.line, error.message),
        };
        if documents.is_empty() {
            // An editor truncates before it writes; and an emptied file is more often an accident.
            if self.objects.is_empty() {
                self.problems.clear();
            } else {
                self.keep(shown, 0, "is empty; remove the file to end its objects".to_owned());
            }
            return;
        }
        let before = std::mem::take(&mut self.objects);
        self.problems.clear();
        let (path, mut faulty): (Arc<Path>, _) = (path.into(), false);
        for (index, results) in read_all(&documents).into_iter().enumerate() {
            for result in results {
                match result {
                    Ok((id, object)) => {
                        self.take_object(
                            &shown,
                            id,
                            Written { object, path: path.clone(), document: index + 1 },
                        );
                    }
                    Err(fault) => {
                        faulty |= !fault.foreign;
                        self.take_fault(&shown, fault);
                    }
                }
            }
        }
        if faulty {
            // What a mistake hides must not look removed.
            for (id, old) in before {
                self.objects.entry(id).or_insert(old);
            }
        }
    }

    fn take_object(&mut self, shown: &str, id: ObjectId, written: Written) {
        if self.objects.contains_key(&id) {
            let message =
                format!("this file has two of {id}, and the first counts; rename or remove one of them");
            self.problems.push(Problem { place: shown.to_owned(), object: Some(id.to_string()), message });
            return;
        }
        self.objects.insert(id, written);
    }

    fn take_fault(&mut self, shown: &str, fault: Fault) {
        let place = if fault.line > 0 { format!("{shown}:{}", fault.line) } else { shown.to_owned() };
        self.problems.push(Problem { place, object: fault.object, message: fault.message });
    }
}

/// What is said of an object that an earlier file has.
fn is_taken(id: &ObjectId, first: &Written, later: &Written) -> Problem {
    Problem {
        place: later.path.display().to_string(),
        object: Some(id.to_string()),
        message: format!(
            "{} has the same {id}, and the first file by name counts; rename or remove one of them",
            first.path.display()
        ),
    }
}

fn change_to(id: &ObjectId, written: &Written, now: Timestamp) -> Change {
    let key = id.key.clone();
    match &written.object {
        Object::ConfigMap(map) => Change::ConfigMap(key, Some(map.clone())),
        Object::Secret(secret) => Change::Secret(key, Some(secret.clone())),
        Object::Service(service) => Change::Service(key, Some(service.clone())),
        Object::EndpointSlice(slice) => Change::EndpointSlice(key, Some(slice.clone())),
        Object::Pod { pod, uid } => Change::Pod(Box::new(desired(id, pod, uid, written, now))),
    }
}

fn change_to_gone(id: &ObjectId) -> Option<Change> {
    let key = id.key.clone();
    match id.kind {
        Kind::ConfigMap => Some(Change::ConfigMap(key, None)),
        Kind::Secret => Some(Change::Secret(key, None)),
        Kind::Service => Some(Change::Service(key, None)),
        Kind::EndpointSlice => Some(Change::EndpointSlice(key, None)),
        // Its end says it.
        Kind::Pod => None,
    }
}

fn desired(id: &ObjectId, pod: &Arc<Pod>, uid: &PodUid, written: &Written, now: Timestamp) -> DesiredPod {
    DesiredPod {
        key: PodKey::new(id.key.namespace.clone(), id.key.name.clone()),
        uid: uid.clone(),
        pod: pod.clone(),
        source: PodSource::File { path: written.path.to_path_buf(), document: written.document },
        seen_at: now,
        deletion: None,
    }
}

/// The end of the life `old`, unless `new` is the same life.
fn end_of_pod(id: &ObjectId, old: &Written, new: Option<&Written>, now: Timestamp) -> Option<DesiredPod> {
    let Object::Pod { pod, uid } = &old.object else { return None };
    let cause = match new.map(|new| &new.object) {
        Some(Object::Pod { uid: next, .. }) if next == uid => return None,
        Some(_) => EndCause::Replaced,
        None => EndCause::Deleted,
    };
    let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
    let mut end = desired(id, pod, uid, old, now);
    end.deletion = Some(Deletion {
        requested_at: now,
        grace_seconds: u32::try_from(grace.max(0)).unwrap_or(u32::MAX),
        cause,
    });
    Some(end)
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
