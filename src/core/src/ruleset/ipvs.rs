//! The IPVS table as a value: virtual servers, their real servers, and the operations that turn one
//! table into another. Semantics follow the kernel's `net/netfilter/ipvs/ip_vs_ctl.c`.
//! Nothing here talks to the kernel; `longshore-kernel` encodes the operations.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use super::Protocol;

/// What a packet is matched by before IPVS schedules it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VirtualServerKey {
    /// Destination address, protocol and port. Port 0 matches every port and needs `persistent`.
    Address {
        /// The virtual address.
        addr: IpAddr,
        /// The virtual port.
        port: u16,
        /// The transport protocol.
        protocol: Protocol,
    },
    /// Packets carrying this firewall mark (never 0), whatever their destination.
    FwMark {
        /// The packet mark.
        mark: u32,
        /// Whether the mark stands for IPv6 packets.
        ipv6: bool,
    },
}

impl VirtualServerKey {
    /// The key of `addr:port/protocol`.
    pub const fn new(addr: IpAddr, port: u16, protocol: Protocol) -> Self {
        VirtualServerKey::Address { addr, port, protocol }
    }

    /// Whether the virtual server carries IPv6 packets.
    pub const fn is_ipv6(&self) -> bool {
        match self {
            VirtualServerKey::Address { addr, .. } => addr.is_ipv6(),
            VirtualServerKey::FwMark { ipv6, .. } => *ipv6,
        }
    }

    /// The prefix length that makes every client its own affinity group: 32 or 128.
    pub const fn host_prefix(&self) -> u8 {
        if self.is_ipv6() { 128 } else { 32 }
    }
}

impl fmt::Display for VirtualServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VirtualServerKey::Address { addr, port, protocol } => {
                write!(f, "{}/{protocol}", SocketAddr::new(*addr, *port))
            }
            VirtualServerKey::FwMark { mark, ipv6 } => {
                write!(f, "fwmark {mark}{}", if *ipv6 { "/inet6" } else { "" })
            }
        }
    }
}

macro_rules! schedulers {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A scheduler module of the kernel (`net/netfilter/ipvs/ip_vs_*.c`).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub enum Scheduler { $($(#[$doc])* $variant,)* }

        impl Scheduler {
            /// Every scheduler the kernel has.
            pub const ALL: &'static [Scheduler] = &[$(Scheduler::$variant,)*];

            /// The name the kernel knows it by; its module is `ip_vs_<name>`.
            pub const fn name(self) -> &'static str {
                match self { $(Scheduler::$variant => $name,)* }
            }
        }
    };
}

schedulers! {
    /// Round robin.
    #[default]
    Rr = "rr",
    /// Weighted round robin.
    Wrr = "wrr",
    /// Least connections.
    Lc = "lc",
    /// Weighted least connections.
    Wlc = "wlc",
    /// Locality-based least connections.
    Lblc = "lblc",
    /// Locality-based least connections with replication.
    Lblcr = "lblcr",
    /// Destination hashing.
    Dh = "dh",
    /// Source hashing.
    Sh = "sh",
    /// Shortest expected delay.
    Sed = "sed",
    /// Never queue.
    Nq = "nq",
    /// Maglev hashing.
    Mh = "mh",
    /// Weighted fail over: everything to the highest weight.
    Fo = "fo",
    /// Weighted overflow: to the next weight once a server is full.
    Ovf = "ovf",
    /// The better of two servers drawn at random (kernel 5.13).
    Twos = "twos",
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A scheduler name the kernel does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown IPVS scheduler {0:?}: use one of rr, wrr, lc, wlc, lblc, lblcr, dh, sh, sed, nq, mh, fo, ovf, twos"
)]
pub struct UnknownScheduler(pub String);

impl FromStr for Scheduler {
    type Err = UnknownScheduler;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Scheduler::ALL
            .iter()
            .copied()
            .find(|scheduler| scheduler.name() == name)
            .ok_or_else(|| UnknownScheduler(name.to_owned()))
    }
}

/// Flags of a virtual server (`IP_VS_SVC_F_*` in `linux/ip_vs.h`). The kernel's own `HASHED` flag is
/// not among them: it says that the entry is linked into the table, which an entry we see always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ServiceFlags {
    /// Session affinity: a client keeps its real server for the timeout.
    pub persistent: bool,
    /// One-packet scheduling: every UDP packet is scheduled by itself.
    pub one_packet: bool,
    /// Scheduler-specific flag 1; `sh` and `mh`: fall back to another server when one is unavailable.
    pub sched1: bool,
    /// Scheduler-specific flag 2; `sh` and `mh`: include the source port in the hash.
    pub sched2: bool,
    /// Scheduler-specific flag 3, unused by the kernel's own schedulers.
    pub sched3: bool,
}

impl ServiceFlags {
    const BITS: [u32; 5] = [0x1, 0x4, 0x8, 0x10, 0x20];

    /// The kernel's bits.
    pub fn bits(self) -> u32 {
        let set = [self.persistent, self.one_packet, self.sched1, self.sched2, self.sched3];
        Self::BITS.iter().zip(set).filter(|(_, on)| *on).map(|(bit, _)| bit).sum()
    }

    /// From the kernel's bits; bits without a name here are dropped.
    pub fn from_bits(bits: u32) -> Self {
        let [persistent, one_packet, sched1, sched2, sched3] = Self::BITS.map(|bit| bits & bit != 0);
        ServiceFlags { persistent, one_packet, sched1, sched2, sched3 }
    }
}

/// A virtual server's settings.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualServer {
    /// How a real server is chosen.
    pub scheduler: Scheduler,
    /// Flags, affinity among them.
    pub flags: ServiceFlags,
    /// How long a client keeps its real server, in seconds; only read with `flags.persistent`.
    pub timeout: u32,
    /// Clients within one prefix of this length share their real server: 0..=32 or 1..=128.
    pub prefix: u8,
    /// Persistence engine (`sip`), which replaces the client address as the affinity key.
    pub persistence_engine: Option<String>,
}

impl VirtualServer {
    /// A virtual server without affinity for `key`.
    pub fn new(key: &VirtualServerKey, scheduler: Scheduler) -> Self {
        VirtualServer {
            scheduler,
            flags: ServiceFlags::default(),
            timeout: 0,
            prefix: key.host_prefix(),
            persistence_engine: None,
        }
    }

    /// The same with client-IP affinity of `timeout` seconds.
    pub fn with_affinity(mut self, timeout: u32) -> Self {
        self.flags.persistent = true;
        self.timeout = timeout;
        self
    }
}

/// Address and port of a real server; unique within its virtual server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RealServerKey {
    /// The endpoint's address.
    pub addr: IpAddr,
    /// The endpoint's port.
    pub port: u16,
}

impl RealServerKey {
    /// The key of `addr:port`.
    pub const fn new(addr: IpAddr, port: u16) -> Self {
        RealServerKey { addr, port }
    }
}

impl fmt::Display for RealServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.addr, self.port).fmt(f)
    }
}

/// How packets reach a real server (`IP_VS_CONN_F_FWD_MASK`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Forward {
    /// Network address translation: what Services use.
    #[default]
    Masquerade,
    /// The real server is this host.
    Local,
    /// IP in IP.
    Tunnel,
    /// Direct routing.
    Route,
    /// Cache bypass.
    Bypass,
}

impl Forward {
    /// The kernel's number.
    pub const fn bits(self) -> u32 {
        match self {
            Forward::Masquerade => 0,
            Forward::Local => 1,
            Forward::Tunnel => 2,
            Forward::Route => 3,
            Forward::Bypass => 4,
        }
    }

    /// From the kernel's number, whose higher bits are connection flags.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        match bits & 7 {
            0 => Some(Forward::Masquerade),
            1 => Some(Forward::Local),
            2 => Some(Forward::Tunnel),
            3 => Some(Forward::Route),
            4 => Some(Forward::Bypass),
            _ => None,
        }
    }
}

/// A real server's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RealServer {
    /// Share of new connections, 0..=2147483647. 0 takes no new ones and keeps the old.
    pub weight: u32,
    /// How packets reach it.
    pub forward: Forward,
    /// No new connections at this many; 0 is no limit.
    pub upper_threshold: u32,
    /// New connections again below this many; at most `upper_threshold`.
    pub lower_threshold: u32,
}

impl Default for RealServer {
    fn default() -> Self {
        RealServer { weight: 1, forward: Forward::Masquerade, upper_threshold: 0, lower_threshold: 0 }
    }
}

impl RealServer {
    /// The same, taking no new connections: how an endpoint leaves gracefully.
    pub fn drained(self) -> Self {
        RealServer { weight: 0, ..self }
    }
}

/// One change of the table; each maps to one netlink message and one acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IpvsOp {
    /// Make a virtual server; refused if it exists.
    AddService {
        /// Which.
        key: VirtualServerKey,
        /// Its settings.
        server: VirtualServer,
    },
    /// Replace a virtual server's settings, keeping real servers and connections.
    SetService {
        /// Which.
        key: VirtualServerKey,
        /// Its new settings.
        server: VirtualServer,
    },
    /// Remove a virtual server and its real servers.
    DelService {
        /// Which.
        key: VirtualServerKey,
    },
    /// Add a real server; refused if it exists.
    AddDest {
        /// The virtual server.
        key: VirtualServerKey,
        /// The real server.
        real: RealServerKey,
        /// Its settings.
        settings: RealServer,
    },
    /// Replace a real server's settings, keeping connections.
    SetDest {
        /// The virtual server.
        key: VirtualServerKey,
        /// The real server.
        real: RealServerKey,
        /// Its new settings.
        settings: RealServer,
    },
    /// Remove a real server. Its connections stop being forwarded unless it is added again.
    DelDest {
        /// The virtual server.
        key: VirtualServerKey,
        /// The real server.
        real: RealServerKey,
    },
}

impl IpvsOp {
    /// The virtual server the operation is about.
    pub fn key(&self) -> &VirtualServerKey {
        match self {
            IpvsOp::AddService { key, .. }
            | IpvsOp::SetService { key, .. }
            | IpvsOp::DelService { key }
            | IpvsOp::AddDest { key, .. }
            | IpvsOp::SetDest { key, .. }
            | IpvsOp::DelDest { key, .. } => key,
        }
    }
}

/// `ipvs 10.96.0.10:53/udp: add destination 10.1.2.3:53`: the form used in errors and logs.
impl fmt::Display for IpvsOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ipvs {}: ", self.key())?;
        match self {
            IpvsOp::AddService { server, .. } => write!(f, "add service ({})", server.scheduler),
            IpvsOp::SetService { server, .. } => write!(f, "set service ({})", server.scheduler),
            IpvsOp::DelService { .. } => f.write_str("delete service"),
            IpvsOp::AddDest { real, .. } => write!(f, "add destination {real}"),
            IpvsOp::SetDest { real, settings, .. } => {
                write!(f, "set destination {real} to weight {}", settings.weight)
            }
            IpvsOp::DelDest { real, .. } => write!(f, "delete destination {real}"),
        }
    }
}

/// A virtual server with its real servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpvsService {
    /// The virtual server's settings.
    pub server: VirtualServer,
    /// Its real servers.
    pub reals: BTreeMap<RealServerKey, RealServer>,
}

/// Why the kernel refuses an operation (the errno it answers with in `ip_vs_ctl.c`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IpvsRefusal {
    /// The object is already there (`EEXIST`).
    #[error("file exists")]
    Exists,
    /// The virtual server is not there (`ESRCH`).
    #[error("no such virtual server")]
    NoService,
    /// The real server is not there (`ENOENT`).
    #[error("no such real server")]
    NoDest,
    /// A value is out of range (`ERANGE`).
    #[error("numerical result out of range")]
    Range,
    /// The message makes no sense (`EINVAL`).
    #[error("invalid argument")]
    Invalid,
}

/// A full IPVS table: what we want, or what the kernel acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IpvsState {
    /// Virtual servers by key.
    pub services: BTreeMap<VirtualServerKey, IpvsService>,
}

impl IpvsState {
    /// Apply one operation, refusing what the kernel refuses; on refusal nothing changes.
    pub fn apply(&mut self, op: &IpvsOp) -> Result<(), IpvsRefusal> {
        match op {
            IpvsOp::AddService { key, server } => {
                if self.services.contains_key(key) {
                    return Err(IpvsRefusal::Exists);
                }
                check_server(key, server)?;
                let service = IpvsService { server: server.clone(), reals: BTreeMap::new() };
                self.services.insert(*key, service);
            }
            IpvsOp::SetService { key, server } => {
                let service = self.services.get_mut(key).ok_or(IpvsRefusal::NoService)?;
                check_server(key, server)?;
                service.server = server.clone();
            }
            IpvsOp::DelService { key } => {
                self.services.remove(key).ok_or(IpvsRefusal::NoService)?;
            }
            IpvsOp::AddDest { key, real, settings } => {
                let service = self.services.get_mut(key).ok_or(IpvsRefusal::NoService)?;
                check_real(key, real, settings)?;
                if service.reals.contains_key(real) {
                    return Err(IpvsRefusal::Exists);
                }
                service.reals.insert(*real, *settings);
            }
            IpvsOp::SetDest { key, real, settings } => {
                let service = self.services.get_mut(key).ok_or(IpvsRefusal::NoService)?;
                check_real(key, real, settings)?;
                *service.reals.get_mut(real).ok_or(IpvsRefusal::NoDest)? = *settings;
            }
            IpvsOp::DelDest { key, real } => {
                let service = self.services.get_mut(key).ok_or(IpvsRefusal::NoService)?;
                service.reals.remove(real).ok_or(IpvsRefusal::NoDest)?;
            }
        }
        Ok(())
    }
}

fn check_server(key: &VirtualServerKey, server: &VirtualServer) -> Result<(), IpvsRefusal> {
    let prefix_ok = server.prefix <= key.host_prefix() && !(key.is_ipv6() && server.prefix == 0);
    match key {
        // A service for every port only makes sense when clients stick (ip_vs_genl_parse_service
        // takes it, the lookup of a port-zero service requires persistence).
        VirtualServerKey::Address { port: 0, .. } if !server.flags.persistent => Err(IpvsRefusal::Invalid),
        VirtualServerKey::FwMark { mark: 0, .. } => Err(IpvsRefusal::Invalid),
        _ if !prefix_ok => Err(IpvsRefusal::Invalid),
        _ => Ok(()),
    }
}

fn check_real(
    key: &VirtualServerKey,
    real: &RealServerKey,
    settings: &RealServer,
) -> Result<(), IpvsRefusal> {
    if settings.weight > i32::MAX as u32 || settings.lower_threshold > settings.upper_threshold {
        return Err(IpvsRefusal::Range);
    }
    // Only tunnelling may carry one family over the other.
    if real.addr.is_ipv6() != key.is_ipv6() && settings.forward != Forward::Tunnel {
        return Err(IpvsRefusal::Invalid);
    }
    Ok(())
}

/// The operations that turn `applied` into `wanted`.
///
/// Additions come before removals, so that a virtual server never passes through a state without real
/// servers when one is exchanged for another; nothing that is in both is touched.
pub fn diff(applied: &IpvsState, wanted: &IpvsState) -> Vec<IpvsOp> {
    let mut ops = Vec::new();
    let nothing = BTreeMap::new();
    for (key, want) in &wanted.services {
        let have = applied.services.get(key);
        match have {
            None => ops.push(IpvsOp::AddService { key: *key, server: want.server.clone() }),
            Some(have) if have.server != want.server => {
                ops.push(IpvsOp::SetService { key: *key, server: want.server.clone() });
            }
            Some(_) => {}
        }
        diff_reals(*key, have.map_or(&nothing, |have| &have.reals), &want.reals, &mut ops);
    }
    for key in applied.services.keys().filter(|key| !wanted.services.contains_key(key)) {
        ops.push(IpvsOp::DelService { key: *key });
    }
    ops
}

fn diff_reals(
    key: VirtualServerKey,
    have: &BTreeMap<RealServerKey, RealServer>,
    want: &BTreeMap<RealServerKey, RealServer>,
    ops: &mut Vec<IpvsOp>,
) {
    for (real, settings) in want {
        match have.get(real) {
            None => ops.push(IpvsOp::AddDest { key, real: *real, settings: *settings }),
            Some(old) if old != settings => {
                ops.push(IpvsOp::SetDest { key, real: *real, settings: *settings });
            }
            Some(_) => {}
        }
    }
    for real in have.keys().filter(|real| !want.contains_key(real)) {
        ops.push(IpvsOp::DelDest { key, real: *real });
    }
}

/// Connections of a real server as the kernel counts them; 0 active and inactive means drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Connections {
    /// Established connections.
    pub active: u32,
    /// Connections in any other state, TIME_WAIT among them, and all UDP ones.
    pub inactive: u32,
    /// Affinity templates that point here.
    pub persistent: u32,
}

impl Connections {
    /// Whether no connection goes through the real server any more.
    pub fn is_drained(&self) -> bool {
        self.active == 0 && self.inactive == 0
    }
}

/// Traffic counters of a virtual or real server (`IPVS_*_ATTR_STATS64`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TrafficStats {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets towards the real servers.
    pub packets_in: u64,
    /// Packets back.
    pub packets_out: u64,
    /// Bytes towards the real servers.
    pub bytes_in: u64,
    /// Bytes back.
    pub bytes_out: u64,
}

/// What a dump of the kernel's table says: the settings, and beside them what only moves by traffic.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IpvsDump {
    /// The settings, comparable with a wanted table.
    pub state: IpvsState,
    /// Connections by virtual and real server.
    pub connections: BTreeMap<(VirtualServerKey, RealServerKey), Connections>,
    /// Counters by virtual server.
    pub stats: BTreeMap<VirtualServerKey, TrafficStats>,
}

/// Time-outs of IPVS connections in seconds (`IPVS_CMD_SET_CONFIG`); 0 leaves one as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IpvsTimeouts {
    /// Established TCP connections.
    pub tcp: u32,
    /// TCP connections after a FIN.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

#[cfg(test)]
mod tests;
