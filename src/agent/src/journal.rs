//! What pods may have left on this node, written down before it is made: pod folders and cgroups by
//! pod. After a crash at any point the next start knows what to clean up, also where neither the
//! runtime nor a source remembers the pod.
//!
//! Lines of JSON, only appended to, compacted at start. Not synced to disk: a killed daemon loses
//! nothing that was written, and a power loss takes mounts and cgroups with it; folders are found by
//! looking. A torn last line is ignored.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use longshore_core::ids::PodUid;
use longshore_core::pod::leftover::Noted;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    May { uid: PodUid, left: Noted },
    Nothing { uid: PodUid },
}

#[derive(Debug, thiserror::Error)]
#[error("{action} the journal {path}")]
pub struct JournalError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    left: BTreeMap<PodUid, Noted>,
}

impl Journal {
    /// Reads what an earlier run wrote and goes on in a compacted file.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let failed = |action| move |source| JournalError { action, path: path.to_path_buf(), source };
        let left = match std::fs::read_to_string(path) {
            Ok(text) => replay(&text),
            Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(failed("read")(e)),
        };
        let file = match compact(path, &left) {
            Ok(file) => file,
            // A full disk keeps no daemon from what it has to look after: the file is gone on with as it is.
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "the journal cannot be compacted");
                let mut options = OpenOptions::new();
                options.append(true).create(true).mode(0o600).open(path).map_err(failed("open"))?
            }
        };
        Ok(Self { path: path.to_path_buf(), state: Mutex::new(State { file, left }) })
    }

    /// To be called before the first thing is made. Writes only what is news.
    pub fn may_leave(&self, uid: &PodUid, leftover: &Noted) -> Result<(), JournalError> {
        let mut state = self.lock();
        if state.left.get(uid) == Some(leftover) {
            return Ok(());
        }
        self.append(&mut state, &Line::May { uid: uid.clone(), left: leftover.clone() })?;
        state.left.insert(uid.clone(), leftover.clone());
        Ok(())
    }

    /// To be called once nothing of the pod is left.
    pub fn left_nothing(&self, uid: &PodUid) -> Result<(), JournalError> {
        let mut state = self.lock();
        if state.left.remove(uid).is_none() {
            return Ok(());
        }
        self.append(&mut state, &Line::Nothing { uid: uid.clone() })
    }

    /// What one pod may have left.
    pub fn noted(&self, uid: &PodUid) -> Option<Noted> {
        self.lock().left.get(uid).cloned()
    }

    /// Every pod that may have left something.
    pub fn leftovers(&self) -> BTreeMap<PodUid, Noted> {
        self.lock().left.clone()
    }

    fn append(&self, state: &mut State, line: &Line) -> Result<(), JournalError> {
        append(&mut state.file, line).map_err(|source| JournalError {
            action: "append to",
            path: self.path.clone(),
            source,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the file anew beside the old one and takes its place.
fn compact(path: &Path, left: &BTreeMap<PodUid, Noted>) -> io::Result<File> {
    let fresh = path.with_extension("new");
    let mut file =
        OpenOptions::new().append(true).create(true).mode(0o600).open(&fresh).and_then(|file| {
            file.set_len(0)?;
            Ok(file)
        })?;
    let mut lines = left.iter().map(|(uid, left)| Line::May { uid: uid.clone(), left: left.clone() });
    let written = lines.try_for_each(|line| append(&mut file, &line));
    if let Err(error) = written.and_then(|()| std::fs::rename(&fresh, path)) {
        // What could be written takes space that is missing elsewhere. The next try truncates it anyway.
        let _ = std::fs::remove_file(&fresh);
        return Err(error);
    }
    Ok(file)
}

/// All of the line or nothing of it: half a line would spoil the next one.
fn append(file: &mut File, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    let before = file.metadata()?.len();
    file.write_all(&text).inspect_err(|_| drop(file.set_len(before)))
}

fn replay(text: &str) -> BTreeMap<PodUid, Noted> {
    let mut left = BTreeMap::new();
    for line in text.lines() {
        match serde_json::from_str(line) {
            Ok(Line::May { uid, left: leftover }) => {
                left.insert(uid, leftover);
            }
            Ok(Line::Nothing { uid }) => {
                left.remove(&uid);
            }
            Err(error) => tracing::warn!(%error, "a line of the journal is not readable and is skipped"),
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use longshore_core::ids::PodKey;

    use super::*;

    fn leftover(name: &str, cgroup: Option<&str>) -> Noted {
        Noted { key: PodKey::new("default", name), cgroup: cgroup.map(str::to_owned) }
    }

    #[test]
    fn what_was_not_taken_back_is_there_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = Journal::open(&path).unwrap();
        journal.may_leave(&"a".into(), &leftover("a", None)).unwrap();
        journal.may_leave(&"a".into(), &leftover("a", Some("/kubepods/poda"))).unwrap();
        journal.may_leave(&"b".into(), &leftover("b", None)).unwrap();
        journal.left_nothing(&"b".into()).unwrap();
        drop(journal);
        // The crash came in the middle of a line.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"may\":{\"uid\":\"c").unwrap();
        let journal = Journal::open(&path).unwrap();
        let wanted = BTreeMap::from([(PodUid::from("a"), leftover("a", Some("/kubepods/poda")))]);
        assert_eq!(journal.leftovers(), wanted);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1, "compacted");
    }

    #[test]
    fn a_file_that_cannot_be_compacted_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = Journal::open(&path).unwrap();
        journal.may_leave(&"a".into(), &leftover("a", None)).unwrap();
        drop(journal);
        // A folder in the new file's place refuses the compaction, as a full disk does.
        std::fs::create_dir(dir.path().join("journal.new")).unwrap();
        let journal = Journal::open(&path).unwrap();
        journal.may_leave(&"b".into(), &leftover("b", None)).unwrap();
        drop(journal);
        let journal = Journal::open(&path).unwrap();
        assert_eq!(journal.leftovers().keys().map(ToString::to_string).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn the_same_news_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = Journal::open(&path).unwrap();
        for _ in 0..3 {
            journal.may_leave(&"a".into(), &leftover("a", None)).unwrap();
            journal.left_nothing(&"other".into()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
    }
}
