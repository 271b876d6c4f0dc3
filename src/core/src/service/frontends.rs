//! Where a Service is reached: its ports by family with cluster address, node port, external addresses
//! and policies; and what of it is not served, with the reason. Endpoints are not looked at here.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::affinity;
use super::cidr::{Cidr, parse_addr};
use super::eligibility::Policies;
use super::types::{IpMode, Service, ServicePort, ServiceType, TrafficPolicy};
use super::{Family, PortId, ServicePortName};
use crate::ids::ObjectKey;
use crate::ruleset::Protocol;

/// The most frontends of one Service by external addresses, or by a load balancer's, and the most source
/// ranges of those: each is an object in the kernel.
pub const MAX_FRONTENDS: usize = 100_000;

/// A service port as a packet meets it, in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    pub id: PortId,
    pub cluster_ip: IpAddr,
    pub port: u16,
    pub node_port: Option<u16>,
    pub external_ips: Vec<IpAddr>,
    /// Load balancer addresses that arrive untranslated.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Who may use the load balancer's addresses; empty is everyone.
    pub source_ranges: Vec<Cidr>,
    pub policies: Policies,
    /// Client affinity in seconds.
    pub affinity: Option<u32>,
    /// Where a load balancer asks for local endpoints.
    pub health_check_node_port: Option<u16>,
}

impl PortSpec {
    /// Every address the Service owns; node ports live on the node's own.
    pub fn addresses(&self) -> impl Iterator<Item = (FrontendKind, IpAddr)> {
        let external = self.external_ips.iter().map(|addr| (FrontendKind::ExternalIp, *addr));
        let balancer = self.load_balancer_ips.iter().map(|addr| (FrontendKind::LoadBalancer, *addr));
        std::iter::once((FrontendKind::ClusterIp, self.cluster_ip)).chain(external).chain(balancer)
    }
}

/// The ways to reach a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FrontendKind {
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    #[serde(rename = "ExternalIP")]
    ExternalIp,
    LoadBalancer,
    NodePort,
}

impl FrontendKind {
    /// The policy that holds for packets of this kind.
    pub fn policy(self, policies: &Policies) -> TrafficPolicy {
        match self {
            FrontendKind::ClusterIp => policies.internal,
            _ => policies.external,
        }
    }

    pub fn is_external(self) -> bool {
        self != FrontendKind::ClusterIp
    }
}

impl fmt::Display for FrontendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FrontendKind::ClusterIp => "ClusterIP",
            FrontendKind::ExternalIp => "external IP",
            FrontendKind::LoadBalancer => "load balancer IP",
            FrontendKind::NodePort => "NodePort",
        })
    }
}

/// Something of a Service that is not served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// `spec.ports[1].nodePort`, or empty for the whole Service.
    pub field: String,
    pub reason: String,
    /// Not an error: a headless Service is simply none of the proxy's business.
    pub by_design: bool,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => f.write_str(&self.reason),
            field => write!(f, "{field}: {}", self.reason),
        }
    }
}

/// What a Service asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontends {
    pub ports: Vec<PortSpec>,
    pub skipped: Vec<Skipped>,
}

const EXTERNAL: &str = "spec.externalIPs";
const BALANCER: &str = "status.loadBalancer.ingress";
const RANGES: &str = "spec.loadBalancerSourceRanges";

/// Read a Service's frontends.
pub fn frontends(service: &Service) -> Frontends {
    let mut found = Frontends::default();
    if let Some(reason) = not_for_us(service) {
        found.skipped.push(Skipped { field: String::new(), reason: reason.to_owned(), by_design: true });
        return found;
    }
    let clusters = cluster_ips(service, &mut found.skipped);
    if clusters.is_empty() && found.skipped.is_empty() {
        let reason = "has no cluster IP yet".to_owned();
        found.skipped.push(Skipped { field: "spec.clusterIP".to_owned(), reason, by_design: false });
    }
    let ports = valid_ports(service, &mut found.skipped);
    let mut external = addresses(&service.spec.external_ips, EXTERNAL, &mut found.skipped);
    cap(&mut external, ports.len(), EXTERNAL, &mut found.skipped);
    let mut balancer = balancer_ips(service, &mut found.skipped);
    cap(&mut balancer, ports.len(), BALANCER, &mut found.skipped);
    let mut ranges = source_ranges(service, &mut found.skipped);
    cap(&mut ranges, ports.len() * balancer.len().max(1), RANGES, &mut found.skipped);
    let key = service.key();
    for cluster_ip in clusters {
        let family = Family::of(cluster_ip);
        let of_family = |all: &[IpAddr]| -> Vec<IpAddr> {
            all.iter().copied().filter(|addr| Family::of(*addr) == family).collect()
        };
        for port in &ports {
            found.ports.push(port_spec(
                (&key, service),
                port,
                Addresses {
                    cluster_ip,
                    external: of_family(&external),
                    balancer: of_family(&balancer),
                    ranges: ranges_of(&ranges, family),
                },
            ));
        }
    }
    warn_of_lost_addresses(&found.ports, external.iter().chain(&balancer), &mut found.skipped);
    found
}

/// A port whose numbers are good.
#[derive(Clone, Debug)]
struct ValidPort {
    name: String,
    protocol: Protocol,
    port: u16,
    node_port: Option<u16>,
}

struct Addresses {
    cluster_ip: IpAddr,
    external: Vec<IpAddr>,
    balancer: Vec<IpAddr>,
    ranges: Vec<Cidr>,
}

fn not_for_us(service: &Service) -> Option<&'static str> {
    if service.spec.kind == ServiceType::ExternalName {
        Some("type ExternalName is a DNS name only, nothing is forwarded")
    } else if service.spec.cluster_ip == "None" {
        Some("headless (clusterIP: None): clients find the pods by DNS")
    } else if service.metadata.labels.proxy_name.is_some() {
        Some("label service.kubernetes.io/service-proxy-name gives it to another proxy")
    } else {
        None
    }
}

fn cluster_ips(service: &Service, skipped: &mut Vec<Skipped>) -> Vec<IpAddr> {
    let spec = &service.spec;
    let single = std::slice::from_ref(&spec.cluster_ip);
    let (field, texts) = match spec.cluster_ips.as_slice() {
        [] => ("spec.clusterIP", single),
        many => ("spec.clusterIPs", many),
    };
    let mut found: Vec<IpAddr> = Vec::new();
    for text in texts.iter().filter(|text| !text.is_empty()) {
        match parse_addr(text) {
            None => skipped.push(problem(field, format!("{text:?} is no IP address"))),
            Some(addr) if found.iter().any(|known| Family::of(*known) == Family::of(addr)) => {
                skipped.push(problem(field, format!("{addr} is a second {} address", Family::of(addr))));
            }
            Some(addr) => found.push(addr),
        }
    }
    found
}

fn valid_ports(service: &Service, skipped: &mut Vec<Skipped>) -> Vec<ValidPort> {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut valid = Vec::new();
    if service.spec.ports.is_empty() {
        skipped.push(problem("spec.ports", "has no ports".to_owned()));
    }
    for (index, port) in service.spec.ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let protocol: Protocol = port.protocol.into();
        let Some(number) = port_number(port.port) else {
            skipped.push(problem(&format!("{field}.port"), format!("{} is outside 1..=65535", port.port)));
            continue;
        };
        if !names.insert((port.name.clone(), protocol)) || !numbers.insert((number, protocol)) {
            let reason = format!("repeats port {number}/{protocol} {:?} of the same Service", port.name);
            skipped.push(problem(&field, reason));
            continue;
        }
        let node_port = node_port(service, port, &field, skipped);
        valid.push(ValidPort { name: port.name.clone(), protocol, port: number, node_port });
    }
    valid
}

fn node_port(service: &Service, port: &ServicePort, field: &str, skipped: &mut Vec<Skipped>) -> Option<u16> {
    if port.node_port == 0 {
        return None;
    }
    let field = format!("{field}.nodePort");
    if !service.spec.kind.has_node_ports() {
        let reason = format!("needs type NodePort or LoadBalancer, not {}", service.spec.kind.as_str());
        skipped.push(problem(&field, reason));
        return None;
    }
    let number = port_number(port.node_port);
    if number.is_none() {
        skipped.push(problem(&field, format!("{} is outside 1..=65535", port.node_port)));
    }
    number
}

/// Leave out what would come to more than [`MAX_FRONTENDS`] where each is there `times` times.
fn cap<T>(all: &mut Vec<T>, times: usize, field: &str, skipped: &mut Vec<Skipped>) {
    let most = MAX_FRONTENDS / times.max(1);
    if all.len() > most {
        let reason = format!(
            "only the first {most} of {} are taken: each is there {times} times, and a Service may have \
             {MAX_FRONTENDS}",
            all.len()
        );
        skipped.push(problem(field, reason));
        all.truncate(most);
    }
}

fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}

fn addresses(texts: &[String], field: &str, skipped: &mut Vec<Skipped>) -> Vec<IpAddr> {
    let (mut found, mut known) = (Vec::new(), HashSet::new());
    for text in texts.iter().filter(|text| !text.trim().is_empty()) {
        match parse_addr(text) {
            None => skipped.push(problem(field, format!("{text:?} is no IP address"))),
            // An address that means 'here' or 'nobody' would break the node's own traffic.
            Some(addr) if addr.is_loopback() || addr.is_unspecified() || addr.is_multicast() => {
                skipped.push(problem(field, format!("{addr} cannot be a Service's address")));
            }
            Some(addr) if !known.insert(addr) => {}
            Some(addr) => found.push(addr),
        }
    }
    found
}

fn balancer_ips(service: &Service, skipped: &mut Vec<Skipped>) -> Vec<IpAddr> {
    if service.spec.kind != ServiceType::LoadBalancer {
        return Vec::new();
    }
    let ingress = service.status.load_balancer.ingress.iter();
    let vips: Vec<String> =
        ingress.filter(|point| point.ip_mode != Some(IpMode::Proxy)).map(|point| point.ip.clone()).collect();
    addresses(&vips, BALANCER, skipped)
}

fn source_ranges(service: &Service, skipped: &mut Vec<Skipped>) -> Vec<Cidr> {
    let mut ranges = Vec::new();
    for text in service.spec.load_balancer_source_ranges.iter().filter(|text| !text.trim().is_empty()) {
        match text.parse::<Cidr>() {
            Ok(range) => ranges.push(range),
            Err(error) => skipped.push(problem(RANGES, error.to_string())),
        }
    }
    ranges
}

/// A zero prefix admits everyone, whatever stands beside it.
fn ranges_of(all: &[Cidr], family: Family) -> Vec<Cidr> {
    let of_family: Vec<Cidr> = all.iter().copied().filter(|range| range.family() == family).collect();
    if of_family.iter().any(Cidr::is_zero) { Vec::new() } else { of_family }
}

fn port_spec((key, service): (&ObjectKey, &Service), port: &ValidPort, at: Addresses) -> PortSpec {
    let spec = &service.spec;
    let external = spec.external_traffic_policy.unwrap_or_default();
    let accessible = port.node_port.is_some() || !at.external.is_empty() || !at.balancer.is_empty();
    let health = port_number(spec.health_check_node_port)
        .filter(|_| spec.kind == ServiceType::LoadBalancer && external == TrafficPolicy::Local);
    PortSpec {
        id: PortId {
            name: ServicePortName {
                service: key.clone(),
                port: port.name.as_str().into(),
                protocol: port.protocol,
            },
            family: Family::of(at.cluster_ip),
        },
        cluster_ip: at.cluster_ip,
        port: port.port,
        node_port: port.node_port,
        external_ips: at.external,
        load_balancer_ips: at.balancer,
        source_ranges: at.ranges,
        policies: Policies {
            internal: spec.internal_traffic_policy.unwrap_or_default(),
            external,
            externally_accessible: accessible,
        },
        affinity: affinity::timeout_seconds(spec),
        health_check_node_port: health,
    }
}

/// So many lost addresses are named, and those beyond counted.
const MAX_LOST_TOLD: usize = 10;

/// An external address of a family the Service has no cluster address in is served by nobody.
fn warn_of_lost_addresses<'a>(
    ports: &[PortSpec],
    addresses: impl Iterator<Item = &'a IpAddr>,
    skipped: &mut Vec<Skipped>,
) {
    let served: BTreeSet<Family> = ports.iter().map(|port| port.id.family).collect();
    if served.is_empty() {
        return;
    }
    let mut lost = addresses.filter(|addr| !served.contains(&Family::of(**addr)));
    for addr in lost.by_ref().take(MAX_LOST_TOLD) {
        let reason = format!("{addr} is not served: the Service has no {} cluster IP", Family::of(*addr));
        skipped.push(problem("spec", reason));
    }
    let more = lost.count();
    if more > 0 {
        skipped.push(problem("spec", format!("{more} more addresses are not served for the same reason")));
    }
}

fn problem(field: &str, reason: String) -> Skipped {
    Skipped { field: field.to_owned(), reason, by_design: false }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(spec: Value, ingress: Value) -> Frontends {
        let service = json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec,
                             "status": {"loadBalancer": {"ingress": ingress}}});
        frontends(&serde_json::from_value(service).unwrap())
    }

    fn shown(found: &Frontends) -> Vec<String> {
        found
            .ports
            .iter()
            .map(|port| {
                let addrs: Vec<String> = port.addresses().map(|(_, addr)| addr.to_string()).collect();
                format!("{} {} :{} node {:?}", port.id, addrs.join(","), port.port, port.node_port)
            })
            .collect()
    }

    #[test]
    fn whole_services_are_skipped_with_a_reason() {
        let cases = [
            (json!({"clusterIP": "None", "ports": [{"port": 80}]}), "headless", true),
            (json!({"type": "ExternalName", "ports": [{"port": 80}]}), "ExternalName", true),
            (json!({"ports": [{"port": 80}]}), "no cluster IP yet", false),
            (json!({"clusterIP": "10.0.0.999", "ports": [{"port": 80}]}), "no IP address", false),
            (json!({"clusterIP": "10.0.0.1"}), "no ports", false),
            (json!({"clusterIP": "10.0.0.1", "ports": [{"port": 0}]}), "outside 1..=65535", false),
            (json!({"clusterIP": "10.0.0.1", "ports": [{"port": 65536}]}), "outside 1..=65535", false),
        ];
        for (spec, reason, by_design) in cases {
            let found = read(spec.clone(), json!([]));
            assert!(found.ports.is_empty(), "{spec}");
            assert!(found.skipped[0].reason.contains(reason), "{spec}: {:?}", found.skipped);
            assert_eq!(found.skipped[0].by_design, by_design, "{spec}");
        }
    }

    #[test]
    fn thousands_of_addresses_and_ranges_are_served_and_what_is_too_much_is_said() {
        let addr = |number: usize| std::net::Ipv4Addr::from(0xc612_0000 + number as u32);
        let addrs = |count: usize| (0..count).map(|number| addr(number).to_string()).collect::<Vec<_>>();
        let ranges =
            |count: usize| (0..count).map(|number| format!("{}/32", addr(number))).collect::<Vec<_>>();
        let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}]);
        let asked = |external: usize, from: usize| {
            read(
                json!({"type": "LoadBalancer", "clusterIP": "10.0.0.1", "ports": ports,
                       "externalIPs": addrs(external), "loadBalancerSourceRanges": ranges(from)}),
                json!([{"ip": "192.0.2.1"}]),
            )
        };
        // External addresses and source ranges: as they are asked for, and as they are served.
        for (asked_for, served, reasons) in [
            ((1001, 1001), (1001, 1001), 0),
            ((50_000, 50_000), (50_000, 50_000), 0),
            ((50_001, 60_000), (50_000, 50_000), 2),
        ] {
            let found = asked(asked_for.0, asked_for.1);
            let port = &found.ports[1];
            assert_eq!((port.external_ips.len(), port.source_ranges.len()), served, "{asked_for:?}");
            assert_eq!(found.skipped.len(), reasons, "{:?}", found.skipped);
        }
        assert_eq!(
            asked(60_000, 0).skipped[0].to_string(),
            "spec.externalIPs: only the first 50000 of 60000 are taken: each is there 2 times, and a Service may have 100000"
        );
    }

    #[test]
    fn each_family_gets_its_own_addresses() {
        let found = read(
            json!({"type": "LoadBalancer", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"],
                   "externalIPs": ["192.0.2.1", "2001:db8::1", " "],
                   "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
                   "loadBalancerSourceRanges": [" 192.0.2.0/24 ", "2001:db8::/64", ""]}),
            json!([{"ip": "198.51.100.1", "ipMode": "VIP"}, {"ip": "198.51.100.2", "ipMode": "Proxy"}, {"ip": ""},
                   {"ip": "198.51.100.3"}]),
        );
        assert_eq!(
            shown(&found),
            [
                "ns/web:http/tcp (IPv4) 10.0.0.1,192.0.2.1,198.51.100.1,198.51.100.3 :80 node Some(30080)",
                "ns/web:http/tcp (IPv6) fd00::1,2001:db8::1 :80 node Some(30080)",
            ]
        );
        assert_eq!(found.ports[0].source_ranges, ["192.0.2.0/24".parse().unwrap()]);
        assert_eq!(found.ports[1].source_ranges, ["2001:db8::/64".parse().unwrap()]);
        assert!(found.skipped.is_empty(), "{:?}", found.skipped);
    }

    #[test]
    fn parts_are_skipped_and_the_rest_is_served() {
        let found = read(
            json!({"clusterIP": "010.0.0.1", "externalIPs": ["bogus", "127.0.0.1", "2001:db8::1"],
                   "ports": [{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 80},
                             {"name": "a", "port": 81}, {"name": "a", "port": 80, "protocol": "UDP"}]}),
            json!([{"ip": "198.51.100.1"}]),
        );
        assert_eq!(
            shown(&found),
            ["ns/web:a/tcp (IPv4) 10.0.0.1 :80 node None", "ns/web:a/udp (IPv4) 10.0.0.1 :80 node None"]
        );
        let fields: Vec<&str> = found.skipped.iter().map(|skip| skip.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.ports[0].nodePort",
                "spec.ports[1]",
                "spec.ports[2]",
                "spec.externalIPs",
                "spec.externalIPs",
                "spec"
            ]
        );
    }

    #[test]
    fn a_zero_source_range_lifts_the_restriction() {
        let found = read(
            json!({"type": "LoadBalancer", "clusterIP": "10.0.0.1", "ports": [{"port": 80}],
                   "loadBalancerSourceRanges": ["192.0.2.0/24", "0.0.0.0/0"]}),
            json!([]),
        );
        assert!(found.ports[0].source_ranges.is_empty());
    }

    #[test]
    fn policies_and_the_health_port_follow_type_and_policy() {
        let spec = |kind: &str, policy: &str| {
            json!({"type": kind, "clusterIP": "10.0.0.1", "ports": [{"port": 80}], "healthCheckNodePort": 32000,
                   "externalTrafficPolicy": policy})
        };
        let cases = [
            ("LoadBalancer", "Local", Some(32000)),
            ("LoadBalancer", "Cluster", None),
            ("NodePort", "Local", None),
        ];
        for (kind, policy, want) in cases {
            assert_eq!(
                read(spec(kind, policy), json!([])).ports[0].health_check_node_port,
                want,
                "{kind} {policy}"
            );
        }
    }
}
