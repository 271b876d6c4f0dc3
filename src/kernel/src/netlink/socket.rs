//! A blocking netlink socket that matches answers to requests. The kernel works on a request within
//! the send, so that answers wait in the socket when it returns; callers run whole conversations on a
//! blocking thread. What the messages mean is the callers' business.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::wire::{
    Attributes, Builder, HEADER_LEN, Messages, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NLMSG_DONE,
    NLMSG_ERROR, NLMSG_OVERRUN, RawMessage, read_u32,
};
use super::{NetlinkError, Refusal};

/// How long the kernel may take to answer. A large nf_tables transaction takes seconds on a slow
/// machine, and it holds locks other programs' transactions wait for.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// The kernel fills a dump datagram up to 32 KiB; an acknowledgement is far shorter.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// Requests sent before their acknowledgements are read. An acknowledgement takes up to 1 KiB of the
/// receive buffer, which holds 208 KiB by default.
const WINDOW_REQUESTS: usize = 64;
const WINDOW_BYTES: usize = 32 * 1024;

/// A dump that keeps racing with changes is given up after this many attempts.
const DUMP_ATTEMPTS: u32 = 10;

const NLMSGERR_ATTR_MSG: u16 = 1;

/// A socket of one netlink protocol, in the network namespace it was opened in.
pub struct NetlinkSocket {
    socket: Socket,
    seq: u32,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for NetlinkSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetlinkSocket").field("fd", &self.socket.as_raw_fd()).field("seq", &self.seq).finish()
    }
}

impl NetlinkSocket {
    /// Open a socket of this protocol (`NETLINK_*`) in the calling thread's network namespace.
    pub fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let errno = |err: std::io::Error| NetlinkError::Open {
            protocol,
            source: Errno::from_raw(err.raw_os_error().unwrap_or(0)),
        };
        let mut socket = Socket::new(protocol).map_err(errno)?;
        socket.bind_auto().map_err(errno)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(errno)?;
        // Short acknowledgements with the kernel's own words; kernels before 4.12 lack them.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        setsockopt(
            &socket.as_fd(),
            sockopt::ReceiveTimeout,
            &TimeVal::new(ANSWER_DEADLINE.as_secs() as i64, 0),
        )
        .map_err(|source| NetlinkError::Open { protocol, source })?;
        Ok(NetlinkSocket { socket, seq: 0, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// The port the kernel knows the socket by.
    pub fn port(&self) -> u32 {
        let mut address = SocketAddr::new(0, 0);
        // The kernel refuses this for no bound socket; port 0 is the kernel's own and nobody's here.
        match self.socket.get_address(&mut address) {
            Ok(()) => address.port_number(),
            Err(_) => 0,
        }
    }

    /// A fresh sequence number.
    pub fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1).max(1);
        self.seq
    }

    /// Use up sequence numbers for messages that were encoded elsewhere.
    pub fn skip_seqs(&mut self, count: u32) {
        self.seq = self.seq.wrapping_add(count);
    }

    /// Send requests that each ask for an acknowledgement, and give each its outcome, in order. A
    /// failure of the conversation stands for every request without an answer.
    ///
    /// `encode` writes request `index` with the given sequence number as one message.
    pub fn request_each(
        &mut self,
        count: usize,
        mut encode: impl FnMut(&mut Builder, usize, u32),
    ) -> Vec<Result<(), RequestError>> {
        let mut outcomes: Vec<Option<Result<(), RequestError>>> = vec![None; count];
        let mut builder = Builder::new();
        let mut done = 0;
        while done < count {
            builder.clear();
            let first = done;
            let first_seq = self.seq.wrapping_add(1).max(1);
            while done < count && done - first < WINDOW_REQUESTS && builder.len() < WINDOW_BYTES {
                let seq = self.next_seq();
                encode(&mut builder, done, seq);
                done += 1;
            }
            let window = &mut outcomes[first..done];
            if let Err(err) = self.exchange(builder.as_bytes(), first_seq, window) {
                self.abandon(&mut outcomes, &err);
                break;
            }
        }
        outcomes.into_iter().map(|outcome| outcome.unwrap_or(Ok(()))).collect()
    }

    fn abandon(&mut self, outcomes: &mut [Option<Result<(), RequestError>>], err: &NetlinkError) {
        for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_none()) {
            *outcome = Some(Err(RequestError::Conversation(err.clone())));
        }
    }

    fn exchange(
        &mut self,
        request: &[u8],
        first_seq: u32,
        outcomes: &mut [Option<Result<(), RequestError>>],
    ) -> Result<(), NetlinkError> {
        self.send(request)?;
        let mut missing = outcomes.len();
        while missing > 0 {
            self.receive(|message| {
                let index = message.seq.wrapping_sub(first_seq) as usize;
                if index >= outcomes.len() || outcomes[index].is_some() {
                    return Ok(()); // A late answer to an earlier, abandoned request.
                }
                if message.kind != NLMSG_ERROR {
                    return Ok(());
                }
                outcomes[index] = Some(parse_ack(&message)?.map_err(RequestError::Refused));
                missing -= 1;
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Send one request and hand every message that answers it to `each`, until the acknowledgement.
    /// The request must ask for one.
    pub fn request(
        &mut self,
        encode: impl FnOnce(&mut Builder, u32),
        mut each: impl FnMut(RawMessage<'_>) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        let seq = self.next_seq();
        let mut builder = Builder::new();
        encode(&mut builder, seq);
        self.send(builder.as_bytes())?;
        let mut outcome = None;
        while outcome.is_none() {
            self.receive(|message| {
                if message.seq != seq {
                    return Ok(());
                }
                match message.kind {
                    NLMSG_ERROR => outcome = Some(parse_ack(&message)?),
                    _ => each(message)?,
                }
                Ok(())
            })?;
        }
        outcome.unwrap_or(Ok(())).map_err(NetlinkError::Refused)
    }

    /// Dump, handing each message to `each`. When the kernel says that the table changed meanwhile,
    /// `reset` is called and the dump starts again.
    pub fn dump<T>(
        &mut self,
        mut encode: impl FnMut(&mut Builder, u32),
        mut fresh: impl FnMut() -> T,
        mut each: impl FnMut(&mut T, RawMessage<'_>) -> Result<(), NetlinkError>,
    ) -> Result<T, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let (result, true) = self.dump_once(&mut encode, fresh(), &mut each)? {
                return Ok(result);
            }
        }
        Err(NetlinkError::Interrupted(DUMP_ATTEMPTS))
    }

    /// Dump once into `result`; also whether the kernel says that nothing changed meanwhile.
    pub fn dump_once<T>(
        &mut self,
        mut encode: impl FnMut(&mut Builder, u32),
        mut result: T,
        mut each: impl FnMut(&mut T, RawMessage<'_>) -> Result<(), NetlinkError>,
    ) -> Result<(T, bool), NetlinkError> {
        let seq = self.next_seq();
        let mut builder = Builder::new();
        encode(&mut builder, seq);
        self.send(builder.as_bytes())?;
        let consistent = self.drain_dump(seq, |message| each(&mut result, message))?;
        Ok((result, consistent))
    }

    /// Whether the dump was consistent.
    fn drain_dump(
        &mut self,
        seq: u32,
        mut each: impl FnMut(RawMessage<'_>) -> Result<(), NetlinkError>,
    ) -> Result<bool, NetlinkError> {
        let mut consistent = true;
        let mut ended = false;
        while !ended {
            self.receive(|message| {
                if message.seq != seq {
                    return Ok(());
                }
                consistent &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE => {
                        ended = true;
                        done_outcome(&message)
                    }
                    NLMSG_ERROR => {
                        ended = true;
                        parse_ack(&message)?.map_err(NetlinkError::Refused)
                    }
                    _ => each(message),
                }
            })?;
        }
        Ok(consistent)
    }

    /// Send bytes that hold whole messages.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), NetlinkError> {
        loop {
            match self.socket.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(err) if err.kind() == std::io::ErrorKind::Interrupted => {}
                Err(err) => {
                    let source = Errno::from_raw(err.raw_os_error().unwrap_or(0));
                    return Err(NetlinkError::Send { bytes: bytes.len(), source });
                }
            }
        }
    }

    /// Receive one datagram and hand its messages to `each`.
    pub fn receive(
        &mut self,
        each: impl FnMut(RawMessage<'_>) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        if self.receive_with(MsgFlags::empty(), each)? {
            Ok(())
        } else {
            Err(NetlinkError::TimedOut(ANSWER_DEADLINE))
        }
    }

    /// The same for a datagram that waits already; `false` when there is none.
    pub fn receive_waiting(
        &mut self,
        each: impl FnMut(RawMessage<'_>) -> Result<(), NetlinkError>,
    ) -> Result<bool, NetlinkError> {
        self.receive_with(MsgFlags::MSG_DONTWAIT, each)
    }

    fn receive_with(
        &mut self,
        flags: MsgFlags,
        mut each: impl FnMut(RawMessage<'_>) -> Result<(), NetlinkError>,
    ) -> Result<bool, NetlinkError> {
        let len = loop {
            // MSG_TRUNC makes the kernel tell the datagram's length even when it was cut.
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC | flags) {
                Ok(len) => break len,
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => return Err(NetlinkError::Overrun),
                Err(Errno::EAGAIN) => return Ok(false),
                Err(source) => return Err(NetlinkError::Receive { source }),
            }
        };
        let datagram = self.buffer.get(..len).ok_or(NetlinkError::Malformed("datagram exceeds 64 KiB"))?;
        for message in Messages::new(datagram) {
            let message = message?;
            if message.kind == NLMSG_OVERRUN {
                return Err(NetlinkError::Overrun);
            }
            each(message)?;
        }
        Ok(true)
    }

    /// Make room for a datagram of `bytes` to send, past the system's limit where CAP_NET_ADMIN allows
    /// it.
    pub fn reserve(&mut self, bytes: usize) -> Result<(), NetlinkError> {
        if bytes <= RECEIVE_BUFFER {
            return Ok(());
        }
        // The kernel doubles the value for its own bookkeeping, so that this is generous.
        let size = bytes.max(RECEIVE_BUFFER) + RECEIVE_BUFFER;
        setsockopt(&self.socket.as_fd(), sockopt::SndBufForce, &size)
            .or_else(|_| setsockopt(&self.socket.as_fd(), sockopt::SndBuf, &size))
            .map_err(|source| NetlinkError::Send { bytes, source })
    }
}

/// Why one request of several failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The kernel said no to it.
    #[error(transparent)]
    Refused(Refusal),
    /// It got no answer.
    #[error(transparent)]
    Conversation(NetlinkError),
}

impl RequestError {
    /// Whether the same request may well succeed a moment later.
    pub fn is_retryable(&self) -> bool {
        match self {
            RequestError::Refused(refusal) => refusal.is_retryable(),
            RequestError::Conversation(err) => err.is_retryable(),
        }
    }
}

fn done_outcome(message: &RawMessage<'_>) -> Result<(), NetlinkError> {
    match read_u32(message.payload).map(|word| word as i32) {
        Some(code) if code < 0 => {
            Err(NetlinkError::Refused(Refusal::new(Errno::from_raw(code.wrapping_neg()))))
        }
        _ => Ok(()),
    }
}

/// An acknowledgement (`struct nlmsgerr`): the errno, the request's header, the request unless capped,
/// then attributes with the kernel's explanation.
pub fn parse_ack(message: &RawMessage<'_>) -> Result<Result<(), Refusal>, NetlinkError> {
    let code =
        read_u32(message.payload).ok_or(NetlinkError::Malformed("acknowledgement without a code"))? as i32;
    if code == 0 {
        return Ok(Ok(()));
    }
    let text = (message.flags & NLM_F_ACK_TLVS != 0).then(|| ack_text(message)).flatten();
    Ok(Err(Refusal { errno: Errno::from_raw(code.wrapping_neg()), message: text }))
}

fn ack_text(message: &RawMessage<'_>) -> Option<String> {
    let copied = match message.flags & NLM_F_CAPPED {
        0 => (read_u32(message.payload.get(4..)?)? as usize).checked_sub(HEADER_LEN)?,
        _ => 0,
    };
    let attributes =
        message.payload.get((4 + HEADER_LEN).checked_add(copied)?.checked_next_multiple_of(4)?..)?;
    let text = Attributes::new(attributes).find(NLMSGERR_ATTR_MSG).ok()??.str().ok()?;
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(code: i32, flags: u16, tail: &[u8]) -> Vec<u8> {
        let mut payload = code.to_ne_bytes().to_vec();
        payload.extend_from_slice(&20u32.to_ne_bytes());
        payload.extend_from_slice(&[0; 12]);
        if flags & NLM_F_CAPPED == 0 {
            payload.extend_from_slice(&[0xee; 4]);
        }
        payload.extend_from_slice(tail);
        payload
    }

    #[test]
    fn an_acknowledgement_says_why_in_the_kernels_words() {
        let mut attributes = Builder::new();
        attributes.str(NLMSGERR_ATTR_MSG, "chain is busy");
        let cases = [
            (ack(0, 0, &[]), 0, Ok(())),
            (ack(-17, 0, &[]), 0, Err("file exists".to_owned())),
            (
                ack(-16, NLM_F_ACK_TLVS, attributes.as_bytes()),
                NLM_F_ACK_TLVS,
                Err("device or resource busy (chain is busy)".to_owned()),
            ),
            (
                ack(-16, NLM_F_ACK_TLVS | NLM_F_CAPPED, attributes.as_bytes()),
                NLM_F_ACK_TLVS | NLM_F_CAPPED,
                Err("device or resource busy (chain is busy)".to_owned()),
            ),
        ];
        for (payload, flags, expected) in cases {
            let message = RawMessage { kind: NLMSG_ERROR, flags, seq: 1, payload: &payload };
            assert_eq!(parse_ack(&message).unwrap().map_err(|refusal| refusal.to_string()), expected);
        }
    }

    #[test]
    fn requests_get_their_own_outcomes_from_a_real_kernel() {
        // NETLINK_GENERIC answers an unknown family number with ENOENT to anyone, so that the matching
        // of many windows of acknowledgements is shown without privileges.
        let mut socket = NetlinkSocket::open(super::super::generic::NETLINK_GENERIC).unwrap();
        let count = WINDOW_REQUESTS * 3 + 5;
        let outcomes = socket.request_each(count, |builder, index, seq| {
            let kind = if index % 7 == 3 { 0x3fff } else { 0x1 }; // NLMSG_NOOP: acknowledged, no effect.
            builder.begin(kind, super::super::wire::NLM_F_ACK, seq, &[0; 4]);
            builder.end();
        });
        assert_eq!(outcomes.len(), count);
        for (index, outcome) in outcomes.iter().enumerate() {
            assert_eq!(outcome.is_err(), index % 7 == 3, "request {index}: {outcome:?}");
        }
    }
}
