//! Netlink framing and attributes (`linux/netlink.h`): a builder for requests and iterators over
//! answers. The iterators take arbitrary bytes and never panic; no I/O happens here.

/// Part of a multi-message answer.
pub const NLM_F_MULTI: u16 = 0x2;
/// Every request has it.
pub const NLM_F_REQUEST: u16 = 0x1;
/// Answer with an acknowledgement.
pub const NLM_F_ACK: u16 = 0x4;
/// A dump that raced with a change.
pub const NLM_F_DUMP_INTR: u16 = 0x10;
/// An acknowledgement whose copy of the request is cut to its header.
pub const NLM_F_CAPPED: u16 = 0x100;
/// An acknowledgement that carries attributes.
pub const NLM_F_ACK_TLVS: u16 = 0x200;
/// List everything.
pub const NLM_F_DUMP: u16 = 0x300;
/// Refuse if the object is there.
pub const NLM_F_EXCL: u16 = 0x200;
/// Make the object.
pub const NLM_F_CREATE: u16 = 0x400;
/// Put the object last.
pub const NLM_F_APPEND: u16 = 0x800;

/// An acknowledgement or error.
pub const NLMSG_ERROR: u16 = 2;
/// The end of a dump.
pub const NLMSG_DONE: u16 = 3;
/// The kernel lost messages.
pub const NLMSG_OVERRUN: u16 = 4;

/// Length of a message header.
pub const HEADER_LEN: usize = 16;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Bytes that do not follow the protocol; says which rule they break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed netlink message: {0}")]
pub struct Malformed(pub &'static str);

/// Builds messages one after the other in one buffer. Lengths are filled in when a message ends.
#[derive(Debug, Default)]
pub struct Builder {
    buf: Vec<u8>,
    start: usize,
}

/// Where a nested attribute began; give it back to [`Builder::end_nest`].
#[derive(Debug)]
#[must_use]
pub struct Nest(usize);

impl Builder {
    /// An empty buffer.
    pub fn new() -> Self {
        Builder::default()
    }

    /// Begin a message of this type with these flags, sequence number and family header.
    pub fn begin(&mut self, kind: u16, flags: u16, seq: u32, family_header: &[u8]) {
        self.start = self.buf.len();
        self.buf.extend_from_slice(&0u32.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.buf.extend_from_slice(&seq.to_ne_bytes());
        self.buf.extend_from_slice(&0u32.to_ne_bytes());
        self.buf.extend_from_slice(family_header);
        self.align();
    }

    /// End the message begun last.
    pub fn end(&mut self) {
        self.align();
        let len = (self.buf.len() - self.start) as u32;
        self.buf[self.start..self.start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Set a flag of the message begun last.
    pub fn add_flags(&mut self, flags: u16) {
        let at = self.start + 6;
        let old = u16::from_ne_bytes([self.buf[at], self.buf[at + 1]]);
        self.buf[at..at + 2].copy_from_slice(&(old | flags).to_ne_bytes());
    }

    /// Add an attribute with these bytes, at most 65531 of them.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        debug_assert!(value.len() <= usize::from(u16::MAX) - 4, "attribute {kind} of {} bytes", value.len());
        self.buf.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(value);
        self.align();
    }

    /// Add a 16-bit attribute in host order.
    pub fn u16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// Add a 32-bit attribute in host order.
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// Add a 16-bit attribute in network order.
    pub fn be16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Add a 32-bit attribute in network order.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Add a 64-bit attribute in network order.
    pub fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Add a NUL-terminated string.
    pub fn str(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    /// Begin an attribute that holds attributes.
    pub fn begin_nest(&mut self, kind: u16) -> Nest {
        let at = self.buf.len();
        self.buf.extend_from_slice(&0u16.to_ne_bytes());
        self.buf.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        Nest(at)
    }

    /// End it; its length is written now.
    pub fn end_nest(&mut self, nest: Nest) {
        let len = self.buf.len() - nest.0;
        debug_assert!(len <= usize::from(u16::MAX), "nested attribute of {len} bytes");
        self.buf[nest.0..nest.0 + 2].copy_from_slice(&(len as u16).to_ne_bytes());
    }

    /// An attribute that holds attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Builder)) {
        let nest = self.begin_nest(kind);
        fill(self);
        self.end_nest(nest);
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Whether nothing was built.
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// What was built.
    pub fn as_bytes(&self) -> &[u8] {
        &self.buf
    }

    /// Forget everything, keeping the memory.
    pub fn clear(&mut self) {
        self.buf.clear();
    }

    fn align(&mut self) {
        self.buf.resize(self.buf.len().next_multiple_of(4), 0);
    }
}

/// A received message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawMessage<'a> {
    /// Type.
    pub kind: u16,
    /// Flags.
    pub flags: u16,
    /// The request it answers.
    pub seq: u32,
    /// Everything behind the header.
    pub payload: &'a [u8],
}

/// The messages of a datagram.
#[derive(Debug, Clone)]
pub struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    /// Iterate over a datagram.
    pub fn new(datagram: &'a [u8]) -> Self {
        Messages(datagram)
    }

    fn parse(&mut self) -> Result<RawMessage<'a>, Malformed> {
        let bytes = self.0;
        if bytes.len() < HEADER_LEN {
            return Err(Malformed("datagram ends within a header"));
        }
        let len = read_u32(bytes).unwrap_or(0) as usize;
        if len < HEADER_LEN || len > bytes.len() {
            return Err(Malformed("message length is outside the datagram"));
        }
        let message = RawMessage {
            kind: u16::from_ne_bytes([bytes[4], bytes[5]]),
            flags: u16::from_ne_bytes([bytes[6], bytes[7]]),
            seq: read_u32(&bytes[8..]).unwrap_or(0),
            payload: &bytes[HEADER_LEN..len],
        };
        self.0 = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Ok(message)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<RawMessage<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let message = self.parse();
        if message.is_err() {
            self.0 = &[];
        }
        Some(message)
    }
}

/// A received attribute; its type is without the nested and byte-order bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Type.
    pub kind: u16,
    /// Value.
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The attributes it holds.
    pub fn nested(&self) -> Attributes<'a> {
        Attributes::new(self.value)
    }

    /// One byte.
    pub fn u8(&self) -> Result<u8, Malformed> {
        self.value.first().copied().ok_or(Malformed("attribute of less than 1 byte"))
    }

    /// 16 bits in host order.
    pub fn u16(&self) -> Result<u16, Malformed> {
        self.array().map(u16::from_ne_bytes)
    }

    /// 16 bits in network order.
    pub fn be16(&self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    /// 32 bits in host order.
    pub fn u32(&self) -> Result<u32, Malformed> {
        self.array().map(u32::from_ne_bytes)
    }

    /// 32 bits in network order.
    pub fn be32(&self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// 64 bits in host order.
    pub fn u64(&self) -> Result<u64, Malformed> {
        self.array().map(u64::from_ne_bytes)
    }

    /// 64 bits in network order.
    pub fn be64(&self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// The first `N` bytes.
    pub fn array<const N: usize>(&self) -> Result<[u8; N], Malformed> {
        self.value.first_chunk().copied().ok_or(Malformed("attribute is too short for its type"))
    }

    /// A string up to its NUL or its end.
    pub fn str(&self) -> Result<&'a str, Malformed> {
        let end = self.value.iter().position(|byte| *byte == 0).unwrap_or(self.value.len());
        std::str::from_utf8(&self.value[..end]).map_err(|_| Malformed("string is not UTF-8"))
    }
}

/// Attributes in order.
#[derive(Debug, Clone)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Iterate over a payload.
    pub fn new(payload: &'a [u8]) -> Self {
        Attributes(payload)
    }

    /// Iterate over what follows a family header of `len` bytes.
    pub fn behind(payload: &'a [u8], len: usize) -> Result<Self, Malformed> {
        payload.get(len..).map(Attributes).ok_or(Malformed("message is shorter than its family header"))
    }

    /// The first attribute of a type.
    pub fn find(&self, kind: u16) -> Result<Option<Attribute<'a>>, Malformed> {
        for attribute in self.clone() {
            let attribute = attribute?;
            if attribute.kind == kind {
                return Ok(Some(attribute));
            }
        }
        Ok(None)
    }

    fn parse(&mut self) -> Result<Attribute<'a>, Malformed> {
        let bytes = self.0;
        let [l0, l1, k0, k1] = *bytes.first_chunk().ok_or(Malformed("attribute header is cut off"))?;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        if len < 4 || len > bytes.len() {
            return Err(Malformed("attribute length is outside the message"));
        }
        self.0 = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Ok(Attribute { kind: u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK, value: &bytes[4..len] })
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let attribute = self.parse();
        if attribute.is_err() {
            self.0 = &[];
        }
        Some(attribute)
    }
}

/// The first 4 bytes in host order.
pub fn read_u32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Builder {
        let mut builder = Builder::new();
        builder.begin(7, NLM_F_ACK, 42, &[1, 1, 0, 0]);
        builder.u16(1, 0x1234);
        builder.nest(2, |inner| {
            inner.str(3, "rr");
            inner.be32(4, 9);
        });
        builder.end();
        builder
    }

    #[test]
    fn a_message_is_framed_as_the_kernel_wants_it() {
        let expected: Vec<u8> = [
            48u32.to_ne_bytes().as_slice(),
            &7u16.to_ne_bytes(),
            &5u16.to_ne_bytes(),
            &42u32.to_ne_bytes(),
            &[0; 4],
            &[1, 1, 0, 0],
            &6u16.to_ne_bytes(),
            &1u16.to_ne_bytes(),
            &0x1234u16.to_ne_bytes(),
            &[0; 2],
            &20u16.to_ne_bytes(),
            &0x8002u16.to_ne_bytes(),
            &7u16.to_ne_bytes(),
            &3u16.to_ne_bytes(),
            b"rr\0\0",
            &8u16.to_ne_bytes(),
            &4u16.to_ne_bytes(),
            &[0, 0, 0, 9],
        ]
        .concat();
        assert_eq!(sample().as_bytes(), expected);
    }

    #[test]
    fn what_is_built_is_read_back() {
        let builder = sample();
        let messages: Vec<_> = Messages::new(builder.as_bytes()).collect::<Result<_, _>>().unwrap();
        assert_eq!(messages.len(), 1);
        assert_eq!((messages[0].kind, messages[0].flags, messages[0].seq), (7, 5, 42));
        let attributes = Attributes::behind(messages[0].payload, 4).unwrap();
        assert_eq!(attributes.find(1).unwrap().unwrap().u16(), Ok(0x1234));
        let nested = attributes.find(2).unwrap().unwrap().nested();
        assert_eq!(nested.find(3).unwrap().unwrap().str(), Ok("rr"));
        assert_eq!(nested.find(4).unwrap().unwrap().be32(), Ok(9));
        assert_eq!(nested.find(5), Ok(None));
    }

    #[test]
    fn lengths_that_lie_are_named() {
        let mut bytes = sample().as_bytes().to_vec();
        bytes[0] = 200;
        assert_eq!(
            Messages::new(&bytes).next(),
            Some(Err(Malformed("message length is outside the datagram")))
        );
        assert_eq!(
            Attributes::new(&[9, 0, 1, 0, 1]).next(),
            Some(Err(Malformed("attribute length is outside the message")))
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_end_the_iterators(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            for message in Messages::new(&bytes).flatten() {
                for attribute in Attributes::new(message.payload).flatten() {
                    prop_assert!(attribute.nested().count() <= bytes.len());
                }
            }
        }
    }
}
