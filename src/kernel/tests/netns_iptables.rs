//! iptables mode against the real kernel: a node, two pods and a client, each in a network namespace of
//! the test's own, real packets of both families through what core renders, by both variants of the
//! programs.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use longshore_core::ids::ObjectKey as ApiKey;
use longshore_core::ruleset::chains::ChainConfig;
use longshore_core::ruleset::desired::{BackEnd, Desired};
use longshore_core::ruleset::diff::{self, Applied, Op};
use longshore_core::ruleset::ipt::text::Restore;
use longshore_core::ruleset::node::NodePortAddresses;
use longshore_core::ruleset::object::Claim;
use longshore_core::ruleset::render_ipt::IptSettings;
use longshore_core::ruleset::render_ipvs::NodeNetwork;
use longshore_core::service::table::{ServiceTable, TableChange};
use longshore_core::service::topology::NodeTopology;
use longshore_kernel::iptables::{
    FakeIptables, Iptables, IptablesError, RealIptables, Tools, Variant, apply_each,
};
use longshore_kernel::netns::NetNs;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value as Json, json};

const NODE: &str = "203.0.113.254";
const NODE6: &str = "fd00:203::fe";
const CLIENT: &str = "203.0.113.1";

/// A namespace beside the node's, joined by a veth pair.
struct Host {
    net: NetNs,
}

fn sh(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Host {
    /// `name` at `.1` of two networks, the node at `.254`.
    fn new(name: &str, v4: &str, v6: &str) -> Host {
        let net = NetNs::new().unwrap();
        sh(&format!("ip link add {name} type veth peer name eth0 netns {}", net.path().display()));
        sh(&format!("ip addr add {v4}.254/24 dev {name}"));
        sh(&format!("ip addr add {v6}::fe/64 dev {name} nodad"));
        sh(&format!("ip link set {name} up"));
        let inside = [
            "ip link set lo up".to_owned(),
            format!("ip addr add {v4}.1/24 dev eth0"),
            format!("ip addr add {v6}::1/64 dev eth0 nodad"),
            "ip link set eth0 up".to_owned(),
            format!("ip route add default via {v4}.254"),
            format!("ip -6 route add default via {v6}::fe"),
        ];
        net.run(|| inside.iter().for_each(|command| drop(sh(command)))).unwrap();
        Host { net }
    }

    /// Answer on port 8080 (TCP) and 8053 (UDP) with the host's name and the client's address.
    fn serve(&self, name: &'static str) {
        let bind = || (TcpListener::bind("[::]:8080").unwrap(), UdpSocket::bind("[::]:8053").unwrap());
        let (listener, socket) = self.net.run(bind).unwrap();
        let text = move |peer: IpAddr| format!("{name} {}", peer.to_canonical());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let Ok(peer) = stream.peer_addr() else { continue };
                let _ = stream.write_all(text(peer.ip()).as_bytes());
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(text(peer.ip()).as_bytes(), peer);
            }
        });
    }
}

fn connect(to: &str) -> Result<String, ErrorKind> {
    let to: SocketAddr = to.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_millis(700)).map_err(|err| err.kind())?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|err| err.kind())?;
    Ok(answer)
}

/// The different answers of some connections.
fn answers(to: &str) -> String {
    let mut all = BTreeSet::new();
    for _ in 0..16 {
        match connect(to) {
            Ok(answer) => all.insert(answer),
            Err(kind) => {
                all.insert(format!("{kind:?}"));
                break;
            }
        };
    }
    all.into_iter().collect::<Vec<_>>().join(", ")
}

fn ask_udp(to: &str) -> String {
    let to: SocketAddr = to.parse().unwrap();
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut buffer = [0; 64];
    let outcome = socket.send(b"?").and_then(|_| socket.recv(&mut buffer));
    outcome.map_or_else(
        |err| format!("{:?}", err.kind()),
        |len| String::from_utf8_lossy(&buffer[..len]).into_owned(),
    )
}

/// What core wants and what the kernel has acknowledged.
struct Plane {
    table: ServiceTable,
    desired: Desired,
    applied: Applied,
    dirty: BTreeSet<Claim>,
    iptables: RealIptables,
}

impl Plane {
    async fn new(variant: Variant) -> Plane {
        let addrs = |all: &[&str]| all.iter().map(|addr| addr.parse::<IpAddr>().unwrap()).collect();
        let node = NodeNetwork {
            node_port_addresses: addrs(&[NODE, NODE6]),
            host_addresses: addrs(&[NODE, NODE6, "127.0.0.1", "::1"]),
            pod_interface: String::new(),
        };
        let mut desired = Desired::new(BackEnd::Iptables, node);
        desired.set_iptables(IptSettings {
            chains: ChainConfig {
                masquerade_mark: 0x4000,
                masquerade_all: false,
                cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/32".parse().unwrap()],
                pod_interface: None,
                service_ranges: Vec::new(),
            },
            node_ports: NodePortAddresses::All,
            ..IptSettings::default()
        });
        let dirty = desired.claims().copied().collect();
        let table = ServiceTable::new(NodeTopology { name: "n1".into(), zone: None });
        let iptables = RealIptables::open(Some(variant), Tools::default()).await.unwrap();
        assert_eq!(iptables.features().variant, variant);
        Plane { table, desired, applied: Applied::default(), dirty, iptables }
    }

    fn service(&mut self, name: &str, spec: Json, lb: &[&str]) {
        let ingress: Vec<Json> = lb.iter().map(|ip| json!({"ip": ip})).collect();
        let service = json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec,
                             "status": {"loadBalancer": {"ingress": ingress}}});
        let change = self.table.upsert_service(&serde_json::from_value(service).unwrap());
        self.take(change);
    }

    /// Pod `a` is on this node, pod `b` on another.
    fn endpoints(&mut self, service: &str, pods: &str) {
        for (kind, one, other) in
            [("IPv4", "10.244.1.1", "10.244.2.1"), ("IPv6", "fd00:244:1::1", "fd00:244:2::1")]
        {
            let of = |pod: char| match pod {
                'a' => json!({"addresses": [one], "nodeName": "n1", "conditions": {"ready": true}}),
                _ => json!({"addresses": [other], "nodeName": "n2", "conditions": {"ready": true}}),
            };
            let slice = json!({"metadata": {"name": format!("{service}-{kind}"), "namespace": "ns",
                    "labels": {"kubernetes.io/service-name": service}}, "addressType": kind,
                "endpoints": pods.chars().map(of).collect::<Vec<_>>(),
                "ports": [{"name": "p", "port": 8080}, {"name": "u", "port": 8053, "protocol": "UDP"}]});
            let change = self.table.upsert_slice(&serde_json::from_value(slice).unwrap());
            self.take(change);
        }
    }

    fn take(&mut self, change: TableChange) {
        for port in change.ports {
            self.dirty.extend(self.desired.change(port.before.as_ref(), port.after.as_ref()));
        }
    }

    fn plan(&mut self) -> Vec<Op> {
        let dirty = std::mem::take(&mut self.dirty);
        diff::plan(&self.desired, &self.applied, dirty, &|_, _| true)
    }

    /// Do what is due; how many operations that were.
    async fn settle(&mut self) -> usize {
        let ops = self.plan();
        for ipv6 in [false, true] {
            let mine: Vec<Op> = ops.iter().filter(|op| op.claim.is_ipv6() == ipv6).cloned().collect();
            let outcomes = apply_each(&self.iptables, ipv6, &mine).await;
            for (op, outcome) in mine.iter().zip(outcomes.each) {
                outcome.unwrap_or_else(|err| panic!("{op}: {err}"));
                self.applied.acknowledge(op);
            }
        }
        ops.len()
    }

    /// Read everything back; whether it is as believed.
    async fn audit(&mut self) -> bool {
        let mut seen = Applied::default();
        for ipv6 in [false, true] {
            let dump = self.iptables.dump(ipv6).await.unwrap();
            for (claim, objects) in Applied::adopt(dump.objects).by_claim() {
                seen.replace(*claim, objects.into_owned());
            }
        }
        let same = seen == self.applied;
        self.applied = seen;
        self.dirty.extend(self.desired.claims().copied());
        self.dirty.extend(self.applied.claims().copied());
        same
    }
}

/// The node with its neighbours: client, pod a, pod b.
fn hosts() -> [Host; 3] {
    sh("ip link set lo up");
    for (path, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/conf/all/route_localnet", "1"),
        // Redirects to a pod that reaches itself use up the answers a peer may be sent per second.
        ("ipv4/icmp_ratelimit", "0"),
    ] {
        std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap();
    }
    let client = Host::new("client", "203.0.113", "fd00:203");
    // The node's own packets for Services must leave by some route before they are turned.
    sh("ip route add default via 203.0.113.1");
    sh("ip -6 route add default via fd00:203::1");
    let a = Host::new("poda", "10.244.1", "fd00:244:1");
    let b = Host::new("podb", "10.244.2", "fd00:244:2");
    a.serve("a");
    b.serve("b");
    [client, a, b]
}

/// Run a body for each variant that is installed, each in a namespace of its own.
fn with_both(body: impl AsyncFn(Variant) + Send + Sync + Copy) {
    for (variant, program) in
        [(Variant::Legacy, "iptables-legacy-restore"), (Variant::Nft, "iptables-nft-restore")]
    {
        if Tools::default().folders.iter().any(|folder| folder.join(program).is_file()) {
            common::in_new_netns(|| async move { body(variant).await });
        } else {
            common::skip("iptables", &format!("{program} is not installed"));
        }
    }
}

fn ports(node_port: u16) -> Json {
    json!([{"name": "p", "port": 80, "nodePort": node_port}, {"name": "u", "port": 53, "protocol": "UDP"}])
}

#[test]
fn packets_go_where_services_say_and_keep_or_lose_their_source() {
    with_both(async |variant| {
        let [client, a, _b] = hosts();
        let mut plane = Plane::new(variant).await;
        let both = |ip: &str, ip6: &str, extra: Json| {
            let mut spec = json!({"type": "NodePort", "clusterIPs": [ip, ip6], "ports": ports(0)});
            spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            spec
        };
        plane.service("web", both("10.96.0.1", "fd00:96::1", json!({"ports": ports(30080)})), &[]);
        let local = json!({"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local", "ports": ports(30081)});
        plane.service("here", both("10.96.0.2", "fd00:96::2", local), &[]);
        plane.service("sticky", both("10.96.0.3", "fd00:96::3", json!({"sessionAffinity": "ClientIP"})), &[]);
        plane.service("none", both("10.96.0.4", "fd00:96::4", json!({"ports": ports(30084)})), &[]);
        let far = json!({"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local", "ports": ports(30085)});
        plane.service("far", both("10.96.0.5", "fd00:96::5", far), &[]);
        let guarded = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.6", "ports": ports(0),
            "externalIPs": ["198.51.100.7"], "loadBalancerSourceRanges": ["203.0.113.0/24"]});
        plane.service("guarded", guarded, &["198.51.100.6"]);
        for (name, pods) in [("web", "ab"), ("here", "ab"), ("sticky", "ab"), ("far", "b"), ("guarded", "b")]
        {
            plane.endpoints(name, pods);
        }
        plane.settle().await;
        assert!(plane.audit().await, "{variant:?}: what is written reads back the same");
        assert_eq!(plane.settle().await, 0);
        let from = |host: &Host, to: &'static str| host.net.run(|| answers(to)).unwrap();
        // From outside by the cluster address: the source is the node's on the way to each pod.
        assert_eq!(from(&client, "10.96.0.1:80"), "a 10.244.1.254, b 10.244.2.254", "{variant:?}");
        assert_eq!(from(&client, "[fd00:96::1]:80"), "a fd00:244:1::fe, b fd00:244:2::fe");
        // A pod keeps its source, except towards itself.
        assert_eq!(from(&a, "10.96.0.1:80"), "a 10.244.1.254, b 10.244.1.1");
        assert_eq!(from(&a, "[fd00:96::1]:80"), "a fd00:244:1::fe, b fd00:244:1::1");
        // The node itself, on its own address and on loopback.
        assert_eq!(answers("10.96.0.1:80"), "a 10.244.1.254, b 10.244.2.254");
        assert_eq!(answers("127.0.0.1:30080"), "a 10.244.1.254, b 10.244.2.254");
        assert_eq!(answers("[fd00:203::fe]:30080"), "a fd00:244:1::fe, b fd00:244:2::fe");
        // Node ports by both policies.
        assert_eq!(from(&client, "203.0.113.254:30080"), "a 10.244.1.254, b 10.244.2.254");
        assert_eq!(from(&client, "[fd00:203::fe]:30080"), "a fd00:244:1::fe, b fd00:244:2::fe");
        assert_eq!(from(&client, "203.0.113.254:30081"), format!("a {CLIENT}"));
        assert_eq!(from(&client, "[fd00:203::fe]:30081"), "a fd00:203::1");
        assert_eq!(from(&a, "203.0.113.254:30081"), "a 10.244.1.254, b 10.244.1.1");
        assert_eq!(from(&client, "10.96.0.2:80"), "a 10.244.1.254");
        // A client that is remembered stays, and is not the only one.
        for host in [&client, &a] {
            assert_eq!(from(host, "10.96.0.3:80").matches(' ').count(), 1, "{variant:?}");
            assert_eq!(from(host, "[fd00:96::3]:80").matches(' ').count(), 1);
        }
        // Nobody there: told at once. Only elsewhere: silence.
        for to in ["10.96.0.4:80", "203.0.113.254:30084", "[fd00:96::4]:80"] {
            assert_eq!(from(&client, to), "ConnectionRefused", "{to}");
            assert_eq!(answers(to), "ConnectionRefused", "{to} from the node");
        }
        let udp = client.net.run(|| ask_udp("10.96.0.4:53")).unwrap();
        assert_eq!(udp, "ConnectionRefused", "{variant:?}");
        for to in ["10.96.0.5:80", "203.0.113.254:30085", "[fd00:96::5]:80"] {
            assert_eq!(from(&client, to), "TimedOut", "{to}");
        }
        assert_eq!(from(&a, "203.0.113.254:30085"), "b 10.244.1.1");
        // Source ranges hold at the balancer's address alone.
        assert_eq!(from(&client, "198.51.100.6:80"), "b 10.244.2.254");
        assert_eq!(from(&a, "198.51.100.6:80"), "TimedOut");
        assert_eq!(from(&a, "198.51.100.7:80"), "b 10.244.2.254");
        // UDP.
        let answer = client.net.run(|| ask_udp("10.96.0.1:53")).unwrap();
        assert!(["a 10.244.1.254", "b 10.244.2.254"].contains(&answer.as_str()), "{answer}");
        // Everything goes again and leaves nothing but what is fixed.
        for name in ["web", "here", "sticky", "none", "far", "guarded"] {
            let change = plane.table.remove_service(&ApiKey::new("ns", name));
            plane.take(change);
        }
        plane.settle().await;
        assert!(plane.audit().await);
        let left = plane.applied.claims().filter(|claim| claim.to_string().contains("SVC")).count();
        assert_eq!(left, 0);
        assert_eq!(from(&client, "203.0.113.254:30080"), "ConnectionRefused", "the host's own port");
    });
}

#[test]
fn an_established_connection_survives_changes_and_a_full_rewrite() {
    with_both(async |variant| {
        let [client, ..] = hosts();
        let mut plane = Plane::new(variant).await;
        plane.service("web", json!({"clusterIP": "10.96.0.1", "ports": [{"name": "p", "port": 80}]}), &[]);
        plane.endpoints("web", "a");
        plane.settle().await;
        let mut stream = client.net.run(|| TcpStream::connect("10.96.0.1:80").unwrap()).unwrap();
        plane.endpoints("web", "b");
        plane.settle().await;
        plane.applied = Applied::default();
        plane.dirty = plane.desired.claims().copied().collect();
        for ipv6 in [false, true] {
            // Chains again; the jumps are there and would be doubled.
            let ops = plane.plan();
            plane.dirty = plane.desired.claims().copied().collect();
            let chains: Vec<Op> = ops
                .into_iter()
                .filter(|op| matches!(op.key, longshore_core::ruleset::object::ObjectKey::Chain(id) if id.ipv6 == ipv6))
                .collect();
            assert!(apply_each(&plane.iptables, ipv6, &chains).await.each.iter().all(Result::is_ok));
        }
        let mut answer = String::new();
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "a 10.244.1.254", "{variant:?}");
        assert_eq!(client.net.run(|| answers("10.96.0.1:80")).unwrap(), "b 10.244.2.254");
    });
}

#[test]
fn a_flush_by_hand_is_found_and_repaired_and_foreign_rules_stay() {
    with_both(async |variant| {
        let program = if variant == Variant::Legacy { "iptables-legacy" } else { "iptables-nft" };
        let [client, ..] = hosts();
        for rule in [
            "-t nat -N KUBE-SERVICES",
            "-t nat -A KUBE-SERVICES -d 192.0.2.9/32 -j RETURN",
            "-t nat -A PREROUTING -j KUBE-SERVICES",
            "-A FORWARD -s 192.0.2.1/32 -j DROP",
            "-t raw -A OUTPUT -d 192.0.2.3/32 -j ACCEPT",
        ] {
            sh(&format!("{program} {rule}"));
        }
        let foreign = || -> Vec<String> {
            let saved = sh(&format!("{program}-save"));
            let ours = |line: &str| {
                line.contains("LONGSHORE")
                    || line.contains("KUBE-MARK-MASQ")
                    || line.contains("KUBE-IPTABLES-HINT")
            };
            let kept = saved.lines().filter(|line| line.starts_with("-A") || line.starts_with(":KUBE"));
            kept.filter(|line| !ours(line)).map(str::to_owned).collect()
        };
        let before = foreign();
        let mut plane = Plane::new(variant).await;
        plane.service("web", json!({"clusterIP": "10.96.0.1", "ports": [{"name": "p", "port": 80}]}), &[]);
        plane.endpoints("web", "a");
        plane.settle().await;
        assert_eq!(foreign(), before, "{variant:?}");
        sh(&format!("{program} -t nat -F LONGSHORE-T"));
        sh(&format!("{program} -t nat -D PREROUTING -j LONGSHORE-SERVICES"));
        sh(&format!("{program} -t nat -A OUTPUT -j LONGSHORE-SERVICES"));
        sh(&format!("{program} -t nat -A LONGSHORE-MARK -p tcp -m multiport --dports 1,2 -j RETURN"));
        assert_ne!(client.net.run(|| answers("10.96.0.1:80")).unwrap(), "a 10.244.1.254");
        assert!(!plane.audit().await);
        assert_eq!(plane.settle().await, 4, "what was changed, and no more");
        assert!(plane.audit().await);
        plane.settle().await;
        assert_eq!(client.net.run(|| answers("10.96.0.1:80")).unwrap(), "a 10.244.1.254");
        assert_eq!(foreign(), before);
        // All of it, with everybody else's rules.
        for table in ["nat", "filter"] {
            sh(&format!("{program} -t {table} -F"));
        }
        assert!(!plane.audit().await);
        plane.settle().await;
        assert!(plane.audit().await);
        assert_eq!(client.net.run(|| answers("10.96.0.1:80")).unwrap(), "a 10.244.1.254");
        // And everything of ours goes when another mode takes over.
        plane.dirty = plane.desired.set_back_end(BackEnd::Nftables);
        plane.dirty.extend(plane.applied.claims().copied().collect::<Vec<_>>());
        plane.settle().await;
        let saved = sh(&format!("{program}-save"));
        assert!(!saved.contains("LONGSHORE"), "{saved}");
    });
}

#[test]
fn a_lock_that_another_program_holds_for_ten_seconds_is_waited_for_and_measured() {
    common::in_new_netns(|| async {
        // A /run of the test's own: nobody else's programs wait for this.
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let Ok(iptables) = RealIptables::open(Some(Variant::Legacy), Tools::default()).await else {
            return common::skip("iptables", "iptables-legacy-restore is not installed");
        };
        let file = std::fs::File::create("/run/xtables.lock").unwrap();
        let held = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).unwrap();
        let time = Duration::from_secs(10);
        let holder = std::thread::spawn(move || {
            std::thread::sleep(time);
            drop(held);
        });
        let change = Restore::from_text(false, "*nat\n:LONGSHORE-A - [0:0]\nCOMMIT\n");
        let began = Instant::now();
        let spent = iptables.apply(&change).await.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(9_900), "{:?}", began.elapsed());
        assert!(spent.waited >= Duration::from_millis(9_900), "{:?}", spent.waited);
        assert!(spent.waited < Duration::from_secs(20), "{:?}", spent.waited);
        holder.join().unwrap();
        assert_eq!(iptables.dump(false).await.unwrap().objects.len(), 1);
        // Who holds it for ever is named.
        let tools = Tools { lock_patience: Duration::from_millis(200), ..Tools::default() };
        let hasty = RealIptables::open(Some(Variant::Legacy), tools).await.unwrap();
        let file = std::fs::File::open("/run/xtables.lock").unwrap();
        let _held = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).unwrap();
        let error = hasty.apply(&change).await.unwrap_err();
        assert!(matches!(error, IptablesError::Locked { .. }) && error.is_retryable(), "{error}");
    });
}

#[test]
fn the_fake_refuses_what_the_program_refuses() {
    with_both(async |variant| {
        let real = RealIptables::open(Some(variant), Tools::default()).await.unwrap();
        let fake = FakeIptables::new(variant);
        let cases = [
            "*nat\n:LONGSHORE-A - [0:0]\n:LONGSHORE-B - [0:0]\n-A LONGSHORE-A -j LONGSHORE-B\nCOMMIT\n",
            "*nat\n-I PREROUTING -j LONGSHORE-A\nCOMMIT\n",
            "*nat\n-X LONGSHORE-C\nCOMMIT\n",
            "*nat\n-D PREROUTING -j LONGSHORE-B\nCOMMIT\n",
            "*nat\n-A LONGSHORE-C -j DROP\nCOMMIT\n",
            "*nat\n-A LONGSHORE-A -j LONGSHORE-C\nCOMMIT\n",
            "*nat\n-A LONGSHORE-A -m nonsense -j DROP\nCOMMIT\n",
            "*filter\n:LONGSHORE-F - [0:0]\nCOMMIT\n*nat\n-X LONGSHORE-C\nCOMMIT\n",
            "*nat\n:LONGSHORE-A - [0:0]\n-D PREROUTING -j LONGSHORE-A\n-X LONGSHORE-A\nCOMMIT\n",
            "*nat\n:LONGSHORE-C - [0:0]\n-X LONGSHORE-C\nCOMMIT\n",
        ];
        for text in cases {
            let change = Restore::from_text(false, text);
            let (one, other) = (real.apply(&change).await, fake.apply(&change).await);
            assert_eq!(one.is_ok(), other.is_ok(), "{variant:?} {text}\n{one:?}\n{other:?}");
            if let Err(error) = one {
                assert!(matches!(&error, IptablesError::Refused { line: Some(_), .. }), "{error:?}");
            }
            let (one, other) = (real.dump(false).await.unwrap(), fake.dump(false).await.unwrap());
            assert_eq!(one.objects, other.objects, "{variant:?} {text}");
        }
    });
}

#[test]
fn a_refused_object_is_named_by_the_line_of_the_real_program() {
    with_both(async |variant| {
        let mut plane = Plane::new(variant).await;
        let ops: Vec<Op> = plane.plan().into_iter().filter(|op| !op.claim.is_ipv6()).collect();
        let mut bad = ops.clone();
        let at = bad.iter().position(|op| op.key.to_string() == "IPv4 nat chain LONGSHORE-MARK").unwrap();
        let nonsense = longshore_core::ruleset::ipt::Match::Other("-m nonsense".into());
        let rule = longshore_core::ruleset::ipt::Rule::new(
            vec![nonsense],
            longshore_core::ruleset::ipt::Target::Drop,
        );
        bad[at].change = diff::Change::Add(longshore_core::ruleset::object::ObjectValue::Rules(vec![rule]));
        let outcomes = apply_each(&plane.iptables, false, &bad).await;
        let failed: Vec<usize> = (0..bad.len()).filter(|index| outcomes.each[*index].is_err()).collect();
        assert_eq!(failed, [at], "{variant:?}: {:?}", outcomes.each[failed[0]]);
        let text = outcomes.each[at].as_ref().unwrap_err().to_string();
        assert!(text.contains("-A LONGSHORE-MARK -m nonsense"), "{text}");
        // All others are there.
        let dump = plane.iptables.dump(false).await.unwrap();
        assert_eq!(dump.objects.len(), ops.len());
    });
}
