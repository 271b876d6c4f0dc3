//! The iptables chains that belong to no single Service, kept change by change: the fixed ones and
//! those of the tries that dispatch. What stands in them is rendered when asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::ipt::tree::{Entry, Item, Node, Space, Tree};
use super::super::ipt::{ChainId, Rule, Table, Target};
use super::super::model::ServicePortState;
use super::super::object::{Claim, Objects};
use super::super::render_ipt::{self, Gathered, IptSettings};
use super::super::render_ipvs::NodeNetwork;
use super::super::render_ipvs_ipt;

/// What iptables chains are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Scheme {
    /// Everything.
    #[default]
    Iptables,
    /// What virtual servers leave to others.
    Ipvs,
}

impl Scheme {
    /// The tables that have tries.
    const fn tables(self) -> [Table; 2] {
        match self {
            Scheme::Iptables => [Table::Filter, Table::Nat],
            Scheme::Ipvs => [Table::Filter, Table::Mangle],
        }
    }

    fn fixed_chains(self, ipv6: bool) -> Vec<ChainId> {
        match self {
            Scheme::Iptables => render_ipt::fixed_chains(ipv6),
            Scheme::Ipvs => render_ipvs_ipt::fixed_chains(ipv6),
        }
    }

    /// The spaces a family's tries dispatch on.
    fn spaces(self, ipv6: bool) -> impl Iterator<Item = Space> {
        let node_ports = self == Scheme::Iptables;
        render_ipt::spaces(ipv6).filter(move |space| node_ports || matches!(space, Space::Address { .. }))
    }

    /// Where a service port stands in the tries, with its rules.
    fn leaves(self, state: &ServicePortState, node: &NodeNetwork) -> BTreeMap<Leaf, Option<Rule>> {
        let mut leaves = BTreeMap::new();
        for table in self.tables() {
            let found: Vec<(Entry, Option<Rule>)> = match self {
                Scheme::Iptables => render_ipt::entries(state)
                    .into_iter()
                    .map(|(kind, entry)| (entry, render_ipt::leaf(table, state, (kind, &entry))))
                    .collect(),
                Scheme::Ipvs => render_ipvs_ipt::entries(state, node)
                    .into_iter()
                    .map(|(kind, entry)| (entry, render_ipvs_ipt::leaf(table, state, (kind, &entry), node)))
                    .collect(),
            };
            for (entry, rule) in found {
                // An address that is listed twice counts as what it is first.
                leaves.entry(Leaf { table, entry }).or_insert(rule);
            }
        }
        leaves
    }

    fn leaf_rule(self, leaf: &Leaf, state: &ServicePortState, node: &NodeNetwork) -> Option<Rule> {
        let Leaf { table, entry } = leaf;
        match self {
            Scheme::Iptables => {
                let (kind, _) = render_ipt::entries(state).into_iter().find(|(_, of)| of == entry)?;
                render_ipt::leaf(*table, state, (kind, entry))
            }
            Scheme::Ipvs => {
                let all = render_ipvs_ipt::entries(state, node);
                let (kind, _) = all.into_iter().find(|(_, of)| of == entry)?;
                render_ipvs_ipt::leaf(*table, state, (kind, entry), node)
            }
        }
    }

    pub(super) fn fixed(
        self,
        id: &ChainId,
        settings: &IptSettings,
        node: &NodeNetwork,
        gathered: &Gathered,
    ) -> Objects {
        match self {
            Scheme::Iptables => render_ipt::fixed(id, settings, node, gathered),
            Scheme::Ipvs => render_ipvs_ipt::fixed(id, settings, node, gathered),
        }
    }

    /// The rules of a chain of one service port.
    pub(super) fn service_chain(
        self,
        id: &ChainId,
        state: &ServicePortState,
        node: &NodeNetwork,
        settings: &IptSettings,
    ) -> Option<Vec<Rule>> {
        match self {
            Scheme::Iptables => render_ipt::service_chain(id, state, node, settings),
            Scheme::Ipvs => render_ipvs_ipt::service_chain(id, state, node),
        }
    }
}

/// What a shared chain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SharedChain {
    Fixed,
    Node(Node),
}

/// What a change can touch of the shared chains.
#[derive(Debug)]
pub(super) struct Touched {
    pub(super) leaves: Vec<Leaf>,
    /// Claims that chains list, and whether anybody made them before the change.
    pub(super) gathered: Vec<(Claim, bool)>,
}

/// A place in a trie whose rule may come, go or change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Leaf {
    table: Table,
    entry: Entry,
}

impl Leaf {
    pub(super) fn claim(&self) -> Claim {
        claim_of(&self.entry)
    }
}

/// Who makes this claim is behind the entry.
pub(super) fn claim_of(entry: &Entry) -> Claim {
    match (entry.addr(), entry.port()) {
        (Some(addr), Some((protocol, port))) => Claim::Frontend { addr, port, protocol },
        (Some(addr), None) => Claim::Address(addr),
        (None, port) => {
            let (protocol, port) = port.expect("an entry without an address has a port");
            Claim::NodePort { ipv6: entry.space.is_ipv6(), protocol, port }
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct SharedChains {
    pub(super) settings: IptSettings,
    pub(super) scheme: Scheme,
    /// One for each of the tables; families and protocols are within.
    trees: [Tree; 2],
    /// Every shared chain there should be.
    chains: BTreeMap<Claim, SharedChain>,
}

impl SharedChains {
    /// Forget every Service; with a scheme, want the chains that are there without any.
    pub(super) fn reset(&mut self, scheme: Option<Scheme>) {
        self.trees.iter_mut().for_each(Tree::clear);
        self.chains.clear();
        let Some(scheme) = scheme else { return };
        self.scheme = scheme;
        for ipv6 in [false, true] {
            for id in scheme.fixed_chains(ipv6) {
                self.chains.insert(Claim::Chain(id), SharedChain::Fixed);
            }
            for space in scheme.spaces(ipv6) {
                for table in scheme.tables() {
                    let root = Node::root(table, space);
                    self.chains.insert(Claim::Chain(root.chain()), SharedChain::Node(root));
                }
            }
        }
    }

    pub(super) fn claims(&self) -> impl Iterator<Item = Claim> + '_ {
        self.chains.keys().copied()
    }

    pub(super) fn claims_by_ref(&self) -> impl Iterator<Item = &Claim> {
        self.chains.keys()
    }

    pub(super) fn part(&self, id: &ChainId) -> Option<SharedChain> {
        self.chains.get(&Claim::Chain(*id)).copied()
    }

    /// The places where the rules before and after differ. Most changes are of endpoints, and touch none.
    pub(super) fn touched(
        &self,
        before: Option<&Arc<ServicePortState>>,
        after: Option<&Arc<ServicePortState>>,
        node: &NodeNetwork,
    ) -> Vec<Leaf> {
        let rules = |state: Option<&Arc<ServicePortState>>| {
            state.map(|state| self.scheme.leaves(state, node)).unwrap_or_default()
        };
        let (was, is) = (rules(before), rules(after));
        let all: BTreeSet<&Leaf> = was.keys().chain(is.keys()).collect();
        all.into_iter().filter(|leaf| was.get(leaf) != is.get(leaf)).copied().collect()
    }

    /// An entry's holder may be another now, or want another rule.
    pub(super) fn place(
        &mut self,
        leaf: Leaf,
        (holder, node): (Option<&Arc<ServicePortState>>, &NodeNetwork),
        dirty: &mut BTreeSet<Claim>,
    ) {
        let rule = holder.and_then(|state| self.scheme.leaf_rule(&leaf, state, node));
        let tree = &mut self.trees[tree_of(leaf.table)];
        let mut nodes = BTreeSet::new();
        tree.around(leaf.table, &leaf.entry, &mut nodes);
        if tree.set(leaf.entry, rule.is_some()) {
            tree.around(leaf.table, &leaf.entry, &mut nodes);
        }
        for node in nodes {
            let claim = Claim::Chain(node.chain());
            if tree.has(&node) {
                self.chains.insert(claim, SharedChain::Node(node));
            } else {
                self.chains.remove(&claim);
            }
            dirty.insert(claim);
        }
    }

    /// The rules of a trie's chain.
    pub(super) fn node_rules<'a>(
        &self,
        node: Node,
        network: &NodeNetwork,
        holder: impl Fn(&Entry) -> Option<&'a Arc<ServicePortState>>,
    ) -> Vec<Rule> {
        let items = self.trees[tree_of(node.table)].items(&node);
        let rule = |item: Item| match item {
            Item::Node(child) => Some(Rule::new(child.matches(), Target::Jump(child.chain().name))),
            Item::Entry(entry) => {
                let leaf = Leaf { table: node.table, entry };
                self.scheme.leaf_rule(&leaf, holder(&entry)?, network)
            }
        };
        items.into_iter().filter_map(rule).collect()
    }
}

/// Every scheme has a trie in filter, and one more.
fn tree_of(table: Table) -> usize {
    usize::from(table != Table::Filter)
}
