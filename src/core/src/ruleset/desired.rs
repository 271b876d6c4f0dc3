//! Which service ports claim what, kept change by change: the claims that a change touches come out, and
//! the objects of a claim are made when asked for, so that nothing is stored twice.

mod shared;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use shared::{Scheme, SharedChain, SharedChains, Touched};

use super::ipt::ChainId;
use super::ipvs::Scheduler;
use super::model::ServicePortState;
use super::object::{Claim, ObjectKey, ObjectValue, Objects, Spread};
use super::render_ipt::{self, Gathered, IptSettings};
use super::render_ipvs::{self, NodeNetwork};
use super::render_ipvs_ipt;
use super::render_nft;
use crate::service::PortId;

/// What renders the claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackEnd {
    Ipvs {
        scheduler: Scheduler,
    },
    /// The same where the kernel has no nf_tables: iptables chains stand around the virtual servers.
    IpvsByIptables {
        scheduler: Scheduler,
    },
    Nftables,
    Iptables,
}

impl BackEnd {
    /// Whether virtual servers carry the packets.
    pub fn is_ipvs(self) -> bool {
        matches!(self, BackEnd::Ipvs { .. } | BackEnd::IpvsByIptables { .. })
    }

    /// What iptables chains are for in it; `None` where it has none.
    fn scheme(self) -> Option<Scheme> {
        match self {
            BackEnd::IpvsByIptables { .. } => Some(Scheme::Ipvs),
            BackEnd::Iptables => Some(Scheme::Iptables),
            BackEnd::Ipvs { .. } | BackEnd::Nftables => None,
        }
    }

    fn claims(self, state: &ServicePortState, node: &NodeNetwork) -> BTreeSet<Claim> {
        match self {
            BackEnd::Ipvs { .. } => render_ipvs::claims(state, node),
            BackEnd::IpvsByIptables { .. } => render_ipvs_ipt::claims(state, node),
            BackEnd::Nftables => render_nft::claims(state, node),
            BackEnd::Iptables => render_ipt::claims(state, node),
        }
    }
}

/// How soon a claim is programmed after a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    /// `default/kubernetes`: without it the node's own clients cannot reach the API.
    Api,
    /// Port 53: without it nobody finds anything.
    Dns,
    Ordinary,
}

impl Urgency {
    const ALL: [Urgency; 3] = [Urgency::Api, Urgency::Dns, Urgency::Ordinary];
    const COUNT: usize = Urgency::ALL.len();

    fn of(state: &ServicePortState) -> Urgency {
        let service = &state.spec.id.name.service;
        if &*service.namespace == "default" && &*service.name == "kubernetes" {
            Urgency::Api
        } else if state.spec.port == 53 {
            Urgency::Dns
        } else {
            Urgency::Ordinary
        }
    }
}

/// A claim that two Services make and one of them holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clash {
    pub claim: Claim,
    pub holder: PortId,
    pub loser: PortId,
}

/// All claims with those who make them.
#[derive(Debug)]
pub struct Desired {
    back_end: BackEnd,
    node: NodeNetwork,
    /// Ordered by `PortId`; the first holds a frontend.
    claims: BTreeMap<Claim, Vec<Arc<ServicePortState>>>,
    /// Frontends with more than one of them.
    contested: BTreeSet<Claim>,
    /// The iptables chains that no single Service makes.
    chains: SharedChains,
    /// How many service ports are spread by each chain, by their urgency. Nearly all share a few, so
    /// that a list of them would make every change as slow as there are Services.
    spreads: BTreeMap<Claim, [usize; Urgency::COUNT]>,
    /// Chains for up to so many endpoints are wanted as soon as a family has any Service.
    prepared_up_to: u32,
    prepared: BTreeSet<Claim>,
    /// Service ports with endpoints of their own in nftables mode, IPv4 and IPv6.
    with_backends: [usize; 2],
}

impl Desired {
    pub fn new(back_end: BackEnd, node: NodeNetwork) -> Self {
        let mut desired = Desired {
            back_end,
            node,
            claims: BTreeMap::new(),
            contested: BTreeSet::new(),
            chains: SharedChains::default(),
            spreads: BTreeMap::new(),
            prepared_up_to: 0,
            prepared: BTreeSet::new(),
            with_backends: [0; 2],
        };
        desired.chains.reset(back_end.scheme());
        desired
    }

    /// In nftables mode, want the chains that spread over up to so many endpoints before a Service has as
    /// many. For each that comes later the kernel looks at every element of the maps it names: 6 ms at 10,000
    /// Services with 10 endpoints each. In maps that are empty yet it costs nothing.
    #[must_use]
    pub fn with_prepared_chains(mut self, up_to: u32) -> Self {
        self.prepared_up_to = up_to;
        self
    }

    /// What iptables mode is set to. Returns the claims whose objects may differ now.
    pub fn set_iptables(&mut self, settings: IptSettings) -> BTreeSet<Claim> {
        if self.chains.settings == settings {
            return BTreeSet::new();
        }
        self.chains.settings = settings;
        if self.back_end.scheme().is_some() { self.remake() } else { BTreeSet::new() }
    }

    /// What iptables mode is set to.
    pub fn iptables(&self) -> &IptSettings {
        &self.chains.settings
    }

    pub fn node(&self) -> &NodeNetwork {
        &self.node
    }

    /// Take a service port's change; returns the claims whose objects may differ now.
    pub fn change(
        &mut self,
        before: Option<&Arc<ServicePortState>>,
        after: Option<&Arc<ServicePortState>>,
    ) -> BTreeSet<Claim> {
        let mut dirty = BTreeSet::new();
        let shared = self.back_end.scheme().map(|_| self.shared_of(before, after));
        if let Some(before) = before {
            let claims = self.back_end.claims(before, &self.node);
            claims.iter().for_each(|claim| self.release(claim, before));
            dirty.extend(claims);
        }
        if let Some(after) = after {
            let claims = self.back_end.claims(after, &self.node);
            claims.iter().for_each(|claim| self.hold(*claim, after));
            dirty.extend(claims);
        }
        if let Some(state) = after.or(before) {
            self.add_rivals(&state.spec.id, &mut dirty);
        }
        if let Some(shared) = shared {
            self.follow_shared(shared, &mut dirty);
        }
        self.prepare(&mut dirty);
        dirty
    }

    /// Bring the prepared chains up to date with the families that have Services.
    fn prepare(&mut self, dirty: &mut BTreeSet<Claim>) {
        for (ipv6, ports) in [false, true].into_iter().zip(self.with_backends) {
            let spread = |count| Claim::Spread(Spread { ipv6, local: false, sticky: None, count });
            let there = self.prepared.contains(&spread(1));
            if there == (ports > 0) {
                continue;
            }
            for claim in (1..=self.prepared_up_to).map(spread) {
                if there {
                    self.prepared.remove(&claim)
                } else {
                    self.prepared.insert(claim)
                };
                dirty.insert(claim);
            }
        }
    }

    /// Who loses or wins the endpoints of a contested cluster address has all its frontends turned.
    fn add_rivals(&self, changed: &PortId, dirty: &mut BTreeSet<Claim>) {
        let backends = dirty.iter().filter(|claim| matches!(claim, Claim::Backends { .. }));
        let holders = backends.filter_map(|claim| self.claims.get(claim)).flatten();
        let rivals: Vec<_> = holders.filter(|held| held.spec.id != *changed).cloned().collect();
        for rival in rivals {
            dirty.extend(self.back_end.claims(&rival, &self.node));
        }
    }

    /// What of the shared chains a change can touch, looked at before it is made.
    fn shared_of(
        &self,
        before: Option<&Arc<ServicePortState>>,
        after: Option<&Arc<ServicePortState>>,
    ) -> Touched {
        let of = |state: Option<&Arc<ServicePortState>>| -> Vec<Claim> {
            let claims = state.into_iter().flat_map(|state| self.back_end.claims(state, &self.node));
            let gathered = |claim: &Claim| matches!(claim, Claim::Hairpin(_) | Claim::HealthPort { .. });
            claims.filter(gathered).collect()
        };
        let all = [of(before), of(after)].concat();
        let gathered = all.into_iter().map(|claim| (claim, self.claims.contains_key(&claim))).collect();
        Touched { leaves: self.chains.touched(before, after, &self.node), gathered }
    }

    /// Bring the shared chains up to date with the claims.
    fn follow_shared(&mut self, touched: Touched, dirty: &mut BTreeSet<Claim>) {
        for (claim, was) in &touched.gathered {
            if self.claims.contains_key(claim) != *was {
                let id = match claim {
                    Claim::Hairpin(addr) => render_ipt::hairpin_chain(addr.is_ipv6()),
                    _ => render_ipt::health_chain(claim.is_ipv6()),
                };
                dirty.insert(Claim::Chain(id));
            }
        }
        for leaf in touched.leaves {
            let holder = self.claims.get(&leaf.claim()).and_then(|holders| holders.first()).cloned();
            self.chains.place(leaf, (holder.as_ref(), &self.node), dirty);
        }
    }

    fn gathered(&self, ipv6: bool) -> Gathered {
        let (low, high): (IpAddr, IpAddr) = if ipv6 {
            (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::from(u128::MAX).into())
        } else {
            (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into())
        };
        let hairpins = self.claims.range(Claim::Hairpin(low)..=Claim::Hairpin(high));
        let ports = Claim::HealthPort { ipv6, port: 0 }..=Claim::HealthPort { ipv6, port: u16::MAX };
        let addr = |claim: &Claim| match claim {
            Claim::Hairpin(addr) => Some(*addr),
            _ => None,
        };
        let port = |claim: &Claim| match claim {
            Claim::HealthPort { port, .. } => Some(*port),
            _ => None,
        };
        Gathered {
            hairpins: hairpins.filter_map(|(claim, _)| addr(claim)).collect(),
            health_ports: self.claims.range(ports).filter_map(|(claim, _)| port(claim)).collect(),
        }
    }

    /// The objects of a chain.
    fn chain(&self, id: &ChainId) -> Objects {
        let rules = match self.chains.part(id) {
            Some(SharedChain::Fixed) => {
                let gathered = self.gathered(id.ipv6);
                return self.chains.scheme.fixed(id, &self.chains.settings, &self.node, &gathered);
            }
            Some(SharedChain::Node(node)) => Some(self.chains.node_rules(node, &self.node, |entry| {
                self.claims.get(&shared::claim_of(entry)).and_then(|holders| holders.first())
            })),
            None => self.holder(&Claim::Chain(*id)).and_then(|state| {
                self.chains.scheme.service_chain(id, state, &self.node, &self.chains.settings)
            }),
        };
        let object = |rules: Vec<_>| (ObjectKey::Chain(*id), ObjectValue::Rules(rules));
        rules.map(object).into_iter().collect()
    }

    /// The node's addresses changed: every claim is made again. Returns all that were or are.
    pub fn set_node(&mut self, node: NodeNetwork) -> BTreeSet<Claim> {
        if self.node == node {
            return BTreeSet::new();
        }
        self.node = node;
        self.remake()
    }

    /// Another back end renders from now on. Returns all claims that were or are.
    pub fn set_back_end(&mut self, back_end: BackEnd) -> BTreeSet<Claim> {
        if self.back_end == back_end {
            return BTreeSet::new();
        }
        self.back_end = back_end;
        self.remake()
    }

    pub fn back_end(&self) -> BackEnd {
        self.back_end
    }

    fn remake(&mut self) -> BTreeSet<Claim> {
        let mut states: BTreeMap<PortId, Arc<ServicePortState>> = BTreeMap::new();
        for state in self.claims.values().flatten() {
            states.entry(state.spec.id.clone()).or_insert_with(|| state.clone());
        }
        let mut dirty: BTreeSet<Claim> = self.claims().copied().collect();
        self.claims.clear();
        self.spreads.clear();
        self.prepared.clear();
        self.with_backends = [0; 2];
        self.contested.clear();
        dirty.extend(self.chains.claims());
        self.chains.reset(self.back_end.scheme());
        dirty.extend(self.chains.claims());
        for state in states.values() {
            dirty.extend(self.change(None, Some(state)));
        }
        dirty
    }

    /// The objects of a claim; none where nobody makes it.
    pub fn objects(&self, claim: &Claim) -> Objects {
        if let Claim::Chain(id) = claim {
            return self.chain(id);
        }
        if let Claim::Spread(spread) = claim {
            let wanted = self.spreads.contains_key(claim) || self.prepared.contains(claim);
            return if wanted { render_nft::spread_objects(spread) } else { Objects::new() };
        }
        let winner = self.claims.get(claim).and_then(|holders| holders.first());
        winner.map_or_else(Objects::new, |state| match self.back_end {
            BackEnd::Ipvs { scheduler } => render_ipvs::objects(claim, state, &self.node, scheduler),
            BackEnd::IpvsByIptables { scheduler } => {
                render_ipvs::server_objects(claim, state, &self.node, scheduler)
            }
            BackEnd::Nftables => self.nftables_objects(claim, state),
            // Everything is in chains.
            BackEnd::Iptables => Objects::new(),
        })
    }

    /// Frontends find their endpoints by the cluster address: whose cluster address another has, in spite of
    /// the API server, has no endpoints.
    fn nftables_objects(&self, claim: &Claim, state: &Arc<ServicePortState>) -> Objects {
        let rules = self.holder(&render_nft::backends_claim(state));
        if !matches!(claim, Claim::Frontend { .. }) || rules.is_none_or(|holder| Arc::ptr_eq(holder, state)) {
            return render_nft::objects(claim, state, &self.node);
        }
        let without = ServicePortState {
            spec: state.spec.clone(),
            cluster: Box::default(),
            local: Box::default(),
            has_any: false,
        };
        render_nft::objects(claim, &without, &self.node)
    }

    pub fn urgency(&self, claim: &Claim) -> Urgency {
        if let Claim::Spread(_) = claim {
            let counts = self.spreads.get(claim).copied().unwrap_or_default();
            let some = Urgency::ALL.into_iter().find(|urgency| counts[*urgency as usize] > 0);
            return some.unwrap_or(Urgency::Ordinary);
        }
        let holders = self.claims.get(claim).into_iter().flatten();
        holders.map(|state| Urgency::of(state)).min().unwrap_or(Urgency::Ordinary)
    }

    pub fn claims(&self) -> impl Iterator<Item = &Claim> {
        let prepared = self.prepared.iter().filter(|claim| !self.spreads.contains_key(claim));
        self.claims.keys().chain(self.chains.claims_by_ref()).chain(self.spreads.keys()).chain(prepared)
    }

    /// Who holds a claim.
    pub fn holder(&self, claim: &Claim) -> Option<&Arc<ServicePortState>> {
        self.claims.get(claim)?.first()
    }

    /// Frontends that more than one Service asks for.
    pub fn clashes(&self) -> Vec<Clash> {
        let contested = self.contested.iter().filter_map(|claim| self.claims.get_key_value(claim));
        let of = |(claim, holders): (&Claim, &Vec<Arc<ServicePortState>>)| -> Vec<Clash> {
            let Some((holder, losers)) = holders.split_first() else { return Vec::new() };
            let holder = &holder.spec.id;
            let loser = |state: &Arc<ServicePortState>| Clash {
                claim: *claim,
                holder: holder.clone(),
                loser: state.spec.id.clone(),
            };
            losers.iter().map(loser).collect()
        };
        contested.flat_map(of).collect()
    }

    fn hold(&mut self, claim: Claim, state: &Arc<ServicePortState>) {
        if let Claim::Spread(_) = claim {
            self.spreads.entry(claim).or_default()[Urgency::of(state) as usize] += 1;
            return;
        }
        let holders = self.claims.entry(claim).or_default();
        if let (Claim::Backends { cluster_ip, .. }, true) = (claim, holders.is_empty()) {
            self.with_backends[usize::from(cluster_ip.is_ipv6())] += 1;
        }
        let place = holders.binary_search_by(|held| held.spec.id.cmp(&state.spec.id));
        match place {
            Ok(index) => holders[index] = state.clone(),
            Err(index) => {
                // Nearly all have one holder; a list made for four would be most of the map.
                holders.reserve_exact(1);
                holders.insert(index, state.clone());
            }
        }
        if holders.len() > 1 && matches!(claim, Claim::Frontend { .. }) {
            self.contested.insert(claim);
        }
    }

    fn release(&mut self, claim: &Claim, state: &ServicePortState) {
        if let Claim::Spread(_) = claim {
            let Some(counts) = self.spreads.get_mut(claim) else { return };
            let count = &mut counts[Urgency::of(state) as usize];
            *count = count.saturating_sub(1);
            if *counts == [0; Urgency::COUNT] {
                self.spreads.remove(claim);
            }
            return;
        }
        let id = &state.spec.id;
        let Some(holders) = self.claims.get_mut(claim) else { return };
        holders.retain(|held| held.spec.id != *id);
        if holders.len() < 2 {
            self.contested.remove(claim);
        }
        if holders.is_empty() {
            self.claims.remove(claim);
            if let Claim::Backends { cluster_ip, .. } = claim {
                self.with_backends[usize::from(cluster_ip.is_ipv6())] -= 1;
            }
        }
    }
}
