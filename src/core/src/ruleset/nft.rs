//! nf_tables objects as values, close to what the kernel holds (`linux/netfilter/nf_tables.h`):
//! tables, chains, sets and maps, elements, rules; and the batch of operations that changes them.
//! `expr` has the rule expressions, `diff` the differences and what the kernel refuses, `text` the
//! readable form. Nothing here knows what a Service is, and nothing talks to the kernel.

mod diff;
mod expr;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use diff::{NftRefusal, NftRefused, NftRuleset, diff};
pub use expr::{
    CmpOp, CtDirection, CtKey, DynsetOp, Expr, FibResult, FibSelector, HeaderField, LookupTarget, MetaKey,
    NatFlags, NatKind, NumgenMode, PayloadBase, Reg, RejectWith, Verdict, ct_state, ct_status,
};

/// The packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 only.
    Ip,
    /// IPv6 only.
    Ip6,
    /// Both.
    Inet,
}

impl Family {
    /// The name in nft's language.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
            Family::Inet => "inet",
        }
    }
}

/// A table's identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableKey {
    /// The packets it sees.
    pub family: Family,
    /// Its name, at most 255 bytes.
    pub name: String,
}

impl TableKey {
    /// The table `family name`.
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        TableKey { family, name: name.into() }
    }
}

impl fmt::Display for TableKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family.name(), self.name)
    }
}

/// Where a base chain is called from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Before routing, packets from outside.
    Prerouting,
    /// To this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// After routing.
    Postrouting,
}

impl Hook {
    /// Every hook, in the kernel's numbering (`NF_INET_*`).
    pub const ALL: [Hook; 5] =
        [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

    /// The name in nft's language.
    pub const fn name(self) -> &'static str {
        match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        }
    }
}

/// What a base chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainType {
    /// Accept, drop, mark.
    Filter,
    /// Translate; sees the first packet of a connection only.
    Nat,
    /// Reroute locally made packets.
    Route,
}

impl ChainType {
    /// The name the kernel and nft use.
    pub const fn name(self) -> &'static str {
        match self {
            ChainType::Filter => "filter",
            ChainType::Nat => "nat",
            ChainType::Route => "route",
        }
    }
}

/// What happens to a packet that reaches the end of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Policy {
    /// It goes on.
    #[default]
    Accept,
    /// It is dropped.
    Drop,
}

/// What makes a chain a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseChain {
    /// What it may do.
    pub kind: ChainType,
    /// Where it is called from.
    pub hook: Hook,
    /// Order among base chains of a hook, lowest first; -100 is dstnat, 0 filter, 100 srcnat.
    pub priority: i32,
    /// What happens at its end.
    pub policy: Policy,
}

/// A chain with its rules in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    /// Set for a chain the kernel calls; a regular chain is jumped to.
    pub base: Option<BaseChain>,
    /// The rules.
    pub rules: Vec<Rule>,
}

/// A rule: expressions evaluated in order until one breaks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// The expressions.
    pub exprs: Vec<Expr>,
    /// Shown by `nft list` and `svc explain`; at most 128 bytes.
    pub comment: Option<String>,
}

impl Rule {
    /// A rule without a comment.
    pub fn new(exprs: Vec<Expr>) -> Self {
        Rule { exprs, comment: None }
    }

    /// The same with a comment.
    pub fn commented(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }
}

/// The type of one field of a key or of a map's data. The kernel looks at lengths only; the type is
/// what makes our tables readable to `nft list`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FieldType {
    /// `ipv4_addr`, 4 bytes.
    Ipv4Addr,
    /// `ipv6_addr`, 16 bytes.
    Ipv6Addr,
    /// `inet_proto`, 1 byte.
    InetProto,
    /// `inet_service`: a port, 2 bytes in network order.
    InetService,
    /// `mark`, 4 bytes in host order.
    Mark,
    /// `ifname`, 16 bytes padded with zeroes.
    IfName,
    /// `integer` of 4 bytes in host order: what `numgen` and `jhash` produce.
    Index,
}

impl FieldType {
    /// Every type.
    pub const ALL: [FieldType; 7] = [
        FieldType::Ipv4Addr,
        FieldType::Ipv6Addr,
        FieldType::InetProto,
        FieldType::InetService,
        FieldType::Mark,
        FieldType::IfName,
        FieldType::Index,
    ];

    /// Length in bytes when the field stands alone.
    pub const fn byte_len(self) -> usize {
        match self {
            FieldType::InetProto => 1,
            FieldType::InetService => 2,
            FieldType::Ipv4Addr | FieldType::Mark | FieldType::Index => 4,
            FieldType::Ipv6Addr | FieldType::IfName => 16,
        }
    }

    /// Length in bytes within a concatenation, where each field fills whole 4-byte registers.
    pub const fn padded_len(self) -> usize {
        self.byte_len().next_multiple_of(4)
    }

    /// nft's number for the type (`enum datatypes` of nft), stored with the set for listings.
    pub const fn number(self) -> u32 {
        match self {
            FieldType::Index => 4,
            FieldType::Ipv4Addr => 7,
            FieldType::Ipv6Addr => 8,
            FieldType::InetProto => 12,
            FieldType::InetService => 13,
            FieldType::Mark => 19,
            FieldType::IfName => 41,
        }
    }

    /// The type with nft's number.
    pub fn from_number(number: u32) -> Option<FieldType> {
        FieldType::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// The name in nft's language.
    pub const fn name(self) -> &'static str {
        match self {
            FieldType::Ipv4Addr => "ipv4_addr",
            FieldType::Ipv6Addr => "ipv6_addr",
            FieldType::InetProto => "inet_proto",
            FieldType::InetService => "inet_service",
            FieldType::Mark => "mark",
            FieldType::IfName => "ifname",
            FieldType::Index => "integer",
        }
    }
}

/// One field of a key, of a map's data or of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// An address of either family.
    Addr(IpAddr),
    /// An IP protocol number.
    Proto(u8),
    /// A port.
    Port(u16),
    /// A packet mark.
    Mark(u32),
    /// An interface name, zero padded.
    IfName([u8; 16]),
    /// An index made by `numgen` or `jhash`.
    Index(u32),
}

impl Value {
    /// An interface name; longer ones are cut to the kernel's 15 bytes.
    pub fn if_name(name: &str) -> Value {
        let mut bytes = [0; 16];
        let len = name.len().min(15);
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        Value::IfName(bytes)
    }

    /// The value's type.
    pub const fn field_type(&self) -> FieldType {
        match self {
            Value::Addr(IpAddr::V4(_)) => FieldType::Ipv4Addr,
            Value::Addr(IpAddr::V6(_)) => FieldType::Ipv6Addr,
            Value::Proto(_) => FieldType::InetProto,
            Value::Port(_) => FieldType::InetService,
            Value::Mark(_) => FieldType::Mark,
            Value::IfName(_) => FieldType::IfName,
            Value::Index(_) => FieldType::Index,
        }
    }

    fn read(kind: FieldType, bytes: &[u8]) -> Option<Value> {
        Some(match kind {
            FieldType::Ipv4Addr => Value::Addr(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
            FieldType::Ipv6Addr => Value::Addr(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
            FieldType::InetProto => Value::Proto(*bytes.first()?),
            FieldType::InetService => Value::Port(u16::from_be_bytes(bytes.try_into().ok()?)),
            FieldType::Mark => Value::Mark(u32::from_ne_bytes(bytes.try_into().ok()?)),
            FieldType::IfName => Value::IfName(bytes.try_into().ok()?),
            FieldType::Index => Value::Index(u32::from_ne_bytes(bytes.try_into().ok()?)),
        })
    }

    fn write(&self, out: &mut Packed, padded: bool) {
        match self {
            Value::Addr(IpAddr::V4(addr)) => out.push(&addr.octets()),
            Value::Addr(IpAddr::V6(addr)) => out.push(&addr.octets()),
            Value::Proto(proto) => out.push(&[*proto]),
            Value::Port(port) => out.push(&port.to_be_bytes()),
            Value::Mark(word) | Value::Index(word) => out.push(&word.to_ne_bytes()),
            Value::IfName(name) => out.push(name),
        }
        if padded {
            let kind = self.field_type();
            out.push(&[0; 3][..kind.padded_len() - kind.byte_len()]);
        }
    }
}

/// Bytes as they lie in the kernel's registers: one field alone, or several, each padded to 4 bytes.
/// Kept inline, since a large node holds a hundred thousand of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packed {
    bytes: [u8; Packed::MAX_LEN],
    len: u8,
}

impl Packed {
    /// The longest concatenation in use: two IPv6 addresses, protocol and two ports. The kernel takes 64.
    pub const MAX_LEN: usize = 44;

    /// Several values side by side, as a concatenated key has them.
    ///
    /// # Panics
    /// When the values are longer than [`Packed::MAX_LEN`]: the sets' types are fixed in the code.
    pub fn of(values: &[Value]) -> Packed {
        let mut packed = Packed { bytes: [0; Packed::MAX_LEN], len: 0 };
        for value in values {
            value.write(&mut packed, values.len() > 1);
        }
        packed
    }

    /// Bytes read from the kernel, or a mask; `None` when longer than [`Packed::MAX_LEN`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Packed> {
        let mut packed = Packed { bytes: [0; Packed::MAX_LEN], len: 0 };
        packed.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        packed.len = bytes.len() as u8;
        Some(packed)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The values again; `None` when the length does not fit the types.
    pub fn values(&self, types: &[FieldType]) -> Option<Vec<Value>> {
        let padded = types.len() > 1;
        let mut rest = self.as_bytes();
        let mut values = Vec::with_capacity(types.len());
        for kind in types {
            let (field, tail) =
                rest.split_at_checked(if padded { kind.padded_len() } else { kind.byte_len() })?;
            values.push(Value::read(*kind, &field[..kind.byte_len()])?);
            rest = tail;
        }
        rest.is_empty().then_some(values)
    }

    fn push(&mut self, bytes: &[u8]) {
        let start = usize::from(self.len);
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u8;
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl From<Value> for Packed {
    fn from(value: Value) -> Self {
        Packed::of(&[value])
    }
}

/// What a map gives for a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MapType {
    /// A verdict: accept, drop, jump, goto ...
    Verdict,
    /// Values for registers.
    Fields(Vec<FieldType>),
}

/// Flags of a set or map. That a key is a concatenation of ranges follows from the key's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SetFlags {
    /// Elements may be ranges.
    pub interval: bool,
    /// Elements may have a time-out.
    pub timeout: bool,
    /// Rules add elements while packets pass.
    pub dynamic: bool,
}

/// A set's (or map's) fixed properties. A change of them means to delete and make it again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetSpec {
    /// The key's fields; more than one is a concatenation.
    pub key: Vec<FieldType>,
    /// Set for a map.
    pub map: Option<MapType>,
    /// Flags.
    pub flags: SetFlags,
    /// Default time-out of an element, in milliseconds; only with `flags.timeout`.
    pub timeout_ms: Option<u64>,
    /// Most elements there can be; a dynamic set needs it.
    pub size: Option<u32>,
}

impl SetSpec {
    /// A set of plain keys.
    pub fn set(key: &[FieldType]) -> Self {
        SetSpec { key: key.to_vec(), map: None, flags: SetFlags::default(), timeout_ms: None, size: None }
    }

    /// A map from keys to verdicts.
    pub fn verdict_map(key: &[FieldType]) -> Self {
        SetSpec { map: Some(MapType::Verdict), ..SetSpec::set(key) }
    }

    /// A map from keys to values.
    pub fn map(key: &[FieldType], data: &[FieldType]) -> Self {
        SetSpec { map: Some(MapType::Fields(data.to_vec())), ..SetSpec::set(key) }
    }

    /// The same with ranges allowed.
    pub fn interval(mut self) -> Self {
        self.flags.interval = true;
        self
    }

    /// Length of a key in bytes.
    pub fn key_len(&self) -> usize {
        fields_len(&self.key)
    }
}

/// Length in bytes of one field alone or of several padded ones.
pub fn fields_len(fields: &[FieldType]) -> usize {
    match fields {
        [one] => one.byte_len(),
        many => many.iter().map(|field| field.padded_len()).sum(),
    }
}

/// An element's key: a value, or a range when the set has `interval`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ElementKey {
    /// The value, or the first of the range. In a concatenation every field has its own range.
    pub start: Packed,
    /// The last value of the range, itself included; `None` for a single value.
    pub end: Option<Box<Packed>>,
}

impl ElementKey {
    /// A single key.
    pub fn of(values: &[Value]) -> Self {
        ElementKey { start: Packed::of(values), end: None }
    }

    /// A range from `first` to `last`, both included; equal ends make a single key.
    pub fn range(first: &[Value], last: &[Value]) -> Self {
        let (start, end) = (Packed::of(first), Packed::of(last));
        ElementKey { start, end: (start != end).then(|| Box::new(end)) }
    }
}

/// What a map's element holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Data {
    /// Values for registers.
    Fields(Packed),
    /// A verdict.
    Verdict(Verdict),
}

/// An element without its key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ElementValue {
    /// Set in a map.
    pub data: Option<Data>,
    /// The element's own time-out in milliseconds, where it differs from the set's.
    pub timeout_ms: Option<u64>,
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// Its key.
    pub key: ElementKey,
    /// Data and time-out.
    pub value: ElementValue,
}

impl Element {
    /// An element of a set.
    pub fn key(key: ElementKey) -> Self {
        Element { key, value: ElementValue::default() }
    }

    /// An element of a verdict map.
    pub fn verdict(key: ElementKey, verdict: Verdict) -> Self {
        Element { key, value: ElementValue { data: Some(Data::Verdict(verdict)), timeout_ms: None } }
    }

    /// An element of a map to values.
    pub fn fields(key: ElementKey, values: &[Value]) -> Self {
        Element {
            key,
            value: ElementValue { data: Some(Data::Fields(Packed::of(values))), timeout_ms: None },
        }
    }
}

/// A set or map with its elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Fixed properties.
    pub spec: SetSpec,
    /// Elements by key. Those of a `dynamic` set come and go with packets and are no part of a diff.
    pub elements: BTreeMap<ElementKey, ElementValue>,
}

impl Set {
    /// An empty set.
    pub fn new(spec: SetSpec) -> Self {
        Set { spec, elements: BTreeMap::new() }
    }
}

/// A table's whole content: what we want, or what the kernel acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NftTable {
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
    /// Sets and maps by name.
    pub sets: BTreeMap<String, Set>,
    /// Named counters, whose values are no part of the model.
    pub counters: BTreeSet<String>,
}

/// One change within a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NftOp {
    /// Make the table unless it is there.
    AddTable,
    /// Remove the table and everything in it.
    DelTable,
    /// Make an empty chain unless it is there.
    AddChain {
        /// Its name.
        chain: String,
        /// Set for a base chain.
        base: Option<BaseChain>,
    },
    /// Remove a chain and its rules; refused while something jumps to it.
    DelChain {
        /// Its name.
        chain: String,
    },
    /// Remove a chain's rules. Rules are replaced by flushing and adding within one batch, which the
    /// kernel applies at once, so that no packet sees the chain empty.
    FlushChain {
        /// Its name.
        chain: String,
    },
    /// Append a rule.
    AddRule {
        /// The chain.
        chain: String,
        /// The rule.
        rule: Rule,
    },
    /// Make a set or map unless it is there.
    AddSet {
        /// Its name.
        set: String,
        /// Its properties.
        spec: SetSpec,
    },
    /// Remove a set with its elements; refused while a rule uses it.
    DelSet {
        /// Its name.
        set: String,
    },
    /// Add elements; one that is there with the same data is left alone, with other data refused.
    AddElements {
        /// The set.
        set: String,
        /// The elements.
        elements: Vec<Element>,
    },
    /// Remove elements; refused when one is not there.
    DelElements {
        /// The set.
        set: String,
        /// Their keys.
        keys: Vec<ElementKey>,
    },
    /// Remove every element of a set.
    FlushSet {
        /// The set.
        set: String,
    },
    /// Make a named counter unless it is there.
    AddCounter {
        /// Its name.
        counter: String,
    },
    /// Remove a named counter; refused while a rule uses it.
    DelCounter {
        /// Its name.
        counter: String,
    },
}

/// The object and what is done to it: `chain n10: flush`. Errors and logs put the table before it.
impl fmt::Display for NftOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NftOp::AddTable => f.write_str("add table"),
            NftOp::DelTable => f.write_str("delete table"),
            NftOp::AddChain { chain, .. } => write!(f, "chain {chain}: add"),
            NftOp::DelChain { chain } => write!(f, "chain {chain}: delete"),
            NftOp::FlushChain { chain } => write!(f, "chain {chain}: flush"),
            NftOp::AddRule { chain, .. } => write!(f, "chain {chain}: add rule"),
            NftOp::AddSet { set, .. } => write!(f, "set {set}: add"),
            NftOp::DelSet { set } => write!(f, "set {set}: delete"),
            NftOp::AddElements { set, elements } => write!(f, "set {set}: add {} elements", elements.len()),
            NftOp::DelElements { set, keys } => write!(f, "set {set}: delete {} elements", keys.len()),
            NftOp::FlushSet { set } => write!(f, "set {set}: flush"),
            NftOp::AddCounter { counter } => write!(f, "counter {counter}: add"),
            NftOp::DelCounter { counter } => write!(f, "counter {counter}: delete"),
        }
    }
}

/// Changes of one table that the kernel applies together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NftBatch {
    /// The table.
    pub table: TableKey,
    /// The changes, in order.
    pub ops: Vec<NftOp>,
}

#[cfg(test)]
mod tests;
