//! A virtual packet through the rules: what the kernel would do with the first packet of a connection,
//! found by evaluating the very objects that are programmed. Tests assert by it that rendering keeps
//! the meaning, and `svc explain` shows it. Only what our own rules use is evaluated.

mod ipt;
mod machine;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::Protocol;
use super::chains::DSTNAT;
use super::desired::BackEnd;
use super::diff::Applied;
use super::ipvs::{RealServerKey, VirtualServerKey};
use super::nft::{ChainType, Hook, NftTable};
use super::object::{Claim, ObjectKey, ObjectValue};
use super::render_ipvs::NodeNetwork;
pub use ipt::{iptables, iptables_visits, ipvs_by_iptables};
use machine::{Machine, Outcome};

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A pod of this node or another.
    Pod,
    /// This node itself, host-network pods included.
    Node,
    /// Outside the cluster.
    Outside,
}

/// The first packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub origin: Origin,
    pub src: IpAddr,
    pub dst: SocketAddr,
    pub protocol: Protocol,
}

/// One endpoint a packet may be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Delivery {
    pub to: SocketAddr,
    /// The source is rewritten to the node's.
    pub masqueraded: bool,
}

/// What happens to the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// One of these gets it.
    Endpoints(Vec<Delivery>),
    /// The client is told at once: TCP reset or ICMP port unreachable.
    Rejected,
    /// It vanishes.
    Dropped,
    /// A process of the host may answer.
    Host,
    /// It is routed on; no Service is involved.
    Forwarded,
}

/// An expression that our rules do not have and the tracer does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot evaluate {expression} in chain {chain}")]
pub struct TraceError {
    pub chain: String,
    pub expression: String,
}

/// The rules as they are in force.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The chains of the packet's family; sets are read from `applied`.
    pub table: &'a NftTable,
    pub applied: &'a Applied,
    pub node: &'a NodeNetwork,
}

/// Walk a packet through the rules of whatever back end made them.
///
/// # Errors
/// A rule with an expression that ours never have.
pub fn packet(back_end: BackEnd, rules: Rules<'_>, packet: &Packet) -> Result<Fate, TraceError> {
    match back_end {
        BackEnd::Ipvs { .. } => ipvs(rules, packet),
        BackEnd::IpvsByIptables { .. } => ipvs_by_iptables(rules, packet),
        BackEnd::Nftables => nftables(rules, packet),
        BackEnd::Iptables => iptables(rules, packet),
    }
}

/// Walk a packet through the rules in IPVS mode.
pub fn ipvs(rules: Rules<'_>, packet: &Packet) -> Result<Fate, TraceError> {
    if !is_for_host(rules, packet) {
        return Ok(Fate::Forwarded);
    }
    let hook = if packet.origin == Origin::Node { Hook::Output } else { Hook::Input };
    let mut machine = Machine::new(rules, packet);
    match machine.run_hook(ChainType::Filter, hook, ..)? {
        Outcome::Dropped => return Ok(Fate::Dropped),
        Outcome::Rejected => return Ok(Fate::Rejected),
        Outcome::Passed | Outcome::Masqueraded | Outcome::Translated(_) => {}
    }
    let key = VirtualServerKey::new(packet.dst.ip(), packet.dst.port(), packet.protocol);
    let Some(reals) = reals(rules.applied, &key) else { return Ok(Fate::Host) };
    if reals.is_empty() {
        // ip_vs_leave answers with an ICMP port unreachable.
        return Ok(Fate::Rejected);
    }
    let mut deliveries = Vec::new();
    for real in reals {
        let to = SocketAddr::new(real.addr, real.port);
        let masqueraded = machine.after_translation(to)?;
        deliveries.push(Delivery { to, masqueraded });
    }
    Ok(Fate::Endpoints(deliveries))
}

/// Whether the packet ends at an address of the host, those of IPVS's device among them.
fn is_for_host(rules: Rules<'_>, packet: &Packet) -> bool {
    let device = rules.applied.get(&ObjectKey::Address(packet.dst.ip()));
    rules.node.host_addresses.contains(&packet.dst.ip()) || device.is_some()
}

/// Walk a packet through the rules in nftables mode.
pub fn nftables(rules: Rules<'_>, packet: &Packet) -> Result<Fate, TraceError> {
    let hook = if packet.origin == Origin::Node { Hook::Output } else { Hook::Prerouting };
    let mut deliveries = Vec::new();
    let mut choices = 1;
    let mut choice = 0;
    // Each number the spreading chain can draw is one possible endpoint.
    while choice < choices {
        let mut machine = Machine::new(rules, packet);
        machine.choose(choice);
        match machine.run_hook(ChainType::Filter, hook, ..DSTNAT)? {
            Outcome::Dropped => return Ok(Fate::Dropped),
            Outcome::Rejected => return Ok(Fate::Rejected),
            Outcome::Passed | Outcome::Masqueraded | Outcome::Translated(_) => {}
        }
        let translated = match machine.run_hook(ChainType::Nat, hook, ..)? {
            Outcome::Translated(to) => Some(to),
            _ => None,
        };
        let to = translated.unwrap_or(packet.dst);
        let is_host = rules.node.host_addresses.contains(&to.ip());
        let behind = match packet.origin {
            Origin::Node => Some(Hook::Output),
            Origin::Pod | Origin::Outside => (!is_host).then_some(Hook::Forward),
        };
        if let Some(hook) = behind
            && machine.is_dropped_behind(hook, to)?
        {
            return Ok(Fate::Dropped);
        }
        if translated.is_none() {
            return Ok(if is_host { Fate::Host } else { Fate::Forwarded });
        }
        choices = machine.choices();
        deliveries.push(Delivery { to, masqueraded: machine.after_translation(to)? });
        choice += 1;
    }
    Ok(Fate::Endpoints(deliveries))
}

/// The real servers that take new connections; `None` without a virtual server.
fn reals(applied: &Applied, key: &VirtualServerKey) -> Option<Vec<RealServerKey>> {
    let claim: Claim = ObjectKey::Server(*key).claim()?;
    let objects = applied.objects(&claim)?;
    objects.get(&ObjectKey::Server(*key))?;
    let active = objects.iter().filter_map(|(object, value)| match (object, value) {
        (ObjectKey::Real(_, real), ObjectValue::Real(settings)) if settings.weight > 0 => Some(*real),
        _ => None,
    });
    Some(active.collect())
}

#[cfg(test)]
mod tests;
