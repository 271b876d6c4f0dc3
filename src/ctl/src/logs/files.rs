//! The log files of one container instance: the current one, those it was rotated to, and following
//! it across rotation by inode. It reads files; what is shown is decided in `mod.rs`.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use jiff::Timestamp;

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

/// Files a log was rotated to, oldest first: `0.log.20261121-101500`, plain or `.gz`.
pub fn rotated(path: &Path) -> Vec<PathBuf> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Vec::new() };
    let prefix = format!("{name}.");
    let Some(folder) = path.parent() else { return Vec::new() };
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let suffix = name.to_str().and_then(|name| name.strip_prefix(&prefix));
            suffix.is_some_and(|suffix| {
                suffix.starts_with(|c: char| c.is_ascii_digit()) && !suffix.ends_with(".tmp")
            })
        })
        .map(|entry| entry.path())
        .collect();
    // The suffix is a time, so the order of names is the order of writing.
    files.sort();
    // For a moment a file is there twice: compressed, and plain until it is removed.
    let compressed: Vec<PathBuf> = files.iter().filter_map(|path| plain_name(path)).collect();
    files.retain(|path| !compressed.contains(path));
    files
}

/// What a compressed file was called before.
fn plain_name(path: &Path) -> Option<PathBuf> {
    path.extension().filter(|extension| *extension == "gz").map(|_| path.with_extension(""))
}

/// One container's log, read to its present end and then followed.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: Option<File>,
    joiner: Joiner,
    offset: u64,
}

impl LogFile {
    /// Opens the log; a file that does not exist yet is waited for by `poll`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = open_existing(path)?;
        Ok(Self { path: path.to_path_buf(), file, joiner: Joiner::default(), offset: 0 })
    }

    /// Lines that were not in the CRI format.
    pub fn malformed(&self) -> u64 {
        self.joiner.malformed
    }

    /// Reads what is there, rotated files included, and returns the records in the window. Older
    /// files are only opened where the newer ones do not fill it.
    pub fn read_present(&mut self, window: Window) -> io::Result<VecDeque<Record>> {
        let mut kept = VecDeque::new();
        self.poll(&mut |record| keep(&mut kept, record, window))?;
        for older in rotated(&self.path).into_iter().rev() {
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
        if self.file.is_none() {
            self.file = open_existing(&self.path)?;
            self.offset = 0;
        }
        let mut any = false;
        loop {
            let moved = self.was_rotated()?;
            any |= self.drain(emit)?;
            if !moved {
                return Ok(any);
            }
            // Another file stands at the path, so the writer has reopened it and the old one is
            // complete. Between the two may be others, where it rotated twice since we looked.
            self.file = self.successor()?;
            self.offset = 0;
            if self.file.is_none() {
                return Ok(any);
            }
        }
    }

    /// The container has ended: hands on an unfinished last record.
    pub fn finish(&mut self, emit: &mut impl FnMut(Record)) {
        self.joiner.finish(emit);
    }

    /// The file that was written after the one we have.
    fn successor(&self) -> io::Result<Option<File>> {
        if let Some(ours) = self.file.as_ref().map(File::metadata).transpose()? {
            let is_ours = |path: &PathBuf| {
                std::fs::metadata(path)
                    .is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()))
            };
            let mut later = rotated(&self.path).into_iter().skip_while(|path| !is_ours(path)).skip(1);
            if let Some(file) = later.find_map(|path| File::open(path).ok()) {
                return Ok(Some(file));
            }
        }
        open_existing(&self.path)
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
    let mut reader: Box<dyn Read> = match path.extension() {
        Some(extension) if extension == "gz" => Box::new(MultiGzDecoder::new(file)),
        _ => Box::new(file),
    };
    let mut joiner = Joiner::default();
    let mut kept = VecDeque::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = reader.read(&mut chunk)?;
        if count == 0 {
            break;
        }
        joiner.feed(&chunk[..count], &mut |record| keep(&mut kept, record, window));
    }
    joiner.finish(&mut |record| keep(&mut kept, record, window));
    Ok((kept, joiner.malformed))
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
