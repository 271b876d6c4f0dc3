//! The log files of one container instance: the current one, those it was rotated to, and following
//! it across rotation by inode. It reads files; what is shown is decided in `mod.rs`.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use jiff::Timestamp;
use longshore_core::pod::logs::{Followed, is_packed, rotated_files};

use super::line::{Joiner, Record};

const CHUNK_BYTES: usize = 64 * 1024;

/// Which records are wanted from what is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Only records at or after this.
    pub since: Option<Timestamp>,
    /// Only the last so many.
    pub tail: Option<usize>,
}

impl Window {
    fn lets(&self, record: &Record) -> bool {
        self.since.is_none_or(|since| record.at >= since)
    }
}

/// Names of the files a log was rotated to, oldest first.
fn rotated(path: &Path) -> Vec<String> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Vec::new() };
    let Some(Ok(entries)) = path.parent().map(std::fs::read_dir) else { return Vec::new() };
    let others: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    rotated_files(name, &others)
}

/// Device and inode: what a file is, whatever it is called.
type Identity = (u64, u64);

fn identity(metadata: &std::fs::Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// Which of these names beside a log is that file.
fn named<'a>(path: &Path, names: &'a [String], file: Option<Identity>) -> Option<&'a str> {
    let wanted = file?;
    let is_it = |name: &&String| {
        std::fs::metadata(path.with_file_name(name)).is_ok_and(|found| identity(&found) == wanted)
    };
    names.iter().find(is_it).map(String::as_str)
}

/// Whether a compressed file holds so many bytes; its last four say it, little end first (RFC 1952, ISIZE).
fn holds(packed: &Path, bytes: u64) -> bool {
    let read = || {
        let file = File::open(packed)?;
        let mut last = [0; 4];
        file.read_exact_at(&mut last, file.metadata()?.len().saturating_sub(4))?;
        Ok::<_, io::Error>(u64::from(u32::from_le_bytes(last)))
    };
    read().is_ok_and(|length| length == bytes & u64::from(u32::MAX))
}

/// One container's log, read to its present end and then followed.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: Option<File>,
    joiner: Joiner,
    offset: u64,
    /// Where the file stands among the rotated ones.
    followed: Followed,
}

impl LogFile {
    /// Opens the log; a file that does not exist yet is waited for by `poll`.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Opened before the others are listed: a rotation between the two is noticed and loses nothing.
        let file = open_existing(path)?;
        let (joiner, offset, followed) = (Joiner::default(), 0, Followed::default());
        let mut log = Self { path: path.to_path_buf(), file, joiner, offset, followed };
        log.followed = log.stands(&rotated(path))?;
        Ok(log)
    }

    fn own(&self) -> io::Result<Option<Identity>> {
        let found = self.file.as_ref().map(File::metadata).transpose()?;
        Ok(found.as_ref().map(identity))
    }

    fn stands(&self, names: &[String]) -> io::Result<Followed> {
        Ok(Followed::opened(names, named(&self.path, names, self.own()?)))
    }

    /// Lines that were not in the CRI format.
    pub fn malformed(&self) -> u64 {
        self.joiner.malformed
    }

    /// Reads what is there, rotated files included, and returns the records in the window. Older
    /// files are only opened where the newer ones do not fill it.
    pub fn read_present(&mut self, window: Window) -> io::Result<VecDeque<Record>> {
        let mut kept = VecDeque::new();
        let mut older = rotated(&self.path);
        if let Some(own) = named(&self.path, &older, self.own()?).map(str::to_owned) {
            // It was rotated since it was opened: from here on following finds them.
            let at = older.iter().position(|name| *name == own).unwrap_or(older.len());
            older.truncate(at);
        }
        self.poll(&mut |record| keep(&mut kept, record, window))?;
        for older in older.into_iter().rev().map(|name| self.path.with_file_name(name)) {
            if window.tail.is_some_and(|tail| kept.len() >= tail) {
                break;
            }
            let left = window.tail.map(|tail| tail - kept.len());
            let (earlier, malformed) = read_whole(&older, Window { tail: left, ..window })?;
            self.joiner.malformed += malformed;
            let none = earlier.is_empty();
            for record in earlier.into_iter().rev() {
                kept.push_front(record);
            }
            if none && window.since.is_some() {
                break;
            }
        }
        Ok(kept)
    }

    /// Reads what was written since the last call. A file that was renamed away is read to its end
    /// before the one now at its path; true when anything was read.
    pub fn poll(&mut self, emit: &mut impl FnMut(Record)) -> io::Result<bool> {
        let mut any = false;
        if self.file.is_none() {
            any |= self.go_on(emit)?;
        }
        loop {
            let moved = self.was_rotated()?;
            any |= self.drain(emit)?;
            // Another file stands at the path, so the writer has reopened it and the old one is
            // complete. Between the two may be others, where it rotated twice since we looked.
            if !moved || !self.go_on(emit)? {
                return Ok(any);
            }
            any = true;
        }
    }

    /// The container has ended: hands on an unfinished last record.
    pub fn finish(&mut self, emit: &mut impl FnMut(Record)) {
        self.joiner.finish(emit);
    }

    /// Reads what was written between the file we have and the one at the path, which it then has; false while there is
    /// none at the path.
    fn go_on(&mut self, emit: &mut impl FnMut(Record)) -> io::Result<bool> {
        // Opened before the others are listed, as at the beginning.
        let Some(current) = open_existing(&self.path)? else { return Ok(false) };
        let next = identity(&current.metadata()?);
        let ours = self.file.as_ref().map(File::metadata).transpose()?;
        if ours.as_ref().is_some_and(|ours| identity(ours) == next) {
            // Put back where it was: the runtime did not make another one.
            return Ok(false);
        }
        let names = rotated(&self.path);
        let our_name = named(&self.path, &names, ours.as_ref().map(identity));
        let is_copy =
            |name: &str| ours.as_ref().is_some_and(|ours| holds(&self.path.with_file_name(name), ours.len()));
        for name in self.followed.later(&names, our_name, is_copy) {
            let path = self.path.with_file_name(name);
            // Thinned out meanwhile: its lines are gone, the others are not.
            let Some(file) = open_existing(&path)? else { continue };
            if identity(&file.metadata()?) != next {
                feed_whole(&mut self.joiner, is_packed(name), file, emit)?;
            }
        }
        (self.file, self.offset) = (Some(current), 0);
        self.followed = self.stands(&names)?;
        Ok(true)
    }

    fn was_rotated(&mut self) -> io::Result<bool> {
        let Some(file) = &mut self.file else { return Ok(false) };
        let ours = file.metadata()?;
        if ours.len() < self.offset {
            // Cut in place instead of renamed: what is there now is new.
            file.seek(SeekFrom::Start(0))?;
            self.offset = 0;
        }
        match std::fs::metadata(&self.path) {
            Ok(there) => Ok((there.dev(), there.ino()) != (ours.dev(), ours.ino())),
            // Renamed and not made anew yet, or removed with its pod.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn drain(&mut self, emit: &mut impl FnMut(Record)) -> io::Result<bool> {
        let Some(file) = &mut self.file else { return Ok(false) };
        let mut any = false;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = file.read(&mut chunk)?;
            if count == 0 {
                return Ok(any);
            }
            any = true;
            self.offset += count as u64;
            self.joiner.feed(&chunk[..count], emit);
        }
    }
}

fn open_existing(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn keep(kept: &mut VecDeque<Record>, record: Record, window: Window) {
    if !window.lets(&record) || window.tail == Some(0) {
        return;
    }
    if window.tail.is_some_and(|tail| kept.len() >= tail) {
        kept.pop_front();
    }
    kept.push_back(record);
}

/// Reads a rotated file, which nobody writes any more.
fn read_whole(path: &Path, window: Window) -> io::Result<(VecDeque<Record>, u64)> {
    // Removed by rotation meanwhile: its lines are gone, the others are not.
    let Some(file) = open_existing(path)? else { return Ok((VecDeque::new(), 0)) };
    let mut joiner = Joiner::default();
    let mut kept = VecDeque::new();
    let packed = path.to_str().is_some_and(is_packed);
    feed_whole(&mut joiner, packed, file, &mut |record| keep(&mut kept, record, window))?;
    joiner.finish(&mut |record| keep(&mut kept, record, window));
    Ok((kept, joiner.malformed))
}

fn feed_whole(
    joiner: &mut Joiner,
    packed: bool,
    file: File,
    emit: &mut impl FnMut(Record),
) -> io::Result<()> {
    let mut reader: Box<dyn Read> = if packed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match reader.read(&mut chunk)? {
            0 => return Ok(()),
            count => joiner.feed(&chunk[..count], emit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn line(n: u32) -> String {
        format!("2026-01-01T00:{:02}:{:02}Z stdout F {n}\n", n / 60, n % 60)
    }

    fn append(path: &Path, range: std::ops::Range<u32>) {
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        for n in range {
            file.write_all(line(n).as_bytes()).unwrap();
        }
    }

    fn numbers<'a>(records: impl IntoIterator<Item = &'a Record>) -> Vec<u32> {
        records.into_iter().map(|r| String::from_utf8_lossy(&r.text).parse().unwrap()).collect()
    }

    fn polled(log: &mut LogFile) -> Vec<u32> {
        let mut seen = Vec::new();
        log.poll(&mut |record| seen.push(record)).unwrap();
        numbers(&seen)
    }

    #[test]
    fn a_window_reaches_into_rotated_files_as_far_as_needed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut gz = flate2::write::GzEncoder::new(
            File::create(folder.path().join("0.log.20260101-000010.gz")).unwrap(),
            flate2::Compression::fast(),
        );
        (0..10).for_each(|n| gz.write_all(line(n).as_bytes()).unwrap());
        gz.finish().unwrap();
        // Compressed a moment ago, and not removed yet.
        append(&folder.path().join("0.log.20260101-000010"), 0..10);
        append(&folder.path().join("0.log.20260101-000020"), 10..20);
        append(&folder.path().join("0.log.20260101-000020.gz.tmp"), 90..99);
        append(&path, 20..25);
        let since = |second: i64| Some(Timestamp::from_second(1_767_225_600 + second).unwrap());
        let cases = [
            (Window::default(), (0..25).collect::<Vec<_>>()),
            (Window { tail: Some(3), since: None }, (22..25).collect()),
            (Window { tail: Some(8), since: None }, (17..25).collect()),
            (Window { tail: Some(0), since: None }, vec![]),
            (Window { tail: None, since: since(18) }, (18..25).collect()),
            (Window { tail: Some(2), since: since(18) }, (23..25).collect()),
            (Window { tail: None, since: since(3000) }, vec![]),
        ];
        for (window, expected) in cases {
            let mut log = LogFile::open(&path).unwrap();
            assert_eq!(numbers(&log.read_present(window).unwrap()), expected, "{window:?}");
        }
    }

    #[test]
    fn following_loses_nothing_across_rotation_and_truncation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut log = LogFile::open(&path).unwrap();
        assert_eq!(polled(&mut log), [] as [u32; 0]);
        append(&path, 0..3);
        assert_eq!(polled(&mut log), [0, 1, 2]);
        // Written, renamed, written on in the old file, then a new one: all between two polls.
        append(&path, 3..5);
        let old = folder.path().join("0.log.20260101-000001");
        std::fs::rename(&path, &old).unwrap();
        append(&old, 5..7);
        assert_eq!(polled(&mut log), [3, 4, 5, 6], "renamed, the new file not there yet");
        append(&old, 7..8);
        append(&path, 8..10);
        assert_eq!(polled(&mut log), [7, 8, 9]);
        // Twice since we looked.
        std::fs::rename(&path, folder.path().join("0.log.20260101-000002")).unwrap();
        append(&path, 10..11);
        std::fs::rename(&path, folder.path().join("0.log.20260101-000003")).unwrap();
        append(&path, 11..12);
        assert_eq!(polled(&mut log), [10, 11]);
        std::fs::write(&path, "").unwrap();
        assert_eq!(polled(&mut log), [] as [u32; 0], "cut in place");
        append(&path, 12..13);
        assert_eq!(polled(&mut log), [12]);
    }

    #[test]
    fn a_follower_two_rotations_behind_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let at = |second: u32| folder.path().join(format!("0.log.20260101-{second:06}"));
        let rotate = |second: u32| std::fs::rename(&path, at(second)).unwrap();
        // As rotation does it: another file, and the plain one is gone.
        let pack = |second: u32| {
            let file = File::create(folder.path().join(format!("0.log.20260101-{second:06}.gz"))).unwrap();
            let mut packed = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
            packed.write_all(&std::fs::read(at(second)).unwrap()).unwrap();
            packed.finish().unwrap();
            std::fs::remove_file(at(second)).unwrap();
        };
        append(&path, 0..3);
        let mut log = LogFile::open(&path).unwrap();
        assert_eq!(polled(&mut log), [0, 1, 2]);
        append(&path, 3..4);
        rotate(1);
        append(&path, 4..6);
        pack(1);
        rotate(2);
        append(&path, 6..7);
        assert_eq!(polled(&mut log), [3, 4, 5, 6], "ours is compressed, the next one plain");
        for (second, lines) in [(3, 7..9), (4, 9..12), (5, 12..13)] {
            rotate(second);
            append(&path, lines);
        }
        pack(3);
        pack(4);
        assert_eq!(polled(&mut log), (7..13).collect::<Vec<_>>(), "two between, one of them compressed");
        // Ours was thinned out, and what came after it not.
        rotate(6);
        append(&path, 13..15);
        std::fs::remove_file(at(6)).unwrap();
        rotate(7);
        pack(7);
        append(&path, 15..16);
        assert_eq!(polled(&mut log), [13, 14, 15]);
    }

    #[test]
    fn a_line_being_written_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let whole = line(1);
        std::fs::write(&path, &whole[..30]).unwrap();
        let mut log = LogFile::open(&path).unwrap();
        assert_eq!(polled(&mut log), [] as [u32; 0]);
        File::options().append(true).open(&path).unwrap().write_all(&whole.as_bytes()[30..]).unwrap();
        assert_eq!(polled(&mut log), [1]);
    }
}
