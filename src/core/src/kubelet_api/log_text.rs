//! CRI log files as clients see them: the bytes of a file go in, in any pieces, and the lines that are asked
//! for come out, without copies of whole files and with bounded memory. Total: no input panics.

use jiff::Timestamp;
use memchr::{memchr, memrchr};

use super::query::{LogOptions, LogStream};

/// A line without end longer than this is not a CRI log; runtimes cut at 16 KiB.
const MAX_LINE_BYTES: usize = 256 * 1024;

/// Turns a log file into the text of an answer.
#[derive(Clone, Debug)]
pub struct LogText {
    since: Option<Timestamp>,
    stream: LogStream,
    timestamps: bool,
    /// Bytes of the answer that may still come.
    left: Option<u64>,
    /// The beginning of a line whose end was not read yet.
    open: Vec<u8>,
    /// The line being read is too long and dropped up to its end.
    skipping: bool,
    /// Whether what was given out last ended a line.
    at_start: bool,
    /// Lines that are still to be left out before any is shown.
    skip_lines: u64,
}

/// One line of a CRI log file: `<time> <stream> <tags> <text>`.
struct Line<'a> {
    time: &'a [u8],
    stream: LogStream,
    /// More of the same write follows.
    partial: bool,
    text: &'a [u8],
}

impl LogText {
    pub fn new(options: &LogOptions) -> Self {
        Self {
            since: options.since,
            stream: options.stream,
            timestamps: options.timestamps,
            left: options.limit_bytes,
            open: Vec::new(),
            skipping: false,
            at_start: true,
            skip_lines: 0,
        }
    }

    /// Leaves out the next so many lines of the file.
    pub fn skip(&mut self, lines: u64) {
        self.skip_lines = lines;
    }

    /// Whether the answer has all the bytes that were asked for.
    pub fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    /// Takes more bytes of the file and adds to `out` what they show.
    pub fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while let Some(end) = memchr(b'\n', bytes) {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            if self.skipping {
                self.skipping = false;
            } else if self.open.is_empty() {
                self.line(line, out);
            } else {
                let mut whole = std::mem::take(&mut self.open);
                whole.extend_from_slice(line);
                self.line(&whole, out);
                whole.clear();
                self.open = whole;
            }
            bytes = rest;
        }
        if self.skipping || self.open.len() + bytes.len() > MAX_LINE_BYTES {
            self.skipping = true;
            self.open.clear();
        } else {
            self.open.extend_from_slice(bytes);
        }
    }

    /// The file has ended for good: its last line may lack its end.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        let open = std::mem::take(&mut self.open);
        self.skipping = false;
        if !open.is_empty() {
            self.line(&open, out);
        }
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        if self.skip_lines > 0 {
            self.skip_lines -= 1;
            return;
        }
        // What is not in the format was not written by the runtime.
        let Some(line) = parse(line) else { return };
        if self.stream != LogStream::All && self.stream != line.stream {
            return;
        }
        if let Some(since) = self.since {
            let at = std::str::from_utf8(line.time).ok().and_then(|text| text.parse::<Timestamp>().ok());
            if at.is_none_or(|at| at < since) {
                return;
            }
        }
        if self.timestamps && self.at_start {
            self.put(line.time, out);
            self.put(b" ", out);
        }
        self.put(line.text, out);
        if !line.partial {
            self.put(b"\n", out);
        }
        self.at_start = !line.partial;
    }

    fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let count = match &mut self.left {
            None => bytes.len(),
            Some(left) => {
                let count = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= count as u64;
                count
            }
        };
        out.extend_from_slice(&bytes[..count]);
    }
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let (time, rest) = split(line)?;
    let (stream, rest) = split(rest)?;
    // A write of nothing has no text, and some runtimes then omit the space as well.
    let (tags, text) = split(rest).unwrap_or((rest, b""));
    let stream = match stream {
        b"stdout" => LogStream::Stdout,
        b"stderr" => LogStream::Stderr,
        _ => return None,
    };
    let partial = match tags.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    // `2026-01-01T00:00:00Z` is the shortest time of RFC 3339.
    let looks_like_a_time =
        time.len() >= 20 && time[0].is_ascii_digit() && time[4] == b'-' && time[10] == b'T';
    looks_like_a_time.then_some(Line { time, stream, partial, text })
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr(b' ', bytes)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// Where the last `lines` lines of a block of a file begin. Blocks are given from the file's end to its
/// beginning; counts ends of lines, where that of the file's last line is none.
#[derive(Clone, Debug)]
pub struct TailSearch {
    wanted: u64,
    found: u64,
    at_end: bool,
}

impl TailSearch {
    pub fn new(lines: u64) -> Self {
        Self { wanted: lines, found: 0, at_end: true }
    }

    /// Whole lines that were passed so far.
    pub fn found(&self) -> u64 {
        self.found
    }

    /// Where in `block` the wanted lines begin; `None` where that is before it.
    pub fn block(&mut self, block: &[u8]) -> Option<usize> {
        let mut end = block.len();
        if std::mem::replace(&mut self.at_end, block.is_empty()) && block.last() == Some(&b'\n') {
            if self.wanted == 0 {
                return Some(block.len());
            }
            end -= 1;
        }
        while let Some(at) = memrchr(b'\n', &block[..end]) {
            self.found += 1;
            if self.found >= self.wanted {
                return Some(at + 1);
            }
            end = at;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOG: &str = "2026-01-01T00:00:01.5Z stdout P ab\n2026-01-01T00:00:02Z stdout F cd\nnonsense\n\
                       2026-01-01T00:00:03Z stderr F err\n2026-01-01T00:00:04Z stdout F\n\
                       2026-01-01T00:00:05Z stdout F last";

    fn shown(options: &LogOptions, bytes: &[u8], piece: usize) -> String {
        let mut text = LogText::new(options);
        let mut out = Vec::new();
        bytes.chunks(piece).for_each(|chunk| text.feed(chunk, &mut out));
        text.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_options_choose_what_is_shown() {
        let all = LogOptions::default();
        let since = Some("2026-01-01T00:00:03Z".parse().unwrap());
        let cases = [
            (all.clone(), "abcd\nerr\n\nlast\n"),
            (
                LogOptions { timestamps: true, ..all.clone() },
                "2026-01-01T00:00:01.5Z abcd\n2026-01-01T00:00:03Z err\n2026-01-01T00:00:04Z \n\
                 2026-01-01T00:00:05Z last\n",
            ),
            (LogOptions { since, ..all.clone() }, "err\n\nlast\n"),
            (LogOptions { stream: LogStream::Stderr, ..all.clone() }, "err\n"),
            (LogOptions { limit_bytes: Some(6), ..all }, "abcd\ne"),
        ];
        for (options, expected) in cases {
            assert_eq!(shown(&options, LOG.as_bytes(), 7), expected, "{options:?}");
        }
    }

    #[test]
    fn endless_lines_stay_bounded() {
        let mut text = LogText::new(&LogOptions::default());
        let mut out = Vec::new();
        for _ in 0..100 {
            text.feed(&[b'x'; 65536], &mut out);
            assert!(text.open.capacity() <= 2 * MAX_LINE_BYTES);
        }
        text.feed(b"\n2026-01-01T00:00:01Z stdout F after\n", &mut out);
        assert_eq!(out, b"after\n");
    }

    /// The last lines of `text`, searched for in blocks of `block` bytes.
    fn tail(text: &str, lines: u64, block: usize) -> String {
        let mut search = TailSearch::new(lines);
        let mut end = text.len();
        loop {
            let begin = end.saturating_sub(block);
            if let Some(at) = search.block(&text.as_bytes()[begin..end]) {
                return text[begin + at..].to_owned();
            }
            if begin == 0 {
                return text.to_owned();
            }
            end = begin;
        }
    }

    proptest! {
        #[test]
        fn the_last_lines_are_found_whatever_the_blocks(
            lines in prop::collection::vec("[a-z]{0,5}", 0..12), open in any::<bool>(), wanted in 0u64..15, block in 1usize..9,
        ) {
            let mut text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
            if open { text.push('z'); }
            let all: Vec<&str> = text.split_inclusive('\n').collect();
            let skip = all.len().saturating_sub(usize::try_from(wanted).unwrap());
            // Nothing of a line without end counts as a line, and no lines are none of it.
            prop_assume!(!(open && wanted == 0));
            prop_assert_eq!(tail(&text, wanted, block), all[skip..].concat());
        }

        #[test]
        fn any_bytes_in_any_pieces_show_the_same(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b' '), any::<u8>()], 0..400), piece in 1usize..40,
        ) {
            let options = LogOptions { timestamps: true, ..LogOptions::default() };
            let run = |piece| {
                let mut text = LogText::new(&options);
                let mut out = Vec::new();
                bytes.chunks(piece).for_each(|chunk| text.feed(chunk, &mut out));
                text.finish(&mut out);
                out
            };
            prop_assert_eq!(run(piece), run(usize::MAX));
        }
    }
}
