//! `svc render`: the rules that manifests come to, in the form of the tools that would load them. It
//! needs neither a kernel nor the daemon, and changes nothing.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use longshore_core::ids::ObjectKey;
use longshore_core::ruleset::chains::ChainConfig;
use longshore_core::ruleset::compare;
use longshore_core::ruleset::desired::BackEnd;
use longshore_core::ruleset::diff::Applied;
use longshore_core::ruleset::ipvs::Scheduler;
use longshore_core::ruleset::node::{HostAddress, NodePortAddresses};
use longshore_core::ruleset::offline::{Offline, OfflineNode};
use longshore_core::ruleset::text;
use longshore_core::service::allocate::{self, Assignment, Pools};
use longshore_core::service::cidr::Cidr;
use longshore_core::service::types::{EndpointSlice, Service};
use serde::Serialize;
use serde_json::Value;

use crate::args::{RenderMode, RenderOptions};
use crate::error::{CliError, one_line};
use crate::output::{Screen, print, structured};

/// What was read of the manifests.
#[derive(Debug, Default)]
struct Manifests {
    services: BTreeMap<ObjectKey, Service>,
    slices: Vec<EndpointSlice>,
    /// Objects of kinds that make no rules.
    others: usize,
}

/// One kernel object, for `-o json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Rendered {
    object: String,
    settings: String,
    /// `namespace/name:port/protocol`.
    service: Option<String>,
}

/// Prints the rules; what is not served goes to stderr with its reason, and makes the code 1.
pub fn run(screen: &Screen, options: &RenderOptions) -> Result<u8, CliError> {
    let mut manifests = Manifests::default();
    for path in &options.files {
        read(path, &mut manifests)?;
    }
    if manifests.services.is_empty() {
        return Err(CliError::new("the files hold no Service")
            .hint("render takes Services and EndpointSlices, as YAML or JSON"));
    }
    if manifests.others > 0 {
        eprintln!("note: {} objects of other kinds make no rules", manifests.others);
    }
    for conflict in give_addresses(&mut manifests.services, &options.service_cidr) {
        eprintln!("note: {conflict}");
    }
    let world = world(&manifests, options);
    let mut code = 0;
    for row in world.rows() {
        for problem in &row.problems {
            eprintln!("note: {}/{}: {}", row.namespace, row.name, one_line(problem));
            code = crate::error::FAILED;
        }
    }
    if !structured(screen, &objects(&world))? {
        print(&rules(&world, options.mode))?;
    }
    Ok(code)
}

fn read(path: &Path, manifests: &mut Manifests) -> Result<(), CliError> {
    let shown = path.display();
    let failed = |error: std::io::Error| CliError::new(format!("{shown}: {error}"));
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(failed)?;
        text
    } else {
        std::fs::read_to_string(path).map_err(failed)?
    };
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|error| {
        CliError::new(format!("{shown}: {}", one_line(&error.to_string())))
            .hint("write one YAML or JSON document for each object, with --- between them")
    })?;
    documents
        .into_iter()
        .try_for_each(|document| manifests.take(document))
        .map_err(|message| CliError::new(format!("{shown}: {message}")))
}

impl Manifests {
    fn take(&mut self, document: Value) -> Result<(), String> {
        let name = document["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        match document["kind"].as_str() {
            None if document.is_null() => {}
            None => return Err("a document without a kind".to_owned()),
            Some("Service") => {
                let service: Service =
                    serde_json::from_value(document).map_err(|error| format!("Service {name}: {error}"))?;
                self.services.insert(service.key(), service);
            }
            Some("EndpointSlice") => {
                let slice = serde_json::from_value(document)
                    .map_err(|error| format!("EndpointSlice {name}: {error}"))?;
                self.slices.push(slice);
            }
            Some(kind) if kind.ends_with("List") => {
                let items = document["items"].as_array().cloned().unwrap_or_default();
                items.into_iter().try_for_each(|item| self.take(item))?;
            }
            Some(_) => self.others += 1,
        }
        Ok(())
    }
}

/// Addresses and node ports for Services that leave them empty, as the daemon gives them without a
/// control plane; what could not be given, in words.
fn give_addresses(services: &mut BTreeMap<ObjectKey, Service>, cidrs: &[Cidr]) -> Vec<String> {
    let pools = Pools { service_cidrs: cidrs.to_vec(), node_ports: 30000..=32767 };
    let assignment = allocate::assign(services, &pools, &Assignment::default());
    for (key, service) in services.iter_mut().filter(|(_, service)| allocate::wants_address(service)) {
        let named = !service.spec.cluster_ip.is_empty() || !service.spec.cluster_ips.is_empty();
        if let Some(given) = assignment.services.get(key) {
            let before = (service.spec.cluster_ip.clone(), service.spec.cluster_ips.clone());
            given.fill(service);
            if named {
                // What a manifest names is shown as it is, wrong or not.
                (service.spec.cluster_ip, service.spec.cluster_ips) = before;
            }
        }
    }
    assignment.conflicts.iter().map(ToString::to_string).collect()
}

fn world(manifests: &Manifests, options: &RenderOptions) -> Offline {
    let host =
        |addr: IpAddr| HostAddress { addr, loopback: addr.is_loopback(), ours: false, link_local: false };
    let mut addresses: Vec<HostAddress> = options.node_ip.iter().map(|addr| host(*addr)).collect();
    addresses.extend([IpAddr::from([127, 0, 0, 1]), IpAddr::V6(1.into())].map(host));
    let node = OfflineNode {
        name: options.node_name.as_str().into(),
        zone: options.zone.as_deref().map(Into::into),
        addresses,
        primary: options.node_ip.clone(),
        node_ports: NodePortAddresses::All,
        pod_interface: String::new(),
    };
    let config = ChainConfig {
        masquerade_mark: 0x4000,
        masquerade_all: options.masquerade_all,
        cluster_cidrs: options.cluster_cidr.clone(),
        pod_interface: None,
        service_ranges: Vec::new(),
    };
    let back_end = match options.mode {
        RenderMode::Nftables => BackEnd::Nftables,
        RenderMode::Ipvs => BackEnd::Ipvs { scheduler: Scheduler::Rr },
        RenderMode::Iptables => BackEnd::Iptables,
    };
    let mut world = Offline::new(&node, back_end, &config);
    manifests.slices.iter().for_each(|slice| world.slice(slice));
    manifests.services.values().for_each(|service| world.service(service));
    world.settle();
    world
}

fn objects(world: &Offline) -> Vec<Rendered> {
    // Against an empty kernel everything that is wanted is missing.
    let all = compare::differences(world.desired(), &Applied::default());
    let one = |found: compare::Difference| Rendered {
        object: found.object,
        settings: found.wanted,
        service: found.service,
    };
    all.into_iter().map(one).collect()
}

fn rules(world: &Offline, mode: RenderMode) -> String {
    let tables = [text::nft(world, false), text::nft(world, true)].concat();
    match mode {
        RenderMode::Nftables => tables,
        RenderMode::Iptables => format!(
            "# iptables-restore --noflush\n{}\n# ip6tables-restore --noflush\n{}",
            world.iptables(false),
            world.iptables(true),
        ),
        RenderMode::Ipvs => format!(
            "# addresses of the dummy device (ip -batch)\n{}\n# virtual servers (ipvsadm -R)\n{}\n\
             # what happens before a server is chosen (nft)\n{tables}",
            text::addresses(world.applied()),
            text::ipvsadm(world.applied()),
        ),
    }
}

/// The name of this host, for endpoints on it.
pub fn host_name() -> String {
    std::fs::read_to_string(PathBuf::from("/proc/sys/kernel/hostname"))
        .map_or_else(|_| "localhost".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{name: http, port: 80, nodePort: 30080}]
---
kind: List
items:
- kind: EndpointSlice
  metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
  addressType: IPv4
  endpoints: [{addresses: [10.244.1.1], nodeName: n1}, {addresses: [10.244.2.1], nodeName: n2}]
  ports: [{name: http, port: 8080}]
- kind: ConfigMap
  metadata: {name: page}
";

    fn options(mode: RenderMode) -> RenderOptions {
        RenderOptions {
            files: Vec::new(),
            mode,
            node_name: "n1".to_owned(),
            zone: None,
            node_ip: vec!["192.0.2.10".parse().unwrap()],
            cluster_cidr: vec!["10.244.0.0/16".parse().unwrap()],
            service_cidr: vec!["10.96.0.0/24".parse().unwrap()],
            masquerade_all: false,
        }
    }

    fn rendered(mode: RenderMode) -> (Offline, String) {
        let mut manifests = Manifests::default();
        let documents: Vec<Value> = serde_saphyr::from_multiple(FILE).unwrap();
        documents.into_iter().for_each(|document| manifests.take(document).unwrap());
        assert_eq!((manifests.services.len(), manifests.slices.len(), manifests.others), (1, 1, 1));
        let options = options(mode);
        assert!(give_addresses(&mut manifests.services, &options.service_cidr).is_empty());
        let world = world(&manifests, &options);
        let text = rules(&world, mode);
        (world, text)
    }

    #[test]
    fn ipvs_is_rendered_as_its_tools_read_it() {
        let (world, text) = rendered(RenderMode::Ipvs);
        let ip = world.table().ports().next().unwrap().spec.cluster_ip;
        let expected = format!(
            "# addresses of the dummy device (ip -batch)\n\
             address add {ip}/32 dev kube-ipvs0\n\
             \n# virtual servers (ipvsadm -R)\n\
             -A -t {ip}:80 -s rr\n\
             -a -t {ip}:80 -r 10.244.1.1:8080 -m -w 1\n\
             -a -t {ip}:80 -r 10.244.2.1:8080 -m -w 1\n\
             -A -t 192.0.2.10:30080 -s rr\n\
             -a -t 192.0.2.10:30080 -r 10.244.1.1:8080 -m -w 1\n\
             -a -t 192.0.2.10:30080 -r 10.244.2.1:8080 -m -w 1\n\
             \n# what happens before a server is chosen (nft)\ntable ip longshore {{\n"
        );
        assert!(text.starts_with(&expected), "{text}");
    }

    #[test]
    fn nftables_is_one_table_for_each_family_that_is_served() {
        let (world, text) = rendered(RenderMode::Nftables);
        assert!(text.starts_with("table ip longshore {\n") && !text.contains("table ip6"), "{text}");
        assert!(text.contains("10.244.2.1 . 8080"), "{text}");
        assert_eq!(objects(&world).len(), world.applied().len());
    }

    #[test]
    fn a_wrong_document_is_named() {
        let mut manifests = Manifests::default();
        let wrong =
            serde_json::json!({"kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": "none"}});
        let message = manifests.take(wrong).unwrap_err();
        assert!(message.starts_with("Service web: ") && message.contains("list"), "{message}");
        assert!(manifests.take(serde_json::json!({"metadata": {}})).is_err());
    }
}
