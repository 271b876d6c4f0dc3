//! The fixed part of our nf_tables tables: chains whose number and length do not depend on Services.
//! Every frontend is one element of a map from its address and port to numbers: its class and, in
//! nftables mode, how its clients are spread. Small maps lead from those numbers to chains.

use super::Protocol;
use super::nft::{
    BaseChain, Chain, ChainType, CmpOp, CtKey, DynsetOp, Element, ElementKey, Expr, FibResult, FibSelector,
    HeaderField, Hook, LookupTarget, MetaKey, NatFlags, NatKind, NftTable, NumgenMode, Packed, Policy, Reg,
    RejectWith, Rule, Set, Value, Verdict, ct_state,
};
use super::object::{SetId, Spread};
use crate::service::cidr::Cidr;

/// What happens to the first packet of a connection to a frontend, before its endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A cluster address: the source is rewritten unless a pod asks.
    ClusterIp,
    /// An external frontend with policy Cluster: the source is always rewritten.
    External,
    /// External policy Local with endpoints here: the client's address is kept.
    ExternalLocal,
    /// External policy Local without endpoints here: only the node and its pods get through.
    ExternalRemote,
    /// No endpoint anywhere.
    Reject,
    /// Endpoints, but none this policy allows.
    Drop,
}

impl Class {
    pub const ALL: [Class; 6] = [
        Class::ClusterIp,
        Class::External,
        Class::ExternalLocal,
        Class::ExternalRemote,
        Class::Reject,
        Class::Drop,
    ];

    pub const fn chain(self) -> &'static str {
        match self {
            Class::ClusterIp => "cluster-ip",
            Class::External => "external",
            Class::ExternalLocal => "external-local",
            Class::ExternalRemote => "external-remote",
            Class::Reject => "reject",
            Class::Drop => "drop",
        }
    }

    /// How the class stands in the maps of frontends.
    pub fn number(self) -> Value {
        Value::Index(Class::ALL.iter().position(|class| *class == self).unwrap_or_default() as u32)
    }
}

/// What the chains depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainConfig {
    /// The packet mark that asks for a rewritten source, one bit.
    pub masquerade_mark: u32,
    /// Rewrite the source of everything that goes to a cluster address.
    pub masquerade_all: bool,
    /// Where pods' addresses come from; empty where it is not known.
    pub cluster_cidrs: Vec<Cidr>,
    /// The interface pods' packets come in by, where that is how they are told.
    pub pod_interface: Option<PodInterface>,
    /// nftables mode: where Services get their addresses from, as ServiceCIDRs say, none within another.
    /// An address there that no Service has is nobody's, and packets to it are dropped.
    pub service_ranges: Vec<Cidr>,
}

/// How pods are told by the interface their packets come in by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodInterface {
    /// A bridge.
    Named(String),
    /// Every interface whose name starts so.
    Prefixed(String),
}

impl PodInterface {
    /// The leading bytes of the interface's name that are compared.
    fn bytes(&self) -> Packed {
        match self {
            PodInterface::Named(name) => Value::if_name(name).into(),
            PodInterface::Prefixed(prefix) => {
                let kept = prefix.as_bytes().get(..15).unwrap_or(prefix.as_bytes());
                Packed::from_bytes(kept).unwrap_or_else(|| Value::if_name(prefix).into())
            }
        }
    }
}

/// Before connection tracking's translation and before IPVS takes locally made packets (-98).
const BEFORE_IPVS: i32 = -150;
/// Where destinations are rewritten.
pub(super) const DSTNAT: i32 = -100;
/// Where filters usually stand, behind that.
const FILTER: i32 = 0;
const SRCNAT: i32 = 100;
const AFTER_SRCNAT: i32 = 110;
/// `RTN_LOCAL`: one of this host's addresses.
const LOCAL: u32 = 2;
const R0: Reg = Reg(0);

/// Where an element of `services` holds its parts, counted in registers from its first.
#[derive(Clone, Copy, Debug)]
struct ServiceData {
    class: u8,
    inside: u8,
    outside: u8,
}

/// After `cluster address . protocol . port`.
const fn service_data(ipv6: bool) -> ServiceData {
    let class = addr_regs(ipv6) + 2;
    ServiceData { class, inside: class + 1, outside: class + 3 }
}

const fn addr_regs(ipv6: bool) -> u8 {
    if ipv6 { 4 } else { 1 }
}

/// The table of a family in IPVS mode, its sets empty.
pub fn ipvs_table(config: &ChainConfig, ipv6: bool) -> NftTable {
    // IPVS takes packets that come in to the host.
    common(config, ipv6, Mode { hook: ("input", Hook::Input), frontends: SetId::Frontends, class: 0 })
}

/// The table of a family in nftables mode, its sets empty and without the chains that spread.
pub fn nftables_table(config: &ChainConfig, ipv6: bool) -> NftTable {
    let data = service_data(ipv6);
    let hook = ("prerouting", Hook::Prerouting);
    let mut table = common(config, ipv6, Mode { hook, frontends: SetId::Services, class: data.class });
    for id in [
        SetId::Spreads,
        SetId::Endpoints,
        SetId::LocalEndpoints,
        SetId::Members,
        SetId::LocalMembers,
        SetId::Affinity,
    ] {
        table.sets.insert(id.name().to_owned(), Set::new(id.spec(ipv6)));
    }
    for (name, hook) in [("nat-prerouting", Hook::Prerouting), ("nat-output", Hook::Output)] {
        let base = Some(base(ChainType::Nat, hook, DSTNAT));
        // Who asks is only looked at where it matters.
        let mut if_outside = find_service(ipv6);
        if_outside.push(Expr::neq(Reg(data.outside), Value::Index(0)));
        if_outside.push(Expr::Verdict(Verdict::Jump("outside".to_owned())));
        let rules = vec![Rule::new(if_outside), spread_by(data.inside, ipv6)];
        table.chains.insert(name.to_owned(), Chain { base, rules });
    }
    let mut outside = vec![Rule::new(is_from_this_node(Expr::Verdict(Verdict::Return)))];
    outside.extend(from_pods(config, ipv6));
    outside.push(spread_by(data.outside, ipv6));
    table.chains.insert("outside".to_owned(), Chain { base: None, rules: outside });
    add_ranges(&mut table, &config.service_ranges, ipv6);
    table
}

/// Drop what goes to an address of a Service's range that still is its destination behind the rewriting:
/// no Service has it, neither here nor with another proxy. As kube-proxy does in its nftables mode, that
/// holds for what is forwarded and what the node sends; an address of the host itself is not forwarded to.
fn add_ranges(table: &mut NftTable, ranges: &[Cidr], ipv6: bool) {
    let mut set = Set::new(SetId::ServiceRanges.spec(ipv6));
    for range in ranges.iter().filter(|range| range.first().is_ipv6() == ipv6) {
        let key = ElementKey::range(&[Value::Addr(range.first())], &[Value::Addr(range.last())]);
        let element = Element::key(key);
        set.elements.insert(element.key, element.value);
    }
    table.sets.insert(SetId::ServiceRanges.name().to_owned(), set);
    for (name, hook) in [("forward", Hook::Forward), ("output-translated", Hook::Output)] {
        let base = Some(base(ChainType::Filter, hook, FILTER));
        table.chains.insert(name.to_owned(), Chain { base, rules: vec![new_connections_to("unallocated")] });
    }
    let unallocated = vec![
        Expr::load(HeaderField::daddr(ipv6), R0),
        lookup(SetId::ServiceRanges, LookupTarget::Hit),
        Expr::Verdict(Verdict::Drop),
    ];
    let rule = Rule::new(unallocated).commented("no Service has this address of their range");
    table.chains.insert("unallocated".to_owned(), Chain { base: None, rules: vec![rule] });
}

/// The ranges of Services' addresses that a table of ours holds.
pub fn service_ranges(table: &NftTable, ipv6: bool) -> Vec<Cidr> {
    let set = table.sets.get(SetId::ServiceRanges.name());
    let addr = |packed: &Packed| match *packed.values(&SetId::ServiceRanges.spec(ipv6).key)?.as_slice() {
        [Value::Addr(addr)] => Some(addr),
        _ => None,
    };
    let range =
        |key: &ElementKey| Cidr::spanning(addr(&key.start)?, addr(key.end.as_deref().unwrap_or(&key.start))?);
    set.into_iter().flat_map(|set| set.elements.keys()).filter_map(range).collect()
}

/// The rules of a chain that spreads: a client that is remembered goes where it went, where that is
/// still an endpoint; another draws a number, and the endpoint is found by it.
pub fn spread_rules(spread: &Spread) -> Vec<Rule> {
    match spread.sticky {
        None => vec![choose_and_go(spread)],
        Some(seconds) => vec![
            go_as_remembered(spread, seconds),
            choose_and_remember(spread, seconds),
            choose_and_go(spread).commented("no more clients can be remembered"),
        ],
    }
}

/// Load the frontend's service port from `at` on and choose one of its endpoints; returns where the
/// endpoint's address is.
fn choose(spread: &Spread, at: Reg) -> (Vec<Expr>, Reg) {
    let ipv6 = spread.ipv6;
    let mut exprs = Vec::new();
    load_frontend_at(at, ipv6, &mut exprs);
    exprs.push(lookup_at(at, SetId::Services, LookupTarget::Data(at)));
    let index = Reg(at.0 + service_data(ipv6).class);
    exprs.push(Expr::Numgen { mode: NumgenMode::Random, modulus: spread.count, offset: 0, dst: index });
    let set = if spread.local { SetId::LocalEndpoints } else { SetId::Endpoints };
    let chosen = Reg(index.0 + 1);
    exprs.push(lookup_at(at, set, LookupTarget::Data(chosen)));
    (exprs, chosen)
}

fn choose_and_go(spread: &Spread) -> Rule {
    let (mut exprs, chosen) = choose(spread, R0);
    exprs.push(translate_to(chosen, spread.ipv6));
    Rule::new(exprs)
}

/// Where a remembered endpoint is gone its entry is replaced: an update alone would keep it.
fn choose_and_remember(spread: &Spread, seconds: u32) -> Rule {
    let ipv6 = spread.ipv6;
    let (mut exprs, chosen) = choose(spread, Reg(addr_regs(ipv6)));
    exprs.push(Expr::load(HeaderField::saddr(ipv6), R0));
    exprs.push(remember(DynsetOp::Delete, chosen, seconds));
    exprs.push(remember(DynsetOp::Update, chosen, seconds));
    exprs.push(translate_to(chosen, ipv6));
    Rule::new(exprs)
}

/// Every new connection starts the client's time again.
fn go_as_remembered(spread: &Spread, seconds: u32) -> Rule {
    let ipv6 = spread.ipv6;
    let service = Reg(addr_regs(ipv6));
    let mut exprs = Vec::new();
    load_frontend_at(service, ipv6, &mut exprs);
    exprs.push(lookup_at(service, SetId::Services, LookupTarget::Data(service)));
    exprs.push(Expr::load(HeaderField::saddr(ipv6), R0));
    // Right behind `client . service port`, over the class and what follows it.
    let endpoint = Reg(service.0 + service_data(ipv6).class);
    exprs.push(lookup_at(R0, SetId::Affinity, LookupTarget::Data(endpoint)));
    let members = if spread.local { SetId::LocalMembers } else { SetId::Members };
    exprs.push(lookup_at(service, members, LookupTarget::Hit));
    exprs.push(remember(DynsetOp::Update, endpoint, seconds));
    exprs.push(translate_to(endpoint, ipv6));
    Rule::new(exprs)
}

fn remember(op: DynsetOp, endpoint: Reg, seconds: u32) -> Expr {
    Expr::Dynset {
        set: SetId::Affinity.name().to_owned(),
        op,
        key: R0,
        data: Some(endpoint),
        timeout_ms: Some(u64::from(seconds) * 1000),
    }
}

fn translate_to(addr: Reg, ipv6: bool) -> Expr {
    Expr::Nat {
        kind: NatKind::Dnat,
        ipv6,
        addr: Some(addr),
        port: Some(Reg(addr.0 + addr_regs(ipv6))),
        flags: NatFlags::default(),
    }
}

/// Load a packet's frontend and replace it by what `services` has of it; ends the rule where there is none.
fn find_service(ipv6: bool) -> Vec<Expr> {
    let mut exprs = Vec::new();
    load_frontend(ipv6, &mut exprs);
    exprs.push(lookup(SetId::Services, LookupTarget::Data(R0)));
    exprs
}

/// Go to the chain that the part at `part` of a service names.
fn spread_by(part: u8, ipv6: bool) -> Rule {
    let mut exprs = find_service(ipv6);
    exprs.push(lookup_at(Reg(part), SetId::Spreads, LookupTarget::Verdict));
    Rule::new(exprs)
}

/// What differs between the modes in the common part.
#[derive(Clone, Copy)]
struct Mode {
    /// Where incoming packets are met.
    hook: (&'static str, Hook),
    /// The map of frontends.
    frontends: SetId,
    /// Where its elements hold the class.
    class: u8,
}

fn common(config: &ChainConfig, ipv6: bool, mode: Mode) -> NftTable {
    let mut table = NftTable::default();
    for id in [mode.frontends, SetId::ServiceIps, SetId::Restricted, SetId::Allowed, SetId::Hairpin] {
        table.sets.insert(id.name().to_owned(), Set::new(id.spec(ipv6)));
    }
    let mut classes = Set::new(SetId::Classes.spec(ipv6));
    for class in Class::ALL {
        let to = Verdict::Goto(class.chain().to_owned());
        let element = Element::verdict(ElementKey::of(&[class.number()]), to);
        classes.elements.insert(element.key, element.value);
    }
    table.sets.insert(SetId::Classes.name().to_owned(), classes);
    let (incoming, hook) = mode.hook;
    let mut add = |name: &str, base: Option<BaseChain>, rules: Vec<Rule>| {
        table.chains.insert(name.to_owned(), Chain { base, rules });
    };
    let filter = |hook, priority| Some(base(ChainType::Filter, hook, priority));
    add(incoming, filter(hook, BEFORE_IPVS), vec![new_connections_to("services")]);
    add("output", filter(Hook::Output, BEFORE_IPVS), vec![new_connections_to("services")]);
    add("services", None, services(mode, ipv6));
    add("mark", None, vec![mark(config.masquerade_mark)]);
    for class in Class::ALL {
        add(class.chain(), None, class_rules(class, config, ipv6));
    }
    add("postrouting", Some(base(ChainType::Nat, Hook::Postrouting, SRCNAT)), masquerade(config, ipv6));
    add("unmark", filter(Hook::Postrouting, AFTER_SRCNAT), vec![unmark(config.masquerade_mark)]);
    table
}

fn base(kind: ChainType, hook: Hook, priority: i32) -> BaseChain {
    BaseChain { kind, hook, priority, policy: Policy::Accept }
}

fn goto(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Goto(chain.to_owned()))
}

fn new_connections_to(chain: &str) -> Rule {
    Rule::new(vec![
        Expr::ct(CtKey::State, R0),
        Expr::mask(R0, ct_state::NEW),
        Expr::neq(R0, Value::Mark(0)),
        Expr::Verdict(Verdict::Jump(chain.to_owned())),
    ])
}

/// Load `destination . protocol . port` from the first register on; returns the next free one.
fn load_frontend(ipv6: bool, exprs: &mut Vec<Expr>) -> Reg {
    load_frontend_at(R0, ipv6, exprs)
}

fn load_frontend_at(at: Reg, ipv6: bool, exprs: &mut Vec<Expr>) -> Reg {
    let proto = at.after(if ipv6 { 16 } else { 4 });
    let port = proto.after(1);
    exprs.push(Expr::load(HeaderField::daddr(ipv6), at));
    exprs.push(Expr::meta(MetaKey::L4Proto, proto));
    exprs.push(Expr::load(HeaderField::Dport, port));
    port.after(2)
}

fn lookup(set: SetId, target: LookupTarget) -> Expr {
    lookup_at(R0, set, target)
}

fn lookup_at(src: Reg, set: SetId, target: LookupTarget) -> Expr {
    Expr::Lookup { set: set.name().to_owned(), src, target }
}

fn services(mode: Mode, ipv6: bool) -> Vec<Rule> {
    let mut restricted = Vec::new();
    let source = load_frontend(ipv6, &mut restricted);
    restricted.push(lookup(SetId::Restricted, LookupTarget::Hit));
    restricted.push(Expr::load(HeaderField::saddr(ipv6), source));
    restricted.push(lookup(SetId::Allowed, LookupTarget::Miss));
    restricted.push(Expr::Verdict(Verdict::Drop));
    let mut classes = Vec::new();
    load_frontend(ipv6, &mut classes);
    classes.push(lookup(mode.frontends, LookupTarget::Data(R0)));
    classes.push(lookup_at(Reg(mode.class), SetId::Classes, LookupTarget::Verdict));
    let unknown = vec![
        Expr::load(HeaderField::daddr(ipv6), R0),
        lookup(SetId::ServiceIps, LookupTarget::Hit),
        goto(Class::Reject.chain()),
    ];
    vec![
        Rule::new(restricted).commented("load balancer source ranges"),
        Rule::new(classes),
        Rule::new(unknown).commented("no port of the host answers on a Service address"),
    ]
}

fn class_rules(class: Class, config: &ChainConfig, ipv6: bool) -> Vec<Rule> {
    match class {
        Class::ClusterIp if config.masquerade_all => vec![Rule::new(vec![goto("mark")])],
        Class::ClusterIp => {
            let mut rules = vec![from_this_node()];
            let pods = from_pods(config, ipv6);
            if !pods.is_empty() {
                rules.extend(pods);
                rules.push(Rule::new(vec![goto("mark")]));
            }
            rules
        }
        Class::External => vec![Rule::new(vec![goto("mark")])],
        Class::ExternalLocal => vec![from_this_node()],
        Class::ExternalRemote => {
            let mut rules = vec![from_this_node()];
            rules.extend(from_pods(config, ipv6));
            rules.push(Rule::new(vec![Expr::Verdict(Verdict::Drop)]));
            rules
        }
        Class::Reject => reject(ipv6),
        Class::Drop => vec![Rule::new(vec![Expr::Verdict(Verdict::Drop)])],
    }
}

/// What the node itself sends, to be marked.
fn from_this_node() -> Rule {
    Rule::new(is_from_this_node(goto("mark")))
}

fn is_from_this_node(then: Expr) -> Vec<Expr> {
    let selector = FibSelector { saddr: true, ..FibSelector::default() };
    vec![Expr::Fib { selector, result: FibResult::AddrType, dst: R0 }, Expr::eq(R0, Value::Mark(LOCAL)), then]
}

/// What pods send, to be left as it is.
fn from_pods(config: &ChainConfig, ipv6: bool) -> Vec<Rule> {
    let of_family = config.cluster_cidrs.iter().filter(|cidr| cidr.first().is_ipv6() == ipv6);
    let interface = config.pod_interface.iter().map(|interface| {
        Rule::new(vec![
            Expr::meta(MetaKey::IifName, R0),
            Expr::Cmp { src: R0, op: CmpOp::Eq, value: interface.bytes() },
            Expr::Verdict(Verdict::Return),
        ])
        .commented("pods by their interface")
    });
    of_family
        .map(|cidr| {
            let (from, to) =
                (Packed::from(Value::Addr(cidr.first())), Packed::from(Value::Addr(cidr.last())));
            Rule::new(vec![
                Expr::load(HeaderField::saddr(ipv6), R0),
                Expr::Range { src: R0, op: CmpOp::Eq, from, to },
                Expr::Verdict(Verdict::Return),
            ])
            .commented(format!("pods {cidr}"))
        })
        .chain(interface)
        .collect()
}

fn reject(ipv6: bool) -> Vec<Rule> {
    // ICMP 3/3 and ICMPv6 1/4: port unreachable.
    let code = if ipv6 { 4 } else { 3 };
    let mut tcp = Expr::match_protocol(Protocol::Tcp, R0).to_vec();
    tcp.push(Expr::Reject(RejectWith::TcpReset));
    vec![Rule::new(tcp), Rule::new(vec![Expr::Reject(RejectWith::Icmp(code))])]
}

fn mark(bit: u32) -> Rule {
    Rule::new(vec![
        Expr::meta(MetaKey::Mark, R0),
        Expr::set_bits(R0, bit),
        Expr::MetaSet { key: MetaKey::Mark, src: R0 },
    ])
}

fn masquerade(config: &ChainConfig, ipv6: bool) -> Vec<Rule> {
    let flags = NatFlags { fully_random: true, ..NatFlags::default() };
    let mut marked = has_mark(config.masquerade_mark);
    marked.push(Expr::Masquerade { flags });
    let second = R0.after(if ipv6 { 16 } else { 4 });
    let hairpin = vec![
        Expr::load(HeaderField::saddr(ipv6), R0),
        Expr::load(HeaderField::daddr(ipv6), second),
        lookup(SetId::Hairpin, LookupTarget::Hit),
        Expr::Masquerade { flags },
    ];
    vec![Rule::new(marked), Rule::new(hairpin).commented("an endpoint that reached itself through a Service")]
}

fn has_mark(bit: u32) -> Vec<Expr> {
    vec![Expr::meta(MetaKey::Mark, R0), Expr::mask(R0, bit), Expr::neq(R0, Value::Mark(0))]
}

/// The mark has done its work; left on the packet it would be seen again behind a tunnel.
fn unmark(bit: u32) -> Rule {
    let mut exprs = has_mark(bit);
    exprs.push(Expr::meta(MetaKey::Mark, R0));
    exprs.push(Expr::mask(R0, !bit));
    exprs.push(Expr::MetaSet { key: MetaKey::Mark, src: R0 });
    Rule::new(exprs)
}
