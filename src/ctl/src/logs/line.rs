//! The CRI log format as values: `<time> <stream> <tags> <text>`, one line per write, long writes in
//! parts (kubernetes design: kubelet-cri-logging). Pure, bounded in memory, total: no input panics.

use jiff::Timestamp;

/// A record may grow to this much before it is handed on in pieces.
pub const MAX_RECORD_BYTES: usize = 1024 * 1024;
/// Runtimes cut at 16 KiB; a line without end longer than this is not a CRI log.
const MAX_LINE_BYTES: usize = 256 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// One line of a CRI log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLine<'a> {
    pub at: Timestamp,
    pub stream: Stream,
    /// More of the same write follows.
    pub partial: bool,
    pub text: &'a [u8],
}

/// Reads one line without its line break; None where it is not in the CRI format.
pub fn parse(line: &[u8]) -> Option<LogLine<'_>> {
    let (time, rest) = split(line)?;
    let (stream, rest) = split(rest)?;
    // A write of nothing has no text, and some runtimes then omit the space as well.
    let (tags, text) = split(rest).unwrap_or((rest, b""));
    let at = std::str::from_utf8(time).ok()?.parse().ok()?;
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let partial = match tags.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(LogLine { at, stream, partial, text })
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == b' ')?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// One write of the container, its parts joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When its first part was written.
    pub at: Timestamp,
    pub stream: Stream,
    pub text: Vec<u8>,
    /// False for a piece of an overlong record: no line break belongs after it.
    pub whole: bool,
}

/// Turns the bytes of a log file, in any pieces, into records.
#[derive(Debug, Default)]
pub struct Joiner {
    line: Vec<u8>,
    /// Parts waiting for their end, by stream.
    stdout: Option<Record>,
    stderr: Option<Record>,
    /// The line being read is too long and dropped up to its end.
    skipping: bool,
    /// Lines that were not in the CRI format.
    pub malformed: u64,
}

impl Joiner {
    /// Takes more bytes of the file; calls `emit` for each record that is complete.
    pub fn feed(&mut self, mut bytes: &[u8], emit: &mut impl FnMut(Record)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            if self.skipping {
                self.skipping = false;
                self.malformed += 1;
            } else if self.line.is_empty() {
                self.take(&bytes[..end], emit);
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(&bytes[..end]);
                self.take(&line, emit);
                line.clear();
                self.line = line;
            }
            bytes = &bytes[end + 1..];
        }
        if self.skipping || self.line.len() + bytes.len() > MAX_LINE_BYTES {
            self.skipping = true;
            self.line.clear();
        } else {
            self.line.extend_from_slice(bytes);
        }
    }

    /// The file has ended for good: hands on what was still open.
    pub fn finish(&mut self, emit: &mut impl FnMut(Record)) {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            self.take(&line, emit);
        }
        for slot in [&mut self.stdout, &mut self.stderr] {
            if let Some(record) = slot.take() {
                emit(record);
            }
        }
    }

    fn take(&mut self, line: &[u8], emit: &mut impl FnMut(Record)) {
        let Some(line) = parse(line) else {
            self.malformed += 1;
            return;
        };
        let slot = match line.stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let mut record = slot.take().unwrap_or(Record {
            at: line.at,
            stream: line.stream,
            text: Vec::new(),
            whole: false,
        });
        record.text.extend_from_slice(line.text);
        if !line.partial {
            record.whole = true;
            emit(record);
        } else if record.text.len() > MAX_RECORD_BYTES {
            emit(record);
        } else {
            *slot = Some(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn records(bytes: &[u8], piece: usize) -> (Vec<Record>, u64) {
        let mut joiner = Joiner::default();
        let mut seen = Vec::new();
        for chunk in bytes.chunks(piece.max(1)) {
            joiner.feed(chunk, &mut |record| seen.push(record));
        }
        joiner.finish(&mut |record| seen.push(record));
        (seen, joiner.malformed)
    }

    #[test]
    fn each_form_of_a_line_is_read_or_refused() {
        let time = "2026-11-21T10:00:00.123456789Z";
        type Read = Option<(Stream, bool, &'static str)>;
        let cases: [(String, Read); 13] = [
            (format!("{time} stdout F hello"), Some((Stream::Stdout, false, "hello"))),
            (format!("{time} stderr P half"), Some((Stream::Stderr, true, "half"))),
            (format!("{time} stdout F:more x"), Some((Stream::Stdout, false, "x"))),
            (format!("{time} stdout F "), Some((Stream::Stdout, false, ""))),
            (format!("{time} stdout F"), Some((Stream::Stdout, false, ""))),
            (format!("{time} stdout F  two  spaces "), Some((Stream::Stdout, false, " two  spaces "))),
            ("2026-11-21T11:00:00.1+01:00 stdout F zone".into(), Some((Stream::Stdout, false, "zone"))),
            (format!("{time} stdin F x"), None),
            (format!("{time} stdout X x"), None),
            (format!("{time} stdout"), None),
            ("yesterday stdout F x".into(), None),
            ("{\"log\":\"docker json\\n\"}".into(), None),
            (String::new(), None),
        ];
        for (line, expected) in cases {
            let got = parse(line.as_bytes())
                .map(|line| (line.stream, line.partial, std::str::from_utf8(line.text).unwrap().to_string()));
            assert_eq!(got, expected.map(|(s, p, t)| (s, p, t.to_string())), "{line}");
        }
    }

    #[test]
    fn parts_are_joined_by_stream() {
        let log = "2026-01-01T00:00:01Z stdout P ab\n2026-01-01T00:00:02Z stderr F err\nnonsense\n\
                   2026-01-01T00:00:03Z stdout F cd\n2026-01-01T00:00:04Z stdout P open";
        let (seen, malformed) = records(log.as_bytes(), 7);
        let shown: Vec<_> =
            seen.iter().map(|r| (r.at.as_second() % 10, String::from_utf8_lossy(&r.text), r.whole)).collect();
        assert_eq!(shown, [(2, "err".into(), true), (1, "abcd".into(), true), (4, "open".into(), false)]);
        assert_eq!(malformed, 1);
    }

    #[test]
    fn endless_lines_and_endless_parts_stay_bounded() {
        let mut joiner = Joiner::default();
        for _ in 0..100 {
            joiner.feed(&[b'x'; 65536], &mut |_| panic!("not a record"));
            assert!(joiner.line.capacity() <= 2 * MAX_LINE_BYTES);
        }
        let mut seen = Vec::new();
        joiner.feed(b"\n2026-01-01T00:00:01Z stdout F after\n", &mut |record| seen.push(record));
        assert_eq!((seen.len(), joiner.malformed), (1, 1));

        let part = [b"2026-01-01T00:00:01Z stdout P ".as_slice(), &[b'y'; 16384], b"\n"].concat();
        let mut longest = 0;
        for _ in 0..200 {
            joiner.feed(&part, &mut |record| {
                assert!(!record.whole);
                longest = longest.max(record.text.len());
            });
        }
        assert!(longest > MAX_RECORD_BYTES && longest <= MAX_RECORD_BYTES + 16384);
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_the_same_records(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b' '), any::<u8>()], 0..600), piece in 1usize..50,
        ) {
            prop_assert_eq!(records(&bytes, piece), records(&bytes, usize::MAX));
        }

        #[test]
        fn what_a_runtime_writes_comes_back(
            writes in prop::collection::vec((any::<bool>(), "[^\n]{0,60}", 1usize..20), 0..20), piece in 1usize..50,
        ) {
            let mut file = Vec::new();
            for (stderr, text, cut) in &writes {
                let stream = if *stderr { "stderr" } else { "stdout" };
                let parts: Vec<&[u8]> = text.as_bytes().chunks(*cut).collect();
                let count = parts.len().max(1);
                for number in 0..count {
                    let tag = if number + 1 == count { "F" } else { "P" };
                    file.extend_from_slice(format!("2026-01-01T00:00:00Z {stream} {tag} ").as_bytes());
                    file.extend_from_slice(parts.get(number).copied().unwrap_or_default());
                    file.push(b'\n');
                }
            }
            let (seen, malformed) = records(&file, piece);
            let want: Vec<Vec<u8>> = writes.iter().map(|(_, text, _)| text.clone().into_bytes()).collect();
            let got: Vec<Vec<u8>> = seen.into_iter().map(|record| record.text).collect();
            prop_assert_eq!(got, want);
            prop_assert_eq!(malformed, 0);
        }
    }
}
