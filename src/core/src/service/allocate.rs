//! Cluster addresses and node ports for Services of manifests that leave them empty: a pure function of
//! the Services' names, so that a restart gives the same ones. With a control plane the API server
//! allocates and nothing here is used. All Services at once here, change by change in `changes`.

mod changes;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use sha2::{Digest, Sha256};

use super::Family;
use super::cidr::{Cidr, parse_addr};
use super::types::{IpFamilyPolicy, Service, ServiceType};
use crate::ids::ObjectKey;
use crate::ruleset::Protocol;

pub use changes::Allocator;

/// Where allocation takes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pools {
    /// One prefix per family at most; the first is the default family.
    pub service_cidrs: Vec<Cidr>,
    /// The API server's default is 30000..=32767.
    pub node_ports: RangeInclusive<u16>,
}

/// What each Service was given, and what two of them asked for at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    pub services: BTreeMap<ObjectKey, Given>,
    pub conflicts: Vec<Conflict>,
}

/// The addresses and node ports of one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    pub cluster_ips: Vec<IpAddr>,
    /// By index in `spec.ports`; 0 where the port has none.
    pub node_ports: Vec<u16>,
    /// By index likewise: the same number of another protocol may be another's.
    pub protocols: Vec<Protocol>,
}

/// Something a Service asked for and did not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Who went without.
    pub service: ObjectKey,
    /// `clusterIP 10.96.0.10`, `nodePort 30080/tcp`.
    pub what: String,
    /// Who has it; `None` when the pool is used up or missing.
    pub holder: Option<ObjectKey>,
}

/// Said of `service`, which is not named.
impl std::fmt::Display for Conflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.holder {
            Some(holder) => {
                let mend = "give one of them another or leave it empty";
                write!(f, "{} is taken by Service {holder}; {mend}", self.what)
            }
            None => write!(f, "no {} is left in its range", self.what),
        }
    }
}

/// What only one Service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Resource {
    Address(IpAddr),
    NodePort(u16, Protocol),
}

impl Resource {
    fn pool(self) -> Pool {
        match self {
            Resource::Address(addr) => Pool::Addresses(Family::of(addr)),
            Resource::NodePort(_, protocol) => Pool::NodePorts(protocol),
        }
    }
}

impl std::fmt::Display for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Resource::Address(addr) => write!(f, "clusterIP {addr}"),
            Resource::NodePort(number, protocol) => write!(f, "nodePort {number}/{protocol}"),
        }
    }
}

/// Where a resource that nobody names comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Pool {
    Addresses(Family),
    NodePorts(Protocol),
}

impl std::fmt::Display for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Pool::Addresses(family) => write!(f, "{family} clusterIP"),
            Pool::NodePorts(protocol) => write!(f, "nodePort/{protocol}"),
        }
    }
}

/// Who has what.
type Taken = BTreeMap<Resource, ObjectKey>;

/// Assign for all Services together. What a manifest names comes first, then what `previous` gave and is
/// still free, so that a newcomer moves nobody; the rest follows from the Service's name, probing
/// onwards from its hash where two meet. Within a step Services go by name.
pub fn assign(services: &BTreeMap<ObjectKey, Service>, pools: &Pools, previous: &Assignment) -> Assignment {
    let mut taken = Taken::default();
    let mut result = Assignment::default();
    for (key, service) in services {
        let given = result.services.entry(key.clone()).or_insert_with(|| Given::nothing(service));
        take_named(key, service, given, &mut taken, &mut result.conflicts);
    }
    for (key, service) in services {
        let before = previous.services.get(key);
        if let (Some(before), Some(given)) = (before, result.services.get_mut(key)) {
            take_previous(key, service, pools, (before, given), &mut taken);
        }
    }
    let mut empty = BTreeSet::new();
    for (key, service) in services {
        if let Some(given) = result.services.get_mut(key) {
            let lacks = take_derived(key, service, pools, given, (&mut taken, &mut empty));
            result.conflicts.extend(lacks.into_iter().map(|pool| Conflict::lack(key, pool)));
        }
    }
    result
}

impl Given {
    fn nothing(to: &Service) -> Given {
        let ports = &to.spec.ports;
        let protocols = ports.iter().map(|port| port.protocol.into()).collect();
        Given { cluster_ips: Vec::new(), node_ports: vec![0; ports.len()], protocols }
    }

    fn held_node_ports(&self) -> impl Iterator<Item = Resource> {
        let ports = self.node_ports.iter().zip(&self.protocols).filter(|(number, _)| **number != 0);
        ports.map(|(number, protocol)| Resource::NodePort(*number, *protocol))
    }

    /// Write what was given into the Service, as the API server would have.
    pub fn fill(&self, service: &mut Service) {
        let spec = &mut service.spec;
        spec.cluster_ips = self.cluster_ips.iter().map(IpAddr::to_string).collect();
        spec.cluster_ip = spec.cluster_ips.first().cloned().unwrap_or_default();
        for (port, number) in spec.ports.iter_mut().zip(&self.node_ports) {
            port.node_port = i32::from(*number);
        }
    }
}

/// Whether the Service gets a cluster address at all.
pub fn wants_address(service: &Service) -> bool {
    service.spec.kind != ServiceType::ExternalName && service.spec.cluster_ip != "None"
}

impl Conflict {
    fn taken(service: &ObjectKey, what: Resource, holder: &ObjectKey) -> Conflict {
        Conflict { service: service.clone(), what: what.to_string(), holder: Some(holder.clone()) }
    }

    fn lack(service: &ObjectKey, of: Pool) -> Conflict {
        Conflict { service: service.clone(), what: of.to_string(), holder: None }
    }
}

/// The addresses a manifest names.
fn named_addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let spec = &service.spec;
    let single = std::slice::from_ref(&spec.cluster_ip);
    let texts = if spec.cluster_ips.is_empty() { single } else { spec.cluster_ips.as_slice() };
    texts.iter().filter_map(|text| parse_addr(text)).filter(|_| wants_address(service))
}

/// The node ports a manifest names, by the index of their port.
fn named_node_ports(service: &Service) -> impl Iterator<Item = (usize, u16, Protocol)> {
    let ports = service.spec.ports.iter().enumerate().filter(|_| service.spec.kind.has_node_ports());
    ports.filter_map(|(index, port)| {
        let number = u16::try_from(port.node_port).ok().filter(|number| *number != 0)?;
        Some((index, number, port.protocol.into()))
    })
}

fn take_named(
    key: &ObjectKey,
    service: &Service,
    given: &mut Given,
    taken: &mut Taken,
    conflicts: &mut Vec<Conflict>,
) {
    let mut take = |resource: Resource| match taken.entry(resource) {
        Entry::Occupied(held) => {
            conflicts.push(Conflict::taken(key, resource, held.get()));
            false
        }
        Entry::Vacant(free) => {
            free.insert(key.clone());
            true
        }
    };
    given.cluster_ips.extend(named_addresses(service).filter(|addr| take(Resource::Address(*addr))));
    for (index, number, protocol) in named_node_ports(service) {
        if take(Resource::NodePort(number, protocol)) {
            given.node_ports[index] = number;
        }
    }
}

fn take_previous(
    key: &ObjectKey,
    service: &Service,
    pools: &Pools,
    (before, given): (&Given, &mut Given),
    taken: &mut Taken,
) {
    for addr in &before.cluster_ips {
        let wanted = missing_families(service, pools, given).contains(&Family::of(*addr));
        let ours = pools.service_cidrs.iter().any(|cidr| cidr.contains(*addr));
        let resource = Resource::Address(*addr);
        if wanted && ours && !taken.contains_key(&resource) {
            taken.insert(resource, key.clone());
            given.cluster_ips.push(*addr);
        }
    }
    for (index, (number, before)) in before.node_ports.iter().zip(&before.protocols).enumerate() {
        let missing = missing_node_port(service, given, index);
        let Some(protocol) = missing.filter(|protocol| protocol == before) else { continue };
        let resource = Resource::NodePort(*number, protocol);
        if pools.node_ports.contains(number) && !taken.contains_key(&resource) {
            taken.insert(resource, key.clone());
            given.node_ports[index] = *number;
        }
    }
}

/// Takes what is still missing, and tells the pools that have none left. A pool that is in `empty` is not
/// asked again: in one assignment nothing comes back to it.
fn take_derived(
    key: &ObjectKey,
    service: &Service,
    pools: &Pools,
    given: &mut Given,
    (taken, empty): (&mut Taken, &mut BTreeSet<Pool>),
) -> Vec<Pool> {
    let mut lacks = Vec::new();
    for family in missing_families(service, pools, given) {
        let pool = Pool::Addresses(family);
        let cidr = pools.service_cidrs.iter().find(|cidr| cidr.family() == family);
        let cidr = cidr.filter(|_| !empty.contains(&pool));
        match cidr.and_then(|cidr| probe_address(key, cidr, taken)) {
            Some(addr) => {
                taken.insert(Resource::Address(addr), key.clone());
                given.cluster_ips.push(addr);
            }
            None => lacks.push(pool),
        }
    }
    for index in 0..service.spec.ports.len() {
        let Some(protocol) = missing_node_port(service, given, index) else { continue };
        let pool = Pool::NodePorts(protocol);
        let open = Some(pools).filter(|_| !empty.contains(&pool));
        match open.and_then(|pools| probe_port(key, index, protocol, pools, taken)) {
            Some(number) => {
                taken.insert(Resource::NodePort(number, protocol), key.clone());
                given.node_ports[index] = number;
            }
            None => lacks.push(pool),
        }
    }
    empty.extend(&lacks);
    lacks
}

/// The families that still need an address. A Service that names an address has what it wants.
fn missing_families(service: &Service, pools: &Pools, given: &Given) -> Vec<Family> {
    let spec = &service.spec;
    let named = !spec.cluster_ip.is_empty() || !spec.cluster_ips.is_empty();
    if named || !wants_address(service) {
        return Vec::new();
    }
    let mut wanted: Vec<Family> = spec.ip_families.clone();
    if wanted.is_empty() {
        let offered = pools.service_cidrs.iter().map(Cidr::family);
        let dual = !matches!(spec.ip_family_policy, None | Some(IpFamilyPolicy::SingleStack));
        wanted.extend(offered.take(if dual { 2 } else { 1 }));
        if wanted.is_empty() {
            wanted.push(Family::V4);
        }
    }
    wanted.retain(|family| !given.cluster_ips.iter().any(|addr| Family::of(*addr) == *family));
    wanted
}

/// The protocol of a port that still needs a node port.
fn missing_node_port(service: &Service, given: &Given, index: usize) -> Option<Protocol> {
    let spec = &service.spec;
    let port = spec.ports.get(index)?;
    let balanced_without =
        spec.kind == ServiceType::LoadBalancer && spec.allocate_load_balancer_node_ports == Some(false);
    let open = spec.kind.has_node_ports() && !balanced_without && port.node_port == 0;
    (open && given.node_ports.get(index) == Some(&0)).then(|| port.protocol.into())
}

fn hash(parts: &[&str]) -> u64 {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    let digest = hasher.finalize();
    digest.iter().take(8).fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// The lowest addresses are left to those that are named by hand, as the API server does (KEP-3070);
/// they are used when the rest is full.
fn probe_address(key: &ObjectKey, cidr: &Cidr, taken: &Taken) -> Option<IpAddr> {
    let bits = match cidr.family() {
        Family::V4 => 32 - cidr.prefix(),
        Family::V6 => 128 - cidr.prefix(),
    };
    // A /64 need not be probed to its end; 2^20 Services do not fit a node.
    let size: u64 = 1 << bits.min(20);
    // Neither the network's own address nor, in IPv4, its broadcast address.
    let usable =
        size.checked_sub(if cidr.family() == Family::V4 { 2 } else { 1 }).filter(|count| *count > 0)?;
    let static_band = (size / 16).clamp(16, 256).min(usable - 1);
    let dynamic = usable - static_band;
    let start = hash(&["clusterIP", &key.namespace, &key.name]) % dynamic;
    let upper = (0..dynamic).map(|step| static_band + (start + step) % dynamic);
    let offsets = upper.chain(0..static_band);
    offsets
        .map(|offset| nth(cidr.first(), offset + 1))
        .find(|addr| !taken.contains_key(&Resource::Address(*addr)))
}

fn nth(first: IpAddr, offset: u64) -> IpAddr {
    match first {
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from(u32::from(v4).wrapping_add(offset as u32))),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6).wrapping_add(u128::from(offset)))),
    }
}

/// As with addresses, the first ports are left to those named by hand (KEP-3668).
fn probe_port(
    key: &ObjectKey,
    index: usize,
    protocol: Protocol,
    pools: &Pools,
    taken: &Taken,
) -> Option<u16> {
    let first = *pools.node_ports.start();
    let size = pools.node_ports.end().checked_sub(first)?.checked_add(1)?;
    let static_band = (size / 32).clamp(16, 128).min(size - 1);
    let dynamic = size - static_band;
    let start = hash(&["nodePort", &key.namespace, &key.name, &index.to_string()]) % u64::from(dynamic);
    let start = start as u16;
    let upper = (0..dynamic)
        .map(|step| static_band + (u32::from(start) + u32::from(step)).rem_euclid(u32::from(dynamic)) as u16);
    upper
        .chain(0..static_band)
        .map(|offset| first + offset)
        .find(|port| !taken.contains_key(&Resource::NodePort(*port, protocol)))
}

/// Names of Services that share an address or port with another, for a source's problem list.
pub fn conflicting(assignment: &Assignment) -> BTreeSet<&ObjectKey> {
    assignment.conflicts.iter().map(|conflict| &conflict.service).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pools(cidr: &str) -> Pools {
        Pools { service_cidrs: vec![cidr.parse().unwrap()], node_ports: 30000..=32767 }
    }

    fn services(list: &[(&str, serde_json::Value)]) -> BTreeMap<ObjectKey, Service> {
        list.iter()
            .map(|(name, spec)| {
                let value = json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec});
                let service: Service = serde_json::from_value(value).unwrap();
                (service.key(), service)
            })
            .collect()
    }

    fn given<'a>(assignment: &'a Assignment, name: &str) -> &'a Given {
        &assignment.services[&ObjectKey::new("ns", name)]
    }

    #[test]
    fn the_same_names_get_the_same_addresses_in_the_dynamic_band() {
        let list: Vec<(String, serde_json::Value)> = (0..50)
            .map(|n| (format!("s{n}"), json!({"type": "NodePort", "ports": [{"port": 80}]})))
            .collect();
        let list: Vec<(&str, serde_json::Value)> =
            list.iter().map(|(name, spec)| (name.as_str(), spec.clone())).collect();
        let all = services(&list);
        let first = assign(&all, &pools("10.96.0.0/16"), &Assignment::default());
        assert_eq!(first, assign(&all, &pools("10.96.0.0/16"), &Assignment::default()));
        assert!(first.conflicts.is_empty());
        let addrs: BTreeSet<IpAddr> = first.services.values().map(|given| given.cluster_ips[0]).collect();
        let ports: BTreeSet<u16> = first.services.values().map(|given| given.node_ports[0]).collect();
        assert_eq!((addrs.len(), ports.len()), (50, 50));
        assert!(addrs.iter().all(|addr| *addr > "10.96.1.0".parse::<IpAddr>().unwrap()), "{addrs:?}");
        assert!(ports.iter().all(|port| (30086..=32767).contains(port)), "{ports:?}");
    }

    #[test]
    fn a_small_range_is_used_up_to_the_last_address_and_then_says_so() {
        let list: Vec<(String, serde_json::Value)> =
            (0..7).map(|n| (format!("s{n}"), json!({"ports": [{"port": 80}]}))).collect();
        let list: Vec<(&str, serde_json::Value)> =
            list.iter().map(|(name, spec)| (name.as_str(), spec.clone())).collect();
        let result = assign(&services(&list), &pools("10.0.0.0/29"), &Assignment::default());
        let addrs: BTreeSet<IpAddr> =
            result.services.values().flat_map(|given| given.cluster_ips.clone()).collect();
        assert_eq!(addrs.len(), 6, "{addrs:?}");
        assert_eq!(result.conflicts.len(), 1);
        assert!(
            result.conflicts[0].to_string().contains("no IPv4 clusterIP is left"),
            "{}",
            result.conflicts[0]
        );
    }

    #[test]
    fn what_is_named_wins_and_a_clash_names_both() {
        let all = services(&[
            (
                "a",
                json!({"type": "NodePort", "clusterIP": "10.96.0.10", "ports": [{"port": 80, "nodePort": 30080}]}),
            ),
            (
                "b",
                json!({"type": "NodePort", "clusterIP": "10.96.0.10", "ports": [{"port": 80, "nodePort": 30080},
                                                                                  {"port": 80, "nodePort": 30080, "protocol": "UDP"}]}),
            ),
        ]);
        let result = assign(&all, &pools("10.96.0.0/16"), &Assignment::default());
        assert_eq!(given(&result, "a").node_ports, [30080]);
        assert_eq!(
            given(&result, "b"),
            &Given {
                cluster_ips: vec![],
                node_ports: vec![0, 30080],
                protocols: vec![Protocol::Tcp, Protocol::Udp]
            }
        );
        let texts: Vec<String> = result.conflicts.iter().map(ToString::to_string).collect();
        assert!(texts[0].contains("clusterIP 10.96.0.10 is taken by Service ns/a"), "{texts:?}");
        assert!(texts[1].contains("nodePort 30080/tcp is taken by Service ns/a"), "{texts:?}");
        assert_eq!(conflicting(&result).len(), 1);
    }

    #[test]
    fn a_newcomer_moves_nobody_but_a_named_address_does() {
        let derived = json!({"ports": [{"port": 80}]});
        let before =
            assign(&services(&[("m", derived.clone())]), &pools("10.0.0.0/30"), &Assignment::default());
        let addr = given(&before, "m").cluster_ips[0];
        let both = services(&[("a", derived.clone()), ("m", derived.clone())]);
        let after = assign(&both, &pools("10.0.0.0/30"), &before);
        assert_eq!(given(&after, "m").cluster_ips, [addr]);
        assert_ne!(given(&after, "a").cluster_ips, [addr]);
        let named = services(&[
            ("m", derived),
            ("z", json!({"clusterIP": addr.to_string(), "ports": [{"port": 80}]})),
        ]);
        let after = assign(&named, &pools("10.0.0.0/30"), &before);
        assert_eq!(given(&after, "z").cluster_ips, [addr]);
        assert_ne!(given(&after, "m").cluster_ips, [addr]);
    }

    #[test]
    fn a_port_with_another_protocol_takes_no_other_services_number() {
        let port =
            |protocol: &str| json!({"type": "NodePort", "ports": [{"port": 80, "protocol": protocol}]});
        let one = Pools { node_ports: 30000..=30000, ..pools("10.96.0.0/16") };
        let before = services(&[("a", port("UDP")), ("b", port("TCP"))]);
        let before = assign(&before, &one, &Assignment::default());
        assert_eq!(["a", "b"].map(|name| given(&before, name).node_ports[0]), [30000, 30000]);
        let after = services(&[("a", port("TCP")), ("b", port("TCP"))]);
        let after = assign(&after, &one, &before);
        assert_eq!(["a", "b"].map(|name| given(&after, name).node_ports[0]), [0, 30000]);
    }

    #[test]
    fn nothing_is_given_to_services_without_an_address() {
        let all = services(&[
            ("h", json!({"clusterIP": "None", "ports": [{"port": 80}]})),
            ("x", json!({"type": "ExternalName"})),
            ("d", json!({"ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80}]})),
        ]);
        let mut dual = pools("10.96.0.0/16");
        dual.service_cidrs.push("fd00:10::/108".parse().unwrap());
        let result = assign(&all, &dual, &Assignment::default());
        let counts = ["h", "x", "d"].map(|name| given(&result, name).cluster_ips.len());
        assert_eq!(counts, [0, 0, 2]);
        let mut service = all[&ObjectKey::new("ns", "d")].clone();
        given(&result, "d").fill(&mut service);
        assert_eq!(service.spec.cluster_ips.len(), 2);
        assert_eq!(service.spec.cluster_ip, service.spec.cluster_ips[0]);
    }
}
