//! All Services and endpoints of the node, kept so that one change costs what it touches: a Service or
//! slice goes in, the service ports that differ come out. One owner holds it; it never acts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::backends::{Endpoint, SliceCache};
use super::eligibility::{self, Eligibility, MAX_USED};
use super::frontends::{self, PortSpec, Skipped};
use super::health::{self, HealthCheck};
use super::topology::NodeTopology;
use super::types::{EndpointSlice, Service, ServiceType};
use super::{Family, PortId};
use crate::ids::{ObjectKey, ObjectUid};
use crate::ruleset::model::ServicePortState;

/// A service port before and after a change; never equal, never both absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortChange {
    pub id: PortId,
    pub before: Option<Arc<ServicePortState>>,
    pub after: Option<Arc<ServicePortState>>,
}

/// What one input changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableChange {
    pub ports: Vec<PortChange>,
    /// Parts of a slice that were left out, one sentence each.
    pub skipped: Vec<String>,
}

/// One Service as the table holds it.
#[derive(Debug)]
pub struct ServiceEntry {
    pub kind: ServiceType,
    pub uid: Option<ObjectUid>,
    pub ports: Vec<Arc<ServicePortState>>,
    pub skipped: Vec<Skipped>,
}

#[derive(Debug)]
pub struct ServiceTable {
    node: NodeTopology,
    services: BTreeMap<ObjectKey, ServiceEntry>,
    /// What Services of files asked for and did not get; of those that lack something.
    lacking: BTreeMap<ObjectKey, Vec<String>>,
    slices: SliceCache,
    decisions: u64,
}

impl ServiceTable {
    pub fn new(node: NodeTopology) -> Self {
        let slices = SliceCache::new(node.name.clone());
        ServiceTable { node, services: BTreeMap::new(), lacking: BTreeMap::new(), slices, decisions: 0 }
    }

    pub fn node(&self) -> &NodeTopology {
        &self.node
    }

    /// Take a Service as it is now.
    pub fn upsert_service(&mut self, service: &Service) -> TableChange {
        let found = frontends::frontends(service);
        let ports = found.ports.into_iter().map(|spec| self.decide(spec)).collect();
        let entry = ServiceEntry {
            kind: service.spec.kind,
            uid: service.metadata.uid,
            ports,
            skipped: found.skipped,
        };
        // Where it can, the key is the one the ports hold: one text for all of them.
        let key = entry.ports.first().map_or_else(|| service.key(), |port| port.spec.id.name.service.clone());
        let after = entry.ports.clone();
        let before = self.services.insert(key, entry).map(|old| old.ports).unwrap_or_default();
        TableChange { ports: compare(before, after), skipped: Vec::new() }
    }

    pub fn remove_service(&mut self, key: &ObjectKey) -> TableChange {
        let before = self.services.remove(key).map(|old| old.ports).unwrap_or_default();
        self.lacking.remove(key);
        TableChange { ports: compare(before, Vec::new()), skipped: Vec::new() }
    }

    /// Take what a Service asked for and did not get, where its addresses are given on the node itself.
    pub fn set_lacking(&mut self, key: ObjectKey, lacking: Vec<String>) {
        if lacking.is_empty() || !self.services.contains_key(&key) {
            self.lacking.remove(&key);
        } else {
            self.lacking.insert(key, lacking);
        }
    }

    /// What a Service of a file did not get, one sentence each.
    pub fn lacking(&self, service: &ObjectKey) -> &[String] {
        self.lacking.get(service).map_or(&[], Vec::as_slice)
    }

    /// Take an EndpointSlice as it is now.
    pub fn upsert_slice(&mut self, slice: &EndpointSlice) -> TableChange {
        let change = self.slices.upsert(slice);
        TableChange { ports: self.refresh(&change.services), skipped: change.skipped }
    }

    pub fn remove_slice(&mut self, key: &ObjectKey) -> TableChange {
        let change = self.slices.remove(key);
        TableChange { ports: self.refresh(&change.services), skipped: change.skipped }
    }

    /// The node's zone label changed: hints may choose otherwise for every Service.
    pub fn set_zone(&mut self, zone: Option<Arc<str>>) -> TableChange {
        if self.node.zone == zone {
            return TableChange::default();
        }
        self.node.zone = zone;
        let all = self.services.keys().cloned().collect();
        TableChange { ports: self.refresh(&all), skipped: Vec::new() }
    }

    pub fn services(&self) -> &BTreeMap<ObjectKey, ServiceEntry> {
        &self.services
    }

    pub fn slices(&self) -> impl Iterator<Item = &ObjectKey> {
        self.slices.slices()
    }

    /// Every service port.
    pub fn ports(&self) -> impl Iterator<Item = &Arc<ServicePortState>> {
        self.services.values().flat_map(|entry| &entry.ports)
    }

    /// All candidates of a port with the decision about them, as `svc explain` shows them.
    pub fn candidates(&self, spec: &PortSpec) -> (Vec<Endpoint<'_>>, Eligibility) {
        let endpoints = self.slices.endpoints(&spec.id.name, spec.id.family);
        let decision = eligibility::decide(&endpoints, spec.policies, &self.node);
        (endpoints, decision)
    }

    /// Ports of a Service with more usable endpoints than get packets, and how many more.
    pub fn capped(&self, service: &ObjectKey) -> impl Iterator<Item = (&PortId, usize)> {
        let ports = self.services.get(service).into_iter().flat_map(|entry| &entry.ports);
        // Only where a list is full some can have been left out: no other candidates are looked at.
        let full = ports.filter(|state| state.cluster.len().max(state.local.len()) == MAX_USED);
        let capped = full.map(|state| (&state.spec.id, self.candidates(&state.spec).1.over_limit));
        capped.filter(|(_, more)| *more > 0)
    }

    /// What was left out of a Service's slices, one sentence each.
    pub fn skipped(&self, service: &ObjectKey) -> impl Iterator<Item = &str> {
        self.slices.skipped(service)
    }

    /// The health check ports that should be open.
    pub fn health_checks(&self) -> Vec<HealthCheck> {
        self.services.iter().filter_map(|(key, entry)| self.health_check(key, entry)).collect()
    }

    /// The health check port of one Service, where it has one.
    pub fn health_check_of(&self, service: &ObjectKey) -> Option<HealthCheck> {
        self.health_check(service, self.services.get(service)?)
    }

    /// Port decisions made so far. What a change costs is counted by it, not timed.
    pub fn decisions(&self) -> u64 {
        self.decisions
    }

    fn health_check(&self, key: &ObjectKey, entry: &ServiceEntry) -> Option<HealthCheck> {
        let first = entry.ports.first()?;
        let port = first.spec.health_check_node_port?;
        let family: Family = first.spec.id.family;
        let same_family = entry.ports.iter().filter(|state| state.spec.id.family == family);
        let endpoints: Vec<Endpoint<'_>> =
            same_family.flat_map(|state| self.slices.endpoints(&state.spec.id.name, family)).collect();
        let local_endpoints = health::local_ready(endpoints.iter()).len();
        Some(HealthCheck { service: key.clone(), port, local_endpoints })
    }

    fn decide(&mut self, spec: PortSpec) -> Arc<ServicePortState> {
        self.decisions += 1;
        let (endpoints, decision) = self.candidates(&spec);
        Arc::new(ServicePortState::new(spec, &endpoints, &decision))
    }

    fn refresh(&mut self, services: &BTreeSet<ObjectKey>) -> Vec<PortChange> {
        let mut changes = Vec::new();
        for key in services {
            let Some(entry) = self.services.get_mut(key) else { continue };
            let before = std::mem::take(&mut entry.ports);
            let after: Vec<_> = before.iter().map(|state| self.decide(state.spec.clone())).collect();
            if let Some(entry) = self.services.get_mut(key) {
                entry.ports.clone_from(&after);
            }
            changes.extend(compare(before, after));
        }
        changes
    }
}

fn compare(before: Vec<Arc<ServicePortState>>, after: Vec<Arc<ServicePortState>>) -> Vec<PortChange> {
    let mut olds: BTreeMap<PortId, Arc<ServicePortState>> =
        before.into_iter().map(|state| (state.spec.id.clone(), state)).collect();
    let mut changes = Vec::new();
    for state in after {
        let id = state.spec.id.clone();
        let before = olds.remove(&id);
        if before.as_ref() != Some(&state) {
            changes.push(PortChange { id, before, after: Some(state) });
        }
    }
    changes.extend(olds.into_iter().map(|(id, state)| PortChange { id, before: Some(state), after: None }));
    changes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(name: &str, ip: &str) -> Service {
        serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {"clusterIP": ip,
            "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]}}),
        )
        .unwrap()
    }

    fn slice(service: &str, addrs: &[&str]) -> EndpointSlice {
        let endpoints: Vec<_> =
            addrs.iter().map(|addr| json!({"addresses": [addr], "nodeName": "n1"})).collect();
        serde_json::from_value(json!({"metadata": {"name": format!("{service}-1"), "namespace": "ns",
            "labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4",
            "ports": [{"name": "a", "port": 8080}], "endpoints": endpoints}))
        .unwrap()
    }

    fn table() -> ServiceTable {
        ServiceTable::new(NodeTopology { name: "n1".into(), zone: None })
    }

    fn shown(change: &TableChange) -> Vec<String> {
        let side = |state: &Option<Arc<ServicePortState>>| {
            state.as_ref().map_or("-".to_owned(), |state| state.cluster.len().to_string())
        };
        let line = |change: &PortChange| {
            format!("{} {}>{}", change.id.name.port, side(&change.before), side(&change.after))
        };
        change.ports.iter().map(line).collect()
    }

    #[test]
    fn only_what_differs_comes_out_whatever_arrives_first() {
        let mut table = table();
        assert_eq!(shown(&table.upsert_slice(&slice("web", &["10.1.0.1"]))), [] as [&str; 0]);
        assert_eq!(shown(&table.upsert_service(&service("web", "10.0.0.1"))), ["a ->1", "b ->0"]);
        assert_eq!(shown(&table.upsert_service(&service("web", "10.0.0.1"))), [] as [&str; 0]);
        assert_eq!(shown(&table.upsert_slice(&slice("web", &["10.1.0.1", "10.1.0.2"]))), ["a 1>2"]);
        assert_eq!(shown(&table.upsert_slice(&slice("web", &["10.1.0.2", "10.1.0.1"]))), [] as [&str; 0]);
        assert_eq!(shown(&table.upsert_service(&service("web", "10.0.0.2"))), ["a 2>2", "b 0>0"]);
        assert_eq!(shown(&table.remove_slice(&ObjectKey::new("ns", "web-1"))), ["a 2>0"]);
        assert_eq!(shown(&table.remove_service(&ObjectKey::new("ns", "web"))), ["a 0>-", "b 0>-"]);
        assert!(table.services().is_empty());
    }

    #[test]
    fn the_cost_of_a_change_does_not_grow_with_the_number_of_services() {
        let cost = |count: u32| -> (u64, usize) {
            let mut table = table();
            for n in 0..count {
                let ip = std::net::Ipv4Addr::from(0x0a00_0000 + n);
                table.upsert_service(&service(&format!("s{n}"), &ip.to_string()));
                table.upsert_slice(&slice(&format!("s{n}"), &["10.1.0.1"]));
            }
            let before = table.decisions();
            let change = table.upsert_slice(&slice("s7", &["10.1.0.1", "10.1.0.2"]));
            (table.decisions() - before, change.ports.len())
        };
        assert_eq!(cost(10), (2, 1));
        assert_eq!(cost(10), cost(3000));
    }

    #[test]
    fn a_new_zone_asks_every_service_again() {
        let mut table = ServiceTable::new(NodeTopology { name: "n1".into(), zone: None });
        table.upsert_service(&service("web", "10.0.0.1"));
        let mut hinted = slice("web", &["10.1.0.1", "10.1.0.2"]);
        for (endpoint, zone) in hinted.endpoints.iter_mut().zip(["a", "b"]) {
            endpoint.hints.for_zones = vec![super::super::types::Named { name: zone.to_owned() }];
        }
        assert_eq!(shown(&table.upsert_slice(&hinted)), ["a 0>2"]);
        assert_eq!(shown(&table.set_zone(Some("a".into()))), ["a 2>1"]);
        assert_eq!(shown(&table.set_zone(Some("a".into()))), [] as [&str; 0]);
    }

    #[test]
    fn health_counts_ready_endpoints_of_this_node_once() {
        let mut table = table();
        let lb: Service = serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.0.0.1", "externalTrafficPolicy": "Local",
                     "healthCheckNodePort": 32000, "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]}}))
        .unwrap();
        table.upsert_service(&lb);
        let mut all = slice("web", &["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"]);
        all.ports =
            serde_json::from_value(json!([{"name": "a", "port": 1}, {"name": "b", "port": 2}])).unwrap();
        all.endpoints[1].conditions.ready = Some(false);
        all.endpoints[2].node_name = Some("n2".to_owned());
        all.endpoints[3].conditions = super::super::types::Conditions {
            ready: Some(false),
            serving: Some(true),
            terminating: Some(true),
        };
        table.upsert_slice(&all);
        let checks = table.health_checks();
        assert_eq!((checks.len(), checks[0].port, checks[0].local_endpoints), (1, 32000, 1));
    }
}
