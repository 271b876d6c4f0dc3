//! The state of one service port as every back end renders it: where it is reached, and by which
//! endpoints for which policy. Independent of any kernel mechanism; decided in `service`.

use std::net::SocketAddr;

use crate::service::backends::Endpoint;
use crate::service::eligibility::Eligibility;
use crate::service::frontends::{FrontendKind, PortSpec};
use crate::service::types::TrafficPolicy;

/// One endpoint that may get packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    pub addr: SocketAddr,
    /// On this node: its answers to itself need their source rewritten.
    pub local: bool,
}

/// A service port in one family with its eligible endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePortState {
    pub spec: PortSpec,
    /// For policy Cluster, by address.
    pub cluster: Box<[Backend]>,
    /// For policy Local, by address.
    pub local: Box<[Backend]>,
    /// A usable endpoint exists somewhere: tells a drop from a reject.
    pub has_any: bool,
}

/// Where a packet to a frontend goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// To one of these, never empty.
    Endpoints(&'a [Backend]),
    /// Nobody can serve it: the client is told at once.
    Reject,
    /// Another node could: silence, so that a load balancer tries elsewhere.
    Drop,
}

impl ServicePortState {
    /// Combine a port with the decision about its endpoints.
    pub fn new(spec: PortSpec, endpoints: &[Endpoint<'_>], decision: &Eligibility) -> Self {
        let backends = |indexes: &[usize]| -> Box<[Backend]> {
            let of = |index: &usize| Backend { addr: endpoints[*index].addr, local: endpoints[*index].local };
            indexes.iter().map(of).collect()
        };
        ServicePortState {
            cluster: backends(&decision.cluster),
            local: backends(&decision.local),
            has_any: decision.has_any,
            spec,
        }
    }

    /// The policy of a frontend kind.
    pub fn policy(&self, kind: FrontendKind) -> TrafficPolicy {
        kind.policy(&self.spec.policies)
    }

    /// Where a packet to a frontend of this kind goes. With external policy Local the node itself and
    /// its pods (`inside`) reach every endpoint, as they would by the cluster address.
    pub fn target(&self, kind: FrontendKind, inside: bool) -> Target<'_> {
        let local = self.policy(kind) == TrafficPolicy::Local && !(kind.is_external() && inside);
        let chosen = if local { &self.local } else { &self.cluster };
        match (chosen.is_empty(), self.has_any) {
            (false, _) => Target::Endpoints(chosen),
            (true, true) => Target::Drop,
            (true, false) => Target::Reject,
        }
    }

    /// Every endpoint that may get a packet by any frontend, by address.
    pub fn reachable(&self) -> Vec<Backend> {
        let mut all: Vec<Backend> = self.cluster.iter().chain(&self.local).copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}
