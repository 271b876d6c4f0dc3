//! iptables mode: the chains that belong to no single Service, kept change by change: the fixed ones and
//! those of the tries that dispatch. What stands in them is rendered when asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::ipt::tree::{Entry, Item, Node, Space, Tree};
use super::super::ipt::{ChainId, Rule, Table, Target};
use super::super::model::ServicePortState;
use super::super::object::Claim;
use super::super::render_ipt::{self, IptSettings};
use crate::service::frontends::FrontendKind;

/// The tables that have tries.
const TABLES: [Table; 2] = [Table::Filter, Table::Nat];

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
    let (protocol, port) = (entry.protocol(), entry.port());
    match (entry.space, entry.addr()) {
        (Space::Address { .. }, Some(addr)) => Claim::Frontend { addr, port, protocol },
        (space, _) => Claim::NodePort { ipv6: space.is_ipv6(), protocol, port },
    }
}

#[derive(Debug, Default)]
pub(super) struct SharedChains {
    pub(super) settings: IptSettings,
    /// One for each of `TABLES`; families and protocols are within.
    trees: [Tree; 2],
    /// Every shared chain there should be.
    chains: BTreeMap<Claim, SharedChain>,
}

impl SharedChains {
    /// Forget every Service; with `used`, the chains that are there without any.
    pub(super) fn reset(&mut self, used: bool) {
        self.trees.iter_mut().for_each(Tree::clear);
        self.chains.clear();
        for ipv6 in [false, true].into_iter().filter(|_| used) {
            for id in render_ipt::fixed_chains(ipv6) {
                self.chains.insert(Claim::Chain(id), SharedChain::Fixed);
            }
            for space in render_ipt::spaces(ipv6) {
                for table in TABLES {
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
    ) -> Vec<Leaf> {
        let rules = |state: Option<&Arc<ServicePortState>>| -> BTreeMap<Leaf, Option<Rule>> {
            let entries = state
                .into_iter()
                .flat_map(|state| render_ipt::entries(state).into_iter().map(move |entry| (state, entry)));
            let of = |(state, (kind, entry)): (&Arc<ServicePortState>, (FrontendKind, Entry))| {
                TABLES.map(|table| (Leaf { table, entry }, render_ipt::leaf(table, state, (kind, &entry))))
            };
            entries.flat_map(of).collect()
        };
        let (was, is) = (rules(before), rules(after));
        let all: BTreeSet<&Leaf> = was.keys().chain(is.keys()).collect();
        all.into_iter().filter(|leaf| was.get(leaf) != is.get(leaf)).copied().collect()
    }

    /// An entry's holder may be another now, or want another rule.
    pub(super) fn place(
        &mut self,
        leaf: Leaf,
        holder: Option<&Arc<ServicePortState>>,
        dirty: &mut BTreeSet<Claim>,
    ) {
        let rule = holder.and_then(|state| leaf_rule(leaf.table, &leaf.entry, state));
        let tree = &mut self.trees[usize::from(leaf.table == Table::Nat)];
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
        holder: impl Fn(&Entry) -> Option<&'a Arc<ServicePortState>>,
    ) -> Vec<Rule> {
        let items = self.trees[usize::from(node.table == Table::Nat)].items(&node);
        let rule = |item: Item| match item {
            Item::Node(child) => Some(Rule::new(child.matches(), Target::Jump(child.chain().name))),
            Item::Entry(entry) => leaf_rule(node.table, &entry, holder(&entry)?),
        };
        items.into_iter().filter_map(rule).collect()
    }
}

fn leaf_rule(table: Table, entry: &Entry, state: &ServicePortState) -> Option<Rule> {
    let (kind, entry) = render_ipt::entries(state).into_iter().find(|(_, of)| of == entry)?;
    render_ipt::leaf(table, state, (kind, &entry))
}
