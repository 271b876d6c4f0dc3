//! Rule expressions of nf_tables, one variant per kernel expression that a Service rule needs, with
//! constructors for the loads that occur all the time. How they are encoded is in `longshore-kernel`.

use std::net::IpAddr;

use super::super::Protocol;
use super::{Packed, Value};

/// A 4-byte register, 0..=15. Wider values fill the following ones: an IPv6 address in `Reg(4)` lies in
/// 4 to 7. A lookup of a concatenation reads as many registers as the key is long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reg(pub u8);

impl Reg {
    /// How many there are.
    pub const COUNT: u8 = 16;

    /// The register `len` bytes further on, each started register counting whole.
    pub const fn after(self, len: usize) -> Reg {
        Reg(self.0 + len.div_ceil(4) as u8)
    }
}

/// Where evaluation goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// The packet goes on to the next base chain.
    Accept,
    /// The packet is dropped.
    Drop,
    /// The next rule.
    Continue,
    /// Back to the calling chain.
    Return,
    /// Into a chain, and back at its end.
    Jump(String),
    /// Into a chain, not coming back here.
    Goto(String),
}

impl Verdict {
    /// The chain the verdict leads to.
    pub fn target(&self) -> Option<&str> {
        match self {
            Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
            _ => None,
        }
    }
}

/// What `meta` reads or writes (`NFT_META_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MetaKey {
    /// Packet mark, 4 bytes host order.
    Mark,
    /// Index of the incoming interface, 4 bytes host order.
    Iif,
    /// Index of the outgoing interface, 4 bytes host order.
    Oif,
    /// Name of the incoming interface, 16 bytes.
    IifName,
    /// Name of the outgoing interface, 16 bytes.
    OifName,
    /// Network protocol (2 IPv4, 10 IPv6), 1 byte.
    NfProto,
    /// Transport protocol, 1 byte.
    L4Proto,
    /// A random word, 4 bytes.
    Random,
}

/// What an offset of `payload` counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PayloadBase {
    /// The IP header.
    Network,
    /// The TCP, UDP or SCTP header.
    Transport,
}

/// How `cmp` and `range` compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CmpOp {
    /// Equal.
    Eq,
    /// Not equal.
    Neq,
    /// Less, bytes compared in order (so network order for numbers).
    Lt,
    /// Less or equal.
    Lte,
    /// Greater.
    Gt,
    /// Greater or equal.
    Gte,
}

/// Which way of a connection `ct` asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CtDirection {
    /// As the first packet went.
    Original,
    /// As answers go.
    Reply,
}

/// What `ct` reads (`NFT_CT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CtKey {
    /// State bits, see [`ct_state`], 4 bytes host order.
    State,
    /// 0 original, 1 reply; 1 byte.
    Direction,
    /// Status bits, see [`ct_status`], 4 bytes host order.
    Status,
    /// Connection mark, 4 bytes host order.
    Mark,
    /// Transport protocol, 1 byte; needs a direction.
    Protocol,
    /// Source port, 2 bytes; needs a direction.
    ProtoSrc,
    /// Destination port, 2 bytes; needs a direction.
    ProtoDst,
    /// Source address, 4 bytes; needs a direction.
    SrcIp,
    /// Destination address, 4 bytes; needs a direction.
    DstIp,
    /// Source address, 16 bytes; needs a direction.
    SrcIp6,
    /// Destination address, 16 bytes; needs a direction.
    DstIp6,
}

/// Bits of [`CtKey::State`] (`NF_CT_STATE_BIT`).
pub mod ct_state {
    /// No connection can be made of the packet.
    pub const INVALID: u32 = 1;
    /// Part of a connection seen both ways.
    pub const ESTABLISHED: u32 = 2;
    /// Belongs to another connection.
    pub const RELATED: u32 = 4;
    /// The first packet.
    pub const NEW: u32 = 8;
    /// Exempt from tracking.
    pub const UNTRACKED: u32 = 64;
}

/// Bits of [`CtKey::Status`] (`IPS_*`).
pub mod ct_status {
    /// The source is translated.
    pub const SNAT: u32 = 1 << 4;
    /// The destination is translated.
    pub const DNAT: u32 = 1 << 5;
}

/// What `fib` looks up with (`NFTA_FIB_F_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FibSelector {
    /// By source address.
    pub saddr: bool,
    /// By destination address.
    pub daddr: bool,
    /// By packet mark.
    pub mark: bool,
    /// Restricted to the incoming interface.
    pub iif: bool,
    /// Restricted to the outgoing interface.
    pub oif: bool,
}

/// What `fib` gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FibResult {
    /// Index of the interface, 4 bytes host order.
    Oif,
    /// Name of the interface, 16 bytes.
    OifName,
    /// Kind of address (`RTN_*`; 2 is one of this host's), 4 bytes host order.
    AddrType,
}

/// How `numgen` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NumgenMode {
    /// A random number.
    Random,
    /// One after the other.
    Incremental,
}

/// Which address `nat` rewrites.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NatKind {
    /// The source.
    Snat,
    /// The destination.
    Dnat,
}

/// Flags of `nat` and `masq` (`NF_NAT_RANGE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NatFlags {
    /// Random source port, seeded by the addresses.
    pub random: bool,
    /// Fully random source port.
    pub fully_random: bool,
    /// The same address for all of a client's connections.
    pub persistent: bool,
}

/// How `reject` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RejectWith {
    /// An ICMP or ICMPv6 unreachable of this code (the table's own family).
    Icmp(u8),
    /// A TCP reset.
    TcpReset,
    /// A family-independent code: 0 no route, 1 port, 2 host, 3 administratively prohibited.
    Icmpx(u8),
}

/// What a lookup does with a hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LookupTarget {
    /// A set: the rule goes on if the key is there.
    Hit,
    /// A set: the rule goes on if the key is not there.
    Miss,
    /// A verdict map: the element's verdict is followed; without an element the next rule follows.
    Verdict,
    /// A map: the element's data goes to this register; without an element the rule ends.
    Data(Reg),
}

/// What a rule does to a dynamic set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DynsetOp {
    /// Add the element unless it is there.
    Add,
    /// Add it, or start its time-out again.
    Update,
    /// Remove it.
    Delete,
}

/// One expression of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Load packet metadata.
    Meta {
        /// What.
        key: MetaKey,
        /// To where.
        dst: Reg,
    },
    /// Write packet metadata (the mark).
    MetaSet {
        /// What.
        key: MetaKey,
        /// From where.
        src: Reg,
    },
    /// Load bytes of the packet.
    Payload {
        /// What the offset counts from.
        base: PayloadBase,
        /// Bytes from the base.
        offset: u32,
        /// How many bytes.
        len: u32,
        /// To where.
        dst: Reg,
    },
    /// Go on if the register compares so with the value.
    Cmp {
        /// The register.
        src: Reg,
        /// How.
        op: CmpOp,
        /// With what.
        value: Packed,
    },
    /// Go on if the register is within (`Eq`) or outside (`Neq`) the bounds, both included.
    Range {
        /// The register.
        src: Reg,
        /// `Eq` or `Neq`.
        op: CmpOp,
        /// Lowest.
        from: Packed,
        /// Highest.
        to: Packed,
    },
    /// `dst = (src & mask) ^ xor`.
    Bitwise {
        /// From where.
        src: Reg,
        /// To where.
        dst: Reg,
        /// Bits kept.
        mask: Packed,
        /// Bits turned over, as long as the mask.
        xor: Packed,
    },
    /// Load a constant.
    Immediate {
        /// To where.
        dst: Reg,
        /// What.
        value: Packed,
    },
    /// Follow a verdict.
    Verdict(Verdict),
    /// Look a key up in a set or map of the table.
    Lookup {
        /// The set.
        set: String,
        /// First register of the key.
        src: Reg,
        /// What to do with a hit.
        target: LookupTarget,
    },
    /// Translate an address, and a port where one is given.
    Nat {
        /// Which.
        kind: NatKind,
        /// Whether the address is IPv6.
        ipv6: bool,
        /// Register of the address.
        addr: Option<Reg>,
        /// Register of the port.
        port: Option<Reg>,
        /// Flags.
        flags: NatFlags,
    },
    /// Translate the source to the outgoing interface's address.
    Masquerade {
        /// Flags.
        flags: NatFlags,
    },
    /// Drop with an answer.
    Reject(RejectWith),
    /// Load a property of the connection.
    Ct {
        /// What.
        key: CtKey,
        /// Which way, where the property has one.
        direction: Option<CtDirection>,
        /// To where.
        dst: Reg,
    },
    /// Write a property of the connection (the mark).
    CtSet {
        /// What.
        key: CtKey,
        /// From where.
        src: Reg,
    },
    /// Ask the routing tables.
    Fib {
        /// With what.
        selector: FibSelector,
        /// For what.
        result: FibResult,
        /// To where.
        dst: Reg,
    },
    /// Load a number in `offset..offset + modulus`, host order.
    Numgen {
        /// How.
        mode: NumgenMode,
        /// How many numbers, at least 1.
        modulus: u32,
        /// The first.
        offset: u32,
        /// To where.
        dst: Reg,
    },
    /// Load a Jenkins hash of registers, in `offset..offset + modulus`, host order.
    Jhash {
        /// First register hashed.
        src: Reg,
        /// Bytes hashed.
        len: u32,
        /// How many numbers, at least 1.
        modulus: u32,
        /// Seed.
        seed: u32,
        /// The first.
        offset: u32,
        /// To where.
        dst: Reg,
    },
    /// Count packets and bytes here. The figures are read beside the model.
    Counter,
    /// Change a dynamic set by the packet.
    Dynset {
        /// The set.
        set: String,
        /// How.
        op: DynsetOp,
        /// First register of the key.
        key: Reg,
        /// First register of the data, for a map.
        data: Option<Reg>,
        /// Time-out of the element in milliseconds, where it differs from the set's.
        timeout_ms: Option<u64>,
    },
    /// Count in a named counter.
    CounterRef {
        /// Its name.
        counter: String,
    },
    /// Exempt the packet from connection tracking.
    Notrack,
    /// An expression this program does not write, met while reading a table back.
    Other {
        /// The kernel's name for it.
        name: String,
    },
}

/// Header fields that rules load, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HeaderField {
    /// IPv4 source address.
    Ip4Saddr,
    /// IPv4 destination address.
    Ip4Daddr,
    /// IPv6 source address.
    Ip6Saddr,
    /// IPv6 destination address.
    Ip6Daddr,
    /// Source port of TCP, UDP or SCTP.
    Sport,
    /// Destination port of TCP, UDP or SCTP.
    Dport,
}

impl HeaderField {
    /// Every field.
    pub const ALL: [HeaderField; 6] = [
        HeaderField::Ip4Saddr,
        HeaderField::Ip4Daddr,
        HeaderField::Ip6Saddr,
        HeaderField::Ip6Daddr,
        HeaderField::Sport,
        HeaderField::Dport,
    ];

    /// Base, offset and length in the packet.
    pub const fn location(self) -> (PayloadBase, u32, u32) {
        match self {
            HeaderField::Ip4Saddr => (PayloadBase::Network, 12, 4),
            HeaderField::Ip4Daddr => (PayloadBase::Network, 16, 4),
            HeaderField::Ip6Saddr => (PayloadBase::Network, 8, 16),
            HeaderField::Ip6Daddr => (PayloadBase::Network, 24, 16),
            HeaderField::Sport => (PayloadBase::Transport, 0, 2),
            HeaderField::Dport => (PayloadBase::Transport, 2, 2),
        }
    }

    /// The source address of a family.
    pub const fn saddr(ipv6: bool) -> HeaderField {
        if ipv6 { HeaderField::Ip6Saddr } else { HeaderField::Ip4Saddr }
    }

    /// The destination address of a family.
    pub const fn daddr(ipv6: bool) -> HeaderField {
        if ipv6 { HeaderField::Ip6Daddr } else { HeaderField::Ip4Daddr }
    }
}

impl Expr {
    /// Load a header field.
    pub const fn load(field: HeaderField, dst: Reg) -> Expr {
        let (base, offset, len) = field.location();
        Expr::Payload { base, offset, len, dst }
    }

    /// Load packet metadata.
    pub const fn meta(key: MetaKey, dst: Reg) -> Expr {
        Expr::Meta { key, dst }
    }

    /// Load a property of the connection that has no direction.
    pub const fn ct(key: CtKey, dst: Reg) -> Expr {
        Expr::Ct { key, direction: None, dst }
    }

    /// Load a property of the connection as its first packet had it.
    pub const fn ct_original(key: CtKey, dst: Reg) -> Expr {
        Expr::Ct { key, direction: Some(CtDirection::Original), dst }
    }

    /// Go on if the register equals the value.
    pub fn eq(src: Reg, value: impl Into<Packed>) -> Expr {
        Expr::Cmp { src, op: CmpOp::Eq, value: value.into() }
    }

    /// Go on if the register differs from the value.
    pub fn neq(src: Reg, value: impl Into<Packed>) -> Expr {
        Expr::Cmp { src, op: CmpOp::Neq, value: value.into() }
    }

    /// Keep some bits of a 4-byte register in place: `reg = reg & mask`.
    pub fn mask(reg: Reg, mask: u32) -> Expr {
        let zero = Packed::of(&[Value::Mark(0)]);
        Expr::Bitwise { src: reg, dst: reg, mask: Packed::of(&[Value::Mark(mask)]), xor: zero }
    }

    /// Set some bits of a 4-byte register in place: `reg = reg | bits`, as `(reg & !bits) ^ bits`.
    pub fn set_bits(reg: Reg, bits: u32) -> Expr {
        let [mask, xor] = [!bits, bits].map(|word| Packed::of(&[Value::Mark(word)]));
        Expr::Bitwise { src: reg, dst: reg, mask, xor }
    }

    /// Load a constant.
    pub fn immediate(dst: Reg, value: Value) -> Expr {
        Expr::Immediate { dst, value: value.into() }
    }

    /// Go on if the packet has this transport protocol; the register is overwritten.
    pub fn match_protocol(protocol: Protocol, via: Reg) -> [Expr; 2] {
        [Expr::meta(MetaKey::L4Proto, via), Expr::eq(via, Value::Proto(protocol.number()))]
    }

    /// Go on if the destination address is this one; the registers are overwritten.
    pub fn match_daddr(addr: IpAddr, via: Reg) -> [Expr; 2] {
        [Expr::load(HeaderField::daddr(addr.is_ipv6()), via), Expr::eq(via, Value::Addr(addr))]
    }

    /// The set the expression reads or changes.
    pub fn set_used(&self) -> Option<&str> {
        match self {
            Expr::Lookup { set, .. } | Expr::Dynset { set, .. } => Some(set),
            _ => None,
        }
    }

    /// The chain the expression leads to.
    pub fn chain_used(&self) -> Option<&str> {
        match self {
            Expr::Verdict(verdict) => verdict.target(),
            _ => None,
        }
    }

    /// The named counter the expression uses.
    pub fn counter_used(&self) -> Option<&str> {
        match self {
            Expr::CounterRef { counter } => Some(counter),
            _ => None,
        }
    }
}
