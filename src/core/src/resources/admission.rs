//! Whether a pod fits the node beside those that are there (behaviours 34, the node-fit part; the
//! scheduler does this for pods of a control plane, a standalone node has to do it itself).

use k8s_openapi::api::core::v1::Pod;

use crate::ids::PodKey;
use crate::pod::containers::{Role, containers, is_host_network};
use crate::pod::desired::EndCause;
use crate::resources::pod_sums::{Side, pod_amount};

/// What the node has to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRoom {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    /// maxPods.
    pub pods: usize,
}

/// Why a pod is refused, with the reason as the API spells it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the node runs {running} pods, its limit; remove one or raise maxPods")]
    OutOfPods { running: usize },
    #[error("it requests {wanted} m of CPU and the node has {left} m left of {room} m; lower a request")]
    OutOfCpu { wanted: u64, left: u64, room: u64 },
    #[error("it requests {wanted} bytes of memory and the node has {left} left of {room}; lower a request")]
    OutOfMemory { wanted: u64, left: u64, room: u64 },
    #[error("host port {port}/{protocol} is taken by pod {by}; use another hostPort")]
    HostPort { port: i32, protocol: String, by: PodKey },
    #[error("it asks for another node: this one does not have {wanted}")]
    NodeAffinity { wanted: String },
    #[error("it does not tolerate the node's taint {taint}")]
    Taint { taint: String },
    #[error("sysctl {name} is not among the safe ones; allow it with allowedUnsafeSysctls, or leave it out")]
    UnsafeSysctl { name: String },
    #[error("sysctl {name} is the node's own with {with}; leave out one of the two")]
    SharedSysctl { name: String, with: &'static str },
}

impl Refusal {
    /// `status.reason` as the kubelet sets it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::OutOfPods { .. } => "OutOfpods",
            Self::OutOfCpu { .. } => "OutOfcpu",
            Self::OutOfMemory { .. } => "OutOfmemory",
            Self::HostPort { .. } => "NodePorts",
            Self::NodeAffinity { .. } => "NodeAffinity",
            Self::Taint { .. } => "TaintToleration",
            Self::UnsafeSysctl { .. } | Self::SharedSysctl { .. } => "SysctlForbidden",
        }
    }

    /// Less of others would make it fit.
    pub fn is_amount(&self) -> bool {
        matches!(self, Self::OutOfPods { .. } | Self::OutOfCpu { .. } | Self::OutOfMemory { .. })
    }

    /// The end of a pod that is refused.
    pub fn cause(&self) -> EndCause {
        EndCause::Rejected { reason: self.reason().to_owned(), message: self.to_string() }
    }
}

/// Whether `pod` fits beside `others`: those admitted and not ended. Adopted pods are never asked
/// (invariant 6): what runs already runs.
pub fn admit<'a>(
    pod: &Pod,
    others: impl IntoIterator<Item = (&'a PodKey, &'a Pod)>,
    room: &NodeRoom,
) -> Result<(), Refusal> {
    let others: Vec<(&PodKey, &Pod)> = others.into_iter().collect();
    if others.len() >= room.pods {
        return Err(Refusal::OutOfPods { running: others.len() });
    }
    let request = |pod: &Pod, name: &str| pod_amount(pod, Side::Requests, name);
    // A pod that asks for nothing always fits; what the others take is then not added up.
    let millis = |pod: &Pod| request(pod, "cpu").unsigned_millis();
    let wanted = millis(pod);
    if wanted > 0 {
        let taken: u64 = others.iter().map(|(_, other)| millis(other)).sum();
        let left = room.cpu_millis.saturating_sub(taken);
        if wanted > left {
            return Err(Refusal::OutOfCpu { wanted, left, room: room.cpu_millis });
        }
    }
    let bytes = |pod: &Pod| request(pod, "memory").unsigned_value();
    let wanted = bytes(pod);
    if wanted > 0 {
        let taken: u64 = others.iter().map(|(_, other)| bytes(other)).sum();
        let left = room.memory_bytes.saturating_sub(taken);
        if wanted > left {
            return Err(Refusal::OutOfMemory { wanted, left, room: room.memory_bytes });
        }
    }
    host_ports_free(pod, &others)
}

/// Whether a pod takes nothing of the node but a place.
pub fn asks_for_nothing(pod: &Pod) -> bool {
    pod_amount(pod, Side::Requests, "cpu").unsigned_millis() == 0
        && pod_amount(pod, Side::Requests, "memory").unsigned_value() == 0
        && host_ports(pod).is_empty()
}

/// Sysctls that are the pod's own and harm nobody else (pkg/kubelet/sysctl/safe_sysctls.go).
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Whether the pod may set the sysctls it names. `allowed` are names or prefixes ending in `*`. What
/// belongs to a namespace the pod shares with the node would be set for the node.
pub fn sysctls(pod: &Pod, allowed: &[String]) -> Result<(), Refusal> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let given = spec.security_context.iter().flat_map(|security| security.sysctls.iter().flatten());
    for sysctl in given {
        let name = sysctl.name.replace('/', ".");
        let matches = |pattern: &String| match pattern.replace('/', ".").strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => *pattern == name || pattern.replace('/', ".") == name,
        };
        if !SAFE_SYSCTLS.contains(&name.as_str()) && !allowed.iter().any(matches) {
            return Err(Refusal::UnsafeSysctl { name });
        }
        if name.starts_with("net.") && spec.host_network == Some(true) {
            return Err(Refusal::SharedSysctl { name, with: "hostNetwork" });
        }
        let ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
        if ipc.iter().any(|prefix| name.starts_with(prefix)) && spec.host_ipc == Some(true) {
            return Err(Refusal::SharedSysctl { name, with: "hostIPC" });
        }
    }
    Ok(())
}

/// One port a pod takes on the node.
#[derive(PartialEq, Eq)]
struct HostPort {
    ip: String,
    port: i32,
    protocol: String,
}

impl HostPort {
    /// The unset address is every address.
    fn collides(&self, other: &Self) -> bool {
        let any = |ip: &str| matches!(ip, "" | "0.0.0.0" | "::");
        self.port == other.port
            && self.protocol == other.protocol
            && (any(&self.ip) || any(&other.ip) || self.ip == other.ip)
    }
}

pub(super) fn host_ports_free(pod: &Pod, others: &[(&PodKey, &Pod)]) -> Result<(), Refusal> {
    let wanted = host_ports(pod);
    if wanted.is_empty() {
        return Ok(());
    }
    for (key, other) in others {
        for taken in host_ports(other) {
            if let Some(port) = wanted.iter().find(|port| port.collides(&taken)) {
                let (port, protocol) = (port.port, port.protocol.clone());
                return Err(Refusal::HostPort { port, protocol, by: (*key).clone() });
            }
        }
    }
    Ok(())
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let host_network = is_host_network(pod);
    let mut ports = Vec::new();
    for container in containers(pod).iter().filter(|container| container.role != Role::Init) {
        for port in container.spec.ports.iter().flatten() {
            let taken =
                port.host_port.filter(|port| *port != 0).or(host_network.then_some(port.container_port));
            if let Some(number) = taken {
                ports.push(HostPort {
                    ip: port.host_ip.clone().unwrap_or_default(),
                    port: number,
                    protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                });
            }
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::pod;
    use serde_json::{Value, json};

    fn asking(resources: Value, ports: Value) -> Pod {
        pod(json!({"spec": {"containers": [{"name": "a", "image": "i",
            "resources": {"requests": resources}, "ports": ports}]}}))
    }

    #[test]
    fn sysctls_are_safe_allowed_or_refused() {
        let allowed = ["kernel.msg*".to_owned(), "net/core/somaxconn".to_owned()];
        let cases = [
            ("net.ipv4.tcp_syncookies", json!({}), None),
            ("net/ipv4/tcp_syncookies", json!({}), None),
            ("net.core.somaxconn", json!({}), None),
            ("kernel.msgmax", json!({}), None),
            ("kernel.sem", json!({}), Some("not among the safe ones")),
            ("net.ipv4.tcp_syncookies", json!({"hostNetwork": true}), Some("hostNetwork")),
            ("kernel.shm_rmid_forced", json!({"hostIPC": true}), Some("hostIPC")),
            ("kernel.shm_rmid_forced", json!({"hostNetwork": true}), None),
        ];
        for (name, extra, refused) in cases {
            let mut spec = json!({"containers": [{"name": "a", "image": "i"}],
                "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
            spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let made = sysctls(&pod(json!({"spec": spec})), &allowed).map_err(|refusal| refusal.to_string());
            match refused {
                None => assert_eq!(made, Ok(()), "{name} {extra}"),
                Some(part) => {
                    assert!(made.as_ref().is_err_and(|text| text.contains(part)), "{name}: {made:?}")
                }
            }
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let other = asking(
            json!({"cpu": "3", "memory": "3Gi"}),
            json!([{"containerPort": 1, "hostPort": 80}, {"containerPort": 2, "hostPort": 90, "hostIP": "10.0.0.1"}]),
        );
        let key = PodKey::new("default", "other");
        let room = NodeRoom { cpu_millis: 4000, memory_bytes: 4 << 30, pods: 2 };
        let port = |port: Value| json!([port]);
        let cases = [
            (json!({}), json!([]), None),
            (json!({"cpu": "1", "memory": "1Gi"}), json!([]), None),
            (json!({"cpu": "1001m"}), json!([]), Some("OutOfcpu")),
            (json!({"memory": "1025Mi"}), json!([]), Some("OutOfmemory")),
            (json!({}), port(json!({"containerPort": 9, "hostPort": 80})), Some("NodePorts")),
            (json!({}), port(json!({"containerPort": 9, "hostPort": 80, "protocol": "UDP"})), None),
            (json!({}), port(json!({"containerPort": 9, "hostPort": 90, "hostIP": "10.0.0.2"})), None),
            (json!({}), port(json!({"containerPort": 9, "hostPort": 90})), Some("NodePorts")),
        ];
        for (requests, ports, reason) in cases {
            let given = asking(requests.clone(), ports.clone());
            let made = admit(&given, [(&key, &other)], &room);
            assert_eq!(made.as_ref().err().map(Refusal::reason), reason, "{requests} {ports}");
        }
        let full = admit(&asking(json!({}), json!([])), [(&key, &other), (&key, &other)], &room);
        assert_eq!(
            full.unwrap_err().to_string(),
            "the node runs 2 pods, its limit; remove one or raise maxPods"
        );
    }
}
