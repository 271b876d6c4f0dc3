//! The dataplane as a flat collection of kernel objects, each belonging to one claim: a frontend, an
//! address or a hairpin. What is wanted, what the kernel acknowledged and what a dump shows are all in
//! this form, whatever the back end. No rendering and no ordering here.

use std::fmt;
use std::net::IpAddr;

use super::Protocol;
use super::ipt::{self, ChainId, HookKey};
use super::ipvs::{IpvsState, RealServer, RealServerKey, VirtualServer, VirtualServerKey};
use super::nft::{self, ElementKey, ElementValue, FieldType, SetFlags, SetSpec, Value};

/// The name of our table in nf_tables, one for each family.
pub const TABLE: &str = "longshore";
/// The dummy device that holds the Services' addresses in IPVS mode, named as kube-proxy names it so
/// that a node can be handed over in either direction.
pub const DEVICE: &str = "kube-ipvs0";

/// A set or map of our tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetId {
    /// IPVS mode: `address . protocol . port` of every frontend -> its class.
    Frontends,
    /// Addresses that belong to Services alone: no port of the host answers there.
    ServiceIps,
    /// Frontends that only some sources may use.
    Restricted,
    /// `address . protocol . port . source range` of those sources.
    Allowed,
    /// `source . destination` of endpoints of this node that may meet themselves through a Service.
    Hairpin,
    /// Class -> its chain. Never changes.
    Classes,
    /// nftables mode: `address . protocol . port` of every frontend -> its service port, named by
    /// `cluster address . protocol . port`; its class; and how its clients are spread, first those
    /// inside the cluster and then, where the external policy is Local, those outside.
    Services,
    /// nftables mode: `number of endpoints . affinity in seconds` -> the chain that spreads so.
    Spreads,
    /// nftables mode: `cluster address . protocol . port . index` -> endpoint.
    Endpoints,
    /// nftables mode: the same for policy Local.
    LocalEndpoints,
    /// nftables mode: `cluster address . protocol . port . endpoint`, of service ports with affinity.
    Members,
    /// nftables mode: the same for policy Local.
    LocalMembers,
    /// nftables mode: `client . cluster address . protocol . port` -> endpoint, made by packets.
    Affinity,
    /// nftables mode: the ranges that Services get their addresses from. Changes with ServiceCIDRs alone.
    ServiceRanges,
}

/// The most clients that are remembered in a family; a client beyond that is served, and not kept on
/// its endpoint. The kernel prepares its table for as many, at 11 bytes each.
const MAX_REMEMBERED: u32 = 1 << 18;
/// A client's entry has the time-out of the rule that made it; the kernel wants one for the set too.
const REMEMBERED_MS: u64 = 10_800_000;

impl SetId {
    pub const ALL: [SetId; 14] = [
        SetId::Frontends,
        SetId::ServiceIps,
        SetId::Restricted,
        SetId::Allowed,
        SetId::Hairpin,
        SetId::Classes,
        SetId::Services,
        SetId::Spreads,
        SetId::Endpoints,
        SetId::LocalEndpoints,
        SetId::Members,
        SetId::LocalMembers,
        SetId::Affinity,
        SetId::ServiceRanges,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            SetId::Frontends => "frontends",
            SetId::ServiceIps => "service-ips",
            SetId::Restricted => "restricted",
            SetId::Allowed => "allowed-sources",
            SetId::Hairpin => "hairpin",
            SetId::Classes => "classes",
            SetId::Services => "services",
            SetId::Spreads => "spreads",
            SetId::Endpoints => "endpoints",
            SetId::LocalEndpoints => "local-endpoints",
            SetId::Members => "members",
            SetId::LocalMembers => "local-members",
            SetId::Affinity => "affinity",
            SetId::ServiceRanges => "service-ranges",
        }
    }

    /// Whether its elements are objects of Services: not those fixed with the chains, nor those that
    /// packets make.
    pub const fn holds_objects(self) -> bool {
        !self.is_fixed() && !matches!(self, SetId::Affinity)
    }

    /// Whether its elements stand with the fixed chains.
    pub const fn is_fixed(self) -> bool {
        matches!(self, SetId::Classes | SetId::ServiceRanges)
    }

    /// Whether it has the more elements the more Services there are.
    pub const fn grows(self) -> bool {
        self.holds_objects() && !matches!(self, SetId::Spreads)
    }

    pub fn from_name(name: &str) -> Option<SetId> {
        SetId::ALL.into_iter().find(|id| id.name() == name)
    }

    /// The set's fixed properties in a family's table.
    pub fn spec(self, ipv6: bool) -> SetSpec {
        let addr = if ipv6 { FieldType::Ipv6Addr } else { FieldType::Ipv4Addr };
        let frontend = [addr, FieldType::InetProto, FieldType::InetService];
        let endpoint = [addr, FieldType::InetService];
        let with = |last: &[FieldType]| [frontend.as_slice(), last].concat();
        // Verdicts stand in small maps only: for each new verdict the kernel walks every element of the
        // map it is put in (`nft_table_validate`), 10 ms at 40,000; a new number costs it nothing.
        match self {
            SetId::Frontends => SetSpec::map(&frontend, &[FieldType::Index]),
            SetId::ServiceIps => SetSpec::set(&[addr]),
            SetId::ServiceRanges => SetSpec::set(&[addr]).interval(),
            SetId::Restricted => SetSpec::set(&frontend),
            SetId::Allowed => SetSpec::set(&with(&[addr])).interval(),
            SetId::Hairpin => SetSpec::set(&[addr, addr]),
            SetId::Classes => SetSpec::verdict_map(&[FieldType::Index]),
            SetId::Services => SetSpec::map(&frontend, &with(&[FieldType::Index; 5])),
            SetId::Spreads => SetSpec::verdict_map(&[FieldType::Index; 2]),
            SetId::Endpoints | SetId::LocalEndpoints => SetSpec::map(&with(&[FieldType::Index]), &endpoint),
            SetId::Members | SetId::LocalMembers => SetSpec::set(&with(&endpoint)),
            SetId::Affinity => SetSpec {
                flags: SetFlags { timeout: true, dynamic: true, interval: false },
                timeout_ms: Some(REMEMBERED_MS),
                size: Some(MAX_REMEMBERED),
                ..SetSpec::map(&[&[addr], frontend.as_slice()].concat(), &endpoint)
            },
        }
    }
}

/// What objects are wanted for: the unit of diffing, failure and retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Claim {
    /// An address, protocol and port that a Service is reached at.
    Frontend { addr: IpAddr, port: u16, protocol: Protocol },
    /// An address that this node takes for itself.
    Address(IpAddr),
    /// An endpoint of this node that may be its own client.
    Hairpin(IpAddr),
    /// nftables mode: the endpoints of a service port, named by its cluster address. Every frontend of
    /// the port leads to them.
    Backends { cluster_ip: IpAddr, port: u16, protocol: Protocol },
    /// nftables mode: the chain that spreads over so many endpoints.
    Spread(Spread),
    /// iptables mode: a node port at any address of the node.
    NodePort { ipv6: bool, protocol: Protocol, port: u16 },
    /// iptables mode: a port that load balancers ask for health at.
    HealthPort { ipv6: bool, port: u16 },
    /// iptables mode: a chain with the jumps into it.
    Chain(ChainId),
}

/// A chain that chooses among a number of endpoints. All frontends with as many share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spread {
    pub ipv6: bool,
    /// Looks into the endpoints of this node instead of all.
    pub local: bool,
    /// A client keeps its endpoint until it was not heard of for so many seconds.
    pub sticky: Option<u32>,
    /// How many endpoints, at least 1.
    pub count: u32,
}

/// In a number of endpoints: of those of this node.
const OF_THIS_NODE: u32 = 1 << 31;

impl Spread {
    /// The chain's name: `n3`, `local-n3`, `sticky-60-n3`, `local-sticky-60-n3`.
    pub fn chain(&self) -> String {
        let local = if self.local { "local-" } else { "" };
        match self.sticky {
            Some(seconds) => format!("{local}sticky-{seconds}-n{}", self.count),
            None => format!("{local}n{}", self.count),
        }
    }

    /// From a chain's name.
    pub fn from_chain(name: &str, ipv6: bool) -> Option<Spread> {
        let (local, rest) = name.strip_prefix("local-").map_or((false, name), |rest| (true, rest));
        let (sticky, rest) = match rest.strip_prefix("sticky-") {
            Some(rest) => {
                let (seconds, rest) = rest.split_once('-')?;
                (Some(seconds.parse().ok()?), rest)
            }
            None => (None, rest),
        };
        let count = rest.strip_prefix('n')?.parse().ok().filter(|count| *count > 0)?;
        let spread = Spread { ipv6, local, sticky, count };
        (spread.chain() == name).then_some(spread)
    }

    /// Its key in the map of spreads.
    pub fn key(&self) -> [Value; 2] {
        let local = if self.local { OF_THIS_NODE } else { 0 };
        [Value::Index(self.count | local), Value::Index(self.sticky.unwrap_or_default())]
    }

    /// The key that leads nowhere.
    pub const NONE: [Value; 2] = [Value::Index(0), Value::Index(0)];

    fn from_key(number: u32, seconds: u32, ipv6: bool) -> Spread {
        let sticky = (seconds != 0).then_some(seconds);
        Spread { ipv6, local: number & OF_THIS_NODE != 0, sticky, count: number & !OF_THIS_NODE }
    }
}

impl Claim {
    pub fn is_ipv6(&self) -> bool {
        match self {
            Claim::Frontend { addr, .. }
            | Claim::Address(addr)
            | Claim::Hairpin(addr)
            | Claim::Backends { cluster_ip: addr, .. } => addr.is_ipv6(),
            Claim::Spread(spread) => spread.ipv6,
            Claim::NodePort { ipv6, .. } | Claim::HealthPort { ipv6, .. } => *ipv6,
            Claim::Chain(id) => id.ipv6,
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Claim::Frontend { addr, port, protocol } => {
                write!(f, "{}/{protocol}", std::net::SocketAddr::new(*addr, *port))
            }
            Claim::Address(addr) => write!(f, "address {addr}"),
            Claim::Hairpin(addr) => write!(f, "hairpin {addr}"),
            Claim::Backends { cluster_ip, port, protocol } => {
                write!(f, "endpoints of {}/{protocol}", std::net::SocketAddr::new(*cluster_ip, *port))
            }
            Claim::Spread(spread) => write!(f, "chain {}", spread.chain()),
            Claim::NodePort { protocol, port, .. } => write!(f, "node port {port}/{protocol}"),
            Claim::HealthPort { port, .. } => write!(f, "health check port {port}"),
            Claim::Chain(id) => write!(f, "{id}"),
        }
    }
}

/// A kernel object's identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    Element { set: SetId, ipv6: bool, key: ElementKey },
    Server(VirtualServerKey),
    Real(VirtualServerKey, RealServerKey),
    Address(IpAddr),
    Spread(Spread),
    Chain(ChainId),
    Hook(HookKey),
}

/// A kernel object's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectValue {
    Element(ElementValue),
    Server(VirtualServer),
    Real(RealServer),
    Address,
    Spread(Vec<nft::Rule>),
    /// Of a chain in iptables mode.
    Rules(Vec<ipt::Rule>),
    /// A jump into one of our chains is there; all else is in its key.
    Hook,
    /// A chain other programs look for and one of them filled: it is there, and it is left alone.
    Foreign,
}

/// Objects by key, in order. A list, since nearly all claims have one or two of them and a large node
/// holds tens of thousands of claims.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects(Vec<(ObjectKey, ObjectValue)>);

impl Objects {
    /// None.
    pub const fn new() -> Self {
        Objects(Vec::new())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, key: &ObjectKey) -> Option<&ObjectValue> {
        self.place(key).ok().map(|place| &self.0[place].1)
    }

    pub fn contains_key(&self, key: &ObjectKey) -> bool {
        self.place(key).is_ok()
    }

    /// Put an object in; returns what was there.
    pub fn insert(&mut self, key: ObjectKey, value: ObjectValue) -> Option<ObjectValue> {
        match self.place(&key) {
            Ok(place) => Some(std::mem::replace(&mut self.0[place].1, value)),
            Err(place) => {
                // By a quarter: doubling leaves a third of the memory of ten objects unused.
                if self.0.len() == self.0.capacity() {
                    self.0.reserve_exact(self.0.len() / 4 + 1);
                }
                self.0.insert(place, (key, value));
                None
            }
        }
    }

    pub fn remove(&mut self, key: &ObjectKey) -> Option<ObjectValue> {
        let place = self.place(key).ok()?;
        Some(self.0.remove(place).1)
    }

    pub fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.0.iter().map(|(key, _)| key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &ObjectValue)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// Where the key is or belongs; what comes in order is found at once.
    fn place(&self, key: &ObjectKey) -> Result<usize, usize> {
        match self.0.last() {
            Some((last, _)) if last < key => Err(self.0.len()),
            None => Err(0),
            Some(_) => self.0.binary_search_by(|(known, _)| known.cmp(key)),
        }
    }
}

impl IntoIterator for Objects {
    type Item = (ObjectKey, ObjectValue);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Of several values for a key the last holds.
impl Extend<(ObjectKey, ObjectValue)> for Objects {
    fn extend<T: IntoIterator<Item = (ObjectKey, ObjectValue)>>(&mut self, objects: T) {
        self.0.extend(objects);
        // Stable: of equal keys the last stays last.
        self.0.sort_by(|(one, _), (other, _)| one.cmp(other));
        self.0.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                std::mem::swap(later, kept);
            }
            same
        });
    }
}

impl FromIterator<(ObjectKey, ObjectValue)> for Objects {
    fn from_iter<T: IntoIterator<Item = (ObjectKey, ObjectValue)>>(objects: T) -> Self {
        let mut all = Objects::new();
        all.extend(objects);
        all
    }
}

impl ObjectKey {
    /// The claim the object is for; `None` for one that none of ours could be for, such as a virtual
    /// server by firewall mark.
    pub fn claim(&self) -> Option<Claim> {
        match self {
            ObjectKey::Address(addr) => Some(Claim::Address(*addr)),
            ObjectKey::Spread(spread) => Some(Claim::Spread(*spread)),
            ObjectKey::Chain(id) => Some(Claim::Chain(*id)),
            ObjectKey::Hook(hook) => Some(Claim::Chain(hook.to)),
            ObjectKey::Server(key) | ObjectKey::Real(key, _) => match key {
                VirtualServerKey::Address { addr, port, protocol } => {
                    Some(Claim::Frontend { addr: *addr, port: *port, protocol: *protocol })
                }
                VirtualServerKey::FwMark { .. } => None,
            },
            ObjectKey::Element { set, ipv6, key } => element_claim(*set, *ipv6, key),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ObjectKey::Element { set, ipv6, key } => {
                let values = key.start.values(&set.spec(*ipv6).key).unwrap_or_default();
                f.write_str("element")?;
                values.iter().try_for_each(|value| match value {
                    Value::Addr(addr) => write!(f, " {addr}"),
                    Value::Proto(number) => match Protocol::from_number(*number) {
                        Some(protocol) => write!(f, " {protocol}"),
                        None => write!(f, " protocol {number}"),
                    },
                    Value::Port(port) => write!(f, " {port}"),
                    Value::Index(index) => write!(f, " #{index}"),
                    other => write!(f, " {other:?}"),
                })?;
                write!(f, " of {}", set.name())
            }
            ObjectKey::Server(key) => write!(f, "virtual server {key}"),
            ObjectKey::Real(key, real) => write!(f, "real server {real} of {key}"),
            ObjectKey::Address(addr) => write!(f, "address {addr} on {DEVICE}"),
            ObjectKey::Spread(spread) => write!(f, "chain {}", spread.chain()),
            ObjectKey::Chain(id) => write!(f, "{id}"),
            ObjectKey::Hook(hook) => write!(f, "jump from {} to {}", hook.from.name(), hook.to),
        }
    }
}

fn element_claim(set: SetId, ipv6: bool, key: &ElementKey) -> Option<Claim> {
    let values = key.start.values(&set.spec(ipv6).key)?;
    match (set, values.as_slice()) {
        (SetId::ServiceIps, [Value::Addr(addr)]) => Some(Claim::Address(*addr)),
        (SetId::Hairpin, [Value::Addr(addr), _]) => Some(Claim::Hairpin(*addr)),
        (SetId::Spreads, [Value::Index(number), Value::Index(seconds)]) => {
            Some(Claim::Spread(Spread::from_key(*number, *seconds, ipv6)))
        }
        (
            SetId::Endpoints | SetId::LocalEndpoints | SetId::Members | SetId::LocalMembers,
            [Value::Addr(addr), Value::Proto(number), Value::Port(port), ..],
        ) => {
            let protocol = Protocol::from_number(*number)?;
            Some(Claim::Backends { cluster_ip: *addr, port: *port, protocol })
        }
        (SetId::Classes | SetId::Affinity | SetId::ServiceRanges, _) => None,
        (_, [Value::Addr(addr), Value::Proto(number), Value::Port(port), ..]) => {
            let protocol = Protocol::from_number(*number)?;
            Some(Claim::Frontend { addr: *addr, port: *port, protocol })
        }
        _ => None,
    }
}

/// Take a dump of IPVS apart into objects.
pub fn of_ipvs(state: &IpvsState) -> Objects {
    let mut objects = Vec::new();
    for (key, service) in &state.services {
        objects.push((ObjectKey::Server(*key), ObjectValue::Server(service.server.clone())));
        for (real, settings) in &service.reals {
            objects.push((ObjectKey::Real(*key, *real), ObjectValue::Real(*settings)));
        }
    }
    objects.into_iter().collect()
}

/// Take the elements of one of our tables that are objects out of it, and the chains that spread;
/// what stays is as fixed as the other chains. A large table is not held twice for it.
pub fn take_objects(table: &mut nft::NftTable, ipv6: bool) -> Objects {
    let mut objects = Vec::new();
    for (name, set) in &mut table.sets {
        let Some(id) = SetId::from_name(name).filter(|id| id.holds_objects()) else { continue };
        let elements = std::mem::take(&mut set.elements).into_iter();
        objects
            .extend(elements.map(|(key, value)| {
                (ObjectKey::Element { set: id, ipv6, key }, ObjectValue::Element(value))
            }));
    }
    for (name, chain) in &table.chains {
        if let Some(spread) = Spread::from_chain(name, ipv6) {
            objects.push((ObjectKey::Spread(spread), ObjectValue::Spread(chain.rules.clone())));
        }
    }
    objects.into_iter().collect()
}

/// The same, leaving the table as it is.
pub fn of_table(table: &nft::NftTable, ipv6: bool) -> Objects {
    take_objects(&mut table.clone(), ipv6)
}

/// A table without the elements that are objects: what is as fixed as the chains.
pub fn skeleton(table: &nft::NftTable) -> nft::NftTable {
    let mut fixed = table.clone();
    take_objects(&mut fixed, false);
    fixed
}
