//! What runtimes send back: container log files and SPDY frames. Both are read in pieces, and the
//! pieces must not matter.

use bolero::check;
use bytes::BytesMut;
use longshore_ctl::exec::spdy::frame::{Decoder, Frame};
use longshore_ctl::logs::line::{Joiner, Record, parse};

fn records(pieces: &[&[u8]]) -> (Vec<Record>, u64) {
    let (mut joiner, mut out) = (Joiner::default(), Vec::new());
    for piece in pieces {
        joiner.feed(piece, &mut |record| out.push(record));
    }
    joiner.finish(&mut |record| out.push(record));
    (out, joiner.malformed)
}

/// Lines that mostly look like CRI log lines.
fn log_text(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    for byte in bytes {
        match byte % 8 {
            0 => text.extend_from_slice(b"2026-11-21T10:00:00.123456789Z stdout F "),
            1 => text.extend_from_slice(b"2026-11-21T10:00:00.123456789Z stderr P "),
            2 | 3 => text.push(b'\n'),
            _ => text.push(*byte),
        }
    }
    text
}

#[test]
fn log_lines_of_any_bytes() {
    check!().for_each(|bytes: &[u8]| {
        let _ = parse(bytes);
        let _ = records(&[bytes]);
    });
}

#[test]
fn log_lines_do_not_depend_on_the_pieces() {
    check!().for_each(|bytes: &[u8]| {
        let text = log_text(bytes);
        let cut = bytes.first().map_or(0, |byte| usize::from(*byte) % (text.len() + 1));
        assert_eq!(records(&[&text]), records(&[&text[..cut], &text[cut..]]));
    });
}

fn frames(bytes: &[u8], step: usize) -> (Vec<String>, bool) {
    let (mut decoder, mut buffer, mut out) = (Decoder::default(), BytesMut::new(), Vec::new());
    for piece in bytes.chunks(step) {
        buffer.extend_from_slice(piece);
        loop {
            let frame: Frame = match decoder.decode(&mut buffer) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(_) => return (out, true),
            };
            out.push(format!("{frame:?}"));
        }
    }
    (out, false)
}

#[test]
fn spdy_frames_do_not_depend_on_the_pieces() {
    check!().for_each(|bytes: &[u8]| {
        let whole = frames(bytes, bytes.len().max(1));
        let step = bytes.first().map_or(1, |byte| usize::from(*byte) % 16 + 1);
        assert_eq!(whole, frames(bytes, step));
    });
}
