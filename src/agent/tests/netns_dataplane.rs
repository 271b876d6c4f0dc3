//! The whole dataplane in nftables mode against the real kernel: a node, two pods and a client, each in
//! a network namespace of this test's own, real TCP connections through real rules.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::time::Duration;

use jiff::Timestamp;
use longshore_agent::dataplane::{Change, DataplaneConfig, Engine, Kernel, ModeRequest, OpenKernel};
use longshore_core::ids::ObjectKey;
use longshore_core::ruleset::chains::ChainConfig;
use longshore_kernel::netns::{self, NetNs, NetNsError};
use serde_json::{Value, json};

/// A namespace beside the node's, held by a sleeping child and joined by a veth pair.
struct Host {
    child: Child,
    net: NetNs,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Host {
    /// `name` at `<prefix>.<last>`, the node at `<prefix>.254`.
    fn new(name: &str, prefix: &str, last: u8) -> Host {
        let child = Command::new("unshare").args(["-n", "sleep", "600"]).spawn().unwrap();
        let pid = child.id();
        let own = NetNs::current().unwrap().id();
        let net = loop {
            // `unshare` needs a moment before the namespace is its own.
            match NetNs::of_process(pid) {
                Ok(net) if net.id() != own => break net,
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        ip(&format!("link add {name} type veth peer name eth0 netns {pid}"));
        ip(&format!("addr add {prefix}.254/24 dev {name}"));
        ip(&format!("link set {name} up"));
        let address = format!("addr add {prefix}.{last}/24 dev eth0");
        let route = format!("route add default via {prefix}.254");
        net.run(|| {
            ip("link set lo up");
            ip(&address);
            ip("link set eth0 up");
            ip(&route);
        })
        .unwrap();
        Host { child, net }
    }

    /// Answer every connection to port 8080 with the host's name and the client's address.
    fn serve(&self, name: &'static str) {
        let listener = self.net.run(|| TcpListener::bind("0.0.0.0:8080").unwrap()).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let Ok(peer) = stream.peer_addr() else { continue };
                let _ = stream.write_all(format!("{name} {}", peer.ip()).as_bytes());
            }
        });
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
    let node = vec![IpAddr::from([203, 0, 113, 254])];
    let new = DataplaneConfig::new(ModeRequest::Nftables, "n1", node);
    let cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
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
    ip("link set lo up");
    let (a, b) = (Host::new("poda", "10.244.1", 1), Host::new("podb", "10.244.2", 1));
    let outside = Host::new("wan", "203.0.113", 7);
    ip("route add default via 203.0.113.7");
    a.serve("a");
    b.serve("b");
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
    let view = engine.view();
    assert_eq!((view.objects, view.failures.len()), (0, 0), "{view:?}");
}

#[test]
fn connections_go_where_services_say_in_nftables_mode() {
    let outcome = netns::run_in_new(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check());
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
