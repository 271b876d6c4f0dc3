//! SPDY/3 header blocks: name and value pairs under one zlib stream per direction that starts from
//! the protocol's dictionary. Bounded: a hostile peer can neither grow memory nor cause a panic.

use std::sync::OnceLock;

use bytes::{Buf, BufMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::frame::FrameError;

/// A block may inflate to this much; exec needs some hundred bytes.
const MAX_BLOCK_BYTES: usize = 64 * 1024;
/// A block may have this many pairs.
const MAX_PAIRS: usize = 256;

/// Name and value pairs in the order of the block; names in lower case.
pub type Headers = Vec<(String, String)>;

/// The words of the protocol's dictionary that carry a length prefix there (SPDY/3, 2.6.10.1).
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
keep-alive origin";

/// The dictionary's end, plain text.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The 1423 bytes both sides start from; the test checks its Adler-32.
pub(super) fn dictionary() -> &'static [u8] {
    static DICTIONARY: OnceLock<Vec<u8>> = OnceLock::new();
    DICTIONARY.get_or_init(|| {
        let mut bytes = Vec::with_capacity(1423);
        for word in WORDS.split(' ') {
            let word = word.replace('_', " ");
            bytes.put_u32(word.len() as u32);
            bytes.put_slice(word.as_bytes());
        }
        bytes.put_slice(TAIL.as_bytes());
        bytes
    })
}

/// The compressing side of one direction.
#[derive(Debug)]
pub(super) struct HeaderDeflate(Compress);

impl HeaderDeflate {
    pub(super) fn new() -> Self {
        let mut compress = Compress::new(Compression::best(), true);
        compress.set_dictionary(dictionary()).expect("a fresh zlib stream takes a dictionary");
        Self(compress)
    }

    pub(super) fn block(&mut self, headers: &[(String, String)]) -> Result<Vec<u8>, FrameError> {
        let mut plain = Vec::with_capacity(256);
        plain.put_u32(headers.len() as u32);
        for (name, value) in headers {
            plain.put_u32(name.len() as u32);
            plain.put_slice(name.as_bytes());
            plain.put_u32(value.len() as u32);
            plain.put_slice(value.as_bytes());
        }
        let mut out = Vec::with_capacity(plain.len() + 128);
        let mut input = plain.as_slice();
        loop {
            let before = self.0.total_in();
            self.0
                .compress_vec(input, &mut out, FlushCompress::Sync)
                .map_err(|_| FrameError::Headers("cannot be compressed"))?;
            input.advance((self.0.total_in() - before) as usize);
            // Room left over means that the flush is complete.
            if input.is_empty() && out.len() < out.capacity() {
                return Ok(out);
            }
            out.reserve(256);
        }
    }
}

/// The inflating side of one direction. Every block has to go through it, wanted or not.
#[derive(Debug)]
pub(super) struct HeaderInflate(Decompress);

impl HeaderInflate {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub(super) fn block(&mut self, compressed: &[u8]) -> Result<Headers, FrameError> {
        let plain = self.inflate(compressed)?;
        parse(&plain)
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, FrameError> {
        let mut out = Vec::with_capacity(1024);
        loop {
            let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
            let result = self.0.decompress_vec(input, &mut out, FlushDecompress::Sync);
            let consumed = (self.0.total_in() - before_in) as usize;
            input.advance(consumed.min(input.len()));
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(dictionary())
                        .map_err(|_| FrameError::Headers("use another dictionary than SPDY/3's"))?;
                    continue;
                }
                Err(_) => return Err(FrameError::Headers("are not valid zlib")),
                Ok(_) => {}
            }
            let moved = consumed > 0 || self.0.total_out() > before_out;
            if input.is_empty() && out.len() < out.capacity() {
                return Ok(out);
            }
            if out.len() >= MAX_BLOCK_BYTES {
                return Err(FrameError::Headers("inflate to more than 64 KiB"));
            }
            if !moved && out.len() < out.capacity() {
                return Err(FrameError::Headers("stop in the middle"));
            }
            out.reserve(1024);
        }
    }
}

fn parse(mut plain: &[u8]) -> Result<Headers, FrameError> {
    let cut = || FrameError::Headers("stop in the middle");
    let count = plain.try_get_u32().map_err(|_| cut())? as usize;
    if count > MAX_PAIRS {
        return Err(FrameError::Headers("have more than 256 pairs"));
    }
    let mut headers = Headers::with_capacity(count);
    for _ in 0..count {
        let name = take_text(&mut plain).ok_or_else(cut)?;
        let value = take_text(&mut plain).ok_or_else(cut)?;
        headers.push((name, value));
    }
    Ok(headers)
}

fn take_text(plain: &mut &[u8]) -> Option<String> {
    let length = plain.try_get_u32().ok()? as usize;
    let bytes = plain.get(..length)?;
    let text = String::from_utf8_lossy(bytes).into_owned();
    plain.advance(length);
    Some(text)
}
