//! From what the kernel acknowledged to what is wanted, claim by claim, as ordered operations. The cost
//! is that of the claims looked at. Nothing here is executed; `Applied` changes when told of a success.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Bound;

use super::Protocol;
use super::desired::{Desired, Urgency};
use super::ipvs::{IpvsOp, RealServer, RealServerKey, VirtualServerKey};
use super::object::{Claim, ObjectKey, ObjectValue, Objects, SetId};
use super::places;
use super::stored::Stored;

/// What is done to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Add(ObjectValue),
    /// Replace its settings. An element is taken out and put in again within one transaction.
    Set(ObjectValue),
    Remove,
}

/// One operation on one kernel object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    pub claim: Claim,
    pub key: ObjectKey,
    pub change: Change,
    rank: Rank,
}

/// Additions before removals; among additions the urgent claims first, each in the order that never
/// shows a half-made Service: rules that rewrite sources, virtual server, real servers, and only then
/// the address that attracts packets. Removals go the other way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    removal: bool,
    urgency: Urgency,
    kind: u8,
}

impl Op {
    /// The operation for IPVS, where it is one.
    pub fn ipvs(&self) -> Option<IpvsOp> {
        Some(match (&self.key, &self.change) {
            (ObjectKey::Server(key), Change::Add(ObjectValue::Server(server))) => {
                IpvsOp::AddService { key: *key, server: server.clone() }
            }
            (ObjectKey::Server(key), Change::Set(ObjectValue::Server(server))) => {
                IpvsOp::SetService { key: *key, server: server.clone() }
            }
            (ObjectKey::Server(key), Change::Remove) => IpvsOp::DelService { key: *key },
            (ObjectKey::Real(key, real), Change::Add(ObjectValue::Real(settings))) => {
                IpvsOp::AddDest { key: *key, real: *real, settings: *settings }
            }
            (ObjectKey::Real(key, real), Change::Set(ObjectValue::Real(settings))) => {
                IpvsOp::SetDest { key: *key, real: *real, settings: *settings }
            }
            (ObjectKey::Real(key, real), Change::Remove) => IpvsOp::DelDest { key: *key, real: *real },
            _ => return None,
        })
    }

    pub fn is_removal(&self) -> bool {
        self.rank.removal
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match &self.change {
            Change::Add(_) => "add",
            Change::Set(ObjectValue::Real(real)) if real.weight == 0 => "drain",
            Change::Set(_) => "change",
            Change::Remove => "remove",
        };
        write!(f, "{verb} {}", self.key)
    }
}

/// What the kernel has acknowledged, by claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    claims: BTreeMap<Claim, Stored>,
    /// Real servers that take no new connections and wait for their old ones.
    draining: BTreeSet<(VirtualServerKey, RealServerKey)>,
    /// How many objects there are.
    count: usize,
}

impl Applied {
    /// Take over what a dump shows. Objects that no Service could claim are not ours and stay out.
    pub fn adopt(objects: Objects) -> Self {
        let mut applied = Applied::default();
        for (key, value) in objects {
            if let Some(claim) = key.claim() {
                applied.put(claim, key, value);
            }
        }
        applied
    }

    /// The kernel acknowledged `op`.
    pub fn acknowledge(&mut self, op: &Op) {
        match &op.change {
            Change::Add(value) | Change::Set(value) => self.put(op.claim, op.key.clone(), value.clone()),
            Change::Remove => self.take(op.claim, &op.key),
        }
    }

    /// Replace what is believed of one claim by what a look into the kernel showed.
    pub fn replace(&mut self, claim: Claim, objects: Objects) {
        let before = self.claims.remove(&claim).unwrap_or_default();
        self.count -= before.len();
        before.others().for_each(|(key, _)| self.forget_draining(key));
        for (key, value) in objects {
            self.put(claim, key, value);
        }
    }

    /// What there is something of, in order.
    pub fn claims(&self) -> impl Iterator<Item = &Claim> {
        self.claims.keys()
    }

    /// Every claim with its objects, in order. They are made from what is kept of them, one claim after the
    /// other.
    pub fn by_claim(&self) -> impl Iterator<Item = (&Claim, Cow<'_, Objects>)> {
        self.by_claim_after(None)
    }

    /// Those behind `last` in order; all of them where there is none.
    pub fn by_claim_after(&self, last: Option<&Claim>) -> impl Iterator<Item = (&Claim, Cow<'_, Objects>)> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        self.claims.range((from, Bound::Unbounded)).map(|(claim, stored)| (claim, stored.objects()))
    }

    /// All objects but elements: servers, addresses, chains, jumps.
    pub fn other_than_elements(&self) -> impl Iterator<Item = (&ObjectKey, &ObjectValue)> {
        self.claims.values().flat_map(Stored::others)
    }

    /// A copy of some claims.
    pub fn only(&self, which: impl Fn(&Claim) -> bool) -> Applied {
        let some = self.claims.iter().filter(|(claim, _)| which(claim));
        let claims: BTreeMap<_, _> = some.map(|(claim, stored)| (*claim, stored.clone())).collect();
        let count = claims.values().map(Stored::len).sum();
        Applied { claims, draining: BTreeSet::new(), count }
    }

    /// The claims of which this and another have different objects.
    pub fn differing(&self, other: &Applied) -> BTreeSet<Claim> {
        let here = self.claims.iter().filter(|(claim, stored)| other.claims.get(claim) != Some(*stored));
        let there = other.claims.keys().filter(|claim| !self.claims.contains_key(claim));
        here.map(|(claim, _)| claim).chain(there).copied().collect()
    }

    pub fn objects(&self, claim: &Claim) -> Option<Cow<'_, Objects>> {
        self.claims.get(claim).map(Stored::objects)
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Cow<'_, ObjectValue>> {
        self.claims.get(&key.claim()?)?.get(key)
    }

    /// The same with the endpoints of every service port numbered by address: what two histories with
    /// one end have in common.
    pub fn in_order(&self) -> Applied {
        let in_order = |objects: Cow<'_, Objects>| places::in_order(&objects).into_iter().collect();
        let claims = self.by_claim().map(|(claim, objects)| (*claim, in_order(objects)));
        Applied { claims: claims.collect(), draining: self.draining.clone(), count: self.count }
    }

    /// How many kernel objects there are.
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// Claims with real servers that wait for their last connection.
    pub fn draining(&self) -> &BTreeSet<(VirtualServerKey, RealServerKey)> {
        &self.draining
    }

    fn put(&mut self, claim: Claim, key: ObjectKey, value: ObjectValue) {
        self.forget_draining(&key);
        if let (ObjectKey::Real(server, real), ObjectValue::Real(settings)) = (&key, &value)
            && settings.weight == 0
        {
            self.draining.insert((*server, *real));
        }
        if self.claims.entry(claim).or_default().insert(key, value) {
            self.count += 1;
        }
    }

    fn take(&mut self, claim: Claim, key: &ObjectKey) {
        let Some(objects) = self.claims.get_mut(&claim) else { return };
        let mut gone = vec![key.clone()];
        if let ObjectKey::Server(server) = key {
            // The kernel removes a virtual server's real servers with it.
            let keys = objects.others().map(|(key, _)| key);
            let reals = keys.filter(|key| matches!(key, ObjectKey::Real(of, _) if of == server));
            gone.extend(reals.cloned());
        }
        self.count -= gone.iter().filter(|key| objects.remove(key)).count();
        if objects.is_empty() {
            self.claims.remove(&claim);
        }
        gone.iter().for_each(|key| self.forget_draining(key));
    }

    fn forget_draining(&mut self, key: &ObjectKey) {
        if let ObjectKey::Real(server, real) = key {
            self.draining.remove(&(*server, *real));
        }
    }
}

/// The operations that bring the given claims from `applied` to `desired`, in order. `drained` tells
/// whether a real server at weight 0 has lost its last connection; TCP ones are kept until then.
pub fn plan(
    desired: &Desired,
    applied: &Applied,
    claims: impl IntoIterator<Item = Claim>,
    drained: &dyn Fn(&VirtualServerKey, &RealServerKey) -> bool,
) -> Vec<Op> {
    let mut ops = Vec::new();
    for claim in claims {
        let have = applied.objects(&claim).unwrap_or_default();
        let want = match claim {
            Claim::Backends { .. } => places::keep(desired.objects(&claim), &have),
            _ => desired.objects(&claim),
        };
        // All chains of a family are one run of the program, whatever they are for.
        let urgency = match claim {
            Claim::Chain(_) => Urgency::Ordinary,
            _ => desired.urgency(&claim),
        };
        let hosted =
            matches!(claim, Claim::Frontend { addr, .. } if desired.node().host_addresses.contains(&addr));
        for (key, change) in differences(&want, &have, drained) {
            let (removal, kind) = order(&key, &change, hosted);
            ops.push(Op { claim, key, change, rank: Rank { removal, urgency, kind } });
        }
    }
    // Stable: within a rank claims and objects keep their order.
    ops.sort_by_key(|op| op.rank);
    ops
}

fn differences(
    want: &Objects,
    have: &Objects,
    drained: &dyn Fn(&VirtualServerKey, &RealServerKey) -> bool,
) -> Vec<(ObjectKey, Change)> {
    let mut found = Vec::new();
    for (key, value) in want.iter() {
        match have.get(key) {
            None => found.push((key.clone(), Change::Add(value.clone()))),
            Some(ObjectValue::Foreign) => {}
            Some(old) if old != value => found.push((key.clone(), Change::Set(value.clone()))),
            Some(_) => {}
        }
    }
    for (key, value) in have.iter().filter(|(key, _)| !want.contains_key(key)) {
        match (key, value) {
            (ObjectKey::Real(server, real), ObjectValue::Real(settings)) => {
                // Gone with its virtual server.
                if want.contains_key(&ObjectKey::Server(*server)) {
                    let change = leave(settings, server, || drained(server, real));
                    found.extend(change.map(|change| (key.clone(), change)));
                }
            }
            (_, ObjectValue::Foreign) => {}
            _ => found.push((key.clone(), Change::Remove)),
        }
    }
    found
}

/// How a real server leaves a virtual server that stays: TCP connections end by themselves first.
/// UDP and SCTP have no end to wait for (kube-proxy's graceful termination knows TCP only).
fn leave(real: &RealServer, server: &VirtualServerKey, drained: impl FnOnce() -> bool) -> Option<Change> {
    let tcp = matches!(server, VirtualServerKey::Address { protocol: Protocol::Tcp, .. });
    match (tcp, real.weight) {
        (false, _) => Some(Change::Remove),
        (true, 0) => drained().then_some(Change::Remove),
        (true, _) => Some(Change::Set(ObjectValue::Real(real.drained()))),
    }
}

/// Whether the change takes something away, and its place among its equals. On an address of the host
/// (`hosted`, node ports) packets come at any time: sources must be rewritten before there is a server. On
/// an address of a Service everything is rejected until the frontend's element is there: it comes last,
/// so that a server the kernel refused never shows a port of the host.
fn order(key: &ObjectKey, change: &Change, hosted: bool) -> (bool, u8) {
    match (key, change) {
        // In what order its lines must stand is known to the text they become.
        (ObjectKey::Chain(_) | ObjectKey::Hook(_), _) => (false, 0),
        (ObjectKey::Real(..), Change::Set(ObjectValue::Real(real))) if real.weight == 0 => (true, 0),
        (ObjectKey::Real(..), Change::Remove) => (true, 0),
        (ObjectKey::Address(_), Change::Remove) => (true, 1),
        (ObjectKey::Server(_), Change::Remove) => (true, 2),
        // The kernel takes no range that overlaps another: the old one goes in the batch of the new one.
        (ObjectKey::Element { set: SetId::Allowed, .. }, Change::Remove) => (false, 1),
        // What leads to an endpoint or chain goes before it, and comes after it.
        (ObjectKey::Element { set: SetId::Services, .. }, Change::Add(_) | Change::Set(_)) => (false, 4),
        (ObjectKey::Element { set, .. }, Change::Remove) if is_led_to(*set) => (true, 4),
        (ObjectKey::Element { .. }, Change::Remove) => (true, 3),
        (ObjectKey::Spread(_), Change::Remove) => (true, 5),
        (ObjectKey::Spread(_), _) => (false, 0),
        (ObjectKey::Element { set: SetId::Frontends, .. }, Change::Add(_)) if !hosted => (false, 4),
        (ObjectKey::Element { .. }, Change::Add(_)) => (false, 1),
        (ObjectKey::Server(_), _) => (false, 2),
        (ObjectKey::Real(..), _) => (false, 3),
        // A frontend's class turns only when the servers it leads to are there.
        (ObjectKey::Element { .. }, Change::Set(_)) => (false, 4),
        (ObjectKey::Address(_), _) => (false, 5),
    }
}

/// Whether elements of the set are found by numbers in `services`.
fn is_led_to(set: SetId) -> bool {
    matches!(
        set,
        SetId::Spreads | SetId::Endpoints | SetId::LocalEndpoints | SetId::Members | SetId::LocalMembers
    )
}

#[cfg(test)]
mod tests;
