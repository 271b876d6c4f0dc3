//! Services and the dataplane as the command line shows them: plain serde values, additive only.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::PortId;
use super::eligibility::MAX_USED;
use super::frontends::FrontendKind;
use super::table::{ServiceEntry, ServiceTable};
use super::types::TrafficPolicy;
use crate::ids::ObjectKey;
use crate::ruleset::compare::Difference;
use crate::ruleset::desired::Desired;
use crate::ruleset::model::ServicePortState;
use crate::ruleset::object::Claim;
use crate::ruleset::render_ipvs;

/// Sentences about slices or about pods in one row.
const MAX_SLICE_PROBLEMS: usize = 20;

/// One Service: a row of `svc list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    pub namespace: String,
    pub name: String,
    /// `ClusterIP`, `NodePort`, ...
    pub kind: String,
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    pub load_balancer_ips: Vec<IpAddr>,
    pub ports: Vec<PortRow>,
    /// Client affinity in seconds.
    pub affinity: Option<u32>,
    pub internal_policy: TrafficPolicy,
    pub external_policy: TrafficPolicy,
    /// Why the Service or a part of it is not served, one sentence each.
    pub problems: Vec<String>,
}

/// One port of a Service in one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRow {
    pub name: String,
    pub family: super::Family,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    pub port: u16,
    pub node_port: Option<u16>,
    /// Endpoints that get packets by the cluster address.
    pub used: usize,
    /// All endpoints known, ready or not.
    pub known: usize,
}

/// One address Services are reached at, with everybody who may answer there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendView {
    /// `namespace/name:port/protocol`.
    pub service: String,
    pub kind: FrontendKind,
    pub addr: SocketAddr,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    pub endpoints: Vec<SocketAddr>,
}

/// What is wanted against what the kernel holds: the answer of `svc diff`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffView {
    pub mode: String,
    /// Kernel objects that are wanted.
    pub wanted: usize,
    pub differences: Vec<Difference>,
    /// Objects that a repair changed; `None` where none was asked for.
    pub repaired: Option<u64>,
    /// Why the kernel could not be read.
    pub error: Option<String>,
}

/// How the dataplane is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataplaneView {
    /// `ipvs`, or `none`.
    pub mode: String,
    /// Why this mode; for `none` also the command that mends it.
    pub reason: String,
    /// Every source was heard once and what it said is in the kernel.
    pub synced: bool,
    pub synced_at: Option<Timestamp>,
    pub services: usize,
    /// Kernel objects that are acknowledged.
    pub objects: usize,
    /// Real servers that wait for their last connection.
    pub draining: usize,
    /// What the kernel refused, until it takes it.
    pub failures: Vec<FailureView>,
    /// Two Services that want one address and port.
    pub clashes: Vec<String>,
    /// Parts of objects that were left out, one sentence each.
    pub skipped: Vec<String>,
    /// Settings of the kernel that could not be made.
    pub warnings: Vec<String>,
    pub counters: Counters,
}

/// Counts since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Rounds of applying changes.
    pub syncs: u64,
    /// Operations the kernel acknowledged.
    pub writes: u64,
    /// Operations the kernel refused.
    pub refusals: u64,
    /// Comparisons of the kernel's tables with what we believe.
    pub audits: u64,
    /// Objects found different by them.
    pub drift: u64,
    /// UDP flows forgotten because their endpoint is gone.
    pub flows_deleted: u64,
    /// Milliseconds the last round took.
    pub last_sync_ms: u64,
}

/// An object the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureView {
    /// The frontend or address: `10.96.0.1:80/tcp`.
    pub claim: String,
    /// The operation and the kernel's answer.
    pub error: String,
    pub since: Timestamp,
    pub attempts: u32,
    pub retry_at: Timestamp,
}

/// Every Service the table knows, by namespace and name.
pub fn rows(table: &ServiceTable, desired: &Desired) -> Vec<ServiceRow> {
    let mut clashes: BTreeMap<ObjectKey, Vec<String>> = BTreeMap::new();
    for clash in desired.clashes() {
        let text = format!("{} is served by {}", clash.claim, clash.holder.name);
        clashes.entry(clash.loser.name.service.clone()).or_default().push(text);
    }
    let row = |(key, entry): (&ObjectKey, &ServiceEntry)| {
        row(table, key, entry, clashes.get(key).cloned().unwrap_or_default())
    };
    table.services().iter().map(row).collect()
}

/// Every address Services are reached at on this node, each once: where two ask for one, who has it.
pub fn frontends(table: &ServiceTable, desired: &Desired) -> Vec<FrontendView> {
    let mut all = Vec::new();
    for state in table.ports() {
        let protocol = state.spec.id.name.protocol;
        for (kind, addr, port) in render_ipvs::frontends(state, desired.node()) {
            let holder = desired.holder(&Claim::Frontend { addr, port, protocol });
            if holder.is_none_or(|holder| holder.spec.id != state.spec.id) {
                continue;
            }
            all.push(FrontendView {
                service: state.spec.id.name.to_string(),
                kind,
                addr: SocketAddr::new(addr, port),
                protocol: protocol.to_string(),
                endpoints: state.reachable().iter().map(|backend| backend.addr).collect(),
            });
        }
    }
    all
}

fn row(table: &ServiceTable, key: &ObjectKey, entry: &ServiceEntry, mut problems: Vec<String>) -> ServiceRow {
    problems.splice(0..0, entry.skipped.iter().map(ToString::to_string));
    problems.extend(table.lacking(key).iter().take(MAX_SLICE_PROBLEMS).cloned());
    problems.extend(table.skipped(key).take(MAX_SLICE_PROBLEMS).map(str::to_owned));
    problems.extend(table.capped(key).map(|(port, more)| format!("{}, {more} more do not", capped(port))));
    let specs = || entry.ports.iter().map(|state| &state.spec);
    let unique = |addrs: &mut dyn Iterator<Item = IpAddr>| -> Vec<IpAddr> {
        let mut known = HashSet::new();
        addrs.filter(|addr| known.insert(*addr)).collect()
    };
    let first = entry.ports.first().map(|state| &state.spec);
    ServiceRow {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        kind: entry.kind.as_str().to_owned(),
        cluster_ips: unique(&mut specs().map(|spec| spec.cluster_ip)),
        external_ips: unique(&mut specs().flat_map(|spec| spec.external_ips.iter().copied())),
        load_balancer_ips: unique(&mut specs().flat_map(|spec| spec.load_balancer_ips.iter().copied())),
        ports: entry.ports.iter().map(|state| port_row(table, state)).collect(),
        affinity: first.and_then(|spec| spec.affinity),
        internal_policy: first.map(|spec| spec.policies.internal).unwrap_or_default(),
        external_policy: first.map(|spec| spec.policies.external).unwrap_or_default(),
        problems,
    }
}

/// What a port with too many endpoints has to say, without their number, which changes all the time.
pub(super) fn capped(port: &PortId) -> String {
    format!("{port}: only the first {MAX_USED} usable endpoints by address get packets")
}

fn port_row(table: &ServiceTable, state: &ServicePortState) -> PortRow {
    let name = &state.spec.id.name;
    let (known, _) = table.candidates(&state.spec);
    let used = match state.spec.policies.internal {
        TrafficPolicy::Cluster => state.cluster.len(),
        TrafficPolicy::Local => state.local.len(),
    };
    PortRow {
        name: name.port.to_string(),
        family: state.spec.id.family,
        protocol: name.protocol.to_string(),
        port: state.spec.port,
        node_port: state.spec.node_port,
        used,
        known: known.len(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ruleset::world::World;

    #[test]
    fn a_row_shows_addresses_endpoints_and_what_is_wrong() {
        let mut world = World::new();
        let ports = json!([{"name": "p", "port": 80, "nodePort": 30080}, {"name": "bad", "port": 0}]);
        world.service(
            "web",
            json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": ports,
            "externalIPs": ["198.51.100.1"], "sessionAffinity": "ClientIP"}),
            &[],
        );
        world.endpoints("web", &["10.244.1.1", "10.244.2.1 n2 -"]);
        let clash = json!({"clusterIP": "10.96.0.2", "externalIPs": ["198.51.100.1"], "ports": [{"name": "p", "port": 80}]});
        world.service("zoo", clash, &[]);
        world.service("head", json!({"clusterIP": "None", "ports": [{"port": 80}]}), &[]);
        world.table.set_lacking(ObjectKey::new("ns", "head"), vec!["no nodePort/tcp is left".to_owned()]);
        let rows = rows(&world.table, &world.desired);
        let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["head", "web", "zoo"]);
        assert!(rows[0].problems[0].contains("headless"), "{:?}", rows[0].problems);
        assert_eq!(rows[0].problems[1], "no nodePort/tcp is left");
        let web = &rows[1];
        assert_eq!(web.problems, ["spec.ports[1].port: 0 is outside 1..=65535"]);
        assert_eq!((web.kind.as_str(), web.affinity, web.external_ips.len()), ("NodePort", Some(10_800), 1));
        let port = &web.ports[0];
        assert_eq!((port.used, port.known, port.node_port), (1, 2, Some(30080)));
        assert_eq!(rows[2].problems, ["198.51.100.1:80/tcp is served by ns/web:p/tcp"]);
    }
}
