//! iptables chains evaluated as the kernel would, as far as our rules need it. Other programs' rules in
//! the built-in chains are not known here.

use std::net::SocketAddr;

use super::super::ipt::{Builtin, ChainId, ChainName, Match, Rule, States, Table, Target};
use super::super::ipvs::VirtualServerKey;
use super::super::object::{ObjectKey, ObjectValue};
use super::machine::Outcome;
use super::{Delivery, Fate, Origin, Packet, Rules, TraceError};

/// Where evaluation stands after a rule or chain.
enum Flow {
    Next,
    Return,
    End(Outcome),
}

struct Walk<'a> {
    rules: Rules<'a>,
    packet: Packet,
    ipv6: bool,
    mark: u32,
    translated: bool,
    /// Which of the random rules met holds, counted from 0, and how many were met.
    choice: u32,
    met: u32,
    /// Rules looked at.
    visited: u32,
}

/// Walk a packet through the rules in iptables mode.
///
/// # Errors
/// A rule with a match or target that ours never have, or a jump to a chain that is not there.
pub fn iptables(rules: Rules<'_>, packet: &Packet) -> Result<Fate, TraceError> {
    let mut deliveries = Vec::new();
    // Each random rule that is met may hold or not: the first walk takes the first one, and so on, until
    // one takes none.
    for choice in 0.. {
        let mut walk = Walk::new(rules, packet, choice);
        let first = if packet.origin == Origin::Node { Builtin::Output } else { Builtin::Prerouting };
        let outcome = walk.builtin(Table::Nat, first)?;
        if let Outcome::Translated(to) = outcome {
            walk.packet.dst = to;
            walk.translated = true;
        }
        let filtered = walk.builtin(Table::Filter, walk.filter_hook())?;
        match filtered {
            Outcome::Dropped => return Ok(Fate::Dropped),
            Outcome::Rejected => return Ok(Fate::Rejected),
            Outcome::Passed | Outcome::Masqueraded | Outcome::Translated(_) => {}
        }
        let Outcome::Translated(to) = outcome else {
            let host = rules.node.host_addresses.contains(&packet.dst.ip());
            return Ok(if host { Fate::Host } else { Fate::Forwarded });
        };
        let masqueraded = walk.builtin(Table::Nat, Builtin::Postrouting)? == Outcome::Masqueraded;
        deliveries.push(Delivery { to, masqueraded });
        if walk.met <= choice {
            break;
        }
    }
    Ok(Fate::Endpoints(deliveries))
}

/// Walk a packet through the rules in IPVS mode on a kernel without nf_tables: mangle, and for what comes in
/// filter, are asked before IPVS; what is made here and IPVS does not take is asked in filter.
///
/// # Errors
/// As [`iptables`].
pub fn ipvs_by_iptables(rules: Rules<'_>, packet: &Packet) -> Result<Fate, TraceError> {
    if !super::is_for_host(rules, packet) {
        return Ok(Fate::Forwarded);
    }
    let made_here = packet.origin == Origin::Node;
    let mut walk = Walk::new(rules, packet, u32::MAX);
    let first = if made_here { Builtin::Output } else { Builtin::Input };
    if let Some(end) = ends(&walk.builtin(Table::Mangle, first)?) {
        return Ok(end);
    }
    let key = VirtualServerKey::new(packet.dst.ip(), packet.dst.port(), packet.protocol);
    let reals = super::reals(rules.applied, &key);
    if (!made_here || reals.is_none())
        && let Some(end) = ends(&walk.builtin(Table::Filter, first)?)
    {
        return Ok(end);
    }
    let Some(reals) = reals else { return Ok(Fate::Host) };
    if reals.is_empty() {
        // ip_vs_leave answers with an ICMP port unreachable.
        return Ok(Fate::Rejected);
    }
    let mark = walk.mark;
    let mut deliveries = Vec::new();
    for real in reals {
        let to = SocketAddr::new(real.addr, real.port);
        (walk.packet.dst, walk.mark) = (to, mark);
        let masqueraded = walk.builtin(Table::Nat, Builtin::Postrouting)? == Outcome::Masqueraded;
        deliveries.push(Delivery { to, masqueraded });
    }
    Ok(Fate::Endpoints(deliveries))
}

fn ends(outcome: &Outcome) -> Option<Fate> {
    match outcome {
        Outcome::Dropped => Some(Fate::Dropped),
        Outcome::Rejected => Some(Fate::Rejected),
        Outcome::Passed | Outcome::Masqueraded | Outcome::Translated(_) => None,
    }
}

/// How many rules a packet is compared with on its way to its translation, at worst.
///
/// # Errors
/// As [`iptables`].
pub fn iptables_visits(rules: Rules<'_>, packet: &Packet) -> Result<u32, TraceError> {
    let first = if packet.origin == Origin::Node { Builtin::Output } else { Builtin::Prerouting };
    let mut walk = Walk::new(rules, packet, u32::MAX);
    walk.builtin(Table::Nat, first)?;
    Ok(walk.visited)
}

impl<'a> Walk<'a> {
    fn new(rules: Rules<'a>, packet: &Packet, choice: u32) -> Self {
        Walk {
            rules,
            packet: *packet,
            ipv6: packet.dst.is_ipv6(),
            mark: 0,
            translated: false,
            choice,
            met: 0,
            visited: 0,
        }
    }

    /// Where filter sees the packet: going out, coming in, or passing through.
    fn filter_hook(&self) -> Builtin {
        if self.packet.origin == Origin::Node {
            Builtin::Output
        } else if self.rules.node.host_addresses.contains(&self.packet.dst.ip()) {
            Builtin::Input
        } else {
            Builtin::Forward
        }
    }

    /// Our jumps from a built-in chain, which are all we know of it.
    fn builtin(&mut self, table: Table, from: Builtin) -> Result<Outcome, TraceError> {
        let ipv6 = self.ipv6;
        let hooks: Vec<Rule> = self
            .rules
            .applied
            .other_than_elements()
            .filter_map(|(key, _)| match key {
                ObjectKey::Hook(hook)
                    if hook.from == from && (hook.to.ipv6, hook.to.table) == (ipv6, table) =>
                {
                    Some(Rule::clone(&hook.rule))
                }
                _ => None,
            })
            .collect();
        match self.run(table, from.name(), &hooks)? {
            Flow::End(outcome) => Ok(outcome),
            Flow::Next | Flow::Return => Ok(Outcome::Passed),
        }
    }

    fn chain(&mut self, table: Table, name: ChainName) -> Result<Flow, TraceError> {
        let id = ChainId { ipv6: self.ipv6, table, name };
        let missing =
            || TraceError { chain: name.to_string(), expression: "a jump into it: no such chain".to_owned() };
        match self.rules.applied.get(&ObjectKey::Chain(id)).as_deref() {
            Some(ObjectValue::Rules(rules)) => self.run(table, name.as_str(), rules),
            _ => Err(missing()),
        }
    }

    fn run(&mut self, table: Table, chain: &str, rules: &[Rule]) -> Result<Flow, TraceError> {
        for rule in rules {
            self.visited += 1;
            let mut holds = true;
            for condition in &rule.matches {
                holds = holds && self.holds(chain, condition)?;
            }
            if !holds {
                continue;
            }
            match self.take(table, chain, &rule.target)? {
                Flow::Next => {}
                Flow::Return => return Ok(Flow::Next),
                ended @ Flow::End(_) => return Ok(ended),
            }
        }
        Ok(Flow::Next)
    }

    fn holds(&mut self, chain: &str, condition: &Match) -> Result<bool, TraceError> {
        let node = self.rules.node;
        let packet = &self.packet;
        Ok(match condition {
            Match::Source { within, not } => within.contains(packet.src) != *not,
            Match::Destination { within, not } => within.contains(packet.dst.ip()) != *not,
            Match::Interface(name) => {
                let own = if packet.origin == Origin::Pod { node.pod_interface.as_str() } else { "" };
                match name.strip_suffix('+') {
                    Some(start) => own.starts_with(start),
                    None => own == &**name,
                }
            }
            Match::Protocol(protocol) => packet.protocol == *protocol,
            Match::Ports(protocol, first, last) => {
                packet.protocol == *protocol && (*first..=*last).contains(&packet.dst.port())
            }
            Match::Comment(_) | Match::Remember(_) => true,
            Match::Mark { value, mask } => self.mark & mask == *value,
            Match::State { any, not } => {
                let dnat = if self.translated { States::DNAT } else { States(0) };
                any.intersects(States::NEW.or(dnat)) != *not
            }
            // A packet of the node to a Service has the node's or the Service's own address as its source.
            Match::SourceIsLocal => {
                packet.origin == Origin::Node || node.host_addresses.contains(&packet.src)
            }
            Match::DestinationIsLocal => node.host_addresses.contains(&packet.dst.ip()),
            Match::Random(_) => {
                self.met += 1;
                self.met == self.choice.saturating_add(1)
            }
            // The first packet of a client that is not known yet.
            Match::Remembered { .. } => false,
            Match::Other(text) => {
                return Err(TraceError { chain: chain.to_owned(), expression: text.to_string() });
            }
        })
    }

    fn take(&mut self, table: Table, chain: &str, target: &Target) -> Result<Flow, TraceError> {
        Ok(match target {
            Target::Jump(name) => self.chain(table, *name)?,
            Target::Return => Flow::Return,
            Target::Accept => Flow::End(Outcome::Passed),
            Target::Drop => Flow::End(Outcome::Dropped),
            Target::Reset | Target::Unreachable => Flow::End(Outcome::Rejected),
            Target::Mark { value, mask } => {
                self.mark = (self.mark & !mask) ^ value;
                Flow::Next
            }
            Target::Translate(to) => Flow::End(Outcome::Translated(*to)),
            Target::Masquerade { .. } => Flow::End(Outcome::Masqueraded),
            Target::Other => {
                return Err(TraceError {
                    chain: chain.to_owned(),
                    expression: "a target not ours".to_owned(),
                });
            }
        })
    }
}
