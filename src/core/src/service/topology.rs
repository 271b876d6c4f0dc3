//! Traffic distribution: which endpoints the hints in EndpointSlices leave for this node
//! (KEP-2433, KEP-3015). Local traffic policies do not look at hints.

use std::sync::Arc;

use super::backends::{Endpoint, Hint};

/// What this node is called, for hints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTopology {
    pub name: Arc<str>,
    /// The node's `topology.kubernetes.io/zone` label.
    pub zone: Option<Arc<str>>,
}

/// How far traffic is kept near.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    Everywhere,
    SameZone,
    SameNode,
}

/// The distribution the ready endpoints ask for. Hints count only when every ready endpoint has them
/// (a slice half written must not leave one endpoint with all the load) and one names this node.
pub fn distribution<'a>(
    ready: impl Iterator<Item = &'a Endpoint<'a>> + Clone,
    node: &NodeTopology,
) -> Distribution {
    let agreed = |hint: for<'e> fn(&'e Endpoint<'_>) -> &'e Hint, name: &Arc<str>| {
        ready.clone().all(|endpoint| hint(endpoint).is_some())
            && ready.clone().any(|endpoint| names(hint(endpoint), name))
    };
    if agreed(|endpoint| &endpoint.for_nodes, &node.name) {
        Distribution::SameNode
    } else if node.zone.as_ref().is_some_and(|zone| agreed(|endpoint| &endpoint.for_zones, zone)) {
        Distribution::SameZone
    } else {
        Distribution::Everywhere
    }
}

/// Whether an endpoint may be used under the distribution.
pub fn admits(distribution: Distribution, endpoint: &Endpoint<'_>, node: &NodeTopology) -> bool {
    match distribution {
        Distribution::Everywhere => true,
        Distribution::SameNode => names(&endpoint.for_nodes, &node.name),
        Distribution::SameZone => node.zone.as_ref().is_some_and(|zone| names(&endpoint.for_zones, zone)),
    }
}

fn names(hint: &Hint, name: &Arc<str>) -> bool {
    hint.as_ref().is_some_and(|all| all.contains(name))
}
