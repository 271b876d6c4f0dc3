//! A service port as iptables chains, and the fixed chains around them. A pure function of the state, the
//! node and the settings; what may be reached by whom was decided before.
//!
//! What differs from kube-proxy's chains: endpoints have no chain of their own (the choice and the
//! translation are one rule), what asks for a new source is found once for all Services and not by a
//! rule in each, hairpins are found after the translation, and Services are found by a trie of chains
//! instead of a list. All our chains begin with `LONGSHORE`, so that a kube-proxy beside us keeps its own.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sha2::{Digest, Sha256};

use super::Protocol;
use super::chains::{ChainConfig, PodInterface};
use super::ipt::text::comment;
use super::ipt::tree::{Entry, Space};
use super::ipt::{Builtin, ChainId, ChainName, HookKey, Match, Rule, States, Table, Target, one_in};
use super::model::{Backend, ServicePortState, Target as Goes};
use super::node::NodePortAddresses;
use super::object::{Claim, ObjectKey, ObjectValue, Objects};
use super::render_ipvs::{self, NodeNetwork};
use crate::service::cidr::Cidr;
use crate::service::frontends::FrontendKind;
use crate::service::types::TrafficPolicy;

const PREFIX: &str = "LONGSHORE";
const SERVICES: ChainName = ChainName::fixed("LONGSHORE-SERVICES");
const OUTSIDE: ChainName = ChainName::fixed("LONGSHORE-OUTSIDE");
const NODE_PORTS: ChainName = ChainName::fixed("LONGSHORE-NP");
pub(super) const MARK: ChainName = ChainName::fixed("LONGSHORE-MARK");
pub(super) const POSTROUTING: ChainName = ChainName::fixed("LONGSHORE-POSTROUTING");
pub(super) const MASQUERADE: ChainName = ChainName::fixed("LONGSHORE-MASQUERADE");
pub(super) const HAIRPIN: ChainName = ChainName::fixed("LONGSHORE-HAIRPIN");
pub(super) const INPUT: ChainName = ChainName::fixed("LONGSHORE-INPUT");
pub(super) const FORWARD: ChainName = ChainName::fixed("LONGSHORE-FORWARD");
const OUTPUT: ChainName = ChainName::fixed("LONGSHORE-OUTPUT");
const BLOCK: ChainName = ChainName::fixed("LONGSHORE-BLOCK");
pub(super) const REJECT: ChainName = ChainName::fixed("LONGSHORE-REJECT");
pub(super) const HEALTH: ChainName = ChainName::fixed("LONGSHORE-HEALTH");
/// Network plug-ins and others jump to this chain of nat to have a packet's source rewritten (the port
/// mapping plug-in's `externalSetMarkChain`, KEP-3178 lists more). It is made where nobody has.
pub(super) const KUBE_MARK_MASQ: ChainName = ChainName::fixed("KUBE-MARK-MASQ");
/// Container images that bring both variants of iptables look for this chain of mangle to find out which
/// one the node uses (KEP-3178, `iptables-wrapper`). It is empty.
pub(super) const KUBE_IPTABLES_HINT: ChainName = ChainName::fixed("KUBE-IPTABLES-HINT");

/// What tells a rule of ours in a chain with a name that is not ours.
pub const COMPAT_COMMENT: &str = "made by longshore";

/// Whether a chain is ours by its name.
pub fn is_ours(name: &ChainName) -> bool {
    name.as_str().strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with('-'))
}

/// Whether a chain is one of those other programs look for.
pub fn is_compat(name: &ChainName) -> bool {
    [KUBE_MARK_MASQ, KUBE_IPTABLES_HINT].contains(name)
}

/// What the chains depend on besides Services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IptSettings {
    pub chains: ChainConfig,
    pub node_ports: NodePortAddresses,
    /// Node ports answer on 127.0.0.1 too; needs `route_localnet`.
    pub localhost_node_ports: bool,
    /// The program knows `--random-fully` (iptables 1.6.2, kernel 3.13).
    pub random_fully: bool,
    /// Drop forwarded packets that connection tracking cannot place: the kernel would send their answers
    /// untranslated and the client would reset. Off where `nf_conntrack_tcp_be_liberal` is set.
    pub drop_invalid: bool,
}

impl Default for IptSettings {
    fn default() -> Self {
        IptSettings {
            chains: ChainConfig {
                masquerade_mark: 0x4000,
                masquerade_all: false,
                cluster_cidrs: Vec::new(),
                pod_interface: None,
                service_ranges: Vec::new(),
            },
            node_ports: NodePortAddresses::All,
            localhost_node_ports: true,
            random_fully: true,
            drop_invalid: true,
        }
    }
}

impl IptSettings {
    /// Whether the node's own processes reach node ports by this loopback address. The kernel never routes
    /// packets for `::1` from one device to another.
    pub fn serves_loopback(&self, addr: IpAddr) -> bool {
        let wanted = match &self.node_ports {
            NodePortAddresses::All => true,
            NodePortAddresses::Primary => false,
            NodePortAddresses::Within(ranges) => ranges.iter().any(|range| range.contains(addr)),
        };
        wanted && self.localhost_node_ports && addr.is_ipv4() && addr.is_loopback()
    }
}

/// 14 letters and digits that stand for a text: 70 bits of its SHA-256, so that nobody names a Service
/// to meet another's chain.
pub fn hash(text: &str) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digest = Sha256::digest(text.as_bytes());
    let mut bits = u128::from_be_bytes(std::array::from_fn(|index| digest[index]));
    let mut letter = || {
        bits = bits.rotate_left(5);
        char::from(LETTERS[(bits & 31) as usize])
    };
    (0..14).map(|_| letter()).collect()
}

/// A chain of one service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Spreads over the endpoints of policy Cluster.
    Cluster,
    /// Spreads over those of this node.
    Local,
    /// Where external frontends lead.
    External,
    /// Admits some sources to the load balancer's addresses.
    Admit,
    /// Rejects those sources and drops the rest.
    Refuse,
}

impl Part {
    const ALL: [Part; 5] = [Part::Cluster, Part::Local, Part::External, Part::Admit, Part::Refuse];

    fn chain(self, state: &ServicePortState) -> ChainId {
        let (table, stem) = match self {
            Part::Cluster => (Table::Nat, "SVC"),
            Part::Local => (Table::Nat, "SVL"),
            Part::External => (Table::Nat, "EXT"),
            Part::Admit => (Table::Nat, "FW"),
            Part::Refuse => (Table::Filter, "FW"),
        };
        let id = hash(&state.spec.id.name.to_string());
        let name = ChainName::fixed(&format!("{PREFIX}-{stem}-{id}"));
        ChainId { ipv6: is_ipv6(state), table, name }
    }

    fn is_wanted(self, state: &ServicePortState) -> bool {
        let policies = &state.spec.policies;
        let external = policies.externally_accessible;
        match self {
            Part::Cluster => {
                !state.cluster.is_empty() && (external || policies.internal == TrafficPolicy::Cluster)
            }
            Part::Local => !state.local.is_empty() && policies.uses_local(),
            Part::External => external && (reached(state, true) || reached(state, false)),
            Part::Admit => is_guarded(state) && Part::External.is_wanted(state),
            Part::Refuse => {
                is_guarded(state) && state.target(FrontendKind::LoadBalancer, false) == Goes::Reject
            }
        }
    }
}

fn is_ipv6(state: &ServicePortState) -> bool {
    state.spec.cluster_ip.is_ipv6()
}

/// Whether external frontends lead to any endpoint.
fn reached(state: &ServicePortState, inside: bool) -> bool {
    matches!(state.target(FrontendKind::NodePort, inside), Goes::Endpoints(_))
}

pub(super) fn is_guarded(state: &ServicePortState) -> bool {
    !state.spec.source_ranges.is_empty() && !state.spec.load_balancer_ips.is_empty()
}

/// Every claim a service port makes. Those of its node ports at each address have no objects in this
/// mode; people still ask for them by address.
pub fn claims(state: &ServicePortState, node: &NodeNetwork) -> BTreeSet<Claim> {
    let protocol = state.spec.id.name.protocol;
    let frontends = render_ipvs::frontends(state, node);
    let mut all: BTreeSet<Claim> =
        frontends.map(|(_, addr, port)| Claim::Frontend { addr, port, protocol }).collect();
    let ipv6 = is_ipv6(state);
    all.extend(state.spec.node_port.map(|port| Claim::NodePort { ipv6, protocol, port }));
    all.extend(state.spec.health_check_node_port.map(|port| Claim::HealthPort { ipv6, port }));
    let local = state.cluster.iter().chain(&state.local).filter(|backend| backend.local);
    all.extend(local.map(|backend| Claim::Hairpin(backend.addr.ip())));
    let parts = Part::ALL.into_iter().filter(|part| part.is_wanted(state));
    all.extend(parts.map(|part| Claim::Chain(part.chain(state))));
    all
}

/// Where a service port stands in the tries.
pub fn entries(state: &ServicePortState) -> Vec<(FrontendKind, Entry)> {
    let protocol = state.spec.id.name.protocol;
    let own = state.spec.addresses();
    let own = own.map(|(kind, addr)| (kind, Entry::address(addr, protocol, state.spec.port)));
    let node_port = state.spec.node_port.map(|port| Entry::node_port(is_ipv6(state), protocol, port));
    own.chain(node_port.map(|entry| (FrontendKind::NodePort, entry))).collect()
}

/// UDP frontends that these chains lead to endpoints, node ports at each of the node's addresses. Which
/// Services they belonged to is not said by rules; that their flows may be translated is.
pub fn udp_frontends(objects: &Objects, node: &NodeNetwork) -> BTreeSet<SocketAddr> {
    let mut found = BTreeSet::new();
    for (key, value) in objects.iter() {
        let (ObjectKey::Chain(id), ObjectValue::Rules(rules)) = (key, value) else { continue };
        if id.table != Table::Nat || !is_ours(&id.name) {
            continue;
        }
        for rule in rules {
            found.extend(udp_leaf(rule, id.ipv6, node));
        }
    }
    found
}

/// The frontends of a trie's rule for one UDP port; other rules have none.
fn udp_leaf(rule: &Rule, ipv6: bool, node: &NodeNetwork) -> Vec<SocketAddr> {
    let port = rule.matches.iter().find_map(|one| match one {
        Match::Ports(Protocol::Udp, first, last) if first == last => Some(*first),
        _ => None,
    });
    let Some(port) = port else { return Vec::new() };
    let within = rule.matches.iter().find_map(|one| match one {
        Match::Destination { within, not: false } => Some(*within),
        _ => None,
    });
    match within {
        Some(within) => vec![SocketAddr::new(within.first(), port)],
        None => {
            let own = node.node_port_addresses.iter().filter(|addr| addr.is_ipv6() == ipv6);
            own.map(|addr| SocketAddr::new(*addr, port)).collect()
        }
    }
}

/// The rule a trie of a table has for an entry of this kind; none where the table lets its packets be.
pub fn leaf(table: Table, state: &ServicePortState, (kind, entry): (FrontendKind, &Entry)) -> Option<Rule> {
    let guarded = kind == FrontendKind::LoadBalancer && is_guarded(state);
    let to = |part: Part| Target::Jump(part.chain(state).name);
    let target = match (table, state.target(kind, false)) {
        (Table::Nat, goes) if kind == FrontendKind::ClusterIp => match (goes, state.policy(kind)) {
            (Goes::Endpoints(_), TrafficPolicy::Cluster) => to(Part::Cluster),
            (Goes::Endpoints(_), TrafficPolicy::Local) => to(Part::Local),
            (Goes::Reject | Goes::Drop, _) => return None,
        },
        (Table::Nat, _) if !Part::External.is_wanted(state) => return None,
        (Table::Nat, _) => to(if guarded { Part::Admit } else { Part::External }),
        (Table::Filter, Goes::Reject) if guarded => to(Part::Refuse),
        // Who was admitted has another destination by now.
        (Table::Filter, _) if guarded => Target::Drop,
        (Table::Filter, Goes::Reject) => Target::Jump(REJECT),
        // The node and its pods were translated before.
        (Table::Filter, Goes::Drop) => Target::Drop,
        (Table::Filter, Goes::Endpoints(_)) | (Table::Mangle, _) => return None,
    };
    Some(Rule::new(entry.matches(comment(&state.spec.id.name.to_string())), target))
}

/// The rules of one of a service port's chains; `None` where it is not one of them.
pub fn service_chain(
    id: &ChainId,
    state: &ServicePortState,
    node: &NodeNetwork,
    settings: &IptSettings,
) -> Option<Vec<Rule>> {
    let is_it = |part: &Part| part.chain(state) == *id && part.is_wanted(state);
    Some(match Part::ALL.into_iter().find(is_it)? {
        Part::Cluster => spread(state, &state.cluster),
        Part::Local => spread(state, &state.local),
        Part::External => external(state, settings),
        Part::Admit => {
            let to = Target::Jump(Part::External.chain(state).name);
            admitted(state, node).into_iter().map(|range| from(range, to)).collect()
        }
        Part::Refuse => {
            let to = Target::Jump(REJECT);
            let mut rules: Vec<Rule> =
                admitted(state, node).into_iter().map(|range| from(range, to)).collect();
            rules.push(Rule::always(Target::Drop));
            rules
        }
    })
}

pub(super) fn from(range: Cidr, target: Target) -> Rule {
    Rule::new(Match::source(range).into_iter().collect(), target)
}

/// The admitted ranges, and the load balancer's own addresses where the node is among them: a packet the
/// node sends to such an address has it as its source too.
pub(super) fn admitted(state: &ServicePortState, node: &NodeNetwork) -> Vec<Cidr> {
    let mut ranges = state.spec.source_ranges.clone();
    if node.node_port_addresses.iter().any(|addr| ranges.iter().any(|range| range.contains(*addr))) {
        ranges.extend(state.spec.load_balancer_ips.iter().copied().map(Cidr::host));
    }
    ranges
}

/// Choose an endpoint and go there. Each rule is taken with the probability of one among those left, the
/// last one always. With affinity, a client that is remembered at an endpoint goes there first; a list is
/// shared by both policies and lives as long as any rule names it. (`xt_recent` remembers 100 clients an
/// endpoint unless its `ip_list_tot` says otherwise; kube-proxy has the same limit.)
fn spread(state: &ServicePortState, backends: &[Backend]) -> Vec<Rule> {
    let name = &state.spec.id.name;
    let service = hash(&name.to_string());
    let list = |backend: &Backend| -> Box<str> {
        format!("LS-{service}-{}-{}", backend.addr.ip(), backend.addr.port()).into()
    };
    let mut rules = Vec::with_capacity(backends.len() * (1 + usize::from(state.spec.affinity.is_some())));
    let protocol = Match::Protocol(name.protocol);
    for backend in backends {
        if let Some(seconds) = state.spec.affinity {
            let remembered = Match::Remembered { list: list(backend), seconds };
            rules.push(Rule::new(vec![protocol.clone(), remembered], Target::Translate(backend.addr)));
        }
    }
    let count = u32::try_from(backends.len()).unwrap_or(u32::MAX);
    for (left, backend) in (1..=count).rev().zip(backends) {
        let mut matches = vec![protocol.clone()];
        matches.extend((left > 1).then(|| Match::Random(one_in(left))));
        matches.extend(state.spec.affinity.map(|_| Match::Remember(list(backend))));
        rules.push(Rule::new(matches, Target::Translate(backend.addr)));
    }
    rules
}

/// With policy Cluster every source is rewritten. With Local it is kept, and only the node itself (marked
/// before) and pods reach endpoints elsewhere.
fn external(state: &ServicePortState, settings: &IptSettings) -> Vec<Rule> {
    let all = Target::Jump(Part::Cluster.chain(state).name);
    if state.policy(FrontendKind::NodePort) == TrafficPolicy::Cluster {
        return vec![Rule::always(Target::Jump(MARK)), Rule::always(all)];
    }
    let mut rules = Vec::new();
    let inside = Part::Cluster.is_wanted(state);
    if inside {
        rules.push(Rule::new(vec![Match::SourceIsLocal], all));
    }
    rules.push(Rule::always(unmark(settings)));
    if inside {
        rules.extend(pods(&settings.chains, is_ipv6(state)).map(|pod| Rule::new(pod, all)));
    }
    if Part::Local.is_wanted(state) {
        rules.push(Rule::always(Target::Jump(Part::Local.chain(state).name)));
    }
    rules
}

/// How packets of pods are told, each way by itself.
pub(super) fn pods(config: &ChainConfig, ipv6: bool) -> impl Iterator<Item = Vec<Match>> + '_ {
    let of_family = config.cluster_cidrs.iter().filter(move |cidr| cidr.first().is_ipv6() == ipv6);
    let by_address = of_family.map(|cidr| Match::source(*cidr).into_iter().collect());
    let by_interface = config.pod_interface.iter().map(|interface| {
        vec![Match::Interface(match interface {
            PodInterface::Named(name) => name.as_str().into(),
            PodInterface::Prefixed(prefix) => format!("{prefix}+").into(),
        })]
    });
    by_address.chain(by_interface)
}

fn unmark(settings: &IptSettings) -> Target {
    Target::Mark { value: 0, mask: settings.chains.masquerade_mark }
}

/// What the fixed chains take from all Services together.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// Endpoints of this node.
    pub hairpins: Vec<IpAddr>,
    /// Ports that load balancers ask for health at.
    pub health_ports: Vec<u16>,
}

/// Every fixed chain of a family; the roots of the tries are among the tries.
pub fn fixed_chains(ipv6: bool) -> Vec<ChainId> {
    let of = |table: Table, names: &[ChainName]| -> Vec<ChainId> {
        names.iter().map(|name| ChainId { ipv6, table, name: *name }).collect()
    };
    let nat = [SERVICES, OUTSIDE, NODE_PORTS, MARK, POSTROUTING, MASQUERADE, HAIRPIN, KUBE_MARK_MASQ];
    let filter = [INPUT, FORWARD, OUTPUT, BLOCK, NODE_PORTS, REJECT, HEALTH];
    [of(Table::Nat, &nat), of(Table::Filter, &filter), of(Table::Mangle, &[KUBE_IPTABLES_HINT])].concat()
}

/// The spaces a family's tries dispatch on.
pub fn spaces(ipv6: bool) -> impl Iterator<Item = Space> {
    let ports = Protocol::ALL.into_iter().map(move |protocol| Space::NodePort { ipv6, protocol });
    std::iter::once(Space::Address { ipv6 }).chain(ports)
}

pub fn hairpin_chain(ipv6: bool) -> ChainId {
    ChainId { ipv6, table: Table::Nat, name: HAIRPIN }
}

pub fn health_chain(ipv6: bool) -> ChainId {
    ChainId { ipv6, table: Table::Filter, name: HEALTH }
}

/// The objects of a fixed chain: itself, and the jumps into it from built-in chains.
pub fn fixed(id: &ChainId, settings: &IptSettings, node: &NodeNetwork, gathered: &Gathered) -> Objects {
    let rules = fixed_rules(id, settings, node, gathered);
    let hooks: &[Builtin] = match id.name {
        SERVICES => &[Builtin::Prerouting, Builtin::Output],
        POSTROUTING => &[Builtin::Postrouting],
        INPUT => &[Builtin::Input],
        FORWARD => &[Builtin::Forward],
        OUTPUT => &[Builtin::Output],
        _ => &[],
    };
    hooked(id, rules, hooks)
}

/// A chain with these rules, and a jump into it from each of these built-in chains.
pub(super) fn hooked(id: &ChainId, rules: Vec<Rule>, hooks: &[Builtin]) -> Objects {
    let hook = |from: &Builtin| {
        let rule = Box::new(Rule::always(Target::Jump(id.name)));
        (ObjectKey::Hook(HookKey { to: *id, from: *from, rule, copy: 0 }), ObjectValue::Hook)
    };
    let chain = (ObjectKey::Chain(*id), ObjectValue::Rules(rules));
    std::iter::once(chain).chain(hooks.iter().map(hook)).collect()
}

/// The rules of a fixed chain.
pub(super) fn fixed_rules(
    id: &ChainId,
    settings: &IptSettings,
    node: &NodeNetwork,
    gathered: &Gathered,
) -> Vec<Rule> {
    match id.table {
        Table::Nat => nat_rules(id, settings, node, gathered),
        Table::Filter => filter_rules(id, settings, node, gathered),
        Table::Mangle => Vec::new(),
    }
}

fn nat_rules(id: &ChainId, settings: &IptSettings, node: &NodeNetwork, gathered: &Gathered) -> Vec<Rule> {
    let bit = settings.chains.masquerade_mark;
    let mark = Target::Mark { value: bit, mask: bit };
    let marked = Match::Mark { value: bit, mask: bit };
    match id.name {
        SERVICES => {
            let mut rules = vec![Rule::always(Target::Jump(OUTSIDE))];
            rules.extend(dispatch(id.ipv6, settings, node));
            // No Service wanted it: the mark was only a guess.
            rules.push(Rule::always(unmark(settings)));
            rules
        }
        OUTSIDE => outside(settings, id.ipv6),
        NODE_PORTS => node_port_roots(id),
        MARK => vec![Rule::always(mark)],
        POSTROUTING => vec![
            Rule::new(vec![marked], Target::Jump(MASQUERADE)),
            Rule::new(vec![Match::State { any: States::DNAT, not: false }], Target::Jump(HAIRPIN)),
        ],
        MASQUERADE => vec![
            // Left on the packet it would be seen again behind a tunnel.
            Rule::always(unmark(settings)),
            Rule::always(Target::Masquerade { random_fully: settings.random_fully }),
        ],
        HAIRPIN => gathered.hairpins.iter().map(|addr| hairpin(*addr, settings)).collect(),
        KUBE_MARK_MASQ => vec![Rule::new(vec![Match::Comment(COMPAT_COMMENT.into())], mark)],
        _ => Vec::new(),
    }
}

/// An endpoint that reached itself: it would answer itself directly, and not as the Service.
fn hairpin(addr: IpAddr, settings: &IptSettings) -> Rule {
    let within = Cidr::host(addr);
    let matches = vec![Match::Source { within, not: false }, Match::Destination { within, not: false }];
    Rule::new(matches, Target::Masquerade { random_fully: settings.random_fully })
}

/// Mark what does not come from a pod, as cluster addresses want it. The node's own packets are told by
/// their source; where pods are told by nothing, only those are marked.
pub(super) fn outside(settings: &IptSettings, ipv6: bool) -> Vec<Rule> {
    let mark = Target::Jump(MARK);
    if settings.chains.masquerade_all {
        return vec![Rule::always(mark)];
    }
    let mut rules = vec![Rule::new(vec![Match::SourceIsLocal], mark)];
    rules.extend(pods(&settings.chains, ipv6).map(|pod| Rule::new(pod, Target::Return)));
    if rules.len() > 1 {
        rules.push(Rule::always(mark));
    }
    rules
}

/// To the tries: Services' own addresses first, then node ports at the node's addresses.
fn dispatch(ipv6: bool, settings: &IptSettings, node: &NodeNetwork) -> Vec<Rule> {
    let tree = super::ipt::tree::Node::root(Table::Nat, Space::Address { ipv6 }).chain().name;
    let mut rules = vec![Rule::always(Target::Jump(tree))];
    let local = Match::DestinationIsLocal;
    let to = Target::Jump(NODE_PORTS);
    let loopback: IpAddr = if ipv6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    // The kernel never routes packets for ::1 from one device to another.
    let loopback_too = !ipv6 && settings.localhost_node_ports;
    let loopback_net = if ipv6 { Some(Cidr::host(loopback)) } else { Cidr::new(loopback, 8) };
    let not_loopback = loopback_net.map(|within| Match::Destination { within, not: true });
    match &settings.node_ports {
        NodePortAddresses::All if loopback_too => rules.push(Rule::new(vec![local], to)),
        NodePortAddresses::All => {
            rules.push(Rule::new(not_loopback.into_iter().chain([local]).collect(), to))
        }
        NodePortAddresses::Primary => {
            let own = node.node_port_addresses.iter().filter(|addr| addr.is_ipv6() == ipv6);
            rules.extend(own.map(|addr| {
                let within = Cidr::host(*addr);
                Rule::new(vec![Match::Destination { within, not: false }, local.clone()], to)
            }));
        }
        NodePortAddresses::Within(ranges) => {
            let of_family = ranges.iter().filter(|range| range.first().is_ipv6() == ipv6);
            let is_loopback = |range: &Cidr| loopback_net.is_some_and(|net| net.contains(range.first()));
            for range in of_family.filter(|range| loopback_too || !is_loopback(range)) {
                let mut matches = Vec::new();
                if range.is_zero() && !loopback_too {
                    matches.extend(not_loopback.clone());
                } else if !range.is_zero() {
                    matches.push(Match::Destination { within: *range, not: false });
                }
                matches.push(local.clone());
                rules.push(Rule::new(matches, to));
            }
        }
    }
    rules
}

fn node_port_roots(id: &ChainId) -> Vec<Rule> {
    let root = |protocol: Protocol| {
        let space = Space::NodePort { ipv6: id.ipv6, protocol };
        let to = super::ipt::tree::Node::root(id.table, space).chain().name;
        Rule::new(vec![Match::Protocol(protocol)], Target::Jump(to))
    };
    Protocol::ALL.into_iter().map(root).collect()
}

fn filter_rules(id: &ChainId, settings: &IptSettings, node: &NodeNetwork, gathered: &Gathered) -> Vec<Rule> {
    let bit = settings.chains.masquerade_mark;
    let state = |any: States| Match::State { any, not: false };
    let block = Rule::new(vec![state(States::NEW)], Target::Jump(BLOCK));
    match id.name {
        INPUT => {
            let mut rules = vec![Rule::always(Target::Jump(HEALTH)), block];
            rules.splice(0..0, martians(id.ipv6, settings));
            rules
        }
        OUTPUT => martians(id.ipv6, settings).into_iter().chain([block]).collect(),
        FORWARD => {
            let drop = Rule::new(vec![state(States::INVALID)], Target::Drop);
            let mut rules = vec![block];
            rules.extend(settings.drop_invalid.then_some(drop));
            // A host that drops what it forwards must still forward Services.
            rules.push(Rule::new(vec![Match::Mark { value: bit, mask: bit }], Target::Accept));
            let known = States::RELATED.or(States::ESTABLISHED);
            rules.push(Rule::new(vec![state(known)], Target::Accept));
            rules
        }
        BLOCK => dispatch(id.ipv6, settings, node),
        NODE_PORTS => node_port_roots(id),
        REJECT => vec![
            Rule::new(vec![Match::Protocol(Protocol::Tcp)], Target::Reset),
            Rule::always(Target::Unreachable),
        ],
        HEALTH => {
            let accept = |port: &u16| {
                let port = Match::port(Protocol::Tcp, *port);
                Rule::new(vec![Match::Protocol(Protocol::Tcp), port], Target::Accept)
            };
            gathered.health_ports.iter().map(accept).collect()
        }
        _ => Vec::new(),
    }
}

/// With `route_localnet` the kernel lets packets for 127.0.0.0/8 in from other hosts (CVE-2020-8558); the
/// kubelet's KUBE-FIREWALL drops them, and so do we, since we set it.
fn martians(ipv6: bool, settings: &IptSettings) -> Vec<Rule> {
    let loopback =
        Cidr::new(Ipv4Addr::LOCALHOST.into(), 8).filter(|_| !ipv6 && settings.localhost_node_ports);
    let known = States::RELATED.or(States::ESTABLISHED).or(States::DNAT);
    let rule = |within: Cidr| {
        let matches = vec![
            Match::Source { within, not: true },
            Match::Destination { within, not: false },
            Match::State { any: known, not: true },
        ];
        Rule::new(matches, Target::Drop)
    };
    loopback.map(rule).into_iter().collect()
}
