//! Endpoints without a control plane: the slices of a Service with a selector, made from the node's own
//! pods by the endpoint controller's rules. Pure; the agent calls it when a pod or Service changes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};

use super::Family;
use super::cidr::parse_addr;
use super::types::{
    AddressType, Conditions, EndpointSlice, Labels, MAX_SLICE_ENDPOINTS, Metadata, ProtocolName, Service,
    ServicePort, ServiceType, SliceEndpoint, SlicePort, TargetPort, TargetRef,
};
use crate::ids::PodKey;
use crate::ruleset::Protocol;

/// What selection needs to know of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendPod {
    pub key: PodKey,
    pub labels: BTreeMap<String, String>,
    /// Empty while it has none.
    pub ips: Vec<IpAddr>,
    pub node: String,
    /// The pod's Ready condition.
    pub ready: bool,
    /// Its deletion has begun.
    pub terminating: bool,
    pub ports: Vec<NamedPort>,
}

/// A container port that has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    pub name: String,
    pub protocol: ProtocolName,
    pub number: i32,
}

impl BackendPod {
    /// From a pod and its status; `None` once the pod is over (phase Succeeded or Failed), since it can
    /// never serve again.
    pub fn of(pod: &Pod, status: &PodStatus, node: &str, terminating: bool) -> Option<BackendPod> {
        if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return None;
        }
        let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
        let mut ips: Vec<IpAddr> = listed.filter_map(parse_addr).collect();
        if ips.is_empty() {
            ips.extend(status.pod_ip.as_deref().and_then(parse_addr));
        }
        let conditions = status.conditions.iter().flatten();
        let ready = conditions.into_iter().any(|cond| cond.type_ == "Ready" && cond.status == "True");
        let meta = &pod.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or("default");
        Some(BackendPod {
            key: PodKey::new(namespace, meta.name.as_deref().unwrap_or_default()),
            labels: meta.labels.clone().unwrap_or_default(),
            ips,
            node: node.to_owned(),
            ready,
            terminating,
            ports: named_ports(pod),
        })
    }

    fn addr(&self, family: Family) -> Option<IpAddr> {
        self.ips.iter().copied().find(|addr| Family::of(*addr) == family)
    }
}

/// Ports of containers and of sidecars; ordinary init containers do not serve.
fn named_ports(pod: &Pod) -> Vec<NamedPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|init| init.restart_policy.as_deref() == Some("Always"));
    spec.containers.iter().chain(sidecars).flat_map(container_ports).collect()
}

fn container_ports(container: &Container) -> impl Iterator<Item = NamedPort> {
    container.ports.iter().flatten().filter_map(|port| {
        let protocol = match port.protocol.as_deref() {
            Some("UDP") => ProtocolName::Udp,
            Some("SCTP") => ProtocolName::Sctp,
            _ => ProtocolName::Tcp,
        };
        Some(NamedPort { name: port.name.clone()?, protocol, number: port.container_port })
    })
}

/// The slices a Service should have now, and what could not be resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub slices: Vec<EndpointSlice>,
    /// `pod ns/a has no tcp port named "web", which port 80 is to lead to`.
    pub notes: Vec<String>,
}

/// Make the EndpointSlices of `service` out of `pods`. A Service without a selector gets none: its
/// slices are written by hand. The result depends on the arguments only and is ordered by pod name.
pub fn select_endpoints<'a>(
    service: &Service,
    pods: impl Iterator<Item = &'a BackendPod> + Clone,
) -> Selection {
    let mut selection = Selection::default();
    let spec = &service.spec;
    if spec.selector.is_empty() || spec.kind == ServiceType::ExternalName {
        return selection;
    }
    for family in families(service) {
        // Pods whose named ports resolve differently need slices of their own.
        let mut groups: BTreeMap<Vec<(String, ProtocolName, i32)>, Vec<SliceEndpoint>> = BTreeMap::new();
        for pod in pods.clone().filter(|pod| selects(service, pod)) {
            let Some(addr) = pod.addr(family) else { continue };
            let ports = resolve(service, pod, &mut selection.notes);
            if !ports.is_empty() {
                groups.entry(ports).or_default().push(endpoint(service, pod, addr));
            }
        }
        let chunks = groups.iter().flat_map(|(ports, endpoints)| {
            endpoints.chunks(MAX_SLICE_ENDPOINTS).map(move |chunk| (ports, chunk))
        });
        for (number, (ports, endpoints)) in chunks.enumerate() {
            selection.slices.push(slice(service, family, number, (ports, endpoints)));
        }
    }
    selection.notes.sort();
    selection.notes.dedup();
    selection
}

fn selects(service: &Service, pod: &BackendPod) -> bool {
    let wanted = &service.spec.selector;
    pod.key.namespace == service.key().namespace
        && wanted.iter().all(|(label, value)| pod.labels.get(label) == Some(value))
}

/// The families of the Service's cluster addresses; a headless one says so itself.
fn families(service: &Service) -> Vec<Family> {
    let spec = &service.spec;
    let addresses = spec.cluster_ips.iter().chain(std::iter::once(&spec.cluster_ip));
    let mut found: Vec<Family> = addresses.filter_map(|text| parse_addr(text)).map(Family::of).collect();
    found.extend(&spec.ip_families);
    if found.is_empty() {
        found.push(Family::V4);
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn resolve(service: &Service, pod: &BackendPod, notes: &mut Vec<String>) -> Vec<(String, ProtocolName, i32)> {
    let mut ports = Vec::new();
    for port in &service.spec.ports {
        match target(port, pod) {
            Ok(number) => ports.push((port.name.clone(), port.protocol, number)),
            Err(name) => notes.push(format!(
                "pod {} has no {} port named {name:?}, which port {} is to lead to",
                pod.key,
                Protocol::from(port.protocol),
                port.port
            )),
        }
    }
    ports
}

/// The number, or the name that no port of the pod has.
fn target<'a>(port: &'a ServicePort, pod: &BackendPod) -> Result<i32, &'a str> {
    match &port.target_port {
        None | Some(TargetPort::Number(0)) => Ok(port.port),
        Some(TargetPort::Number(number)) => Ok(*number),
        Some(TargetPort::Name(name)) => {
            let matches = |named: &&NamedPort| named.name == *name && named.protocol == port.protocol;
            pod.ports.iter().find(matches).map(|named| named.number).ok_or(name)
        }
    }
}

fn endpoint(service: &Service, pod: &BackendPod, addr: IpAddr) -> SliceEndpoint {
    // Publishing unready pods means just that: they count as ready, even while they end.
    let published = service.spec.publish_not_ready_addresses;
    SliceEndpoint {
        addresses: vec![addr.to_string()],
        conditions: Conditions {
            ready: Some(published || (pod.ready && !pod.terminating)),
            serving: Some(published || pod.ready),
            terminating: Some(pod.terminating),
        },
        node_name: Some(pod.node.clone()),
        target_ref: Some(TargetRef {
            kind: "Pod".to_owned(),
            namespace: pod.key.namespace.to_string(),
            name: pod.key.name.to_string(),
        }),
        ..SliceEndpoint::default()
    }
}

type Group<'a> = (&'a Vec<(String, ProtocolName, i32)>, &'a [SliceEndpoint]);

fn slice(service: &Service, family: Family, number: usize, (ports, endpoints): Group<'_>) -> EndpointSlice {
    let (kind, word) = match family {
        Family::V4 => (AddressType::IPv4, "ipv4"),
        Family::V6 => (AddressType::IPv6, "ipv6"),
    };
    let key = service.key();
    let port = |(name, protocol, number): &(String, ProtocolName, i32)| SlicePort {
        name: name.clone(),
        protocol: *protocol,
        port: Some(*number),
    };
    EndpointSlice {
        metadata: Metadata {
            name: format!("{}-selected-{word}-{number}", key.name),
            namespace: key.namespace.to_string(),
            labels: Labels { service_name: Some(key.name.to_string()), ..Labels::default() },
            ..Metadata::default()
        },
        address_type: kind,
        endpoints: endpoints.to_vec(),
        ports: ports.iter().map(port).collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, ip: &str, ready: bool) -> BackendPod {
        BackendPod {
            key: PodKey::new("ns", name),
            labels: BTreeMap::from([("app".to_owned(), "web".to_owned()), ("x".to_owned(), "y".to_owned())]),
            ips: vec![ip.parse().unwrap()],
            node: "n1".to_owned(),
            ready,
            terminating: false,
            ports: vec![NamedPort { name: "http".to_owned(), protocol: ProtocolName::Tcp, number: 8080 }],
        }
    }

    fn service(extra: serde_json::Value) -> Service {
        let mut spec = json!({"clusterIP": "10.0.0.1", "selector": {"app": "web"},
                              "ports": [{"name": "web", "port": 80, "targetPort": "http"}]});
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec})).unwrap()
    }

    fn shown(selection: &Selection) -> Vec<String> {
        let line = |slice: &EndpointSlice| {
            let ports: Vec<String> =
                slice.ports.iter().map(|port| format!("{}={}", port.name, port.port.unwrap())).collect();
            let endpoints: Vec<String> = slice
                .endpoints
                .iter()
                .map(|ep| {
                    let flag = |on: Option<bool>, text| if on == Some(true) { text } else { "" };
                    let cond = ep.conditions;
                    let flags = [flag(cond.ready, "r"), flag(cond.serving, "s"), flag(cond.terminating, "t")];
                    format!("{}:{}", ep.addresses[0], flags.concat())
                })
                .collect();
            format!("{} {} {}", slice.metadata.name, ports.join(","), endpoints.join(" "))
        };
        selection.slices.iter().map(line).collect()
    }

    #[test]
    fn pods_become_endpoints_with_their_conditions() {
        let mut ending = pod("c", "10.1.0.3", true);
        ending.terminating = true;
        let mut other = pod("d", "10.1.0.4", true);
        other.labels.clear();
        let mut elsewhere = pod("e", "10.1.0.5", true);
        elsewhere.key = PodKey::new("other", "e");
        let mut waiting = pod("f", "10.1.0.6", false);
        waiting.ips.clear();
        let pods =
            [pod("a", "10.1.0.1", true), pod("b", "10.1.0.2", false), ending, other, elsewhere, waiting];
        let selection = select_endpoints(&service(json!({})), pods.iter());
        assert_eq!(shown(&selection), ["web-selected-ipv4-0 web=8080 10.1.0.1:rs 10.1.0.2: 10.1.0.3:st"]);
        let published = select_endpoints(&service(json!({"publishNotReadyAddresses": true})), pods.iter());
        assert_eq!(shown(&published), ["web-selected-ipv4-0 web=8080 10.1.0.1:rs 10.1.0.2:rs 10.1.0.3:rst"]);
        let manual = select_endpoints(&service(json!({"selector": {}})), pods.iter());
        assert_eq!(manual, Selection::default());
    }

    #[test]
    fn target_ports_are_resolved_pod_by_pod() {
        let mut renumbered = pod("b", "10.1.0.2", true);
        renumbered.ports[0].number = 9090;
        let mut without = pod("c", "10.1.0.3", true);
        without.ports.clear();
        let pods = [pod("a", "10.1.0.1", true), renumbered, without];
        let named = select_endpoints(&service(json!({})), pods.iter());
        assert_eq!(
            shown(&named),
            ["web-selected-ipv4-0 web=8080 10.1.0.1:rs", "web-selected-ipv4-1 web=9090 10.1.0.2:rs"]
        );
        assert_eq!(named.notes.len(), 1, "{:?}", named.notes);
        assert!(named.notes[0].contains("ns/c"), "{:?}", named.notes);
        let plain = select_endpoints(&service(json!({"ports": [{"port": 80}]})), pods.iter());
        assert_eq!(shown(&plain), ["web-selected-ipv4-0 =80 10.1.0.1:rs 10.1.0.2:rs 10.1.0.3:rs"]);
    }

    #[test]
    fn dual_stack_services_get_slices_of_both_families() {
        let mut both = pod("a", "10.1.0.1", true);
        both.ips.push("fd00::1".parse().unwrap());
        let pods = [both, pod("b", "10.1.0.2", true)];
        let dual = service(json!({"clusterIPs": ["10.0.0.1", "fd00:10::1"]}));
        assert_eq!(
            shown(&select_endpoints(&dual, pods.iter())),
            [
                "web-selected-ipv4-0 web=8080 10.1.0.1:rs 10.1.0.2:rs",
                "web-selected-ipv6-0 web=8080 fd00::1:rs"
            ]
        );
    }

    #[test]
    fn a_pod_is_read_with_sidecar_ports_and_left_when_over() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "a", "namespace": "ns", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 80}, {"containerPort": 81}]}],
                     "initContainers": [{"name": "i", "ports": [{"name": "no", "containerPort": 82}]},
                                        {"name": "s", "restartPolicy": "Always",
                                         "ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]}}))
        .unwrap();
        let status = |phase: &str| -> PodStatus {
            serde_json::from_value(json!({"phase": phase, "podIP": "10.1.0.1",
                "conditions": [{"type": "Ready", "status": "True"}]}))
            .unwrap()
        };
        let read = BackendPod::of(&pod, &status("Running"), "n1", false).unwrap();
        let names: Vec<&str> = read.ports.iter().map(|port| port.name.as_str()).collect();
        assert_eq!((names, read.ready, read.ips.len()), (vec!["http", "dns"], true, 1));
        assert!(BackendPod::of(&pod, &status("Failed"), "n1", false).is_none());
    }
}
