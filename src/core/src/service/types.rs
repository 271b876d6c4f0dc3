//! Service and EndpointSlice in the API's JSON shape, with only the fields the dataplane reads.
//! Unknown fields are ignored, nulls are defaults, lists are bounded. No meaning is given to the
//! values here: a wrong address is still text and is judged in `frontends` and `backends`.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::ids::{ObjectKey, ObjectUid};
use crate::ruleset::Protocol;

/// The API server admits at most this many endpoints in a slice.
pub const MAX_SLICE_ENDPOINTS: usize = 1000;
/// And this many ports in a slice; a Service with more could not get its slices.
pub const MAX_PORTS: usize = 20_000;
/// Addresses, ranges or ingress points of one Service: as many as an object that the API server can store
/// holds, 1.5 MiB (etcd's `--max-request-bytes`), where the shortest takes the six bytes of `"::1",`. The
/// API's validation has no limit of its own; what of them is served is bounded in `frontends`.
pub const MAX_ADDRESSES: usize = (1536 << 10) / 6;
/// The API server admits at most this many addresses of an endpoint.
pub const MAX_ENDPOINT_ADDRESSES: usize = 100;

/// `metadata` of both kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    pub name: String,
    /// Empty in a manifest means `default`; `key` says so.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// What events about the object name. A file gives none.
    #[serde(deserialize_with = "uid", skip_serializing_if = "Option::is_none")]
    pub uid: Option<ObjectUid>,
    #[serde(deserialize_with = "nullable")]
    pub labels: Labels,
    #[serde(deserialize_with = "nullable")]
    pub annotations: Annotations,
}

impl Metadata {
    pub fn key(&self) -> ObjectKey {
        let namespace = if self.namespace.is_empty() { "default" } else { &self.namespace };
        ObjectKey::new(namespace, self.name.as_str())
    }
}

/// The labels that steer a proxy; the rest is not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Labels {
    /// On a slice: the Service it belongs to.
    #[serde(rename = "kubernetes.io/service-name", skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// On a Service: another proxy serves it.
    #[serde(rename = "service.kubernetes.io/service-proxy-name", skip_serializing_if = "Option::is_none")]
    pub proxy_name: Option<String>,
    /// On a slice: there is nothing to program for it.
    #[serde(rename = "service.kubernetes.io/headless", skip_serializing_if = "Option::is_none")]
    pub headless: Option<String>,
}

/// The annotations that are read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Annotations {
    /// On a slice: when the change that made it happened (RFC 3339), for the programming latency.
    #[serde(
        rename = "endpoints.kubernetes.io/last-change-trigger-time",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_change_trigger_time: Option<String>,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Service {
    pub metadata: Metadata,
    #[serde(deserialize_with = "nullable")]
    pub spec: ServiceSpec,
    #[serde(deserialize_with = "nullable")]
    pub status: ServiceStatus,
}

impl Service {
    pub fn key(&self) -> ObjectKey {
        self.metadata.key()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub kind: ServiceType,
    #[serde(rename = "clusterIP", deserialize_with = "nullable")]
    pub cluster_ip: String,
    #[serde(rename = "clusterIPs", deserialize_with = "bounded::<_, _, 2>")]
    pub cluster_ips: Vec<String>,
    #[serde(deserialize_with = "bounded::<_, _, MAX_PORTS>")]
    pub ports: Vec<ServicePort>,
    #[serde(deserialize_with = "nullable")]
    pub selector: BTreeMap<String, String>,
    #[serde(rename = "externalIPs", deserialize_with = "bounded::<_, _, MAX_ADDRESSES>")]
    pub external_ips: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub session_affinity: SessionAffinity,
    pub session_affinity_config: Option<SessionAffinityConfig>,
    #[serde(deserialize_with = "bounded::<_, _, MAX_ADDRESSES>")]
    pub load_balancer_source_ranges: Vec<String>,
    pub internal_traffic_policy: Option<TrafficPolicy>,
    pub external_traffic_policy: Option<TrafficPolicy>,
    #[serde(deserialize_with = "nullable")]
    pub health_check_node_port: i32,
    /// False: no node port is given to ports of a LoadBalancer that name none; absent means true.
    pub allocate_load_balancer_node_ports: Option<bool>,
    #[serde(deserialize_with = "nullable")]
    pub publish_not_ready_addresses: bool,
    #[serde(deserialize_with = "bounded::<_, _, 2>")]
    pub ip_families: Vec<super::Family>,
    pub ip_family_policy: Option<IpFamilyPolicy>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    #[default]
    ClusterIP,
    NodePort,
    LoadBalancer,
    ExternalName,
}

impl ServiceType {
    /// Whether ports of this type may have a node port.
    pub fn has_node_ports(self) -> bool {
        matches!(self, ServiceType::NodePort | ServiceType::LoadBalancer)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            ServiceType::ClusterIP => "ClusterIP",
            ServiceType::NodePort => "NodePort",
            ServiceType::LoadBalancer => "LoadBalancer",
            ServiceType::ExternalName => "ExternalName",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionAffinity {
    #[default]
    None,
    ClientIP,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionAffinityConfig {
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientIpConfig {
    /// Seconds, 1..=86400.
    pub timeout_seconds: Option<i32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    Local,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpFamilyPolicy {
    #[default]
    SingleStack,
    PreferDualStack,
    RequireDualStack,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub protocol: ProtocolName,
    /// Judged in `frontends`; 0 or above 65535 is skipped with a reason.
    pub port: i32,
    pub target_port: Option<TargetPort>,
    #[serde(deserialize_with = "nullable")]
    pub node_port: i32,
}

/// The API's spelling of a protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ProtocolName {
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "UDP")]
    Udp,
    #[serde(rename = "SCTP")]
    Sctp,
}

impl From<ProtocolName> for Protocol {
    fn from(name: ProtocolName) -> Protocol {
        match name {
            ProtocolName::Tcp => Protocol::Tcp,
            ProtocolName::Udp => Protocol::Udp,
            ProtocolName::Sctp => Protocol::Sctp,
        }
    }
}

impl From<Protocol> for ProtocolName {
    fn from(protocol: Protocol) -> ProtocolName {
        match protocol {
            Protocol::Tcp => ProtocolName::Tcp,
            Protocol::Udp => ProtocolName::Udp,
            Protocol::Sctp => ProtocolName::Sctp,
        }
    }
}

/// `targetPort`: a number, or the name of a container's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetPort {
    Number(i32),
    Name(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    #[serde(deserialize_with = "nullable")]
    pub load_balancer: LoadBalancerStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    #[serde(deserialize_with = "bounded::<_, _, MAX_ADDRESSES>")]
    pub ingress: Vec<Ingress>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ingress {
    #[serde(deserialize_with = "nullable")]
    pub ip: String,
    pub ip_mode: Option<IpMode>,
}

/// How packets for a load balancer's address arrive at the node (KEP-1860).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpMode {
    /// With the balancer's address as destination: the node serves it.
    #[serde(rename = "VIP")]
    Vip,
    /// Rewritten by the balancer: the node must not serve the address itself.
    Proxy,
}

/// An EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    pub metadata: Metadata,
    #[serde(deserialize_with = "nullable")]
    pub address_type: AddressType,
    #[serde(deserialize_with = "bounded::<_, _, MAX_SLICE_ENDPOINTS>")]
    pub endpoints: Vec<SliceEndpoint>,
    #[serde(deserialize_with = "bounded::<_, _, MAX_PORTS>")]
    pub ports: Vec<SlicePort>,
}

impl EndpointSlice {
    pub fn key(&self) -> ObjectKey {
        self.metadata.key()
    }

    /// The Service the slice belongs to, by its label.
    pub fn service(&self) -> Option<ObjectKey> {
        let name = self.metadata.labels.service_name.as_deref().filter(|name| !name.is_empty())?;
        Some(ObjectKey::new(self.key().namespace, name))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddressType {
    #[default]
    IPv4,
    IPv6,
    FQDN,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceEndpoint {
    /// Only the first is ever used (the API's own rule: all others are reserved).
    #[serde(deserialize_with = "bounded::<_, _, MAX_ENDPOINT_ADDRESSES>")]
    pub addresses: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub conditions: Conditions,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Hints::is_empty")]
    pub hints: Hints,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conditions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serving: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminating: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TargetRef {
    #[serde(deserialize_with = "nullable")]
    pub kind: String,
    #[serde(deserialize_with = "nullable")]
    pub namespace: String,
    #[serde(deserialize_with = "nullable")]
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hints {
    #[serde(deserialize_with = "bounded::<_, _, 8>")]
    pub for_zones: Vec<Named>,
    #[serde(deserialize_with = "bounded::<_, _, 8>")]
    pub for_nodes: Vec<Named>,
}

impl Hints {
    fn is_empty(&self) -> bool {
        self.for_zones.is_empty() && self.for_nodes.is_empty()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SlicePort {
    /// Absent is the unnamed port.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub protocol: ProtocolName,
    /// Absent means every port, which cannot be programmed: such a port is ignored.
    pub port: Option<i32>,
}

/// A JSON null is the field's default.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// One of another form than the API server's own is left out: nothing is decided by it.
fn uid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ObjectUid>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.as_deref().and_then(ObjectUid::parse))
}

/// A list of at most `MAX` items, or null.
fn bounded<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Bounded<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Bounded<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX} items")
        }

        fn visit_unit<E>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }

        fn visit_none<E>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }

        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<T>, D::Error> {
            deserializer.deserialize_seq(self)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut items = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(MAX));
            while let Some(item) = seq.next_element()? {
                if items.len() == MAX {
                    return Err(A::Error::custom(format!("more than {MAX} items")));
                }
                items.push(item);
            }
            Ok(items)
        }
    }

    deserializer.deserialize_option(Bounded::<T, MAX>(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_of_the_api_is_read_with_nulls_and_unknown_fields() {
        let text = r#"{
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": "shop", "uid": "1", "managedFields": [],
                         "labels": {"app": "web", "service.kubernetes.io/service-proxy-name": "other"}, "annotations": null},
            "spec": {"type": "NodePort", "clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20"], "selector": null,
                     "ports": [{"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080, "protocol": "TCP"},
                               {"name": "dns", "port": 53, "targetPort": 5353, "protocol": "UDP", "nodePort": null}],
                     "externalIPs": null, "sessionAffinity": "ClientIP",
                     "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
                     "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP", "ports": []}]}}
        }"#;
        let service: Service = serde_json::from_str(text).unwrap();
        assert_eq!(service.key().to_string(), "shop/web");
        assert_eq!(service.metadata.labels.proxy_name.as_deref(), Some("other"));
        assert_eq!(service.spec.kind, ServiceType::NodePort);
        assert_eq!(service.spec.ports[0].target_port, Some(TargetPort::Name("web".into())));
        assert_eq!(service.spec.ports[1].target_port, Some(TargetPort::Number(5353)));
        assert_eq!(service.spec.ports[1].protocol, ProtocolName::Udp);
        assert_eq!(service.spec.external_traffic_policy, Some(TrafficPolicy::Local));
        assert_eq!(service.status.load_balancer.ingress[0].ip_mode, Some(IpMode::Vip));
        assert!(service.spec.external_ips.is_empty() && service.spec.selector.is_empty());
        let bare: Service = serde_json::from_str(r#"{"metadata": {"name": "x"}}"#).unwrap();
        assert_eq!(bare.key().to_string(), "default/x");
    }

    #[test]
    fn a_slice_of_the_api_is_read() {
        let text = r#"{"metadata": {"name": "web-abc", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": null, "port": 8080, "protocol": null, "appProtocol": "http"}],
            "endpoints": [{"addresses": ["10.1.0.5"], "conditions": {"ready": true, "terminating": null},
                           "nodeName": "n1", "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-0", "uid": "u"},
                           "hints": {"forZones": [{"name": "a"}]}}]}"#;
        let slice: EndpointSlice = serde_json::from_str(text).unwrap();
        assert_eq!(slice.service().unwrap().to_string(), "shop/web");
        assert_eq!((slice.ports[0].name.as_str(), slice.ports[0].port), ("", Some(8080)));
        assert_eq!(slice.endpoints[0].conditions.ready, Some(true));
        assert_eq!(slice.endpoints[0].hints.for_zones[0].name, "a");
    }

    #[test]
    fn lists_are_bounded_and_wrong_values_are_named() {
        let with_ports = |count: usize| {
            let many = vec![r#"{"port": 1}"#; count].join(",");
            format!(r#"{{"metadata": {{"name": "x"}}, "spec": {{"ports": [{many}]}}}}"#)
        };
        let service: Service = serde_json::from_str(&with_ports(MAX_PORTS)).unwrap();
        assert_eq!(service.spec.ports.len(), 20_000, "as the API server admits in a slice");
        let error = serde_json::from_str::<Service>(&with_ports(MAX_PORTS + 1)).unwrap_err().to_string();
        assert!(error.contains("more than 20000 items"), "{error}");
        let with_addresses = |count: usize| {
            let many = vec![r#""::1""#; count].join(",");
            format!(r#"{{"metadata": {{"name": "x"}}, "spec": {{"externalIPs": [{many}]}}}}"#)
        };
        let text = with_addresses(MAX_ADDRESSES);
        assert!(text.len() >= 1536 << 10, "more than this the API server does not store");
        assert_eq!(serde_json::from_str::<Service>(&text).unwrap().spec.external_ips.len(), MAX_ADDRESSES);
        let error =
            serde_json::from_str::<Service>(&with_addresses(MAX_ADDRESSES + 1)).unwrap_err().to_string();
        assert!(error.contains("more than 262144 items"), "{error}");
        let text = r#"{"metadata": {"name": "x"}, "spec": {"type": "Nodeport"}}"#;
        let error = serde_json::from_str::<Service>(text).unwrap_err().to_string();
        assert!(error.contains("Nodeport") && error.contains("NodePort"), "{error}");
    }
}
