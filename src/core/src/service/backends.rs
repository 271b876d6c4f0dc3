//! The endpoints of Services out of EndpointSlices: several slices of one Service merged into one list
//! per port and family. Which of them serve a packet is not decided here but in `eligibility`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::cidr::parse_addr;
use super::types::{AddressType, EndpointSlice, SliceEndpoint};
use super::{Family, ServicePortName};
use crate::ids::ObjectKey;
use crate::ruleset::Protocol;

/// One endpoint of one service port, with everything eligibility looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint<'a> {
    pub addr: SocketAddr,
    pub ready: bool,
    /// Answers, whether or not it should get new clients.
    pub serving: bool,
    pub terminating: bool,
    /// On this node.
    pub local: bool,
    pub node: Option<Arc<str>>,
    /// `namespace/name` of the pod, where the slice tells.
    pub pod: Option<&'a str>,
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
    name: Arc<str>,
    family: Family,
    ports: Box<[StoredPort]>,
    endpoints: Box<[StoredEndpoint]>,
    /// The endpoints' pods as `namespace/name`, one behind the other: a hundred thousand texts of their own
    /// would take as much again for the allocator alone.
    pods: Box<str>,
    /// What was left out, one sentence each.
    skipped: Box<[String]>,
}

#[derive(Debug, PartialEq, Eq)]
struct StoredPort {
    name: Arc<str>,
    protocol: Protocol,
    port: u16,
}

/// 32 bytes; a node in a large cluster holds a hundred thousand.
#[derive(Debug, PartialEq, Eq)]
struct StoredEndpoint {
    place: Arc<Place>,
    /// How much of the slice's `pods` is about this endpoint.
    pod_len: u16,
    addr: IpAddr,
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
}

/// Where endpoints are and who should use them. Those of one node have it in common.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
struct Place {
    node: Option<Arc<str>>,
    for_zones: Hint,
    for_nodes: Hint,
}

/// Values of which one copy serves all. Those that nobody uses any more are let go from time to time:
/// nodes come and go for as long as the program runs.
#[derive(Debug)]
struct Interned<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// Looked through when there are so many.
    purge_at: usize,
}

/// Fewer are not looked through.
const KEPT_INTERNED: usize = 1024;

impl<T: ?Sized + Eq + Hash> Interned<T> {
    fn new() -> Self {
        Interned { known: HashSet::new(), purge_at: KEPT_INTERNED }
    }

    fn add(&mut self, value: Arc<T>) -> Arc<T> {
        if self.known.len() >= self.purge_at {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.purge_at = (self.known.len() * 2).max(KEPT_INTERNED);
        }
        self.known.insert(value.clone());
        value
    }
}

impl Interned<str> {
    fn text(&mut self, text: &str) -> Arc<str> {
        self.known.get(text).cloned().unwrap_or_else(|| self.add(Arc::from(text)))
    }
}

impl Interned<Place> {
    fn place(&mut self, place: Place) -> Arc<Place> {
        self.known.get(&place).cloned().unwrap_or_else(|| self.add(Arc::new(place)))
    }
}

/// Every slice there is, by Service, in a compact form: the only copy the program keeps.
#[derive(Debug)]
pub struct SliceCache {
    node: Arc<str>,
    /// Slices of a Service are ordered by name; nearly all have one.
    by_service: BTreeMap<ObjectKey, Vec<StoredSlice>>,
    /// Which Service a slice was last counted to, by the slice's namespace and name.
    owner: BTreeMap<ObjectKey, ObjectKey>,
    names: Interned<str>,
    places: Interned<Place>,
}

impl SliceCache {
    /// An empty cache; endpoints on `node` will be the local ones.
    pub fn new(node: impl Into<Arc<str>>) -> Self {
        SliceCache {
            node: node.into(),
            by_service: BTreeMap::new(),
            owner: BTreeMap::new(),
            names: Interned::new(),
            places: Interned::new(),
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
        let (service, key) = self.own(service, key);
        let stored = self.store(slice, family, key.name.clone());
        change.skipped = stored.skipped.to_vec();
        let slices = self.by_service.entry(service.clone()).or_default();
        match slices.binary_search_by(|known| known.name.cmp(&key.name)) {
            Ok(place) if slices[place] == stored => {}
            Ok(place) => {
                slices[place] = stored;
                change.services.insert(service);
            }
            Err(place) => {
                // By an eighth: a Service of a hundred thousand endpoints has a thousand slices.
                slices.reserve_exact(slices.len() / 8 + 1);
                slices.insert(place, stored);
                change.services.insert(service);
            }
        }
        change
    }

    /// Count a slice to a Service; both keys as they are held, so that none is held twice.
    fn own(&mut self, service: ObjectKey, slice: ObjectKey) -> (ObjectKey, ObjectKey) {
        let known = self.owner.get_key_value(&slice).filter(|(_, owner)| **owner == service);
        if let Some((slice, service)) = known {
            return (service.clone(), slice.clone());
        }
        let namespace = self.names.text(&service.namespace);
        let service = match self.by_service.get_key_value(&service) {
            Some((known, _)) => known.clone(),
            None => ObjectKey { namespace: namespace.clone(), name: service.name },
        };
        let slice = ObjectKey { namespace, name: slice.name };
        self.owner.insert(slice.clone(), service.clone());
        (service, slice)
    }

    /// Forget a slice, by its namespace and name.
    pub fn remove(&mut self, slice: &ObjectKey) -> SliceChange {
        let mut change = SliceChange::default();
        let Some(service) = self.owner.remove(slice) else { return change };
        if let Some(slices) = self.by_service.get_mut(&service) {
            slices.retain(|known| known.name != slice.name);
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
        let slices = self.by_service.get(service).into_iter().flatten();
        slices.flat_map(|slice| slice.skipped.iter().map(String::as_str))
    }

    /// The merged endpoints of a service port in a family, by address.
    ///
    /// An endpoint can stand in two slices while it moves between them, and two pods can share an
    /// address while one of them ends: what is not terminating wins, then the slice with the later name.
    pub fn endpoints(&self, name: &ServicePortName, family: Family) -> Vec<Endpoint<'_>> {
        let mut merged: BTreeMap<SocketAddr, Endpoint<'_>> = BTreeMap::new();
        let slices = self.by_service.get(&name.service).into_iter().flatten();
        for slice in slices.filter(|slice| slice.family == family) {
            let matches = |port: &&StoredPort| port.name == name.port && port.protocol == name.protocol;
            for port in slice.ports.iter().filter(matches) {
                for endpoint in slice.at(port.port) {
                    if !endpoint.terminating || !merged.contains_key(&endpoint.addr) {
                        merged.insert(endpoint.addr, endpoint);
                    }
                }
            }
        }
        merged.into_values().collect()
    }

    fn store(&mut self, slice: &EndpointSlice, family: Family, name: Arc<str>) -> StoredSlice {
        let mut skipped = Vec::new();
        let mut ports = Vec::new();
        for port in &slice.ports {
            match port.port.map(u16::try_from) {
                Some(Ok(number)) if number != 0 => {
                    let name = self.names.text(&port.name);
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
        let (mut endpoints, mut pods) = (Vec::with_capacity(slice.endpoints.len()), String::new());
        for endpoint in &slice.endpoints {
            let first = endpoint.addresses.first().map_or("", String::as_str);
            match endpoint_address(first, family) {
                Ok(addr) => endpoints.push(self.store_endpoint(endpoint, addr, &mut pods)),
                Err(reason) => skipped.push(format!("EndpointSlice {}: {reason}", slice.key())),
            }
        }
        bound(&mut skipped);
        StoredSlice {
            name,
            family,
            ports: ports.into(),
            endpoints: endpoints.into(),
            pods: pods.into(),
            skipped: skipped.into(),
        }
    }

    fn store_endpoint(
        &mut self,
        endpoint: &SliceEndpoint,
        addr: IpAddr,
        pods: &mut String,
    ) -> StoredEndpoint {
        let conditions = endpoint.conditions;
        let ready = conditions.ready.unwrap_or(true);
        let node = endpoint.node_name.as_deref().map(|node| self.names.text(node));
        let local = node.as_ref() == Some(&self.node);
        let place = Place {
            node,
            for_zones: self.hint(endpoint.hints.for_zones.iter().map(|zone| zone.name.as_str())),
            for_nodes: self.hint(endpoint.hints.for_nodes.iter().map(|node| node.name.as_str())),
        };
        StoredEndpoint {
            place: self.places.place(place),
            pod_len: add_pod(endpoint, pods),
            addr,
            ready,
            serving: conditions.serving.unwrap_or(ready),
            terminating: conditions.terminating.unwrap_or(false),
            local,
        }
    }

    fn hint<'a>(&mut self, names: impl Iterator<Item = &'a str>) -> Hint {
        let names: Vec<Arc<str>> = names.map(|name| self.names.text(name)).collect();
        (!names.is_empty()).then(|| names.into())
    }
}

/// Put the endpoint's pod, if it has one, behind the others; how long it is. A name longer than the API
/// admits (63 and 253 bytes) is not kept.
fn add_pod(endpoint: &SliceEndpoint, pods: &mut String) -> u16 {
    let Some(pod) = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod") else { return 0 };
    let Ok(len) = u16::try_from(pod.namespace.len() + 1 + pod.name.len()) else { return 0 };
    pods.extend([&pod.namespace, "/", &pod.name]);
    len
}

impl StoredSlice {
    /// The endpoints at a port.
    fn at(&self, port: u16) -> impl Iterator<Item = Endpoint<'_>> {
        let mut pods = &*self.pods;
        self.endpoints.iter().map(move |stored| {
            let (pod, rest) = pods.split_at(usize::from(stored.pod_len));
            pods = rest;
            Endpoint {
                addr: SocketAddr::new(stored.addr, port),
                ready: stored.ready,
                serving: stored.serving,
                terminating: stored.terminating,
                local: stored.local,
                node: stored.place.node.clone(),
                pod: (!pod.is_empty()).then_some(pod),
                for_zones: stored.place.for_zones.clone(),
                for_nodes: stored.place.for_nodes.clone(),
            }
        })
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
