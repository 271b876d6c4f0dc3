//! Which endpoints get packets, for each traffic policy: the one place where that is decided
//! (KEP-2086 internal policy, KEP-1669 terminating endpoints, hints by `topology`). All back ends
//! render what stands here.

use serde::{Deserialize, Serialize};

use super::backends::Endpoint;
use super::topology::{self, Distribution, NodeTopology};
use super::types::TrafficPolicy;

/// The policies of a service port, as far as eligibility depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policies {
    pub internal: TrafficPolicy,
    pub external: TrafficPolicy,
    /// It has a node port, an external IP or a load balancer's address.
    pub externally_accessible: bool,
}

impl Policies {
    /// Cluster-wide endpoints are needed for the internal policy Cluster, and for every external
    /// frontend: with external policy Local the node and its pods still reach all endpoints.
    pub fn uses_cluster(&self) -> bool {
        self.internal == TrafficPolicy::Cluster || self.externally_accessible
    }

    pub fn uses_local(&self) -> bool {
        self.internal == TrafficPolicy::Local
            || (self.external == TrafficPolicy::Local && self.externally_accessible)
    }
}

/// The most endpoints of one service port that get packets. Forty times what the field calls large;
/// more would make one Service cost what a whole cluster's do.
pub const MAX_USED: usize = 10_000;

/// The decision, as indexes into the endpoints it was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Eligibility {
    /// For policy Cluster.
    pub cluster: Vec<usize>,
    /// For policy Local.
    pub local: Vec<usize>,
    /// There is a usable endpoint somewhere. Without one a packet is rejected, with one that the
    /// policy keeps from it, dropped.
    pub has_any: bool,
    /// How hints narrowed `cluster`.
    pub distribution: Option<Distribution>,
    /// Usable endpoints of the longer list that are beyond `MAX_USED`, the last ones by address.
    pub over_limit: usize,
}

/// Why an endpoint gets no packet, or that it gets some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It gets its share.
    Used,
    /// It is ending, and gets packets because nothing else is left.
    UsedWhileTerminating,
    /// It is not ready.
    NotReady,
    /// It is ending, and others are ready.
    Terminating,
    /// The policy is Local and it is on another node.
    NotLocal,
    /// Hints give it to another zone.
    OtherZone,
    /// Hints give it to another node.
    OtherNode,
    /// There are more usable endpoints than one service port may have.
    OverLimit,
}

impl Standing {
    pub fn is_used(self) -> bool {
        matches!(self, Standing::Used | Standing::UsedWhileTerminating)
    }

    /// The reason in words, as `svc explain` prints it.
    pub fn reason(self) -> &'static str {
        match self {
            Standing::Used => "ready",
            Standing::UsedWhileTerminating => "terminating, used because no endpoint is ready",
            Standing::NotReady => "not ready",
            Standing::Terminating => "terminating, and others are ready",
            Standing::NotLocal => "on another node, and the traffic policy is Local",
            Standing::OtherZone => "kept for another zone by its topology hint",
            Standing::OtherNode => "kept for another node by its topology hint",
            Standing::OverLimit => "beyond the most endpoints one port may have",
        }
    }
}

/// Decide for one service port.
pub fn decide(endpoints: &[Endpoint<'_>], policies: Policies, node: &NodeTopology) -> Eligibility {
    let mut decision = Eligibility::default();
    if policies.uses_cluster() {
        let distribution = topology::distribution(endpoints.iter().filter(|ep| ep.ready), node);
        decision.distribution = Some(distribution);
        decision.cluster = pick(endpoints, |ep| topology::admits(distribution, ep, node));
        decision.has_any = !decision.cluster.is_empty();
    }
    if policies.uses_local() {
        decision.local = pick(endpoints, |ep| ep.local);
        decision.has_any = endpoints.iter().any(usable);
    }
    for list in [&mut decision.cluster, &mut decision.local] {
        decision.over_limit = decision.over_limit.max(list.len().saturating_sub(MAX_USED));
        list.truncate(MAX_USED);
    }
    decision
}

/// How one endpoint stands under a policy, given the decision.
pub fn standing(
    index: usize,
    endpoints: &[Endpoint<'_>],
    decision: &Eligibility,
    policy: TrafficPolicy,
) -> Standing {
    let endpoint = &endpoints[index];
    let chosen = match policy {
        TrafficPolicy::Cluster => &decision.cluster,
        TrafficPolicy::Local => &decision.local,
    };
    match (chosen.contains(&index), endpoint.ready) {
        (true, true) => Standing::Used,
        (true, false) => Standing::UsedWhileTerminating,
        (false, _) if policy == TrafficPolicy::Local && !endpoint.local => Standing::NotLocal,
        (false, true) if decision.over_limit > 0 && chosen.last() < Some(&index) => Standing::OverLimit,
        (false, true) if decision.distribution == Some(Distribution::SameNode) => Standing::OtherNode,
        (false, true) => Standing::OtherZone,
        (false, false) if usable(endpoint) => Standing::Terminating,
        (false, false) => Standing::NotReady,
    }
}

/// Ready, or ending but still answering.
fn usable(endpoint: &Endpoint<'_>) -> bool {
    endpoint.ready || last_resort(endpoint)
}

fn last_resort(endpoint: &Endpoint<'_>) -> bool {
    endpoint.serving && endpoint.terminating
}

/// The ready endpoints in scope; without any, those that end but still answer. Hints never empty the
/// first list: they only count when a ready endpoint matches them.
fn pick(endpoints: &[Endpoint<'_>], in_scope: impl Fn(&Endpoint<'_>) -> bool) -> Vec<usize> {
    let indexes = |wanted: &dyn Fn(&Endpoint<'_>) -> bool| -> Vec<usize> {
        (0..endpoints.len()).filter(|index| wanted(&endpoints[*index])).collect()
    };
    let ready = indexes(&|ep| ep.ready && in_scope(ep));
    if ready.is_empty() { indexes(&|ep| last_resort(ep) && in_scope(ep)) } else { ready }
}

#[cfg(test)]
mod tests;
