//! Tests only: Services and slices in, rules out, packets through. The whole pure path of the
//! dataplane without a kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value as Json, json};

use super::Protocol;
use super::chains::{self, ChainConfig};
use super::desired::{BackEnd, Desired};
use super::diff::{self, Applied, Op};
use super::ipvs::Scheduler;
use super::nft::NftTable;
use super::object::Claim;
use super::render_ipt::IptSettings;
use super::render_ipvs::NodeNetwork;
use super::trace::{self, Fate, Origin, Packet, Rules};
use crate::ids::ObjectKey;
use crate::service::table::{ServiceTable, TableChange};
use crate::service::topology::NodeTopology;

pub(crate) const NODE_IP: &str = "192.168.0.1";

pub(crate) struct World {
    pub(crate) table: ServiceTable,
    pub(crate) desired: Desired,
    pub(crate) applied: Applied,
    pub(crate) dirty: BTreeSet<Claim>,
    pub(crate) chains: [NftTable; 2],
}

pub(crate) fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn chain_config() -> ChainConfig {
    ChainConfig {
        masquerade_mark: 0x4000,
        masquerade_all: false,
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/64".parse().unwrap()],
        pod_interface: None,
        service_ranges: Vec::new(),
    }
}

pub(crate) fn network() -> NodeNetwork {
    let host = BTreeSet::from([addr(NODE_IP), addr("127.0.0.1"), addr("fd00:168::1")]);
    NodeNetwork {
        node_port_addresses: BTreeSet::from([addr(NODE_IP), addr("fd00:168::1")]),
        host_addresses: host,
        pod_interface: "cni0".to_owned(),
    }
}

impl World {
    pub(crate) fn new() -> Self {
        World::with(chain_config(), Scheduler::Rr)
    }

    pub(crate) fn with(config: ChainConfig, scheduler: Scheduler) -> Self {
        World {
            table: ServiceTable::new(NodeTopology { name: "n1".into(), zone: Some("a".into()) }),
            desired: Desired::new(BackEnd::Ipvs { scheduler }, network()),
            applied: Applied::default(),
            dirty: BTreeSet::new(),
            chains: [false, true].map(|ipv6| chains::ipvs_table(&config, ipv6)),
        }
    }

    /// The same in nftables mode.
    pub(crate) fn nftables(config: ChainConfig) -> Self {
        World {
            desired: Desired::new(BackEnd::Nftables, network()),
            chains: [false, true].map(|ipv6| chains::nftables_table(&config, ipv6)),
            ..World::with(config.clone(), Scheduler::Rr)
        }
    }

    /// The same in iptables mode, its fixed chains not written yet.
    pub(crate) fn iptables(config: ChainConfig) -> Self {
        let mut desired = Desired::new(BackEnd::Iptables, network());
        desired.set_iptables(IptSettings { chains: config.clone(), ..IptSettings::default() });
        let dirty = desired.claims().copied().collect();
        World { desired, dirty, ..World::with(config, Scheduler::Rr) }
    }

    /// The same in IPVS mode on a kernel without nf_tables, its fixed chains not written yet.
    pub(crate) fn ipvs_by_iptables(config: ChainConfig) -> Self {
        let back_end = BackEnd::IpvsByIptables { scheduler: Scheduler::Rr };
        let mut desired = Desired::new(back_end, network());
        desired.set_iptables(IptSettings { chains: config.clone(), ..IptSettings::default() });
        let dirty = desired.claims().copied().collect();
        World { desired, dirty, ..World::with(config, Scheduler::Rr) }
    }

    /// A Service `ns/<name>` with this spec; `lb` are ingress addresses of its status.
    pub(crate) fn service(&mut self, name: &str, spec: Json, lb: &[&str]) -> &mut Self {
        let ingress: Vec<Json> = lb.iter().map(|ip| json!({"ip": ip})).collect();
        let service = json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec,
                             "status": {"loadBalancer": {"ingress": ingress}}});
        let change = self.table.upsert_service(&serde_json::from_value(service).unwrap());
        self.take(change)
    }

    pub(crate) fn remove_service(&mut self, name: &str) -> &mut Self {
        let change = self.table.remove_service(&ObjectKey::new("ns", name));
        self.take(change)
    }

    /// The endpoints of `ns/<service>` port `p` -> 8080, each as `address node flags`: `r` ready,
    /// `s` serving, `t` terminating.
    pub(crate) fn endpoints(&mut self, service: &str, endpoints: &[&str]) -> &mut Self {
        let list: Vec<Json> = endpoints
            .iter()
            .map(|text| {
                let mut words = text.split_whitespace();
                let (ip, node) = (words.next().unwrap(), words.next().unwrap_or("n1"));
                let flags = words.next().unwrap_or("rs");
                json!({"addresses": [ip], "nodeName": node, "conditions": {"ready": flags.contains('r'),
                       "serving": flags.contains('s'), "terminating": flags.contains('t')}})
            })
            .collect();
        let v6 = endpoints.first().is_some_and(|text| text.starts_with("fd"));
        let slice = json!({"metadata": {"name": format!("{service}-{v6}"), "namespace": "ns",
                "labels": {"kubernetes.io/service-name": service}},
            "addressType": if v6 { "IPv6" } else { "IPv4" }, "endpoints": list,
            "ports": [{"name": "p", "port": 8080}, {"name": "u", "port": 8053, "protocol": "UDP"}]});
        let change = self.table.upsert_slice(&serde_json::from_value(slice).unwrap());
        self.take(change)
    }

    pub(crate) fn take(&mut self, change: TableChange) -> &mut Self {
        for port in change.ports {
            self.dirty.extend(self.desired.change(port.before.as_ref(), port.after.as_ref()));
        }
        self
    }

    /// The operations now due, with connections that never end or are all gone.
    pub(crate) fn plan(&self, drained: bool) -> Vec<Op> {
        diff::plan(&self.desired, &self.applied, self.dirty.iter().copied(), &|_, _| drained)
    }

    /// Do what is due; what was done, in words.
    pub(crate) fn settle(&mut self, drained: bool) -> Vec<String> {
        let ops = self.plan(drained);
        ops.iter().for_each(|op| self.applied.acknowledge(op));
        self.dirty.clear();
        ops.iter().map(ToString::to_string).collect()
    }

    pub(crate) fn fate(&self, origin: Origin, src: &str, dst: &str, protocol: Protocol) -> Fate {
        let dst = dst.parse::<std::net::SocketAddr>().unwrap();
        let packet = Packet { origin, src: addr(src), dst, protocol };
        self.trace(&packet)
    }

    pub(crate) fn trace(&self, packet: &Packet) -> Fate {
        let rules = self.rules(packet.dst.is_ipv6());
        let fate = match self.desired.back_end() {
            BackEnd::Ipvs { .. } => trace::ipvs(rules, packet),
            BackEnd::IpvsByIptables { .. } => trace::ipvs_by_iptables(rules, packet),
            BackEnd::Nftables => trace::nftables(rules, packet),
            BackEnd::Iptables => trace::iptables(rules, packet),
        };
        fate.unwrap()
    }

    pub(crate) fn rules(&self, ipv6: bool) -> Rules<'_> {
        Rules { table: &self.chains[usize::from(ipv6)], applied: &self.applied, node: self.desired.node() }
    }
}

/// `10.1.0.1:80* 10.1.0.2:80`, a star where the source is rewritten; or the fate's name.
pub(crate) fn shown(fate: &Fate) -> String {
    match fate {
        Fate::Endpoints(deliveries) => {
            let one = |to: &trace::Delivery| format!("{}{}", to.to, if to.masqueraded { "*" } else { "" });
            deliveries.iter().map(one).collect::<Vec<_>>().join(" ")
        }
        other => format!("{other:?}").to_lowercase(),
    }
}
