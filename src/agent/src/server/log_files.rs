//! The log files of one container instance as a stream of text: those it was rotated to, the one being
//! written, and following it across rotation by inode. Everything is opened below the folder of pods' logs
//! without following any link, because pods with that folder mounted can put links there. Blocking; bounded
//! in memory whatever the files hold.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use longshore_core::kubelet_api::log_text::{LogText, TailSearch};
use longshore_core::kubelet_api::query::LogOptions;
use longshore_core::pod::logs::{Followed, is_packed, rotated_files};
use rustix::fs::{Dir, Mode, OFlags, ResolveFlags};

/// Bytes read at once, and about the most an answer has waiting here.
const CHUNK: usize = 32 << 10;

/// A folder that is opened once; what is below it is opened through it.
#[derive(Debug)]
pub(super) struct Beneath(OwnedFd);

impl Beneath {
    /// `below` is taken from `root`, through links neither of it nor out of it.
    pub(super) fn open(root: &Path, below: &Path) -> io::Result<Self> {
        let folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, folder, Mode::empty())?;
        if below.as_os_str().is_empty() {
            return Ok(Self(root));
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        Ok(Self(rustix::fs::openat2(&root, below, folder, Mode::empty(), resolve)?))
    }

    /// A plain file; `None` where there is none of that name.
    pub(super) fn file(&self, name: &Path) -> io::Result<Option<File>> {
        // A pipe in the place of a file must not hold the reader up.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let file: File = match rustix::fs::openat2(&self.0, name, flags, Mode::empty(), resolve) {
            Ok(file) => file.into(),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match file.metadata()?.is_file() {
            true => Ok(Some(file)),
            false => Err(io::Error::other("it is not a plain file")),
        }
    }

    /// Names in it and which of them are folders, in order.
    pub(super) fn names(&self) -> io::Result<Vec<(String, bool)>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name != "." && name != ".." {
                names.push((name.to_owned(), entry.file_type().is_dir()));
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// A file to be read to its end.
enum Source {
    Plain(File),
    Packed(Box<MultiGzDecoder<File>>),
}

impl Source {
    fn new(name: &str, file: File) -> Self {
        match is_packed(name) {
            true => Self::Packed(Box::new(MultiGzDecoder::new(file))),
            false => Self::Plain(file),
        }
    }

    fn read(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(chunk),
            Self::Packed(file) => file.read(chunk),
        }
    }
}

/// What a look at the files gave.
#[derive(Debug)]
pub(super) enum Step {
    More(Vec<u8>),
    /// Nothing new; only of a log that is followed.
    Idle,
    Ended,
}

/// One log on its way to one reader.
pub(super) struct LogReader {
    folder: Beneath,
    /// Of the file that is written now.
    name: String,
    /// Older files first; the last one is the one being written.
    sources: VecDeque<Source>,
    text: LogText,
    follow: bool,
    /// Another file stands at the name; ours is read to its end once more before it is left.
    moved: bool,
    /// Where the last source stands among the rotated files.
    followed: Followed,
}

impl LogReader {
    /// `path` is the log's, below `root`. A file that is not there yet is empty.
    pub(super) fn open(root: &Path, path: &Path, options: &LogOptions) -> io::Result<Self> {
        let below = path
            .strip_prefix(root)
            .map_err(|_| io::Error::other("it is not below the folder of pods' logs"))?;
        let name = below.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
        let folder = Beneath::open(root, below.parent().unwrap_or(Path::new("")))?;
        let mut reader = Self {
            folder,
            name: name.to_owned(),
            sources: VecDeque::new(),
            text: LogText::new(options),
            follow: options.follow,
            moved: false,
            followed: Followed::default(),
        };
        reader.find_present(options.tail)?;
        Ok(reader)
    }

    /// Opens what is there, from the newest file back as far as the last `tail` lines reach.
    fn find_present(&mut self, tail: Option<u64>) -> io::Result<()> {
        // Opened before the others are listed: a rotation between the two shows it twice, and loses nothing.
        let current = self.folder.file(Path::new(&self.name))?;
        let own = current.as_ref().map(identity).transpose()?;
        let mut left = tail;
        if let Some(mut file) = current {
            place(&mut file, false, &mut left, &mut self.text)?;
            self.sources.push_front(Source::Plain(file));
        }
        let names = self.rotated()?;
        self.followed = Followed::opened(&names, self.named(&names, own)?);
        for name in names.iter().rev() {
            if left == Some(0) {
                break;
            }
            let Some(mut file) = self.folder.file(Path::new(name))? else { continue };
            if Some(identity(&file)?) == own {
                continue;
            }
            place(&mut file, is_packed(name), &mut left, &mut self.text)?;
            self.sources.push_front(Source::new(name, file));
        }
        Ok(())
    }

    /// Names of the files the log was rotated to, oldest first.
    fn rotated(&self) -> io::Result<Vec<String>> {
        let names: Vec<String> = self.folder.names()?.into_iter().map(|(name, _)| name).collect();
        Ok(rotated_files(&self.name, &names))
    }

    /// Which of these is that file.
    fn named<'a>(&self, names: &'a [String], file: Option<Identity>) -> io::Result<Option<&'a str>> {
        let Some(wanted) = file else { return Ok(None) };
        for name in names {
            let found = self.folder.file(Path::new(name))?.as_ref().map(identity).transpose()?;
            if found == Some(wanted) {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Reads on: some text, or that there is none.
    pub(super) fn step(&mut self) -> io::Result<Step> {
        // Less comes out than goes in, but for the beginning of a line that went in before.
        let mut out = Vec::with_capacity(CHUNK);
        let mut chunk = vec![0; CHUNK];
        loop {
            if self.text.is_full() {
                return Ok(if out.is_empty() { Step::Ended } else { Step::More(out) });
            }
            if out.len() >= CHUNK / 2 {
                return Ok(Step::More(out));
            }
            let count = match self.sources.front_mut() {
                Some(source) => source.read(&mut chunk)?,
                None => 0,
            };
            if count > 0 {
                self.text.feed(&chunk[..count], &mut out);
                continue;
            }
            if self.sources.len() > 1 {
                // A rotated file is complete, even where its last line is not.
                self.text.finish(&mut out);
                self.sources.pop_front();
                continue;
            }
            if !self.follow {
                self.text.finish(&mut out);
                return Ok(if out.is_empty() { Step::Ended } else { Step::More(out) });
            }
            if !self.turn()? {
                return Ok(if out.is_empty() { Step::Idle } else { Step::More(out) });
            }
        }
    }

    /// No more of the file will come: what is left is the end.
    pub(super) fn stop_following(&mut self) {
        self.follow = false;
    }

    /// At the end of the file being written: whether there is more to read now.
    fn turn(&mut self) -> io::Result<bool> {
        let Some(Source::Plain(file)) = self.sources.front_mut() else { return self.go_on(None) };
        let ours = file.metadata()?;
        if self.moved {
            let ours = (identity(file)?, ours.len());
            return self.go_on(Some(ours));
        }
        if ours.len() < file.stream_position()? {
            // Cut in place instead of renamed: what is there now is new.
            file.seek(SeekFrom::Start(0))?;
            return Ok(true);
        }
        let there = self.folder.file(Path::new(&self.name))?.map(|file| file.metadata()).transpose()?;
        // Renamed and not made anew yet is no other file.
        self.moved = there.is_some_and(|there| (there.dev(), there.ino()) != (ours.dev(), ours.ino()));
        Ok(self.moved)
    }

    /// Takes what was written after the file we have, which is given with its length: there may be several, where it
    /// was rotated more than once since we looked. Whether there is anything.
    fn go_on(&mut self, ours: Option<(Identity, u64)>) -> io::Result<bool> {
        // Opened before the others are listed, as at the beginning. Until it is there again nothing is lost.
        let Some(current) = self.folder.file(Path::new(&self.name))? else { return Ok(false) };
        let own = identity(&current)?;
        if ours.is_some_and(|(ours, _)| ours == own) {
            // Put back where it was: the runtime did not make another one.
            self.moved = false;
            return Ok(false);
        }
        let names = self.rotated()?;
        let our_name = self.named(&names, ours.map(|(file, _)| file))?;
        let is_copy = |name: &str| {
            let packed = self.folder.file(Path::new(name)).ok().flatten();
            packed.zip(ours).is_some_and(|(packed, (_, length))| holds(&packed, length))
        };
        let mut sources = VecDeque::new();
        for name in self.followed.later(&names, our_name, is_copy) {
            let Some(file) = self.folder.file(Path::new(name))? else { continue };
            if identity(&file)? != own {
                sources.push_back(Source::new(name, file));
            }
        }
        sources.push_back(Source::Plain(current));
        self.followed = Followed::opened(&names, self.named(&names, Some(own))?);
        // Ours is complete now, and is left as one that was rotated before.
        self.sources.extend(sources);
        self.moved = false;
        Ok(true)
    }
}

/// Device and inode: what a file is, whatever it is called.
type Identity = (u64, u64);

fn identity(file: &File) -> io::Result<Identity> {
    let found = file.metadata()?;
    Ok((found.dev(), found.ino()))
}

/// Whether a compressed file holds so many bytes; its last four say it, little end first (RFC 1952, ISIZE).
fn holds(packed: &File, bytes: u64) -> bool {
    let Ok(length) = packed.metadata().map(|found| found.len()) else { return false };
    let mut last = [0; 4];
    let read = length.checked_sub(4).map(|at| packed.read_exact_at(&mut last, at));
    matches!(read, Some(Ok(()))) && u64::from(u32::from_le_bytes(last)) == bytes & u64::from(u32::MAX)
}

/// Puts a file at the first of its last `left` lines and takes from `left` what it has.
fn place(file: &mut File, packed: bool, left: &mut Option<u64>, text: &mut LogText) -> io::Result<()> {
    let Some(wanted) = *left else { return Ok(()) };
    if packed {
        let lines = count_lines(MultiGzDecoder::new(&mut *file))?;
        file.seek(SeekFrom::Start(0))?;
        // Only the first file that is read can begin in its middle.
        text.skip(lines.saturating_sub(wanted));
        *left = Some(wanted.saturating_sub(lines));
        return Ok(());
    }
    let length = file.metadata()?.len();
    if wanted == 0 || length == 0 {
        file.seek(SeekFrom::Start(length))?;
        return Ok(());
    }
    let mut search = TailSearch::new(wanted);
    let mut block = vec![0; CHUNK];
    let mut end = length;
    while end > 0 {
        let count = usize::try_from(end).unwrap_or(CHUNK).min(CHUNK);
        let begin = end - count as u64;
        file.read_exact_at(&mut block[..count], begin)?;
        if let Some(at) = search.block(&block[..count]) {
            file.seek(SeekFrom::Start(begin + at as u64))?;
            *left = Some(0);
            return Ok(());
        }
        end = begin;
    }
    file.seek(SeekFrom::Start(0))?;
    // The first line has no end before it.
    *left = Some(wanted.saturating_sub(search.found() + 1));
    Ok(())
}

fn count_lines(mut file: impl Read) -> io::Result<u64> {
    let mut block = vec![0; CHUNK];
    let mut lines = 0;
    loop {
        match file.read(&mut block)? {
            0 => return Ok(lines),
            count => lines += block[..count].iter().filter(|byte| **byte == b'\n').count() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn line(n: u32) -> String {
        format!("2026-01-01T00:{:02}:{:02}Z stdout F {n}\n", n / 60, n % 60)
    }

    fn append(path: &Path, range: std::ops::Range<u32>) {
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        range.for_each(|n| file.write_all(line(n).as_bytes()).unwrap());
    }

    /// The numbers that are there to be read now.
    fn read(reader: &mut LogReader) -> Vec<u32> {
        let mut all = Vec::new();
        while let Step::More(bytes) = reader.step().unwrap() {
            all.extend(bytes);
        }
        String::from_utf8(all).unwrap().lines().map(|line| line.parse().unwrap()).collect()
    }

    fn open(root: &Path, path: &Path, tail: Option<u64>, follow: bool) -> LogReader {
        let options = LogOptions { tail, follow, ..LogOptions::default() };
        LogReader::open(root, path, &options).unwrap()
    }

    #[test]
    fn a_tail_reaches_into_rotated_files_as_far_as_needed() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("pod/c");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("0.log");
        let packed = File::create(folder.join("0.log.20260101-000010.gz")).unwrap();
        let mut packed = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
        (0..10).for_each(|n| packed.write_all(line(n).as_bytes()).unwrap());
        packed.finish().unwrap();
        // Compressed a moment ago and not removed yet, and what is no log of it at all.
        append(&folder.join("0.log.20260101-000010"), 0..10);
        append(&folder.join("0.log.20260101-000020"), 10..20);
        append(&folder.join("0.log.20260101-000030.gz.tmp"), 90..99);
        append(&folder.join("10.log"), 70..79);
        append(&path, 20..25);
        let cases = [
            (None, 0..25),
            (Some(0), 25..25),
            (Some(3), 22..25),
            (Some(5), 20..25),
            (Some(6), 19..25),
            (Some(15), 10..25),
            (Some(18), 7..25),
            (Some(99), 0..25),
        ];
        for (tail, expected) in cases {
            let seen = read(&mut open(root.path(), &path, tail, false));
            assert_eq!(seen, expected.collect::<Vec<_>>(), "{tail:?}");
        }
    }

    #[test]
    fn following_loses_nothing_across_rotation_and_truncation() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("0.log");
        let rename = |to: &str| std::fs::rename(&path, root.path().join(to)).unwrap();
        let mut log = open(root.path(), &path, None, true);
        assert_eq!(read(&mut log), [] as [u32; 0], "not there yet");
        append(&path, 0..3);
        assert_eq!(read(&mut log), [0, 1, 2]);
        // Written, renamed, written on in the old file, then a new one: all between two looks.
        append(&path, 3..5);
        rename("0.log.20260101-000001");
        append(&root.path().join("0.log.20260101-000001"), 5..7);
        assert_eq!(read(&mut log), [3, 4, 5, 6], "renamed, the new file not there yet");
        append(&root.path().join("0.log.20260101-000001"), 7..8);
        append(&path, 8..10);
        assert_eq!(read(&mut log), [7, 8, 9]);
        // Twice since we looked.
        rename("0.log.20260101-000002");
        append(&path, 10..11);
        rename("0.log.20260101-000003");
        append(&path, 11..12);
        assert_eq!(read(&mut log), [10, 11]);
        // A last line without its end is no part of the next file's first.
        std::fs::write(&path, format!("{}2026-01-01T00:01:00Z stdout F 1", line(11))).unwrap();
        rename("0.log.20260101-000004");
        append(&path, 12..13);
        assert_eq!(read(&mut log), [1, 12]);
        std::fs::write(&path, "").unwrap();
        assert_eq!(read(&mut log), [] as [u32; 0], "cut in place");
        append(&path, 12..13);
        assert_eq!(read(&mut log), [12]);
        log.stop_following();
        assert!(matches!(log.step().unwrap(), Step::Ended));
    }

    #[test]
    fn a_follower_two_rotations_behind_loses_nothing() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("0.log");
        let rotate =
            |suffix: &str| std::fs::rename(&path, root.path().join(format!("0.log.{suffix}"))).unwrap();
        // As rotation does it: another file, and the plain one is gone.
        let pack = |suffix: &str| {
            let plain = root.path().join(format!("0.log.{suffix}"));
            let file = File::create(root.path().join(format!("0.log.{suffix}.gz"))).unwrap();
            let mut packed = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
            packed.write_all(&std::fs::read(&plain).unwrap()).unwrap();
            packed.finish().unwrap();
            std::fs::remove_file(plain).unwrap();
        };
        append(&path, 0..3);
        let mut log = open(root.path(), &path, None, true);
        assert_eq!(read(&mut log), [0, 1, 2]);
        append(&path, 3..4);
        rotate("20260101-000001");
        append(&path, 4..6);
        pack("20260101-000001");
        rotate("20260101-000002");
        append(&path, 6..7);
        assert_eq!(read(&mut log), [3, 4, 5, 6], "ours is compressed, the next one plain");
        for (suffix, lines) in
            [("20260101-000003", 7..9), ("20260101-000004", 9..12), ("20260101-000005", 12..13)]
        {
            rotate(suffix);
            append(&path, lines);
        }
        pack("20260101-000003");
        pack("20260101-000004");
        assert_eq!(
            read(&mut log),
            (7..13).collect::<Vec<_>>(),
            "two between are there, one of them compressed"
        );
        // Ours was thinned out, and what came after it not.
        rotate("20260101-000006");
        append(&path, 13..15);
        std::fs::remove_file(root.path().join("0.log.20260101-000006")).unwrap();
        rotate("20260101-000007");
        pack("20260101-000007");
        append(&path, 15..16);
        assert_eq!(read(&mut log), [13, 14, 15]);
    }

    #[test]
    fn no_link_leads_anywhere_and_no_pipe_holds_up() {
        let root = tempfile::tempdir().unwrap();
        let secret = tempfile::tempdir().unwrap();
        append(&secret.path().join("0.log"), 0..3);
        std::fs::create_dir(root.path().join("own")).unwrap();
        std::os::unix::fs::symlink(secret.path(), root.path().join("folder")).unwrap();
        std::os::unix::fs::symlink(secret.path().join("0.log"), root.path().join("own/0.log")).unwrap();
        nix::unistd::mkfifo(&root.path().join("own/1.log"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in ["folder/0.log", "own/0.log", "own/1.log", "../0.log", "own/../../0.log"] {
            let result = LogReader::open(root.path(), &root.path().join(path), &LogOptions::default());
            assert!(result.is_err(), "{path}");
        }
        let elsewhere = LogReader::open(root.path(), &secret.path().join("0.log"), &LogOptions::default());
        assert!(elsewhere.is_err());
    }

    #[test]
    fn a_byte_limit_ends_the_answer() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("0.log");
        append(&path, 0..10);
        let options = LogOptions { limit_bytes: Some(5), follow: true, ..LogOptions::default() };
        let mut reader = LogReader::open(root.path(), &path, &options).unwrap();
        assert!(matches!(reader.step().unwrap(), Step::More(text) if text == b"0\n1\n2"));
        assert!(matches!(reader.step().unwrap(), Step::Ended));
    }
}
