//! A watch's body cut into lines of bounded length. A server that sends one endless line, or a line
//! larger than any object can be, costs `limit` bytes and the watch, nothing more.

use bytes::{Buf, Bytes, BytesMut};

/// The line under way is longer than allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Collects bytes and gives whole lines.
#[derive(Debug)]
pub struct Lines {
    buffer: BytesMut,
    limit: usize,
    /// So far of the buffer is known to hold no line end.
    searched: usize,
}

impl Lines {
    /// Lines of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), limit, searched: 0 }
    }

    /// Adds what came in.
    pub fn push(&mut self, bytes: &Bytes) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line without its end, if there is one.
    ///
    /// # Errors
    /// Where the line under way is too long.
    pub fn next_line(&mut self) -> Result<Option<Bytes>, TooLong> {
        loop {
            let end = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
            let Some(end) = end.map(|end| end + self.searched) else {
                self.searched = self.buffer.len();
                return if self.searched > self.limit { Err(TooLong) } else { Ok(None) };
            };
            if end > self.limit {
                return Err(TooLong);
            }
            let line = self.buffer.split_to(end).freeze();
            self.buffer.advance(1);
            self.searched = 0;
            if self.buffer.is_empty() && self.buffer.capacity() > 1 << 16 {
                // What one large object needed is not kept for the small ones after it.
                self.buffer = BytesMut::new();
            }
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(lines: &mut Lines) -> Vec<String> {
        let mut found = Vec::new();
        while let Ok(Some(line)) = lines.next_line() {
            found.push(String::from_utf8_lossy(&line).into_owned());
        }
        found
    }

    #[test]
    fn a_line_too_long_is_refused_before_it_ends() {
        let mut lines = Lines::new(4);
        lines.push(&Bytes::from_static(b"abcd\nabcde"));
        assert_eq!(lines.next_line(), Ok(Some(Bytes::from_static(b"abcd"))));
        assert_eq!(lines.next_line(), Err(TooLong));
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_does_not_matter(text in "[a-c \n]{0,60}", cuts in proptest::collection::vec(1_usize..7, 0..30)) {
            let expected: Vec<String> =
                text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(|line| line.trim_end_matches('\n').to_owned())
                    .filter(|line| !line.trim().is_empty()).collect();
            let mut lines = Lines::new(100);
            let mut found = Vec::new();
            let mut rest = text.as_bytes();
            for cut in cuts.into_iter().chain(std::iter::once(usize::MAX)) {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                lines.push(&Bytes::copy_from_slice(now));
                found.extend(all(&mut lines));
                rest = later;
            }
            prop_assert_eq!(found, expected);
        }
    }
}
