//! The world of the cases with real packets: the node in a network namespace of its own, its pods behind
//! a bridge, another node and the clients outside beside it, in both families. Built once and used for
//! every case. Endpoints answer with their own address and the one they see as the client's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use longshore_agent::config::{ModeTuning, PerMode};
use longshore_agent::dataplane::{
    self, DataplaneConfig, Engine, Kernel, ModeRequest, OpenIptables, OpenKernel,
};
use longshore_core::explain::Query;
use longshore_core::ids::ObjectKey;
use longshore_core::ruleset::Protocol;
use longshore_core::ruleset::chains::ChainConfig;
use longshore_core::ruleset::node::NodePortAddresses;
use longshore_core::ruleset::trace::Origin;
use longshore_kernel::netns::NetNs;
use socket2::{Domain, Socket, Type};

use super::case::{self, Case, Change, Expected, Mode, PacketLine, Step};

/// Pods of the node: those that are endpoints in cases, and the client.
const PODS: [u8; 3] = [1, 2, 9];
/// What lives on the other node, and outside, by prefixes that are all of theirs.
const FAR: [&str; 3] = ["10.244.2.0/26", "10.244.3.0/24", "192.168.7.0/24"];
const FAR6: [&str; 3] = ["fd00:10:244:2::/121", "fd00:10:244:3::/64", "fd00:192:168:7::/64"];
const OUTSIDE: [&str; 4] = ["203.0.113.0/24", "203.0.77.0/24", "198.18.0.0/24", "10.244.2.99/32"];
const OUTSIDE6: [&str; 4] =
    ["fd00:203:0:113::/64", "fd00:203:0:77::/64", "fd00:198:18:0::/64", "fd00:10:244:2::99/128"];
/// Ports the node's own processes listen on.
const HOST_PORTS: [u16; 2] = [22, 10250];
/// A packet that is dropped is known by silence, so this is what each one costs.
const SILENCE: Duration = Duration::from_millis(200);
/// SCTP says a first word that was lost again after three seconds (RTO.Initial, RFC 9260).
const PATIENCE: Duration = Duration::from_secs(5);

/// A namespace joined to the node's by a pair of interfaces.
struct Place {
    net: NetNs,
}

/// The world; it goes with this value.
pub struct World {
    /// By the last number of the pod's address.
    pods: BTreeMap<u8, Place>,
    far: Place,
    outside: Place,
    sctp: bool,
}

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

fn set(path: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// What a plain host leaves to its defaults and a router must not do.
fn as_router(forward: bool) {
    let forward = if forward { "1" } else { "0" };
    set("ipv4/ip_forward", forward);
    set("ipv6/conf/all/forwarding", forward);
    for which in ["all", "default"] {
        set(&format!("ipv4/conf/{which}/rp_filter"), "0");
        set(&format!("ipv4/conf/{which}/send_redirects"), "0");
        set(&format!("ipv4/conf/{which}/accept_redirects"), "0");
        set(&format!("ipv6/conf/{which}/accept_redirects"), "0");
        set(&format!("ipv6/conf/{which}/accept_dad"), "0");
    }
}

impl Place {
    /// A pair of interfaces, `name` at the node and `eth0` here.
    fn join(&self, name: &str) {
        let prepare = || {
            as_router(false);
            // A prefix routed to loopback is answered for; IPv6 has to be told that it may be bound too.
            set("ipv6/ip_nonlocal_bind", "1");
        };
        self.net.run(prepare).unwrap();
        ip(&format!("link add {name} type veth peer name eth0 netns {}", self.net.path().display()));
        ip(&format!("link set {name} up"));
    }

    fn setup(&self, commands: &[String]) {
        self.net.run(|| commands.iter().for_each(|command| ip(command))).unwrap();
    }
}

/// A pod with one address and everything by the node, as CNI plug-ins make it, so that no packet
/// between two pods passes the node's rules by.
fn pod(last: u8) -> Place {
    let place = Place { net: NetNs::new().unwrap() };
    let name = format!("pod{last}");
    place.join(&name);
    ip(&format!("link set {name} master {}", case::POD_INTERFACE));
    // A pod that meets itself comes back by the port it went out by.
    ip(&format!("link set {name} type bridge_slave hairpin on"));
    let mut commands = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
    for (family, address, gateway) in [
        ("-4", format!("10.244.1.{last}/32"), "10.244.1.254"),
        ("-6", format!("fd00:10:244:1::{last}/128"), "fd00:10:244:1::254"),
    ] {
        commands.push(format!("{family} address add {address} dev eth0"));
        commands.push(format!("{family} route add {gateway} dev eth0"));
        commands.push(format!("{family} route add default via {gateway} dev eth0"));
    }
    place.setup(&commands);
    place
}

impl World {
    /// Builds the world around the calling thread's namespace, which becomes the node's, with listeners
    /// for every endpoint of the cases.
    pub fn new(cases: &[Case]) -> World {
        as_router(true);
        // Refusals by ICMP are rationed, and there will be many.
        set("ipv4/icmp_ratelimit", "0");
        set("ipv6/icmp/ratelimit", "0");
        // What an earlier packet opened must not carry a later one that happens to come from the same port.
        for state in ["syn_sent", "fin_wait", "close_wait", "last_ack", "time_wait", "close"] {
            set(&format!("netfilter/nf_conntrack_tcp_timeout_{state}"), "1");
        }
        ip("link set lo up");
        ip(&format!("link add {} type bridge", case::POD_INTERFACE));
        ip(&format!("link set {} up", case::POD_INTERFACE));
        for address in ["10.244.1.254/24", "fd00:10:244:1::254/64"] {
            ip(&format!("address add {address} dev {}", case::POD_INTERFACE));
        }
        let pods = PODS.into_iter().map(|last| (last, pod(last))).collect();
        let lan = ["192.168.0.2/24", "fd00:192:168:0::2/64"];
        let wan = ["100.64.0.2/24", "fd00:100:64:0::2/64"];
        let node_lan = ["192.168.0.1", "fd00:192:168:0::1"];
        let node_wan = ["100.64.0.1", "fd00:100:64:0::1"];
        let far = World::link("lan0", &node_lan, lan, &[FAR, FAR6].concat());
        for second in ["192.168.1.1/24", "fd00:192:168:1::1/64"] {
            ip(&format!("address add {second} dev lan0"));
        }
        let outside = World::link("wan0", &node_wan, wan, &[OUTSIDE, OUTSIDE6].concat());
        ip("-4 route add default via 100.64.0.2");
        ip("-6 route add default via fd00:100:64:0::2");
        let sctp = Socket::new(Domain::IPV4, Type::STREAM, Some(132.into())).is_ok();
        let world = World { pods, far, outside, sctp };
        world.serve(cases);
        for port in HOST_PORTS {
            listen_tcp(SocketAddr::new(IpAddr::V6(0.into()), port), 6, Some("host"));
        }
        // Neighbours are found once, so that no packet of a case waits for it.
        std::thread::sleep(Duration::from_millis(100));
        world
    }

    /// A place that answers for whole prefixes, behind one link.
    fn link(name: &str, node: &[&'static str; 2], own: [&str; 2], prefixes: &[&str]) -> Place {
        let place = Place { net: NetNs::new().unwrap() };
        place.join(name);
        for (node, length) in node.iter().zip(["24", "64"]) {
            ip(&format!("address add {node}/{length} dev {name}"));
        }
        let mut commands = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
        for (own, node) in own.iter().zip(node) {
            commands.push(format!("address add {own} dev eth0"));
            commands.push(format!("route add default via {node}"));
        }
        commands.extend(prefixes.iter().map(|prefix| format!("route add local {prefix} dev lo")));
        place.setup(&commands);
        for prefix in prefixes {
            let via = own[usize::from(prefix.contains(':'))].split('/').next().unwrap_or_default();
            ip(&format!("route add {prefix} via {via}"));
        }
        place
    }

    /// Whether SCTP can be tried here at all.
    pub fn has_sctp(&self) -> bool {
        self.sctp
    }

    /// A listener for each endpoint that stands in a slice, used or not: a packet to the wrong one is
    /// then answered, and seen.
    fn serve(&self, cases: &[Case]) {
        let mut all: BTreeSet<(IpAddr, u16, u8)> = BTreeSet::new();
        for change in cases.iter().flat_map(|case| case.steps.iter().flat_map(|step| &step.changes)) {
            let Change::Slice(slice) = change else { continue };
            for endpoint in &slice.endpoints {
                let addr = endpoint.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok());
                for addr in addr {
                    for port in &slice.ports {
                        let number = port.port.and_then(|port| u16::try_from(port).ok()).unwrap_or(0);
                        all.insert((addr, number, Protocol::from(port.protocol).number()));
                    }
                }
            }
        }
        for (addr, port, protocol) in all.into_iter().filter(|(_, port, _)| *port != 0) {
            let Some(place) = self.home(addr) else { continue };
            let at = SocketAddr::new(addr, port);
            let sctp = self.sctp;
            place
                .net
                .run(move || match protocol {
                    17 => answer_udp(at),
                    132 if !sctp => {}
                    stream => listen_tcp(at, stream, None),
                })
                .unwrap();
        }
    }

    /// Who has an address; `None` for the node, and for addresses of nobody.
    fn home(&self, addr: IpAddr) -> Option<&Place> {
        let within = |list: &[&str]| {
            list.iter()
                .any(|text| text.parse::<longshore_core::service::cidr::Cidr>().unwrap().contains(addr))
        };
        let pod = self.pods.iter().find(|(last, _)| {
            [format!("10.244.1.{last}"), format!("fd00:10:244:1::{last}")]
                .iter()
                .any(|text| text.parse() == Ok(addr))
        });
        if let Some((_, place)) = pod {
            Some(place)
        } else if within(&FAR) || within(&FAR6) {
            Some(&self.far)
        } else {
            (within(&OUTSIDE) || within(&OUTSIDE6)).then_some(&self.outside)
        }
    }

    /// The namespace of who has an address that is not the node's.
    #[allow(dead_code, reason = "only some tests place listeners of their own")]
    pub fn net_of(&self, addr: &str) -> &NetNs {
        &self.home(addr.parse().unwrap()).unwrap_or_else(|| panic!("nobody has {addr}")).net
    }

    fn from<T: Send>(&self, line: &PacketLine, work: impl FnOnce() -> T + Send) -> T {
        match (line.origin, self.home(line.src)) {
            (Origin::Node, _) => work(),
            (_, Some(place)) => place.net.run(work).unwrap(),
            (_, None) => panic!("{}: nobody here has the address {}", line.text, line.src),
        }
    }

    /// Runs a case by a daemon set for it; everything that is wrong with it, each ready to be printed.
    pub async fn run(&self, case: &Case, daemon: &mut Daemon) -> Vec<String> {
        let mode = daemon.mode;
        let mut found = Vec::new();
        daemon.forget();
        for step in &case.steps {
            step.changes.iter().for_each(|change| daemon.tell(change));
            daemon.engine.sync(Timestamp::UNIX_EPOCH).await;
            let view = daemon.engine.view();
            if view.mode != mode.named().to_string() || !view.failures.is_empty() {
                found.push(format!("the kernel refused: mode {}, {:?}", view.mode, view.failures));
            }
            found.extend(self.step(step, mode, &daemon.engine));
        }
        if daemon.reads_back {
            let drift = daemon.engine.audit(Timestamp::UNIX_EPOCH).await;
            if drift != 0 {
                found.push(format!("what was written reads back otherwise: {drift} objects"));
            }
        }
        found.into_iter().map(|text| format!("{} [{mode}] {}\n    {text}", case.name, case.title)).collect()
    }

    /// Whether a packet meets what is expected, and what it met where not.
    fn try_one<'a>(
        &self,
        (line, expected): &'a (&'a PacketLine, Expected),
    ) -> Result<(), (&'a PacketLine, &'a Expected, String)> {
        self.from(line, || observe(line, expected)).map_err(|got| (*line, expected, got))
    }

    /// What each packet of a step meets. Those that should meet silence wait for it all at once.
    fn step(&self, step: &Step, mode: Mode, engine: &Engine) -> Vec<String> {
        let lines: Vec<(&PacketLine, Expected)> = step
            .packets
            .iter()
            .filter(|line| line.protocol != Protocol::Sctp || self.sctp)
            .map(|line| (line, line.expected(mode)))
            .collect();
        let is_silent =
            |(_, expected): &&(&PacketLine, Expected)| matches!(expected, Expected::Drop | Expected::Pass);
        let (silent, others): (Vec<_>, Vec<_>) = lines.iter().partition(is_silent);
        let mut outcomes: Vec<_> = others.into_iter().map(|one| self.try_one(one)).collect();
        std::thread::scope(|scope| {
            let waiting: Vec<_> =
                silent.into_iter().map(|one| scope.spawn(move || self.try_one(one))).collect();
            outcomes.extend(waiting.into_iter().map(|one| one.join().unwrap()));
        });
        let failed = outcomes.into_iter().filter_map(Result::err);
        failed.map(|(line, expected, got)| wrong(line, expected, &got, engine)).collect()
    }
}

/// What a packet met, beside what it should have, and why the daemon thinks it should.
fn wrong(line: &PacketLine, expected: &Expected, got: &str, engine: &Engine) -> String {
    let PacketLine { origin, src, dst, protocol, .. } = *line;
    let answer = engine.explain(&Query { dst, protocol, origin, src });
    let mut text = format!("{}\n    expected {expected}\n    got      {got}", line.text);
    let _ = write!(text, "\n    {}", answer.sentence);
    for one in &answer.candidates {
        let used = if one.used { "in" } else { "out" };
        let _ = write!(text, "\n      {} {used}: {}", one.endpoint, one.reason);
    }
    text
}

/// How Services are served.
#[derive(Clone)]
pub struct Way {
    pub mode: Mode,
    /// The programs of iptables mode.
    pub iptables: Option<OpenIptables>,
    /// Compare what was written with the kernel after every case.
    pub reads_back: bool,
}

/// A daemon that serves one case after the other, as one that runs for long.
pub struct Daemon {
    engine: Engine,
    mode: Mode,
    reads_back: bool,
    /// Every object of the case it serves; Services are true.
    told: BTreeSet<(bool, ObjectKey)>,
}

impl Daemon {
    /// A daemon as the case sets it, over what the kernel holds.
    pub async fn start(case: &Case, way: &Way) -> Daemon {
        let mut open = OpenKernel::new(|| Kernel::open(dataplane::kernel_flows()));
        if let Some(iptables) = &way.iptables {
            open = open.with_iptables(iptables.clone());
        }
        let mut engine = Engine::new(config(case, way.mode), open);
        engine.start().await;
        engine.take(dataplane::Change::Zone(case.node.zone.clone()));
        engine.take(dataplane::Change::ServiceRanges(case.node.service_cidrs.clone()));
        engine.take(dataplane::Change::SourcesSynced);
        Daemon { engine, mode: way.mode, reads_back: way.reads_back, told: BTreeSet::new() }
    }

    fn tell(&mut self, change: &Change) {
        match change {
            Change::Service(service) => self.told.insert((true, service.key())),
            Change::Slice(slice) => self.told.insert((false, slice.key())),
            Change::ServiceGone(key) => self.told.remove(&(true, key.clone())),
            Change::SliceGone(key) => self.told.remove(&(false, key.clone())),
        };
        self.engine.take(told(change));
    }

    /// The objects of the case before go, in the same round as those of the next come.
    fn forget(&mut self) {
        for (is_service, key) in std::mem::take(&mut self.told) {
            self.engine.take(match is_service {
                true => dataplane::Change::ServiceGone(key),
                false => dataplane::Change::SliceGone(key),
            });
        }
    }
}

/// Runs cases in turn, one daemon for all that are set alike; gives what is wrong.
pub async fn run_in_turn(world: &World, cases: &[Case], way: &Way) -> Vec<String> {
    let mut settings: Vec<_> = Vec::new();
    for case in cases {
        if !settings.contains(&(&case.config, &case.node)) {
            settings.push((&case.config, &case.node));
        }
    }
    let mut wrong = Vec::new();
    for (config, node) in settings {
        let mut alike = cases.iter().filter(|case| (&case.config, &case.node) == (config, node)).peekable();
        let Some(first) = alike.peek() else { continue };
        let mut daemon = Daemon::start(first, way).await;
        for case in alike {
            wrong.extend(world.run(case, &mut daemon).await);
        }
    }
    wrong
}

fn config(case: &Case, mode: Mode) -> DataplaneConfig {
    let request = match mode {
        Mode::Nftables => ModeRequest::Nftables,
        Mode::Ipvs | Mode::IpvsByIptables => ModeRequest::Ipvs,
        Mode::Iptables => ModeRequest::Iptables,
    };
    let new = DataplaneConfig::new(request, case::NODE, case::primary_addresses());
    let tuning = ModeTuning { masquerade_all: case.config.masquerade_all, ..ModeTuning::default() };
    let asked = case.node_ports(mode);
    // What the mode takes by default is its own business, and part of what is tested.
    let by_default = case.config.node_port_addresses.is_empty();
    let zero = case.config.node_port_addresses.iter().any(|text| text.ends_with("/0"));
    DataplaneConfig {
        // Ranges are told, as everything of the control plane is.
        chains: ChainConfig { service_ranges: Vec::new(), ..case.chains() },
        tuning: PerMode { nftables: tuning, ipvs: tuning, iptables: tuning },
        node_port_addresses: match asked {
            _ if by_default => None,
            NodePortAddresses::Within(_) if zero => Some(NodePortAddresses::All),
            asked => Some(asked),
        },
        ..new
    }
}

fn told(change: &Change) -> dataplane::Change {
    match change {
        Change::Service(service) => dataplane::Change::Service(service.clone()),
        Change::Slice(slice) => dataplane::Change::Slice(slice.clone()),
        Change::ServiceGone(key) => dataplane::Change::ServiceGone(key.clone()),
        Change::SliceGone(key) => dataplane::Change::SliceGone(key.clone()),
    }
}

/// What one packet met.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Met {
    /// Who answered, and whom it saw.
    Answer(SocketAddr, IpAddr),
    /// A process of the node itself.
    Host,
    Refused,
    Silence,
    Unreachable,
}

/// Sends packets until what is expected was seen, or something else was.
fn observe(line: &PacketLine, expected: &Expected) -> Result<(), String> {
    let one = |wait: Duration| send(line, wait);
    match expected {
        Expected::Drop => same(&one(SILENCE), &[Met::Silence]),
        Expected::Reject => same(&one(PATIENCE), &[Met::Refused]),
        Expected::Host => same(&one(PATIENCE), &[Met::Host, Met::Refused]),
        Expected::Pass => {
            let met = one(SILENCE);
            // The address itself may answer, to the client as it is; or there is nobody.
            let itself = Met::Answer(line.dst, line.src);
            same(&met, &[itself, Met::Silence, Met::Unreachable])
        }
        Expected::Endpoints { to, affinity } => {
            let mut seen: BTreeSet<(SocketAddr, bool)> = BTreeSet::new();
            let tries = if affinity.is_some() { 6 } else { 40 * to.len() };
            for count in 0..tries {
                match one(PATIENCE) {
                    Met::Answer(at, client) => seen.insert((at, is_rewritten(line, client))),
                    other => return Err(format!("{other:?}")),
                };
                if !seen.is_subset(to) {
                    break;
                }
                if affinity.is_none() && seen == *to && count + 1 >= 2 * to.len() {
                    return Ok(());
                }
            }
            let kept = affinity.is_some() && seen.len() == 1 && seen.is_subset(to);
            if kept || seen == *to && affinity.is_none() {
                return Ok(());
            }
            Err(Expected::Endpoints { to: seen, affinity: None }.to_string())
        }
    }
}

/// Whether the endpoint saw another client than sent. What the node sends is rewritten to an address of
/// its own, which on the link it is bound to is the one it had.
fn is_rewritten(line: &PacketLine, client: IpAddr) -> bool {
    if line.origin != Origin::Node {
        return client != line.src;
    }
    let own = ["192.168.0.1", "192.168.1.1", "10.244.1.254", "100.64.0.1"];
    own.iter().any(|addr| case::in_family(addr, client.is_ipv6()) == client)
}

fn same(met: &Met, allowed: &[Met]) -> Result<(), String> {
    if allowed.contains(met) { Ok(()) } else { Err(format!("{met:?}")) }
}

fn send(line: &PacketLine, wait: Duration) -> Met {
    let outcome = match line.protocol {
        Protocol::Udp => send_udp(line, wait),
        stream => send_stream(line, stream.number(), wait),
    };
    match outcome {
        Ok(text) => met(&text),
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Met::Refused,
            // A rule that refuses what the node itself sends fails the call that sent it.
            ErrorKind::PermissionDenied if line.origin == Origin::Node => Met::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Met::Silence,
            _ => Met::Unreachable,
        },
    }
}

fn met(text: &str) -> Met {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.as_slice() {
        ["host"] => Met::Host,
        [at, client] => Met::Answer(at.parse().unwrap(), client.parse().unwrap()),
        other => panic!("{other:?} is no answer of ours"),
    }
}

fn send_stream(line: &PacketLine, protocol: u8, wait: Duration) -> std::io::Result<String> {
    let socket = Socket::new(Domain::for_address(line.dst), Type::STREAM, Some(i32::from(protocol).into()))?;
    socket.bind(&SocketAddr::new(line.src, 0).into())?;
    socket.connect_timeout(&line.dst.into(), wait)?;
    let mut stream = TcpStream::from(OwnedFd::from(socket));
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn send_udp(line: &PacketLine, wait: Duration) -> std::io::Result<String> {
    let socket = UdpSocket::bind(SocketAddr::new(line.src, 0))?;
    socket.connect(line.dst)?;
    socket.set_read_timeout(Some(wait))?;
    socket.send(b"?")?;
    let mut answer = [0; 200];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Answers every connection with the listener's and the client's address, or with `word`.
fn listen_tcp(at: SocketAddr, protocol: u8, word: Option<&'static str>) {
    let socket =
        Socket::new(Domain::for_address(at), Type::STREAM, Some(i32::from(protocol).into())).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&at.into()).unwrap_or_else(|error| panic!("{at}: {error}"));
    socket.listen(128).unwrap();
    std::thread::spawn(move || {
        while let Ok((socket, peer)) = socket.accept() {
            let client = peer.as_socket().map(|peer| peer.ip());
            let text = match (word, client) {
                (Some(word), _) => word.to_owned(),
                (None, Some(client)) => format!("{at} {client}"),
                (None, None) => continue,
            };
            // A client that went away misses nothing.
            let _ = TcpStream::from(OwnedFd::from(socket)).write_all(text.as_bytes());
        }
    });
}

fn answer_udp(at: SocketAddr) {
    let socket = UdpSocket::bind(at).unwrap_or_else(|error| panic!("{at}: {error}"));
    std::thread::spawn(move || {
        let mut question = [0; 16];
        while let Ok((_, client)) = socket.recv_from(&mut question) {
            let _ = socket.send_to(format!("{at} {}", client.ip()).as_bytes(), client);
        }
    });
}
