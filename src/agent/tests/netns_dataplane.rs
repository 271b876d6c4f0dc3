//! The whole dataplane in nftables mode against the real kernel: a node, two pods and a client, each in
//! a network namespace of this test's own, real TCP connections through real rules.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use longshore_agent::dataplane::{Change, DataplaneConfig, Engine, Kernel, ModeRequest, OpenKernel};
use longshore_core::ids::ObjectKey;
use longshore_core::ruleset::chains::ChainConfig;
use longshore_kernel::netns::{self, NetNs, NetNsError};
use serde_json::{Value, json};

/// A namespace beside the node's, joined by a veth pair.
struct Host {
    net: NetNs,
}

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Host {
    /// `name` at `<prefix>.<last>`, the node at `<prefix>.254`.
    fn new(name: &str, prefix: &str, last: u8) -> Host {
        let net = NetNs::new().unwrap();
        ip(&format!("link add {name} type veth peer name eth0 netns {}", net.path().display()));
        ip(&format!("addr add {prefix}.254/24 dev {name}"));
        ip(&format!("link set {name} up"));
        let address = format!("addr add {prefix}.{last}/24 dev eth0");
        let route = format!("route add default via {prefix}.254");
        // The same in IPv6: 10.244.1.7 is fd00:10:244:1::7.
        let six = format!("fd00:{}:", prefix.replace('.', ":"));
        ip(&format!("-6 addr add {six}:254/64 dev {name} nodad"));
        let address_six = format!("-6 addr add {six}:{last}/64 dev eth0 nodad");
        let route_six = format!("-6 route add default via {six}:254");
        net.run(|| {
            ip("link set lo up");
            ip(&address);
            ip("link set eth0 up");
            ip(&route);
            ip(&address_six);
            ip(&route_six);
        })
        .unwrap();
        Host { net }
    }

    /// Answer every connection to port 8080 with the host's name and the client's address.
    fn serve(&self, name: &'static str) {
        // Of both families: an address of IPv4 is seen as one mapped into IPv6.
        let (listener, echo, datagrams) = self
            .net
            .run(|| {
                let echo = TcpListener::bind("0.0.0.0:8081").unwrap();
                (TcpListener::bind("[::]:8080").unwrap(), echo, UdpSocket::bind("0.0.0.0:8053").unwrap())
            })
            .unwrap();
        std::thread::spawn(move || {
            for stream in echo.incoming() {
                let Ok(mut stream) = stream else { return };
                std::thread::spawn(move || {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
                });
            }
        });
        std::thread::spawn(move || {
            let mut question = [0; 16];
            while let Ok((_, peer)) = datagrams.recv_from(&mut question) {
                let _ = datagrams.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
            }
        });
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let Ok(peer) = stream.peer_addr() else { continue };
                let _ = stream.write_all(format!("{name} {}", peer.ip().to_canonical()).as_bytes());
            }
        });
    }

    /// One answer to this host.
    fn answer(&self, to: &str) -> String {
        self.net.run(|| connect(to).unwrap_or_else(|kind| format!("{kind:?}"))).unwrap()
    }
}

fn connect(to: &str) -> Result<String, ErrorKind> {
    let to: SocketAddr = to.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).map_err(|err| err.kind())?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|err| err.kind())?;
    Ok(answer)
}

/// The different answers of 24 connections.
fn answers(to: &str) -> Vec<String> {
    let all: BTreeSet<String> =
        (0..24).map(|_| connect(to).unwrap_or_else(|kind| format!("{kind:?}"))).collect();
    all.into_iter().collect()
}

fn config() -> DataplaneConfig {
    let node = vec![IpAddr::from([203, 0, 113, 254]), "fd00:203:0:113::254".parse().unwrap()];
    let new = DataplaneConfig::new(ModeRequest::Nftables, "n1", node);
    let cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()];
    DataplaneConfig { chains: ChainConfig { cluster_cidrs, ..new.chains.clone() }, ..new }
}

fn engine() -> Engine {
    Engine::new(config(), OpenKernel::new(|| Kernel::open(None)))
}

fn service(name: &str, ip: &str, extra: &Value) -> Change {
    let mut spec = json!({"type": "NodePort", "clusterIP": ip, "ports": [{"name": "p", "port": 80}]});
    for (key, value) in extra.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let value = json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec});
    Change::Service(Box::new(serde_json::from_value(value).unwrap()))
}

/// Endpoints of a Service; those on 10.244.1.0/24 are this node's.
fn endpoints(service: &str, addrs: &[&str]) -> Change {
    let endpoint = |addr: &&str| json!({"addresses": [addr], "nodeName": if addr.starts_with("10.244.1.") { "n1" } else { "n2" }});
    let list: Vec<Value> = addrs.iter().map(endpoint).collect();
    let value = json!({"metadata": {"name": format!("{service}-1"), "namespace": "ns",
            "labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4", "endpoints": list,
        "ports": [{"name": "p", "port": 8080}]});
    Change::Slice(Box::new(serde_json::from_value(value).unwrap()))
}

fn population() -> Vec<Change> {
    let web = json!({"ports": [{"name": "p", "port": 80, "nodePort": 30080}]});
    let near =
        json!({"ports": [{"name": "p", "port": 80, "nodePort": 30081}], "externalTrafficPolicy": "Local"});
    let sticky = json!({"type": "ClusterIP", "sessionAffinity": "ClientIP"});
    let both = &["10.244.1.1", "10.244.2.1"];
    vec![
        endpoints("web", both),
        endpoints("near", both),
        endpoints("sticky", both),
        service("web", "10.96.0.1", &web),
        service("near", "10.96.0.2", &near),
        service("sticky", "10.96.0.3", &sticky),
        service("none", "10.96.0.4", &json!({"type": "ClusterIP"})),
        Change::SourcesSynced,
    ]
}

async fn settled(mut engine: Engine, changes: Vec<Change>) -> Engine {
    engine.start().await;
    for change in changes {
        engine.take(change);
    }
    engine.sync(Timestamp::UNIX_EPOCH).await;
    engine
}

async fn check() {
    let [a, _b, outside] = world();
    let mut engine = settled(engine(), population()).await;
    let view = engine.view();
    assert_eq!((view.mode.as_str(), view.failures.as_slice()), ("nftables", [].as_slice()), "{view:?}");

    let from = |host: &Host, to: &str| host.net.run(|| answers(to)).unwrap();
    // A pod keeps its address towards others and gets it rewritten towards itself.
    assert_eq!(from(&a, "10.96.0.1:80"), ["a 10.244.1.254", "b 10.244.1.1"]);
    assert_eq!(answers("10.96.0.1:80"), ["a 10.244.1.254", "b 10.244.2.254"], "the node itself");
    assert_eq!(from(&outside, "203.0.113.254:30080"), ["a 10.244.1.254", "b 10.244.2.254"]);
    assert_eq!(from(&outside, "203.0.113.254:30081"), ["a 203.0.113.7"], "Local keeps the client");
    let inside = ["a 10.244.1.254", "b 10.244.1.1"];
    assert_eq!(from(&a, "203.0.113.254:30081"), inside, "pods reach all endpoints");
    assert_eq!(from(&outside, "10.96.0.3:80").len(), 1, "affinity");
    assert_eq!(from(&a, "10.96.0.4:80"), ["ConnectionRefused"], "no endpoints");
    assert_eq!(from(&a, "10.96.0.1:22"), ["ConnectionRefused"], "no such port");

    // What was written reads back as the same: a restart and an audit have nothing to do.
    let mut again = settled(self::engine(), population()).await;
    assert_eq!((again.audit(Timestamp::UNIX_EPOCH).await, again.view().counters.writes), (0, 0));

    engine.take(endpoints("web", &["10.244.2.1"]));
    engine.sync(Timestamp::UNIX_EPOCH).await;
    assert_eq!(from(&a, "10.96.0.1:80"), ["b 10.244.1.1"]);
    for name in ["web", "near", "sticky", "none"] {
        engine.take(Change::ServiceGone(ObjectKey::new("ns", name)));
    }
    engine.sync(Timestamp::UNIX_EPOCH).await;
    // Chains that spread go with an audit.
    assert_eq!(engine.audit(Timestamp::UNIX_EPOCH).await, 0);
    let view = engine.view();
    assert_eq!((view.objects, view.failures.len()), (0, 0), "{view:?}");
}

/// A node with pods `a` (its own) and `b`, and a client outside.
fn world() -> [Host; 3] {
    ip("link set lo up");
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    let (a, b) = (Host::new("poda", "10.244.1", 1), Host::new("podb", "10.244.2", 1));
    let outside = Host::new("wan", "203.0.113", 7);
    ip("route add default via 203.0.113.7");
    ip("-6 route add default via fd00:203:0:113::7");
    a.serve("a");
    b.serve("b");
    [a, b, outside]
}

fn sticky(seconds: u32) -> Change {
    let config = json!({"clientIP": {"timeoutSeconds": seconds}});
    let ports = json!([{"name": "p", "port": 80, "nodePort": 30082}]);
    service(
        "sticky",
        "10.96.0.3",
        &json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config, "ports": ports}),
    )
}

async fn check_affinity() {
    let [a, _b, outside] = world();
    let both = || endpoints("sticky", &["10.244.1.1", "10.244.2.1"]);
    let name = |answer: String| answer.split(' ').next().unwrap_or_default().to_owned();
    let ask = |to: &str| name(outside.answer(to));
    let mut engine = settled(engine(), vec![both(), sticky(2), Change::SourcesSynced]).await;
    let first = ask("10.96.0.3:80");
    let one_and_only = |answers: Vec<String>, which: &str| {
        assert!(answers.iter().all(|answer| answer == which), "{answers:?}, {which} before");
    };
    one_and_only((0..20).map(|_| ask("10.96.0.3:80")).collect(), &first);
    one_and_only((0..20).map(|_| ask("203.0.113.254:30082")).collect(), &first);
    // Another client is another matter, and both kinds come up among many; this one is kept as well.
    let inside = name(a.answer("10.96.0.3:80"));
    one_and_only((0..10).map(|_| name(a.answer("10.96.0.3:80"))).collect(), &inside);
    // Each connection starts the time again.
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(700));
        assert_eq!(ask("10.96.0.3:80"), first);
    }
    // A restart of the daemon forgets nobody, and neither does a change of the endpoints.
    let _again = settled(self::engine(), vec![both(), sticky(2), Change::SourcesSynced]).await;
    one_and_only((0..10).map(|_| ask("10.96.0.3:80")).collect(), &first);
    engine.take(endpoints("sticky", &["10.244.1.1", "10.244.2.1", "10.244.2.99"]));
    engine.sync(Timestamp::UNIX_EPOCH).await;
    one_and_only((0..10).map(|_| ask("10.96.0.3:80")).collect(), &first);
    // Whose endpoint is gone has another at once, and keeps that when the first is back.
    let (rest, second) = if first == "a" { ("10.244.2.1", "b") } else { ("10.244.1.1", "a") };
    engine.take(endpoints("sticky", &[rest]));
    engine.sync(Timestamp::UNIX_EPOCH).await;
    one_and_only((0..5).map(|_| ask("10.96.0.3:80")).collect(), second);
    engine.take(both());
    engine.sync(Timestamp::UNIX_EPOCH).await;
    one_and_only((0..10).map(|_| ask("10.96.0.3:80")).collect(), second);
    // After the time without a connection the choice is free again.
    engine.take(sticky(1));
    engine.sync(Timestamp::UNIX_EPOCH).await;
    let mut before = ask("10.96.0.3:80");
    let turned = (0..20).any(|_| {
        std::thread::sleep(Duration::from_millis(1300));
        let now = ask("10.96.0.3:80");
        std::mem::replace(&mut before, now.clone()) != now
    });
    assert!(turned, "20 times the same choice of two");
    assert_eq!(engine.audit(Timestamp::UNIX_EPOCH).await, 0, "what packets made is no drift");
}

async fn check_kinds() {
    let [a, b, outside] = world();
    let balanced = json!({"metadata": {"name": "lb", "namespace": "ns"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.5", "externalIPs": ["198.51.100.9"],
            "loadBalancerSourceRanges": ["203.0.113.0/28", "10.244.2.0/24"], "ports": [{"name": "p", "port": 80}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}, {"ip": "198.51.100.2", "ipMode": "Proxy"}]}}});
    let six = json!({"metadata": {"name": "six", "namespace": "ns"},
        "spec": {"type": "NodePort", "clusterIPs": ["fd00:96::1"], "ports": [{"name": "p", "port": 80, "nodePort": 30086}]}});
    let six_slice = json!({"metadata": {"name": "six-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "six"}},
        "addressType": "IPv6", "ports": [{"name": "p", "port": 8080}],
        "endpoints": [{"addresses": ["fd00:10:244:1::1"], "nodeName": "n1"}, {"addresses": ["fd00:10:244:2::1"], "nodeName": "n2"}]});
    let dns = json!({"type": "ClusterIP", "ports": [{"name": "u", "port": 53, "protocol": "UDP"}]});
    let dns_slice = json!({"metadata": {"name": "dns-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "dns"}},
        "addressType": "IPv4", "ports": [{"name": "u", "port": 8053, "protocol": "UDP"}], "endpoints": [{"addresses": ["10.244.2.1"]}]});
    let changes = vec![
        Change::Service(Box::new(serde_json::from_value(balanced).unwrap())),
        endpoints("lb", &["10.244.2.1"]),
        Change::Service(Box::new(serde_json::from_value(six).unwrap())),
        Change::Slice(Box::new(serde_json::from_value(six_slice).unwrap())),
        service("dns", "10.96.0.10", &dns),
        Change::Slice(Box::new(serde_json::from_value(dns_slice).unwrap())),
        Change::SourcesSynced,
    ];
    let engine = settled(engine(), changes).await;
    assert!(engine.view().failures.is_empty(), "{:?}", engine.view());
    // Ranges guard the balancer's address and no other.
    assert_eq!(outside.answer("198.51.100.1:80"), "b 10.244.2.254");
    assert_eq!(a.answer("198.51.100.1:80"), "TimedOut");
    assert_eq!(a.answer("198.51.100.9:80"), "b 10.244.2.254");
    assert_eq!(b.answer("198.51.100.1:80"), "b 10.244.2.254", "to itself and back");
    assert_ne!(outside.answer("198.51.100.2:80"), "b 10.244.2.254", "the balancer's own business");
    // IPv6: a pod, the pod itself, the client outside by node port, the node; and no such port.
    let seen = |host: &Host, to: &str| host.net.run(|| answers(to)).unwrap();
    assert_eq!(seen(&a, "[fd00:96::1]:80"), ["a fd00:10:244:1::254", "b fd00:10:244:1::1"]);
    assert_eq!(
        seen(&outside, "[fd00:203:0:113::254]:30086"),
        ["a fd00:10:244:1::254", "b fd00:10:244:2::254"]
    );
    assert_eq!(answers("[fd00:96::1]:80"), ["a fd00:10:244:1::254", "b fd00:10:244:2::254"]);
    assert_eq!(seen(&a, "[fd00:96::1]:81"), ["ConnectionRefused"]);
    // UDP.
    let told = a.net.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket.connect("10.96.0.10:53").unwrap();
        socket.send(b"?").unwrap();
        let mut answer = [0; 64];
        let len = socket.recv(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..len]).into_owned()
    });
    assert_eq!(told.unwrap(), "b 10.244.1.1");
}

async fn check_survival() {
    let [a, _b, outside] = world();
    let echo = json!({"metadata": {"name": "echo-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "echo"}},
        "addressType": "IPv4", "ports": [{"name": "p", "port": 8081}], "endpoints": [{"addresses": ["10.244.2.1"]}]});
    let echo = || Change::Slice(Box::new(serde_json::from_value(echo.clone()).unwrap()));
    let node_port = json!({"ports": [{"name": "p", "port": 80, "nodePort": 30080}]});
    let all = || {
        let web = service("web", "10.96.0.1", &json!({"type": "ClusterIP"}));
        vec![
            service("echo", "10.96.0.8", &node_port),
            echo(),
            web,
            endpoints("web", &["10.244.1.1"]),
            Change::SourcesSynced,
        ]
    };
    let mut engine = settled(engine(), all()).await;
    let open = |host: &Host, to: &str| host.net.run(|| TcpStream::connect(to).unwrap()).unwrap();
    let mut streams = [open(&a, "10.96.0.8:80"), open(&outside, "203.0.113.254:30080")];
    let mut alive = |after: &str| {
        for stream in &mut streams {
            stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let mut byte = [0];
            stream
                .write_all(b"x")
                .and_then(|()| stream.read_exact(&mut byte))
                .unwrap_or_else(|err| panic!("{after}: {err}"));
        }
    };
    alive("nothing");
    engine.take(endpoints("web", &["10.244.2.1", "10.244.1.1"]));
    engine.take(Change::ServiceGone(ObjectKey::new("ns", "web")));
    engine.sync(Timestamp::UNIX_EPOCH).await;
    alive("other Services changed");
    drop(engine);
    let mut again = settled(self::engine(), all()).await;
    alive("a restart");
    // The table deleted by hand: what is open goes on as long as any program tracks connections here,
    // and what is new is served again after an audit.
    let nft = |args: &str| {
        let output = Command::new("nft").args(args.split('|')).output().unwrap();
        assert!(output.status.success(), "nft {args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    nft("add|table|ip|cni");
    nft("add chain ip cni hostports { type nat hook prerouting priority -90 ; }");
    nft("add rule ip cni hostports ct state invalid drop");
    let foreign = nft("list|table|ip|cni");
    nft("delete|table|ip|longshore");
    alive("the table was deleted");
    assert!(again.audit(Timestamp::UNIX_EPOCH).await > 5);
    assert_eq!(a.answer("10.96.0.1:80"), "a 10.244.1.254");
    alive("the table was made again");
    assert_eq!(nft("list|table|ip|cni"), foreign);
}

#[test]
fn a_client_with_affinity_keeps_its_endpoint_while_it_comes_and_the_endpoint_is_there() {
    in_netns(check_affinity);
}

#[test]
fn balancers_ipv6_and_udp_are_served_by_real_rules() {
    in_netns(check_kinds);
}

#[test]
fn open_connections_outlive_changes_restarts_and_a_deleted_table() {
    in_netns(check_survival);
}

#[test]
fn connections_go_where_services_say_in_nftables_mode() {
    in_netns(check);
}

fn in_netns<F: Future<Output = ()>>(body: impl FnOnce() -> F + Send) {
    let outcome = netns::run_in_new(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(body());
    });
    match outcome {
        Ok(()) => {}
        Err(err @ (NetNsError::Make(_) | NetNsError::Enter { .. })) => skip(&err.to_string()),
        Err(err) => panic!("{err}"),
    }
}

/// Name a test that did not run; a failure where `LONGSHORE_REQUIRE` asks for this tier.
fn skip(reason: &str) {
    let required = std::env::var("LONGSHORE_REQUIRE").unwrap_or_default();
    let asked = required.split(',').any(|asked| asked == "netns" || asked == "all");
    assert!(!asked, "tier netns was required, and cannot run: {reason}");
    println!("SKIPPED: {reason}");
}
