//! iptables objects as values: tables, chains, rules and the jumps from built-in chains, as
//! `iptables-save` shows them. `text` writes what `iptables-restore` reads, `parse` reads what
//! `iptables-save` writes, `tree` dispatches on addresses and ports. Nothing here knows what a Service
//! is, and nothing runs a program.

pub mod parse;
pub mod text;
pub mod tree;

use std::fmt;
use std::net::SocketAddr;

use super::Protocol;
use crate::service::cidr::Cidr;

/// A table that rules of ours stand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Accept and drop. Written first: what is to be refused is refused before it loses its translation.
    Filter,
    /// Translate; sees the first packet of a connection only.
    Nat,
    /// Holds a hint for other programs and nothing that packets meet.
    Mangle,
}

impl Table {
    /// Every table, in the order they are written.
    pub const ALL: [Table; 3] = [Table::Filter, Table::Nat, Table::Mangle];

    /// The name after `-t`.
    pub const fn name(self) -> &'static str {
        match self {
            Table::Filter => "filter",
            Table::Nat => "nat",
            Table::Mangle => "mangle",
        }
    }

    pub fn from_name(name: &str) -> Option<Table> {
        Table::ALL.into_iter().find(|table| table.name() == name)
    }
}

/// A chain the kernel calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Builtin {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

impl Builtin {
    pub const ALL: [Builtin; 5] =
        [Builtin::Prerouting, Builtin::Input, Builtin::Forward, Builtin::Output, Builtin::Postrouting];

    pub const fn name(self) -> &'static str {
        match self {
            Builtin::Prerouting => "PREROUTING",
            Builtin::Input => "INPUT",
            Builtin::Forward => "FORWARD",
            Builtin::Output => "OUTPUT",
            Builtin::Postrouting => "POSTROUTING",
        }
    }

    pub fn from_name(name: &str) -> Option<Builtin> {
        Builtin::ALL.into_iter().find(|chain| chain.name() == name)
    }
}

/// A chain's name, at most 28 bytes (`XT_EXTENSION_MAXNAMELEN` less its end). Kept inline: a large node
/// has tens of thousands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainName([u8; ChainName::MAX_LEN]);

impl ChainName {
    pub const MAX_LEN: usize = 28;

    /// A name written in the code.
    ///
    /// # Panics
    /// When it is longer than the kernel takes.
    pub const fn fixed(text: &str) -> ChainName {
        assert!(text.len() <= ChainName::MAX_LEN, "a chain's name has at most 28 bytes");
        let mut bytes = [0; ChainName::MAX_LEN];
        let mut index = 0;
        while index < text.len() {
            bytes[index] = text.as_bytes()[index];
            index += 1;
        }
        ChainName(bytes)
    }

    /// A name read or made; `None` when it is longer than the kernel takes, or no plain word.
    pub fn new(text: &str) -> Option<ChainName> {
        let plain = !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'));
        (plain && text.len() <= ChainName::MAX_LEN).then(|| ChainName::fixed(text))
    }

    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|byte| *byte == 0).unwrap_or(ChainName::MAX_LEN);
        std::str::from_utf8(&self.0[..len]).unwrap_or_default()
    }
}

impl fmt::Debug for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A chain's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId {
    /// Of `ip6tables`.
    pub ipv6: bool,
    pub table: Table,
    pub name: ChainName,
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.ipv6 { "IPv6" } else { "IPv4" };
        write!(f, "{family} {} chain {}", self.table.name(), self.name)
    }
}

/// A jump from a built-in chain into one of ours. The rule is part of the identity, and so is its number
/// among equal ones: a copy that somebody left is an object nobody wants.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HookKey {
    /// The chain that is jumped to.
    pub to: ChainId,
    pub from: Builtin,
    pub rule: Box<Rule>,
    /// 0 for the first of equal rules.
    pub copy: u32,
}

/// A rule: every match must hold for the target to be taken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Address, interface and protocol matches first, as `iptables-save` prints them.
    pub matches: Vec<Match>,
    pub target: Target,
}

impl Rule {
    pub fn new(matches: Vec<Match>, target: Target) -> Rule {
        Rule { matches, target }
    }

    /// A rule without a condition.
    pub fn always(target: Target) -> Rule {
        Rule { matches: Vec::new(), target }
    }
}

/// States of a connection as `--ctstate` takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct States(pub u8);

impl States {
    pub const INVALID: States = States(1);
    pub const NEW: States = States(2);
    pub const RELATED: States = States(4);
    pub const ESTABLISHED: States = States(8);
    /// Its destination was translated.
    pub const DNAT: States = States(16);

    const NAMES: [(States, &'static str); 5] = [
        (States::INVALID, "INVALID"),
        (States::NEW, "NEW"),
        (States::RELATED, "RELATED"),
        (States::ESTABLISHED, "ESTABLISHED"),
        (States::DNAT, "DNAT"),
    ];

    pub const fn or(self, other: States) -> States {
        States(self.0 | other.0)
    }

    pub const fn intersects(self, other: States) -> bool {
        self.0 & other.0 != 0
    }

    fn parse(text: &str) -> Option<States> {
        let one =
            |name: &str| States::NAMES.iter().find(|(_, known)| *known == name).map(|(state, _)| *state);
        text.split(',').try_fold(States(0), |all, name| Some(all.or(one(name)?)))
    }
}

impl fmt::Display for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = States::NAMES
            .iter()
            .filter(|(state, _)| state.intersects(*self))
            .map(|(_, name)| *name)
            .collect();
        f.write_str(&names.join(","))
    }
}

/// One condition of a rule; only what our rules use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Match {
    /// `-s`.
    Source { within: Cidr, not: bool },
    /// `-d`.
    Destination { within: Cidr, not: bool },
    /// `-i`; a trailing `+` stands for any further letters.
    Interface(Box<str>),
    /// `-p`.
    Protocol(Protocol),
    /// `-m comment`: no condition, for people who read `iptables-save`.
    Comment(Box<str>),
    /// `-m tcp --dport`, first and last.
    Ports(Protocol, u16, u16),
    /// `-m mark --mark value/mask`.
    Mark { value: u32, mask: u32 },
    /// `-m conntrack --ctstate`.
    State { any: States, not: bool },
    /// `-m addrtype --src-type LOCAL`.
    SourceIsLocal,
    /// `-m addrtype --dst-type LOCAL`.
    DestinationIsLocal,
    /// `-m statistic --mode random`: the probability in units of 2^-31, as the kernel keeps it.
    Random(u32),
    /// `-m recent --set`: remember the source in this list. Always holds.
    Remember(Box<str>),
    /// `-m recent --update --seconds N --reap`: the source was remembered less than so long ago, and is
    /// remembered anew.
    Remembered { list: Box<str>, seconds: u32 },
    /// What is not ours: the rest of the rule as it was printed.
    Other(Box<str>),
}

impl Match {
    /// `-s` of one of several ranges; none where it would hold for every packet, since `iptables-save`
    /// does not print that.
    pub fn source(within: Cidr) -> Option<Match> {
        (!within.is_zero()).then_some(Match::Source { within, not: false })
    }

    /// `-m tcp --dport` of one port.
    pub const fn port(protocol: Protocol, port: u16) -> Match {
        Match::Ports(protocol, port, port)
    }
}

/// The probability of one in `count`, in units of 2^-31: rounded as `iptables` rounds it.
pub fn one_in(count: u32) -> u32 {
    let count = u64::from(count.max(1));
    let rounded = ((1_u64 << 31) + count / 2) / count;
    u32::try_from(rounded).unwrap_or(1 << 31)
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    Jump(ChainName),
    Return,
    Accept,
    Drop,
    /// With a TCP reset; only for TCP.
    Reset,
    /// With ICMP (or ICMPv6) port unreachable.
    Unreachable,
    /// Clear the bits of `mask` in the packet's mark and set those of `value`.
    Mark {
        value: u32,
        mask: u32,
    },
    Translate(SocketAddr),
    /// Rewrite the source to the node's.
    Masquerade {
        random_fully: bool,
    },
    /// Part of a rule that is not ours.
    Other,
}

#[cfg(test)]
mod tests;
