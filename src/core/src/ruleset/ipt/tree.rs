//! Dispatch by address or port without a linear list: a trie of chains that branches on four bits at a
//! time, where a branch with few entries is one chain of plain rules and levels without a choice are left
//! out. Which chains there are follows from the entries alone, so a change touches one path. Here is the
//! shape only; what a rule says is rendered elsewhere.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::Protocol;
use super::{ChainId, ChainName, Match, Table};
use crate::service::cidr::Cidr;

/// Up to so many entries are one chain of plain rules. A node with branches has as many at most, so a
/// packet passes so many rules at each level.
pub const FANOUT: usize = 16;
/// How chains begin that dispatch on addresses.
pub const ADDRESS_STEM: &str = "LONGSHORE-T";
/// Bits of one level.
const STRIDE: u8 = 4;

/// What is dispatched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// The destination's address.
    Address { ipv6: bool },
    /// The destination's port, of one protocol, at an address of this node.
    NodePort { ipv6: bool, protocol: Protocol },
}

impl Space {
    pub const fn is_ipv6(self) -> bool {
        match self {
            Space::Address { ipv6 } | Space::NodePort { ipv6, .. } => ipv6,
        }
    }

    const fn width(self) -> u8 {
        match self {
            Space::Address { ipv6: true } => 128,
            Space::Address { ipv6: false } => 32,
            Space::NodePort { .. } => 16,
        }
    }
}

/// One entry: where a Service port is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    pub space: Space,
    /// The address or port that is branched on, left-aligned.
    bits: u128,
    /// For an address, what else tells entries apart.
    part: Part,
}

/// What of an address is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Part {
    Port(Protocol, u16),
    /// What no other entry has: it comes last, and all entries of an address are in one chain.
    Rest,
}

impl Entry {
    pub fn address(addr: IpAddr, protocol: Protocol, port: u16) -> Entry {
        let bits = match addr {
            IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
            IpAddr::V6(v6) => u128::from(v6),
        };
        Entry { space: Space::Address { ipv6: addr.is_ipv6() }, bits, part: Part::Port(protocol, port) }
    }

    /// Whatever goes to the address and is no other entry's.
    pub fn rest_of(addr: IpAddr) -> Entry {
        Entry { part: Part::Rest, ..Entry::address(addr, Protocol::Tcp, 0) }
    }

    pub fn node_port(ipv6: bool, protocol: Protocol, port: u16) -> Entry {
        let space = Space::NodePort { ipv6, protocol };
        Entry { space, bits: u128::from(port) << 112, part: Part::Port(protocol, port) }
    }

    /// The address; `None` for a node port.
    pub fn addr(&self) -> Option<IpAddr> {
        match self.space {
            Space::Address { ipv6 } => Some(address(self.bits, ipv6)),
            Space::NodePort { .. } => None,
        }
    }

    /// Protocol and port; `None` for the rest of an address.
    pub fn port(&self) -> Option<(Protocol, u16)> {
        match self.part {
            Part::Port(protocol, port) => Some((protocol, port)),
            Part::Rest => None,
        }
    }

    /// The matches that hold for this entry's packets alone.
    pub fn matches(&self, comment: Match) -> Vec<Match> {
        let destination = self.addr().map(|addr| Match::Destination { within: Cidr::host(addr), not: false });
        let port =
            self.port().map(|(protocol, port)| (Match::Protocol(protocol), Match::port(protocol, port)));
        let (protocol, port) = port.unzip();
        destination.into_iter().chain(protocol).chain([comment]).chain(port).collect()
    }
}

fn address(bits: u128, ipv6: bool) -> IpAddr {
    if ipv6 { Ipv6Addr::from(bits).into() } else { Ipv4Addr::from((bits >> 96) as u32).into() }
}

/// A chain of the trie: all entries that begin with so many bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    pub table: Table,
    pub space: Space,
    bits: u128,
    len: u8,
}

impl Node {
    pub const fn root(table: Table, space: Space) -> Node {
        Node { table, space, bits: 0, len: 0 }
    }

    /// The chain: named by its bits, or where they are too many, by a hash of them.
    pub fn chain(&self) -> ChainId {
        let stem = match self.space {
            Space::Address { .. } => ADDRESS_STEM,
            Space::NodePort { protocol: Protocol::Tcp, .. } => "LONGSHORE-NP-TCP",
            Space::NodePort { protocol: Protocol::Udp, .. } => "LONGSHORE-NP-UDP",
            Space::NodePort { protocol: Protocol::Sctp, .. } => "LONGSHORE-NP-SCTP",
        };
        let nibbles: String =
            (0..self.len / STRIDE).map(|index| nibble(self.bits, index * STRIDE)).map(hex).collect();
        let tail = match nibbles.len() {
            0 => String::new(),
            1..=16 => format!("-{nibbles}"),
            _ => format!("-H{}", super::super::render_ipt::hash(&nibbles)),
        };
        let name = ChainName::fixed(&format!("{stem}{tail}"));
        ChainId { ipv6: self.space.is_ipv6(), table: self.table, name }
    }

    /// The matches that hold for this node's packets, as its parent asks them.
    pub fn matches(&self) -> Vec<Match> {
        match self.space {
            Space::Address { ipv6 } => Cidr::new(address(self.bits, ipv6), self.len)
                .map(|within| Match::Destination { within, not: false })
                .into_iter()
                .collect(),
            Space::NodePort { protocol, .. } => {
                let last = self.last();
                let ports = Match::Ports(protocol, (self.bits >> 112) as u16, (last >> 112) as u16);
                vec![Match::Protocol(protocol), ports]
            }
        }
    }

    fn last(&self) -> u128 {
        self.bits | u128::MAX.checked_shr(u32::from(self.len)).unwrap_or(0)
    }

    fn child(&self, len: u8, branch: u8, within: u128) -> Node {
        let bits = prefix(within, len) | (u128::from(branch) << (128 - len - STRIDE));
        Node { bits, len: len + STRIDE, ..*self }
    }
}

fn prefix(bits: u128, len: u8) -> u128 {
    if len == 0 { 0 } else { bits & (u128::MAX << (128 - len)) }
}

fn nibble(bits: u128, at: u8) -> u8 {
    ((bits >> (128 - at - STRIDE)) & 0xf) as u8
}

fn hex(nibble: u8) -> char {
    char::from_digit(u32::from(nibble), 16).unwrap_or('0').to_ascii_uppercase()
}

/// What stands in a node's chain, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// A rule of its own.
    Entry(Entry),
    /// A jump to another chain.
    Node(Node),
}

/// The entries of one table.
#[derive(Debug, Default)]
pub struct Tree {
    entries: BTreeSet<Entry>,
}

impl Tree {
    /// Put an entry in or take it out; true where that changed something.
    pub fn set(&mut self, entry: Entry, present: bool) -> bool {
        if present { self.entries.insert(entry) } else { self.entries.remove(&entry) }
    }

    pub fn contains(&self, entry: &Entry) -> bool {
        self.entries.contains(entry)
    }

    pub fn clear(&mut self) {
        self.entries.clear();
    }

    fn within(&self, node: &Node) -> impl DoubleEndedIterator<Item = &Entry> {
        let first = Entry { space: node.space, bits: node.bits, part: Part::Port(Protocol::Tcp, 0) };
        let last = Entry { bits: node.last(), part: Part::Rest, ..first };
        self.entries.range(first..=last)
    }

    /// What stands in a node's chain.
    pub fn items(&self, node: &Node) -> Vec<Item> {
        let few: Vec<&Entry> = self.within(node).take(FANOUT + 1).collect();
        if few.len() <= FANOUT {
            return few.into_iter().map(|entry| Item::Entry(*entry)).collect();
        }
        let (Some(first), Some(last)) = (few.first(), self.within(node).next_back()) else {
            return Vec::new();
        };
        let common = u8::try_from((first.bits ^ last.bits).leading_zeros()).unwrap_or(128);
        let len = (common / STRIDE * STRIDE).max(node.len);
        if len >= node.space.width() {
            // One address with many ports: nothing is left to branch on.
            return self.within(node).map(|entry| Item::Entry(*entry)).collect();
        }
        (0..1 << STRIDE).filter_map(|branch| self.branch(node.child(len, branch, first.bits))).collect()
    }

    /// A branch without entries is none, one with a single entry is that entry.
    fn branch(&self, node: Node) -> Option<Item> {
        let mut entries = self.within(&node);
        let first = entries.next()?;
        Some(if entries.next().is_some() { Item::Node(node) } else { Item::Entry(*first) })
    }

    /// Every chain whose rules can depend on an entry being there or not: those on its path, and those
    /// they lead to.
    pub fn around(&self, table: Table, entry: &Entry, found: &mut BTreeSet<Node>) {
        let mut next = Some(Node::root(table, entry.space));
        while let Some(node) = next.take() {
            found.insert(node);
            for item in self.items(&node) {
                if let Item::Node(child) = item {
                    found.insert(child);
                    if (child.bits..=child.last()).contains(&entry.bits) {
                        next = Some(child);
                    }
                }
            }
        }
    }

    /// Whether a chain is part of the trie now. Roots always are.
    pub fn has(&self, node: &Node) -> bool {
        let mut at = Node { bits: 0, len: 0, ..*node };
        while at != *node {
            let down = |item: &Item| match item {
                Item::Node(child) => {
                    (child.len <= node.len && prefix(node.bits, child.len) == child.bits).then_some(*child)
                }
                Item::Entry(_) => None,
            };
            match self.items(&at).iter().find_map(down) {
                Some(child) => at = child,
                None => return false,
            }
        }
        true
    }
}
