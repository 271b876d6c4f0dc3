//! SPDY/3.1 frames as values, and their wire form. No I/O: bytes in, frames out, and the reverse.
//! Bounded in memory, and total: any bytes give frames or an error, never a panic.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::headers::{HeaderDeflate, HeaderInflate, Headers};

/// The runtimes' servers write 32 KiB at a time; a longer frame than this is refused.
pub const MAX_FRAME_BYTES: usize = 1024 * 1024;
const HEAD_BYTES: usize = 8;
const FLAG_FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// Why bytes from the peer are not SPDY/3.1.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    #[error("a frame of {0} bytes is longer than the limit of {MAX_FRAME_BYTES}")]
    TooLong(usize),
    #[error("the peer speaks SPDY version {0}, not 3")]
    Version(u16),
    #[error("a frame of type {0} is too short")]
    TooShort(u16),
    #[error("a frame's headers {0}")]
    Headers(&'static str),
}

/// One frame. `fin` says that its sender sends nothing more on the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Data {
        stream: u32,
        fin: bool,
        payload: Bytes,
    },
    SynStream {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    Reset {
        stream: u32,
        status: u32,
    },
    Ping {
        id: u32,
    },
    GoAway {
        last_stream: u32,
        status: u32,
    },
    Headers {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    /// SETTINGS, WINDOW_UPDATE and whatever later versions add: allowed, and without meaning to us.
    /// The runtimes' servers keep no flow-control windows.
    Other {
        kind: u16,
    },
}

/// The reading side of a connection.
#[derive(Debug)]
pub struct Decoder {
    inflate: HeaderInflate,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { inflate: HeaderInflate::new() }
    }
}

impl Decoder {
    /// Takes the next whole frame off the front of `buffer`; None until more bytes came.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some(head) = buffer.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = head[4];
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(FrameError::TooLong(length));
        }
        if buffer.len() < HEAD_BYTES + length {
            buffer.reserve(HEAD_BYTES + length - buffer.len());
            return Ok(None);
        }
        buffer.advance(HEAD_BYTES);
        let payload = buffer.split_to(length).freeze();
        let fin = flags & FLAG_FIN != 0;
        if word >> 31 == 0 {
            return Ok(Some(Frame::Data { stream: word, fin, payload }));
        }
        let version = ((word >> 16) & 0x7fff) as u16;
        if version != 3 {
            return Err(FrameError::Version(version));
        }
        self.control(word as u16, fin, payload).map(Some)
    }

    fn control(&mut self, kind: u16, fin: bool, mut payload: Bytes) -> Result<Frame, FrameError> {
        let mut number = || payload.try_get_u32().map_err(|_| FrameError::TooShort(kind));
        Ok(match kind {
            SYN_STREAM => {
                let stream = number()? & 0x7fff_ffff;
                number()?;
                if payload.len() < 2 {
                    return Err(FrameError::TooShort(kind));
                }
                payload.advance(2);
                Frame::SynStream { stream, fin, headers: self.inflate.block(&payload)? }
            }
            SYN_REPLY => {
                let stream = number()? & 0x7fff_ffff;
                Frame::SynReply { stream, fin, headers: self.inflate.block(&payload)? }
            }
            HEADERS => {
                let stream = number()? & 0x7fff_ffff;
                Frame::Headers { stream, fin, headers: self.inflate.block(&payload)? }
            }
            RST_STREAM => Frame::Reset { stream: number()? & 0x7fff_ffff, status: number()? },
            PING => Frame::Ping { id: number()? },
            GOAWAY => Frame::GoAway { last_stream: number()? & 0x7fff_ffff, status: number()? },
            other => Frame::Other { kind: other },
        })
    }
}

/// The writing side of a connection.
#[derive(Debug)]
pub struct Encoder {
    deflate: HeaderDeflate,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { deflate: HeaderDeflate::new() }
    }
}

impl Encoder {
    /// Appends the frame's wire form. `Other` frames carry nothing and are not written.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), FrameError> {
        match frame {
            Frame::Data { stream, fin, payload } => {
                out.put_u32(stream & 0x7fff_ffff);
                put_length(out, *fin, payload.len())?;
                out.put_slice(payload);
            }
            Frame::SynStream { stream, fin, headers } => {
                let block = self.deflate.block(headers)?;
                control_head(out, SYN_STREAM, *fin, 10 + block.len())?;
                out.put_u32(*stream);
                // No associated stream, highest priority, no credential slot.
                out.put_u32(0);
                out.put_u16(0);
                out.put_slice(&block);
            }
            Frame::SynReply { stream, fin, headers } => {
                let block = self.deflate.block(headers)?;
                control_head(out, SYN_REPLY, *fin, 4 + block.len())?;
                out.put_u32(*stream);
                out.put_slice(&block);
            }
            Frame::Headers { stream, fin, headers } => {
                let block = self.deflate.block(headers)?;
                control_head(out, HEADERS, *fin, 4 + block.len())?;
                out.put_u32(*stream);
                out.put_slice(&block);
            }
            Frame::Reset { stream, status } => {
                control_head(out, RST_STREAM, false, 8)?;
                out.put_u32(*stream);
                out.put_u32(*status);
            }
            Frame::Ping { id } => {
                control_head(out, PING, false, 4)?;
                out.put_u32(*id);
            }
            Frame::GoAway { last_stream, status } => {
                control_head(out, GOAWAY, false, 8)?;
                out.put_u32(*last_stream);
                out.put_u32(*status);
            }
            Frame::Other { .. } => {}
        }
        Ok(())
    }
}

fn control_head(out: &mut BytesMut, kind: u16, fin: bool, length: usize) -> Result<(), FrameError> {
    out.put_u16(0x8003);
    out.put_u16(kind);
    put_length(out, fin, length)
}

fn put_length(out: &mut BytesMut, fin: bool, length: usize) -> Result<(), FrameError> {
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong(length));
    }
    out.put_u32(u32::from(if fin { FLAG_FIN } else { 0 }) << 24 | length as u32);
    Ok(())
}
