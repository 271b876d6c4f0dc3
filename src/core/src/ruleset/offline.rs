//! What a node would hold for given Services, worked out without a kernel: the same table, claims and
//! differences the daemon uses, with every operation acknowledged at once. For `svc render`, and for
//! tables of cases. Nothing here is written anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::chains::{self, ChainConfig};
use super::desired::{BackEnd, Desired};
use super::diff::{self, Applied, Op};
use super::ipt;
use super::nft::{NftTable, Set};
use super::node::{self, HostAddress, NodePortAddresses};
use super::object::{Claim, ObjectKey, ObjectValue, Spread};
use super::render_ipt::IptSettings;
use super::trace::{self, Fate, Packet, Rules, TraceError};
use crate::explain::{self, Explanation, Facts, Query};
use crate::ids::ObjectKey as ApiKey;
use crate::service::table::{ServiceTable, TableChange};
use crate::service::topology::NodeTopology;
use crate::service::types::{EndpointSlice, Service};
use crate::service::view::{self, ServiceRow};

/// The node that is imagined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfflineNode {
    pub name: Arc<str>,
    /// The node's zone label.
    pub zone: Option<Arc<str>>,
    pub addresses: Vec<HostAddress>,
    /// The node's own address of each family.
    pub primary: Vec<IpAddr>,
    pub node_ports: NodePortAddresses,
    /// What the interface of pods is called; only traces look at it.
    pub pod_interface: String,
}

/// A node's Services and the rules they come to.
#[derive(Debug)]
pub struct Offline {
    table: ServiceTable,
    desired: Desired,
    applied: Applied,
    dirty: BTreeSet<Claim>,
    /// IPv4 and IPv6.
    chains: [NftTable; 2],
    skipped: BTreeMap<ApiKey, Vec<String>>,
}

impl Offline {
    /// A node without Services.
    pub fn new(node: &OfflineNode, back_end: BackEnd, config: &ChainConfig) -> Self {
        let mut network = node::network(&node.addresses, &node.node_ports, &node.primary);
        network.pod_interface.clone_from(&node.pod_interface);
        let chains = [false, true].map(|ipv6| match back_end {
            BackEnd::Ipvs { .. } => chains::ipvs_table(config, ipv6),
            // iptables mode has chains of its own, among the objects.
            BackEnd::Nftables | BackEnd::Iptables | BackEnd::IpvsByIptables { .. } => {
                chains::nftables_table(config, ipv6)
            }
        });
        let topology = NodeTopology { name: node.name.clone(), zone: node.zone.clone() };
        let mut desired = Desired::new(back_end, network);
        let node_ports = node.node_ports.clone();
        desired.set_iptables(IptSettings { chains: config.clone(), node_ports, ..IptSettings::default() });
        Offline {
            table: ServiceTable::new(topology),
            dirty: desired.claims().copied().collect(),
            desired,
            applied: Applied::default(),
            chains,
            skipped: BTreeMap::new(),
        }
    }

    /// Take a Service as it is now.
    pub fn service(&mut self, service: &Service) {
        let change = self.table.upsert_service(service);
        self.take(change);
    }

    /// Take an EndpointSlice as it is now.
    pub fn slice(&mut self, slice: &EndpointSlice) {
        let mut change = self.table.upsert_slice(slice);
        let skipped = std::mem::take(&mut change.skipped);
        self.skipped.insert(slice.key(), skipped);
        self.take(change);
    }

    pub fn remove_service(&mut self, key: &ApiKey) {
        let change = self.table.remove_service(key);
        self.take(change);
    }

    pub fn remove_slice(&mut self, key: &ApiKey) {
        let change = self.table.remove_slice(key);
        self.skipped.remove(key);
        self.take(change);
    }

    /// Apply what is due, as if every connection to a removed endpoint had ended; what was done.
    pub fn settle(&mut self) -> Vec<Op> {
        let mut dirty = std::mem::take(&mut self.dirty);
        let mut done = Vec::new();
        loop {
            let ops = diff::plan(&self.desired, &self.applied, dirty, &|_, _| true);
            if ops.is_empty() {
                return done;
            }
            ops.iter().for_each(|op| self.applied.acknowledge(op));
            done.extend(ops);
            // A real server is first drained and removed with the next look at it.
            let draining = self.applied.draining().iter();
            dirty = draining.filter_map(|(server, _)| ObjectKey::Server(*server).claim()).collect();
        }
    }

    pub fn table(&self) -> &ServiceTable {
        &self.table
    }

    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// The rules of a family as they stand.
    pub fn rules(&self, ipv6: bool) -> Rules<'_> {
        Rules { table: &self.chains[usize::from(ipv6)], applied: &self.applied, node: self.desired.node() }
    }

    /// Where a packet ends.
    ///
    /// # Errors
    /// A rule that the tracer cannot evaluate.
    pub fn trace(&self, packet: &Packet) -> Result<Fate, TraceError> {
        trace::packet(self.desired.back_end(), self.rules(packet.dst.is_ipv6()), packet)
    }

    pub fn explain(&self, query: &Query) -> Explanation {
        let rules = Some(self.rules(query.dst.is_ipv6()));
        explain::explain(Facts { table: &self.table, desired: &self.desired, rules, unavailable: "" }, query)
    }

    /// The rows of `svc list`.
    pub fn rows(&self) -> Vec<ServiceRow> {
        view::rows(&self.table, &self.desired)
    }

    /// Parts of slices that were left out, one sentence each.
    pub fn skipped(&self) -> impl Iterator<Item = &str> {
        self.skipped.values().flatten().map(String::as_str)
    }

    /// The nf_tables table of a family, its sets and the chains that depend on Services filled in.
    pub fn nft_table(&self, ipv6: bool) -> NftTable {
        let mut table = self.chains[usize::from(ipv6)].clone();
        for (key, value) in self.applied.by_claim().flat_map(|(_, objects)| objects.into_owned()) {
            match (key, value) {
                (ObjectKey::Element { set, ipv6: of, key }, ObjectValue::Element(value)) if of == ipv6 => {
                    let name = set.name().to_owned();
                    let held = table.sets.entry(name).or_insert_with(|| Set::new(set.spec(ipv6)));
                    held.elements.insert(key, value);
                }
                (ObjectKey::Spread(spread), ObjectValue::Spread(rules)) if spread.ipv6 == ipv6 => {
                    let chain = super::nft::Chain { base: None, rules };
                    table.chains.insert(Spread::chain(&spread), chain);
                }
                _ => {}
            }
        }
        table
    }

    /// The chains of iptables mode in one family, as `iptables-save` would show them.
    pub fn iptables(&self, ipv6: bool) -> String {
        ipt::text::listing(self.applied.other_than_elements(), ipv6)
    }

    fn take(&mut self, change: TableChange) {
        for port in change.ports {
            self.dirty.extend(self.desired.change(port.before.as_ref(), port.after.as_ref()));
        }
    }
}
