//! What stands around virtual servers on a kernel without nf_tables, as iptables chains: who may come, whose
//! source is rewritten, and which ports of a Service's address nobody serves. Endpoints are IPVS's alone,
//! so a change of them touches no chain.
//!
//! Packets are judged in mangle, which the kernel asks before IPVS takes them, coming in (`LOCAL_IN`) and made
//! here (`LOCAL_OUT`); what mangle cannot do, to refuse with an answer, is done in filter, where coming in
//! still is before IPVS, and what is made here gets only when IPVS has no such virtual server. There are no
//! sets: a trie of chains finds a frontend among thousands as fast, and needs no second netlink interface.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::chains::Class;
use super::ipt::text::comment;
use super::ipt::tree::{Entry, Space};
use super::ipt::{Builtin, ChainId, ChainName, Match, Rule, States, Table, Target};
use super::model::ServicePortState;
use super::object::{Claim, Objects};
use super::render_ipt::{self, Gathered, IptSettings};
use super::render_ipvs::{self, NodeNetwork};
use crate::service::frontends::FrontendKind;

pub(super) const SERVICES: ChainName = ChainName::fixed("LONGSHORE-SERVICES");
const CLUSTER_IP: ChainName = ChainName::fixed("LONGSHORE-CLUSTER-IP");
const EXTERNAL_LOCAL: ChainName = ChainName::fixed("LONGSHORE-EXTERNAL-LOCAL");
const EXTERNAL_REMOTE: ChainName = ChainName::fixed("LONGSHORE-EXTERNAL-REMOTE");

/// Every claim a service port makes.
pub fn claims(state: &ServicePortState, node: &NodeNetwork) -> BTreeSet<Claim> {
    let mut all = render_ipvs::claims(state, node);
    let ipv6 = state.spec.cluster_ip.is_ipv6();
    all.extend(state.spec.health_check_node_port.map(|port| Claim::HealthPort { ipv6, port }));
    all.extend(render_ipt::is_guarded(state).then(|| Claim::Chain(guard(state))));
    all
}

/// Where a service port stands in the tries, and as what; `None` for all that is left of an address.
pub fn entries(state: &ServicePortState, node: &NodeNetwork) -> Vec<(Option<FrontendKind>, Entry)> {
    let protocol = state.spec.id.name.protocol;
    let served = render_ipvs::frontends(state, node)
        .map(|(kind, addr, port)| (Some(kind), Entry::address(addr, protocol, port)));
    let rest = owned(state, node).map(|addr| (None, Entry::rest_of(addr)));
    served.chain(rest).collect()
}

/// Addresses that nothing but Services is at.
fn owned<'a>(state: &'a ServicePortState, node: &'a NodeNetwork) -> impl Iterator<Item = IpAddr> + 'a {
    let all = state.spec.addresses().map(|(_, addr)| addr);
    all.filter(|addr| !node.host_addresses.contains(addr))
}

/// The rule a trie of a table has for an entry; none where the table lets its packets be.
pub fn leaf(
    table: Table,
    state: &ServicePortState,
    (kind, entry): (Option<FrontendKind>, &Entry),
    node: &NodeNetwork,
) -> Option<Rule> {
    let class = kind.map(|kind| render_ipvs::class(state, kind));
    let target = match (table, kind, class) {
        (Table::Mangle, Some(FrontendKind::LoadBalancer), _) if render_ipt::is_guarded(state) => {
            Target::Jump(guard(state).name)
        }
        (Table::Mangle, _, Some(class)) => judge(class)?,
        (Table::Filter, _, None | Some(Class::Reject)) => Target::Jump(render_ipt::REJECT),
        // It is served, so the rest of its address is not asked.
        (Table::Filter, ..) if owned(state, node).any(|addr| Some(addr) == entry.addr()) => Target::Return,
        _ => return None,
    };
    Some(Rule::new(entry.matches(comment(&state.spec.id.name.to_string())), target))
}

/// What mangle does with a class; none where it lets packets be.
fn judge(class: Class) -> Option<Target> {
    Some(match class {
        Class::ClusterIp => Target::Jump(CLUSTER_IP),
        Class::External => Target::Jump(render_ipt::MARK),
        Class::ExternalLocal => Target::Jump(EXTERNAL_LOCAL),
        Class::ExternalRemote => Target::Jump(EXTERNAL_REMOTE),
        Class::Drop => Target::Drop,
        // filter answers, and for what is made here IPVS does.
        Class::Reject => return None,
    })
}

/// The chain that admits some sources to a service port's load balancers.
fn guard(state: &ServicePortState) -> ChainId {
    let name =
        ChainName::fixed(&format!("LONGSHORE-FW-{}", render_ipt::hash(&state.spec.id.name.to_string())));
    ChainId { ipv6: state.spec.cluster_ip.is_ipv6(), table: Table::Mangle, name }
}

/// The rules of a service port's own chain; `None` where it is not its.
pub fn service_chain(id: &ChainId, state: &ServicePortState, node: &NodeNetwork) -> Option<Vec<Rule>> {
    if guard(state) != *id || !render_ipt::is_guarded(state) {
        return None;
    }
    // A mark on what is dropped does no harm.
    let first = judge(render_ipvs::class(state, FrontendKind::LoadBalancer)).map(Rule::always);
    let admitted = render_ipt::admitted(state, node);
    let admitted = admitted.into_iter().map(|range| render_ipt::from(range, Target::Return));
    Some(first.into_iter().chain(admitted).chain([Rule::always(Target::Drop)]).collect())
}

/// Every fixed chain of a family; the roots of the tries are among the tries.
pub fn fixed_chains(ipv6: bool) -> Vec<ChainId> {
    let of = |table: Table, names: &[ChainName]| -> Vec<ChainId> {
        names.iter().map(|name| ChainId { ipv6, table, name: *name }).collect()
    };
    let mangle = [
        SERVICES,
        render_ipt::MARK,
        CLUSTER_IP,
        EXTERNAL_LOCAL,
        EXTERNAL_REMOTE,
        render_ipt::KUBE_IPTABLES_HINT,
    ];
    let filter = [render_ipt::INPUT, render_ipt::FORWARD, SERVICES, render_ipt::REJECT, render_ipt::HEALTH];
    let nat =
        [render_ipt::POSTROUTING, render_ipt::MASQUERADE, render_ipt::HAIRPIN, render_ipt::KUBE_MARK_MASQ];
    [of(Table::Mangle, &mangle), of(Table::Filter, &filter), of(Table::Nat, &nat)].concat()
}

/// The objects of a fixed chain: itself, and the jumps into it from built-in chains.
pub fn fixed(id: &ChainId, settings: &IptSettings, node: &NodeNetwork, gathered: &Gathered) -> Objects {
    let rules = rules(id, settings, node, gathered);
    let hooks: &[Builtin] = match (id.table, id.name) {
        (Table::Mangle, SERVICES) => &[Builtin::Input, Builtin::Output],
        (Table::Filter, SERVICES) => &[Builtin::Output],
        (_, render_ipt::INPUT) => &[Builtin::Input],
        (_, render_ipt::FORWARD) => &[Builtin::Forward],
        (_, render_ipt::POSTROUTING) => &[Builtin::Postrouting],
        _ => &[],
    };
    render_ipt::hooked(id, rules, hooks)
}

fn rules(id: &ChainId, settings: &IptSettings, node: &NodeNetwork, gathered: &Gathered) -> Vec<Rule> {
    let bit = settings.chains.masquerade_mark;
    let marked = Match::Mark { value: bit, mask: bit };
    let mark = || Rule::new(vec![Match::SourceIsLocal], Target::Jump(render_ipt::MARK));
    match (id.table, id.name) {
        (Table::Mangle | Table::Filter, SERVICES) => {
            let root = super::ipt::tree::Node::root(id.table, Space::Address { ipv6: id.ipv6 }).chain().name;
            let new = Match::State { any: States::NEW, not: false };
            vec![Rule::new(vec![new], Target::Jump(root))]
        }
        (Table::Mangle, render_ipt::MARK) => vec![Rule::always(Target::Mark { value: bit, mask: bit })],
        (Table::Mangle, CLUSTER_IP) => render_ipt::outside(settings, id.ipv6),
        (Table::Mangle, EXTERNAL_LOCAL) => vec![mark()],
        (Table::Mangle, EXTERNAL_REMOTE) => {
            let mut rules = vec![mark(), Rule::new(vec![Match::SourceIsLocal], Target::Return)];
            let pods = render_ipt::pods(&settings.chains, id.ipv6);
            rules.extend(pods.map(|pod| Rule::new(pod, Target::Return)));
            rules.push(Rule::always(Target::Drop));
            rules
        }
        (Table::Filter, render_ipt::INPUT) => {
            vec![Rule::always(Target::Jump(render_ipt::HEALTH)), Rule::always(Target::Jump(SERVICES))]
        }
        (Table::Filter, render_ipt::FORWARD) => {
            // A host that drops what it forwards must still forward Services' answers.
            let known = Match::State { any: States::RELATED.or(States::ESTABLISHED), not: false };
            vec![Rule::new(vec![marked], Target::Accept), Rule::new(vec![known], Target::Accept)]
        }
        // Connections through IPVS are not marked as translated, so that each new one is looked at.
        (Table::Nat, render_ipt::POSTROUTING) => vec![
            Rule::new(vec![marked], Target::Jump(render_ipt::MASQUERADE)),
            Rule::always(Target::Jump(render_ipt::HAIRPIN)),
        ],
        _ => render_ipt::fixed_rules(id, settings, node, gathered),
    }
}
