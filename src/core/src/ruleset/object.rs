//! The dataplane as a flat collection of kernel objects, each belonging to one claim: a frontend, an
//! address or a hairpin. What is wanted, what the kernel acknowledged and what a dump shows are all in
//! this form, whatever the back end. No rendering and no ordering here.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use super::Protocol;
use super::ipvs::{IpvsState, RealServer, RealServerKey, VirtualServer, VirtualServerKey};
use super::nft::{self, ElementKey, ElementValue, FieldType, SetSpec, Value};

/// The name of our table in nf_tables, one for each family.
pub const TABLE: &str = "longshore";
/// The dummy device that holds the Services' addresses in IPVS mode, named as kube-proxy names it so
/// that a node can be handed over in either direction.
pub const DEVICE: &str = "kube-ipvs0";

/// A set or map of our tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetId {
    /// `address . protocol . port` of every frontend -> the chain of its class.
    Frontends,
    /// Addresses that belong to Services alone: no port of the host answers there.
    ServiceIps,
    /// Frontends that only some sources may use.
    Restricted,
    /// `address . protocol . port . source range` of those sources.
    Allowed,
    /// `source . destination` of endpoints of this node that may meet themselves through a Service.
    Hairpin,
    /// nftables mode: `address . protocol . port` -> the chain that spreads over the endpoints.
    Services,
    /// nftables mode: the same for clients from outside, where the external policy is Local.
    OutsideServices,
    /// nftables mode: `address . protocol . port . index` -> endpoint.
    Endpoints,
    /// nftables mode: the same for policy Local.
    LocalEndpoints,
}

impl SetId {
    pub const ALL: [SetId; 9] = [
        SetId::Frontends,
        SetId::ServiceIps,
        SetId::Restricted,
        SetId::Allowed,
        SetId::Hairpin,
        SetId::Services,
        SetId::OutsideServices,
        SetId::Endpoints,
        SetId::LocalEndpoints,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            SetId::Frontends => "frontends",
            SetId::ServiceIps => "service-ips",
            SetId::Restricted => "restricted",
            SetId::Allowed => "allowed-sources",
            SetId::Hairpin => "hairpin",
            SetId::Services => "services",
            SetId::OutsideServices => "outside-services",
            SetId::Endpoints => "endpoints",
            SetId::LocalEndpoints => "local-endpoints",
        }
    }

    pub fn from_name(name: &str) -> Option<SetId> {
        SetId::ALL.into_iter().find(|id| id.name() == name)
    }

    /// The set's fixed properties in a family's table.
    pub fn spec(self, ipv6: bool) -> SetSpec {
        let addr = if ipv6 { FieldType::Ipv6Addr } else { FieldType::Ipv4Addr };
        let frontend = [addr, FieldType::InetProto, FieldType::InetService];
        let with = |last: FieldType| [frontend.as_slice(), &[last]].concat();
        match self {
            SetId::Frontends | SetId::Services | SetId::OutsideServices => SetSpec::verdict_map(&frontend),
            SetId::ServiceIps => SetSpec::set(&[addr]),
            SetId::Restricted => SetSpec::set(&frontend),
            SetId::Allowed => SetSpec::set(&with(addr)).interval(),
            SetId::Hairpin => SetSpec::set(&[addr, addr]),
            SetId::Endpoints | SetId::LocalEndpoints => {
                SetSpec::map(&with(FieldType::Index), &[addr, FieldType::InetService])
            }
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
    /// nftables mode: the chain that spreads over so many endpoints.
    Spread(Spread),
}

/// A chain that chooses among a number of endpoints. All frontends with as many share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spread {
    pub ipv6: bool,
    /// Looks into the endpoints of this node instead of all.
    pub local: bool,
    /// A client keeps its endpoint, by a hash of its address.
    pub sticky: bool,
    /// How many endpoints, at least 1.
    pub count: u32,
}

impl Spread {
    /// The chain's name: `n3`, `local-n3`, `sticky-n3`, `local-sticky-n3`.
    pub fn chain(&self) -> String {
        let part = |on: bool, text: &'static str| if on { text } else { "" };
        format!("{}{}n{}", part(self.local, "local-"), part(self.sticky, "sticky-"), self.count)
    }

    /// From a chain's name.
    pub fn from_chain(name: &str, ipv6: bool) -> Option<Spread> {
        let (local, rest) = name.strip_prefix("local-").map_or((false, name), |rest| (true, rest));
        let (sticky, rest) = rest.strip_prefix("sticky-").map_or((false, rest), |rest| (true, rest));
        let count = rest.strip_prefix('n')?.parse().ok().filter(|count| *count > 0)?;
        let spread = Spread { ipv6, local, sticky, count };
        (spread.chain() == name).then_some(spread)
    }
}

impl Claim {
    pub fn is_ipv6(&self) -> bool {
        match self {
            Claim::Frontend { addr, .. } | Claim::Address(addr) | Claim::Hairpin(addr) => addr.is_ipv6(),
            Claim::Spread(spread) => spread.ipv6,
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
            Claim::Spread(spread) => write!(f, "chain {}", spread.chain()),
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
}

/// A kernel object's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectValue {
    Element(ElementValue),
    Server(VirtualServer),
    Real(RealServer),
    Address,
    Spread(Vec<nft::Rule>),
}

/// The objects of one claim.
pub type Objects = BTreeMap<ObjectKey, ObjectValue>;

impl ObjectKey {
    /// The claim the object is for; `None` for one that none of ours could be for, such as a virtual
    /// server by firewall mark.
    pub fn claim(&self) -> Option<Claim> {
        match self {
            ObjectKey::Address(addr) => Some(Claim::Address(*addr)),
            ObjectKey::Spread(spread) => Some(Claim::Spread(*spread)),
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
        }
    }
}

fn element_claim(set: SetId, ipv6: bool, key: &ElementKey) -> Option<Claim> {
    let values = key.start.values(&set.spec(ipv6).key)?;
    match (set, values.as_slice()) {
        (SetId::ServiceIps, [Value::Addr(addr)]) => Some(Claim::Address(*addr)),
        (SetId::Hairpin, [Value::Addr(addr), _]) => Some(Claim::Hairpin(*addr)),
        (_, [Value::Addr(addr), Value::Proto(number), Value::Port(port), ..]) => {
            let protocol = Protocol::from_number(*number)?;
            Some(Claim::Frontend { addr: *addr, port: *port, protocol })
        }
        _ => None,
    }
}

/// Take a dump of IPVS apart into objects.
pub fn of_ipvs(state: &IpvsState) -> Objects {
    let mut objects = Objects::new();
    for (key, service) in &state.services {
        objects.insert(ObjectKey::Server(*key), ObjectValue::Server(service.server.clone()));
        for (real, settings) in &service.reals {
            objects.insert(ObjectKey::Real(*key, *real), ObjectValue::Real(*settings));
        }
    }
    objects
}

/// Take the elements of one of our tables, and the chains that spread, apart into objects; other chains
/// and sets are left alone.
pub fn of_table(table: &nft::NftTable, ipv6: bool) -> Objects {
    let mut objects = Objects::new();
    for (name, set) in &table.sets {
        let Some(id) = SetId::from_name(name) else { continue };
        for (key, value) in &set.elements {
            let object = ObjectKey::Element { set: id, ipv6, key: key.clone() };
            objects.insert(object, ObjectValue::Element(value.clone()));
        }
    }
    for (name, chain) in &table.chains {
        if let Some(spread) = Spread::from_chain(name, ipv6) {
            objects.insert(ObjectKey::Spread(spread), ObjectValue::Spread(chain.rules.clone()));
        }
    }
    objects
}
