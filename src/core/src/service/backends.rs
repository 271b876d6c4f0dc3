//! The endpoints of Services out of EndpointSlices: several slices of one Service merged into one list
//! per port and family. Which of them serve a packet is not decided here but in `eligibility`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::cidr::parse_addr;
use super::types::{AddressType, EndpointSlice, SliceEndpoint};
use super::{Family, ServicePortName};
use crate::ids::ObjectKey;
use crate::ruleset::Protocol;

/// One endpoint of one service port, with everything eligibility looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub addr: SocketAddr,
    pub ready: bool,
    /// Answers, whether or not it should get new clients.
    pub serving: bool,
    pub terminating: bool,
    /// On this node.
    pub local: bool,
    pub node: Option<Arc<str>>,
    /// `namespace/name` of the pod, where the slice tells.
    pub pod: Option<Arc<str>>,
    /// Zones that should use it; empty without a hint.
    pub for_zones: Hint,
    /// Nodes that should use it; empty without a hint.
    pub for_nodes: Hint,
}

/// Reasons kept for one slice; the rest is a count.
const MAX_REASONS: usize = 10;

/// Names in a topology hint; nearly always empty, so kept small.
pub type Hint = Option<Arc<[Arc<str>]>>;

/// What changed by one slice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SliceChange {
    /// Services whose endpoints may differ now: none, one, or two when the slice changed hands.
    pub services: BTreeSet<ObjectKey>,
    /// Endpoints of the slice left out, with the reason.
    pub skipped: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct StoredSlice {
    family: Family,
    ports: Box<[StoredPort]>,
    endpoints: Box<[StoredEndpoint]>,
    /// What was left out, one sentence each.
    skipped: Box<[String]>,
}

#[derive(Debug, PartialEq, Eq)]
struct StoredPort {
    name: Arc<str>,
    protocol: Protocol,
    port: u16,
}

#[derive(Debug, PartialEq, Eq)]
struct StoredEndpoint {
    addr: IpAddr,
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    node: Option<Arc<str>>,
    pod: Option<Arc<str>>,
    for_zones: Hint,
    for_nodes: Hint,
}

/// Every slice there is, by Service, in a compact form: the only copy the program keeps.
#[derive(Debug)]
pub struct SliceCache {
    node: Arc<str>,
    by_service: BTreeMap<ObjectKey, BTreeMap<Arc<str>, StoredSlice>>,
    /// Which Service a slice was last counted to, by the slice's namespace and name.
    owner: BTreeMap<ObjectKey, ObjectKey>,
    names: HashSet<Arc<str>>,
}

impl SliceCache {
    /// An empty cache; endpoints on `node` will be the local ones.
    pub fn new(node: impl Into<Arc<str>>) -> Self {
        SliceCache {
            node: node.into(),
            by_service: BTreeMap::new(),
            owner: BTreeMap::new(),
            names: HashSet::new(),
        }
    }

    /// Take a slice as it is now. A slice equal to the one known changes nothing; one without an IP
    /// family, without a Service or for a headless Service counts as absent.
    pub fn upsert(&mut self, slice: &EndpointSlice) -> SliceChange {
        let key = slice.key();
        let (family, service) = match (ip_family(slice.address_type), slice.service()) {
            (Some(family), Some(service)) if slice.metadata.labels.headless.is_none() => (family, service),
            _ => return self.remove(&key),
        };
        let mut change = SliceChange::default();
        if self.owner.get(&key).is_some_and(|owner| *owner != service) {
            change = self.remove(&key);
        }
        let stored = self.store(slice, family);
        change.skipped = stored.skipped.to_vec();
        let slices = self.by_service.entry(service.clone()).or_default();
        if slices.get(&key.name) != Some(&stored) {
            slices.insert(key.name.clone(), stored);
            change.services.insert(service.clone());
        }
        self.owner.insert(key, service);
        change
    }

    /// Forget a slice, by its namespace and name.
    pub fn remove(&mut self, slice: &ObjectKey) -> SliceChange {
        let mut change = SliceChange::default();
        let Some(service) = self.owner.remove(slice) else { return change };
        if let Some(slices) = self.by_service.get_mut(&service) {
            slices.remove(&slice.name);
            if slices.is_empty() {
                self.by_service.remove(&service);
            }
        }
        change.services.insert(service);
        change
    }

    /// The slices known, by namespace and name: what an audit of the source compares with.
    pub fn slices(&self) -> impl Iterator<Item = &ObjectKey> {
        self.owner.keys()
    }

    /// What was left out of a Service's slices, one sentence each.
    pub fn skipped(&self, service: &ObjectKey) -> impl Iterator<Item = &str> {
        let slices = self.by_service.get(service).into_iter().flat_map(BTreeMap::values);
        slices.flat_map(|slice| slice.skipped.iter().map(String::as_str))
    }

    /// The merged endpoints of a service port in a family, by address.
    ///
    /// An endpoint can stand in two slices while it moves between them, and two pods can share an
    /// address while one of them ends: what is not terminating wins, then the slice with the later name.
    pub fn endpoints(&self, name: &ServicePortName, family: Family) -> Vec<Endpoint> {
        let mut merged: BTreeMap<SocketAddr, Endpoint> = BTreeMap::new();
        let slices = self.by_service.get(&name.service).into_iter().flat_map(BTreeMap::values);
        for slice in slices.filter(|slice| slice.family == family) {
            let matches = |port: &&StoredPort| port.name == name.port && port.protocol == name.protocol;
            for port in slice.ports.iter().filter(matches) {
                for stored in &slice.endpoints {
                    let endpoint = stored.at(port.port);
                    if !endpoint.terminating || !merged.contains_key(&endpoint.addr) {
                        merged.insert(endpoint.addr, endpoint);
                    }
                }
            }
        }
        merged.into_values().collect()
    }

    fn store(&mut self, slice: &EndpointSlice, family: Family) -> StoredSlice {
        let mut skipped = Vec::new();
        let mut ports = Vec::new();
        for port in &slice.ports {
            match port.port.map(u16::try_from) {
                Some(Ok(number)) if number != 0 => {
                    let name = self.intern(&port.name);
                    ports.push(StoredPort { name, protocol: port.protocol.into(), port: number });
                }
                // No port means all of them, which cannot be programmed; the API allows it.
                None => {}
                Some(_) => skipped.push(format!(
                    "EndpointSlice {}: port {:?} has number {}, which is outside 1..=65535",
                    slice.key(),
                    port.name,
                    port.port.unwrap_or_default()
                )),
            }
        }
        let mut endpoints = Vec::with_capacity(slice.endpoints.len());
        for endpoint in &slice.endpoints {
            let first = endpoint.addresses.first().map_or("", String::as_str);
            match endpoint_address(first, family) {
                Ok(addr) => endpoints.push(self.store_endpoint(endpoint, addr)),
                Err(reason) => skipped.push(format!("EndpointSlice {}: {reason}", slice.key())),
            }
        }
        bound(&mut skipped);
        StoredSlice { family, ports: ports.into(), endpoints: endpoints.into(), skipped: skipped.into() }
    }

    fn store_endpoint(&mut self, endpoint: &SliceEndpoint, addr: IpAddr) -> StoredEndpoint {
        let conditions = endpoint.conditions;
        let ready = conditions.ready.unwrap_or(true);
        let node = endpoint.node_name.as_deref().map(|node| self.intern(node));
        let pod = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod");
        StoredEndpoint {
            addr,
            ready,
            serving: conditions.serving.unwrap_or(ready),
            terminating: conditions.terminating.unwrap_or(false),
            local: node.as_ref() == Some(&self.node),
            node,
            pod: pod.map(|pod| Arc::from(format!("{}/{}", pod.namespace, pod.name))),
            for_zones: self.hint(endpoint.hints.for_zones.iter().map(|zone| zone.name.as_str())),
            for_nodes: self.hint(endpoint.hints.for_nodes.iter().map(|node| node.name.as_str())),
        }
    }

    fn hint<'a>(&mut self, names: impl Iterator<Item = &'a str>) -> Hint {
        let names: Vec<Arc<str>> = names.map(|name| self.intern(name)).collect();
        (!names.is_empty()).then(|| names.into())
    }

    /// Names of nodes, zones and ports recur in every endpoint: one copy serves them all.
    fn intern(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        let name: Arc<str> = Arc::from(name);
        self.names.insert(name.clone());
        name
    }
}

impl StoredEndpoint {
    fn at(&self, port: u16) -> Endpoint {
        Endpoint {
            addr: SocketAddr::new(self.addr, port),
            ready: self.ready,
            serving: self.serving,
            terminating: self.terminating,
            local: self.local,
            node: self.node.clone(),
            pod: self.pod.clone(),
            for_zones: self.for_zones.clone(),
            for_nodes: self.for_nodes.clone(),
        }
    }
}

/// The address packets can be sent to, or why there is none. The API refuses the same ones
/// (`ValidateEndpointIP`): a packet sent to them would end on the node itself, or nowhere.
fn endpoint_address(text: &str, family: Family) -> Result<IpAddr, String> {
    let addr = parse_addr(text)
        .filter(|addr| Family::of(*addr) == family)
        .ok_or_else(|| format!("{text:?} is no {family} address"))?;
    let kind = if addr.is_unspecified() {
        "the unspecified address"
    } else if addr.is_loopback() {
        "a loopback address"
    } else if is_link_local(addr) {
        "a link-local address"
    } else if addr.is_multicast() {
        "a multicast address"
    } else {
        return Ok(addr);
    };
    Err(format!("{addr} is {kind}, which no endpoint can have"))
}

fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// A slice of a thousand bad endpoints needs no thousand sentences.
fn bound(skipped: &mut Vec<String>) {
    let more = skipped.len().saturating_sub(MAX_REASONS);
    if more > 0 {
        skipped.truncate(MAX_REASONS);
        skipped.push(format!("and {more} more of the same EndpointSlice are left out"));
    }
}

fn ip_family(kind: AddressType) -> Option<Family> {
    match kind {
        AddressType::IPv4 => Some(Family::V4),
        AddressType::IPv6 => Some(Family::V6),
        AddressType::FQDN => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(name: &str, service: &str, body: serde_json::Value) -> EndpointSlice {
        let mut value = json!({
            "metadata": {"name": name, "namespace": "ns", "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": [{"name": "p", "port": 80}],
        });
        for (key, item) in body.as_object().unwrap() {
            value[key] = item.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    fn endpoints(cache: &SliceCache, service: &str, port: &str) -> Vec<String> {
        let name = ServicePortName {
            service: ObjectKey::new("ns", service),
            port: port.into(),
            protocol: Protocol::Tcp,
        };
        let all = cache.endpoints(&name, Family::V4);
        all.iter()
            .map(|ep| {
                let flags = [(ep.ready, "r"), (ep.serving, "s"), (ep.terminating, "t"), (ep.local, "l")];
                let flags: String = flags.iter().filter(|(on, _)| *on).map(|(_, flag)| *flag).collect();
                format!("{} {flags}", ep.addr)
            })
            .collect()
    }

    #[test]
    fn missing_conditions_have_the_api_s_meaning() {
        let mut cache = SliceCache::new("n1");
        cache.upsert(&slice("a", "web", json!({"endpoints": [
            {"addresses": ["10.0.0.1"]},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}, "nodeName": "n1"},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}, "nodeName": "n2"},
        ]})));
        assert_eq!(endpoints(&cache, "web", "p"), ["10.0.0.1:80 rs", "10.0.0.2:80 l", "10.0.0.3:80 st"]);
    }

    #[test]
    fn slices_of_one_service_are_merged_and_the_living_endpoint_wins() {
        let mut cache = SliceCache::new("n1");
        let dying = json!({"endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": false, "serving": true, "terminating": true}}]});
        let living = json!({"endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}]});
        cache.upsert(&slice("a", "web", living.clone()));
        cache.upsert(&slice("b", "web", dying.clone()));
        assert_eq!(endpoints(&cache, "web", "p"), ["10.0.0.1:80 rs", "10.0.0.2:80 rs"]);
        // The same with the names the other way round.
        cache.upsert(&slice("a", "web", dying));
        cache.upsert(&slice("b", "web", living));
        assert_eq!(endpoints(&cache, "web", "p"), ["10.0.0.1:80 rs", "10.0.0.2:80 rs"]);
        cache.remove(&ObjectKey::new("ns", "b"));
        assert_eq!(endpoints(&cache, "web", "p"), ["10.0.0.1:80 st"]);
    }

    #[test]
    fn what_cannot_be_programmed_is_left_out() {
        let mut cache = SliceCache::new("n1");
        let ports = json!({"ports": [{"name": "p"}, {"name": "q", "port": 0}, {"name": "r", "port": 70000}, {"name": "s", "port": 9}],
            "endpoints": [{"addresses": ["fd00::1"]}, {"addresses": []}, {"addresses": ["010.0.0.7", "10.0.0.8"]}]});
        let change = cache.upsert(&slice("a", "web", ports));
        assert_eq!(change.skipped.len(), 4, "{:?}", change.skipped);
        assert!(endpoints(&cache, "web", "p").is_empty());
        assert!(endpoints(&cache, "web", "r").is_empty());
        assert_eq!(endpoints(&cache, "web", "s"), ["10.0.0.7:9 rs"]);
        for gone in [
            slice("a", "web", json!({"addressType": "FQDN", "endpoints": [{"addresses": ["a.example"]}]})),
            slice("a", "", json!({})),
        ] {
            assert!(!cache.upsert(&gone).services.contains(&ObjectKey::new("ns", "other")));
            assert!(endpoints(&cache, "web", "s").is_empty(), "{gone:?}");
        }
    }

    #[test]
    fn a_change_names_the_services_it_touches_and_nothing_stays_behind() {
        let mut cache = SliceCache::new("n1");
        let body = json!({"endpoints": [{"addresses": ["10.0.0.1"]}]});
        let services = |change: SliceChange| -> Vec<String> {
            change.services.iter().map(|key| key.name.to_string()).collect()
        };
        assert_eq!(services(cache.upsert(&slice("a", "web", body.clone()))), ["web"]);
        assert_eq!(services(cache.upsert(&slice("a", "web", body.clone()))), [] as [&str; 0], "unchanged");
        assert_eq!(services(cache.upsert(&slice("a", "api", body))), ["api", "web"], "changed hands");
        assert_eq!(services(cache.remove(&ObjectKey::new("ns", "a"))), ["api"]);
        assert_eq!(services(cache.remove(&ObjectKey::new("ns", "a"))), [] as [&str; 0]);
        assert!(cache.by_service.is_empty() && cache.owner.is_empty());
    }
}
