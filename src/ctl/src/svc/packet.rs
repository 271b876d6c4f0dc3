//! Who sends a packet, and where to: what people write is made an address and a place it comes from.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use longshore_core::ruleset::trace::Origin;
use longshore_core::service::view::{PortRow, ServiceRow};
use longshore_core::wire::{NodeView, PodView};
use longshore_kernel::netns::NetNs;

use crate::error::CliError;
use crate::pods::Node;
use crate::target::{PodName, distance};

/// An address as typed, or the cluster address of a Service: `web`, `shop/web`, `shop/web:8080`.
pub async fn target(node: &Node, text: &str) -> Result<SocketAddr, CliError> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if text.parse::<IpAddr>().is_ok() {
        return Err(CliError::usage(format!("{text} has no port")).hint("write IP:PORT, for IPv6 [IP]:PORT"));
    }
    let services: Vec<ServiceRow> = node.daemon.get("/v1/services").await?;
    service_address(&services, text)
}

fn service_address(services: &[ServiceRow], text: &str) -> Result<SocketAddr, CliError> {
    let text = text.strip_prefix("svc/").or_else(|| text.strip_prefix("service/")).unwrap_or(text);
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let Some(service) = services.iter().find(|row| row.namespace == namespace && row.name == name) else {
        let near = services.iter().min_by_key(|row| distance(&row.name, name));
        let error = CliError::new(format!("there is no Service {namespace}/{name}"));
        return Err(match near.filter(|row| distance(&row.name, name) <= 2) {
            Some(row) => error.hint(format!("did you mean {}/{}?", row.namespace, row.name)),
            None => error.hint("longshore svc list shows them; or write IP:PORT"),
        });
    };
    let matches = |row: &&PortRow| port.is_none_or(|port| port == row.name || port == row.port.to_string());
    let Some(row) = service.ports.iter().find(matches) else {
        let ports: Vec<String> = service.ports.iter().map(|row| row.port.to_string()).collect();
        return Err(CliError::new(format!(
            "Service {namespace}/{name} has no port {}",
            port.unwrap_or_default()
        ))
        .hint(format!("its ports are: {}", ports.join(", "))));
    };
    match service.cluster_ips.first() {
        Some(ip) => Ok(SocketAddr::new(*ip, row.port)),
        None => Err(CliError::new(format!("Service {namespace}/{name} has no cluster address"))
            .hint("it is headless: clients get the pods' addresses by DNS")),
    }
}

/// Who asks: the pod that was named, whoever has the address, else some pod of this node.
pub async fn client(node: &Node, from: Option<&str>, to: SocketAddr) -> Result<(Origin, IpAddr), CliError> {
    let host: NodeView = node.daemon.get("/v1/node").await?;
    // A daemon that only serves Services has no pods to tell of.
    let pods: Vec<PodView> = node.daemon.get("/v1/pods").await.unwrap_or_default();
    let addresses: Vec<(&PodView, IpAddr)> =
        pods.iter().filter_map(|pod| Some((pod, own_address(pod)?))).collect();
    let same_family = |ip: &IpAddr| ip.is_ipv4() == to.is_ipv4();
    let fallback = || {
        let ip = host.ips.iter().copied().find(same_family);
        (Origin::Node, ip.unwrap_or(if to.is_ipv4() { [127, 0, 0, 1].into() } else { IpAddr::V6(1.into()) }))
    };
    let Some(from) = from else {
        let pod = addresses.iter().find(|(_, ip)| same_family(ip) && *ip != to.ip());
        return Ok(pod.map_or_else(fallback, |(_, ip)| (Origin::Pod, *ip)));
    };
    if from == "node" {
        return Ok(fallback());
    }
    if let Ok(ip) = from.parse::<IpAddr>() {
        let origin = if addresses.iter().any(|(_, known)| *known == ip) {
            Origin::Pod
        } else if host.ips.contains(&ip) || ip.is_loopback() {
            Origin::Node
        } else if namespace_of(ip).is_some() {
            // Somebody else's pod, or one of a daemon that only serves Services.
            Origin::Pod
        } else {
            Origin::Outside
        };
        return Ok((origin, ip));
    }
    let key = PodName::parse(from, None)?.choose(pods.iter().map(|pod| &pod.key))?;
    if let Some((_, ip)) = addresses.iter().find(|(pod, _)| pod.key == key) {
        return Ok((Origin::Pod, *ip));
    }
    let on_host = pods.iter().any(|pod| pod.key == key && uses_host_network(pod));
    if on_host {
        return Ok(fallback());
    }
    Err(CliError::new(format!("pod {key} has no address yet")).hint(format!("longshore why pod/{key}")))
}

/// The network namespace of this node, other than ours, that has an address: found by trying to bind it.
pub fn namespace_of(addr: IpAddr) -> Option<NetNs> {
    let owns = |net: &NetNs| net.run(|| UdpSocket::bind((addr, 0)).is_ok()).unwrap_or(false);
    namespaces().into_iter().find(owns)
}

/// Every network namespace with a name or a process, each once; ours left out.
fn namespaces() -> Vec<NetNs> {
    let mut seen: Vec<_> = NetNs::current().map(|own| own.id()).into_iter().collect();
    let named = ["/run/netns", "/var/run/netns"].into_iter().flat_map(std::fs::read_dir).flatten().flatten();
    let named = named.map(|entry| entry.path());
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
        .map(|entry| entry.path().join("ns/net"));
    let mut found = Vec::new();
    // Processes come and go while they are looked at.
    for net in named.chain(processes).filter_map(|path| NetNs::open(path).ok()) {
        if !seen.contains(&net.id()) {
            seen.push(net.id());
            found.push(net);
        }
    }
    found
}

fn uses_host_network(pod: &PodView) -> bool {
    pod.pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

fn own_address(pod: &PodView) -> Option<IpAddr> {
    if uses_host_network(pod) {
        return None;
    }
    pod.status.pod_ip.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::tests::services;
    use super::*;

    #[test]
    fn a_service_stands_for_its_address() {
        let cases = [
            ("web", Ok("10.96.0.10:80")),
            ("default/web:443", Ok("10.96.0.10:443")),
            ("svc/web:p443", Ok("10.96.0.10:443")),
            ("web:99", Err("its ports are: 80, 443")),
            ("db", Err("it is headless: clients get the pods' addresses by DNS")),
            ("wep", Err("did you mean default/web?")),
            ("shop/something", Err("longshore svc list shows them; or write IP:PORT")),
        ];
        for (text, expected) in cases {
            match (service_address(&services(), text), expected) {
                (Ok(address), Ok(want)) => assert_eq!(address.to_string(), want),
                (Err(error), Err(hint)) => assert_eq!(error.hint.as_deref(), Some(hint), "{text}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }
}
