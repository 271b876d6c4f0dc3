//! Figures of the Service dataplane in nftables mode and in iptables mode by both variants of the programs,
//! in network namespaces of its own: a full sync, one endpoint changed, growth, restart, audit, memory of
//! the daemon, and connections through a Service; and in IPVS mode in the kernel guest.
//! `make bench ONLY=services`, or `cargo bench -p longshore-integration --bench services -- NAME...` for some
//! (`main` has the names; `--daemon=FILE` is whose memory is measured). One JSON line each goes to
//! `target/bench/services.jsonl`. Figures are reported, never asserted.

mod ipvs;
mod memory;

use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_agent::dataplane::{
    Change, DataplaneConfig, DataplaneHandle, Kernel, ModeRequest, OpenIptables, OpenKernel, dataplane,
};
use longshore_agent::pods::Clock;
use longshore_core::ruleset::ipt::text::Restore;
use longshore_kernel::iptables::{Iptables, RealIptables, Tools, Variant};
use longshore_kernel::netns::{self, NetNs};
use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// How often one change is measured.
const CHANGES: usize = 400;
const AUDITS: usize = 20;
const CONNECTIONS: usize = 4000;
/// Of them that may wait to be accepted; the kernel's own limit.
const QUEUE: i32 = 4096;
/// The same in iptables mode, where each takes a third of a second.
const CHANGES_OF_CHAINS: usize = 60;

/// The mode of most figures.
const NFTABLES: &str = "nftables";

/// One figure: what, at which size, its values and what they should be.
struct Figure<'a> {
    mode: &'a str,
    name: &'a str,
    services: usize,
    endpoints: usize,
    unit: &'a str,
    values: Vec<f64>,
    goal: Value,
    peer: Value,
}

struct Report(File);

/// How a figure of the guest begins on its console.
const IN_GUEST: &str = "figure of the guest: ";

impl Report {
    fn new() -> Report {
        let folder = workspace().join("target/bench");
        fs::create_dir_all(&folder).expect("a folder for the figures and inputs");
        // In place of those of an earlier run.
        Report(File::create(folder.join("services.jsonl")).expect("a file for the output"))
    }

    fn tell(&mut self, figure: Figure<'_>) {
        let Figure { mode, name, services, endpoints, unit, mut values, goal, peer } = figure;
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
        let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
        self.tell_line(&json!({"mode": mode, "figure": name, "services": services, "endpoints": endpoints,
            "unit": unit, "n": values.len(), "p50": p50, "p99": p99, "max": max, "goal": goal, "peer": peer}));
    }

    fn tell_line(&mut self, line: &Value) {
        if ipvs::is_guest() {
            println!("{IN_GUEST}{line}");
            return;
        }
        writeln!(self.0, "{line}").expect("the figure is written");
        let text = |field: &str| line[field].as_str().unwrap_or_default();
        let number = |field: &str| line[field].as_f64().unwrap_or_default();
        let count = |field: &str| line[field].as_u64().unwrap_or_default();
        println!(
            "{:<15} {:<44} {:>6} x {:<7} p50 {:>9.3}  p99 {:>9.3}  max {:>9.3} {} (n={})  goal {}",
            text("mode"),
            text("figure"),
            count("services"),
            count("endpoints"),
            number("p50"),
            number("p99"),
            number("max"),
            text("unit"),
            count("n"),
            line["goal"]
        );
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is the folder above").to_owned()
}

fn address(of: u32, number: usize) -> Ipv4Addr {
    Ipv4Addr::from(of + u32::try_from(number).expect("an address in range"))
}

fn cluster_ip(service: usize) -> Ipv4Addr {
    address(0x0a60_0001, service)
}

fn service_json(service: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{service}"), "namespace": "bench"},
        "spec": {"clusterIP": cluster_ip(service).to_string(), "ports": [{"name": "p", "port": 80}]}})
}

/// The endpoints of a Service; `first` gives those of one Service other addresses than those before.
fn slice_json(service: usize, first: usize, count: usize) -> Value {
    let endpoint = |number: usize| {
        let ip = address(0x0b00_0001, service * 16 + first + number).to_string();
        json!({"addresses": [ip], "nodeName": format!("node-{}", number % 100), "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "namespace": "bench", "name": format!("s{service}-7d4b9c6f5-{number}")}})
    };
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("s{service}-x"), "namespace": "bench", "labels": {"kubernetes.io/service-name": format!("s{service}")}},
        "addressType": "IPv4", "ports": [{"name": "p", "port": 8080}],
        "endpoints": (0..count).map(endpoint).collect::<Vec<_>>()})
}

fn slice(service: usize, first: usize, count: usize) -> Change {
    Change::Slice(Box::new(
        serde_json::from_value(slice_json(service, first, count)).expect("an object of the bench is valid"),
    ))
}

fn population(services: usize, endpoints: usize) -> Vec<Change> {
    let of = |number| {
        let service = serde_json::from_value(service_json(number)).expect("an object of the bench is valid");
        [Change::Service(Box::new(service)), slice(number, 0, endpoints)]
    };
    (0..services).flat_map(of).chain([Change::SourcesSynced]).collect()
}

/// A dataplane that runs, and the way to stop it.
struct Running {
    handle: DataplaneHandle,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start() -> Running {
        Running::with(ModeRequest::Nftables, OpenKernel::new(|| Kernel::open(None)))
    }

    fn by_iptables(programs: &RealIptables) -> Running {
        let open = OpenKernel::new(|| Kernel::open(None));
        let programs = OpenIptables::given(Arc::new(programs.clone()));
        Running::with(ModeRequest::Iptables, open.with_iptables(programs))
    }

    fn with(mode: ModeRequest, open: OpenKernel) -> Running {
        let config = DataplaneConfig::new(mode, "n1", vec![IpAddr::from([192, 0, 2, 1])]);
        let stop = CancellationToken::new();
        let (handle, task) = dataplane(config, open, Clock::System, stop.clone());
        Running { handle, stop, task: tokio::spawn(task) }
    }

    /// Tell everything and wait until it is in the kernel, whole; in milliseconds.
    async fn fill(&self, changes: Vec<Change>) -> f64 {
        let mut synced = self.handle.synced();
        let began = Instant::now();
        changes.into_iter().for_each(|change| self.handle.tell(change));
        synced.wait_for(|synced| *synced).await.expect("the dataplane task lives");
        let took = milliseconds(began);
        self.assert_nothing_was_refused();
        took
    }

    /// Tell one change and wait until the kernel has taken what follows from it; in milliseconds.
    async fn change(&self, change: Change) -> f64 {
        let mut view = self.handle.watch_view();
        let writes = view.borrow_and_update().counters.writes;
        let began = Instant::now();
        self.handle.tell(change);
        view.wait_for(|view| view.counters.writes > writes).await.expect("the dataplane task lives");
        milliseconds(began)
    }

    /// Otherwise a figure would be that of less work.
    fn assert_nothing_was_refused(&self) {
        let view = self.handle.view();
        assert_eq!((view.counters.refusals, view.failures.first()), (0, None), "the kernel took everything");
    }

    async fn stop(self) {
        self.assert_nothing_was_refused();
        self.stop.cancel();
        self.task.await.expect("the dataplane task ended well");
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// Run in a network namespace of its own; the runtime's threads are born into it.
fn in_netns(body: impl AsyncFnOnce() + Send) {
    netns::run_in_new(|| {
        Runtime::new().expect("a runtime").block_on(body());
    })
    .expect("the step in its namespace succeeds");
}

/// Sync from empty, changes, a restart and an audit at one size.
fn at_size(report: &mut Report, services: usize, endpoints: usize) {
    let large = services == 10_000 && endpoints == 10;
    let goal = |goal: Value| if large { goal } else { Value::Null };
    let mut tell = |name: &str, unit, values, goal, peer| {
        let mode = NFTABLES;
        let endpoints = services * endpoints;
        report.tell(Figure { mode, name, services, endpoints, unit, values, goal, peer });
    };
    in_netns(async || {
        let running = Running::start();
        let sync = running.fill(population(services, endpoints)).await;
        let peer = json!({"name": "kube-proxy 1.36.3 nftables", "value": 22_700.0});
        tell(
            "full sync from empty",
            "ms",
            vec![sync],
            goal(json!(1500)),
            if large { peer } else { Value::Null },
        );
        let first = running.change(slice(services - 1, 0, endpoints + 1)).await;
        tell("the first change right after it: event to kernel", "ms", vec![first], Value::Null, Value::Null);
        running.change(slice(services - 1, 0, endpoints)).await;
        let (mut counts, mut exchanges) = (Vec::new(), Vec::new());
        for number in 0..CHANGES {
            let service = number * 7919 % services;
            // One more and one less, then one for another: the first of the list goes.
            counts.push(running.change(slice(service, 0, endpoints + 1)).await);
            exchanges.push(running.change(slice(service, 1, endpoints + 1)).await);
            counts.push(running.change(slice(service, 1, endpoints)).await);
        }
        let wish = json!({"p50": 1.5, "p99": 10});
        let peer = json!({"name": "kube-proxy 1.36.3 nftables, partial sync", "value": 5400.0});
        let peer = if large { peer } else { Value::Null };
        tell("endpoint added or removed: event to kernel", "ms", counts, goal(wish.clone()), peer.clone());
        tell("endpoint replaced: event to kernel", "ms", exchanges, goal(wish), peer);
        let one = service_json(services);
        let mut added = Vec::new();
        for _ in 0..CHANGES / 4 {
            let service = serde_json::from_value(one.clone()).expect("an object of the bench is valid");
            added.push(running.change(Change::Service(Box::new(service))).await);
            let key = longshore_core::ids::ObjectKey::new("bench", format!("s{services}").as_str());
            added.push(running.change(Change::ServiceGone(key)).await);
        }
        tell("Service added or removed: event to kernel", "ms", added, Value::Null, Value::Null);
        // Chains that nobody uses any more go with an audit.
        running.handle.audit().await.expect("the audit answers");
        let mut behind = Vec::new();
        for number in 0..CHANGES / 4 {
            let change = slice(0, 2 + number % 2, endpoints);
            behind.push(tokio::join!(running.handle.audit(), running.change(change)).1);
        }
        tell("endpoint replaced while an audit runs", "ms", behind, Value::Null, Value::Null);
        running.change(slice(0, 1, endpoints)).await;
        running.stop().await;
        let again = Running::start();
        let mut all = population(services, endpoints);
        let mended: Vec<Change> = (0..CHANGES.min(services))
            .map(|number| number * 7919 % services)
            .map(|service| slice(service, 1, endpoints))
            .collect();
        all.splice(all.len() - 1..all.len() - 1, mended);
        let restart = again.fill(all).await;
        let writes = again.handle.view().counters.writes;
        tell("restart over an unchanged table", "ms", vec![restart], Value::Null, Value::Null);
        tell("writes of that restart", "writes", vec![writes as f64], json!(0), Value::Null);
        let mut audits = Vec::new();
        for _ in 0..AUDITS {
            let began = Instant::now();
            let drift = again.handle.audit().await.expect("the audit answers");
            audits.push(milliseconds(began));
            assert_eq!(drift, 0, "nobody else touched the table");
        }
        tell("audit of an unchanged table", "ms", audits, Value::Null, Value::Null);
        let began = Instant::now();
        let repair = again.handle.repair().await.expect("the repair answers");
        assert_eq!(
            (repair.repaired, repair.differences.len()),
            (Some(0), 0),
            "nobody else touched the table"
        );
        // The repair, and another look at what is left.
        let once = milliseconds(began) / 2.0;
        tell("comparison of the whole table", "ms", vec![once], Value::Null, Value::Null);
        let writes = again.handle.view().counters.writes - writes;
        tell("writes of those", "writes", vec![writes as f64], json!(0), Value::Null);
        again.stop().await;
    });
}

/// A text that writes one chain of somebody else's, in a table that ours stand in too.
const ONE_CHAIN: &str = "*nat\n:BENCH-FLOOR - [0:0]\n-A BENCH-FLOOR -p tcp -j RETURN\nCOMMIT\n";

/// iptables mode at one size, and beside each change what the program alone takes to write one chain into
/// the same tables: what no difference, however small, can undercut.
fn chains_at_size(report: &mut Report, variant: Variant, (services, endpoints): (usize, usize)) {
    let large = services == 10_000;
    let goal = |goal: Value| if large { goal } else { Value::Null };
    let mode = match variant {
        Variant::Nft => "iptables-nft",
        Variant::Legacy => "iptables-legacy",
    };
    let mut tell = |name: &str, unit, values, goal| {
        let endpoints = services * endpoints;
        report.tell(Figure { mode, name, services, endpoints, unit, values, goal, peer: Value::Null });
    };
    in_netns(async || {
        let programs =
            RealIptables::open(Some(variant), Tools::default()).await.expect("iptables is installed");
        let running = Running::by_iptables(&programs);
        let sync = running.fill(population(services, endpoints)).await;
        tell("full sync from empty", "ms", vec![sync], goal(json!(10_000)));
        let one_chain = Restore::from_text(false, ONE_CHAIN);
        let (mut changes, mut floors, mut added) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..CHANGES_OF_CHAINS {
            let first = number % 2;
            changes.push(running.change(slice(number * 7919 % services, 1 - first, endpoints + first)).await);
            let began = Instant::now();
            programs.apply(&one_chain).await.expect("a chain of somebody else's is written");
            floors.push(milliseconds(began));
        }
        tell("endpoint changed: event to kernel", "ms", changes, goal(json!({"p50": 300})));
        tell("one chain by the program alone, in turns", "ms", floors, Value::Null);
        for _ in 0..CHANGES_OF_CHAINS / 6 {
            let service =
                serde_json::from_value(service_json(services)).expect("an object of the bench is valid");
            added.push(running.change(Change::Service(Box::new(service))).await);
            let key = longshore_core::ids::ObjectKey::new("bench", format!("s{services}").as_str());
            added.push(running.change(Change::ServiceGone(key)).await);
        }
        tell("Service added or removed: event to kernel", "ms", added, Value::Null);
        let began = Instant::now();
        let drift = running.handle.audit().await.expect("the audit answers");
        assert_eq!(drift, 0, "nobody else touched our chains");
        tell("audit of unchanged chains", "ms", vec![milliseconds(began)], Value::Null);
        running.stop().await;
    });
}

/// One Service with many endpoints.
fn large_service(report: &mut Report) {
    for endpoints in [10, 100, 1000] {
        in_netns(async || {
            let running = Running::start();
            running.fill(population(1, endpoints)).await;
            let mut values = Vec::new();
            for _ in 0..CHANGES / 2 {
                values.push(running.change(slice(0, 0, endpoints - 1)).await);
                values.push(running.change(slice(0, 0, endpoints)).await);
            }
            running.stop().await;
            report.tell(Figure {
                mode: NFTABLES,
                name: "endpoint of one Service: event to kernel",
                services: 1,
                endpoints,
                unit: "ms",
                values,
                goal: Value::Null,
                peer: Value::Null,
            });
        });
    }
}

fn command(line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().expect("the program runs");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A namespace behind a veth pair, at `<prefix>.1`, this one at `<prefix>.254`.
struct Host {
    net: NetNs,
}

impl Host {
    fn new(name: &str, prefix: &str) -> Host {
        let net = NetNs::new().expect("a network namespace");
        command(&format!("ip link add {name} type veth peer name eth0 netns {}", net.path().display()));
        command(&format!("ip addr add {prefix}.254/24 dev {name}"));
        command(&format!("ip link set {name} up"));
        net.run(|| {
            command("ip link set lo up");
            command(&format!("ip addr add {prefix}.1/24 dev eth0"));
            command("ip link set eth0 up");
            command(&format!("ip route add default via {prefix}.254"));
        })
        .expect("the step in its namespace succeeds");
        Host { net }
    }
}

/// Waits for connections with room for a whole round of them: a full queue drops the first packet of the next one,
/// which comes again after a second.
fn listener() -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([0, 0, 0, 0], 8080)).into()).expect("a port");
    socket.listen(QUEUE).expect("a queue");
    socket.into()
}

/// Connections opened and closed, one after the other, in a second.
fn rate(client: &Host, to: SocketAddr) -> f64 {
    client
        .net
        .run(|| {
            let began = Instant::now();
            for _ in 0..CONNECTIONS {
                let stream = TcpStream::connect(to).expect("a connection");
                // A reset leaves no port waiting behind.
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger is set");
            }
            CONNECTIONS as f64 / began.elapsed().as_secs_f64()
        })
        .expect("the step in its namespace succeeds")
}

fn connections(report: &mut Report) {
    for services in [10, 10_000] {
        in_netns(async || {
            command("ip link set lo up");
            let (client, server) = (Host::new("client", "10.1.0"), Host::new("server", "10.2.0"));
            let listener = server.net.run(listener).expect("the step in its namespace succeeds");
            std::thread::spawn(move || listener.incoming().for_each(drop));
            let running = Running::start();
            let mut all = population(services, 10);
            let one = json!({"metadata": {"name": "s0-x", "namespace": "bench", "labels": {"kubernetes.io/service-name": "s0"}},
                "addressType": "IPv4", "ports": [{"name": "p", "port": 8080}], "endpoints": [{"addresses": ["10.2.0.1"]}]});
            let one = Change::Slice(Box::new(
                serde_json::from_value(one).expect("an object of the bench is valid"),
            ));
            all.insert(all.len() - 1, one);
            running.fill(all).await;
            let through = SocketAddr::new(cluster_ip(0).into(), 80);
            let direct: SocketAddr = "10.2.0.1:8080".parse().expect("an address");
            // By turns, so that both see the same machine.
            let turns: Vec<(f64, f64)> =
                (0..9).map(|_| (rate(&client, direct), rate(&client, through))).collect();
            let share = turns.iter().map(|(direct, through)| through / direct * 100.0).collect();
            let (direct, through): (Vec<f64>, Vec<f64>) = turns.into_iter().unzip();
            for (name, unit, values, goal) in [
                ("connections opened and closed, direct", "1/s", direct, Value::Null),
                ("connections opened and closed, by a Service", "1/s", through, Value::Null),
                ("by a Service against direct", "%", share, json!({"p50 at least": 85})),
            ] {
                let (mode, peer) = (NFTABLES, Value::Null);
                let endpoints = services * 10;
                report.tell(Figure { mode, name, services, endpoints, unit, values, goal, peer });
            }
            running.stop().await;
        });
    }
}

/// Whose memory is measured, where no other is named.
const DAEMON: &str = "target/release/longshore";

fn main() {
    let (options, names): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|word| word.starts_with('-'));
    let wanted = |name: &str| names.is_empty() || names.iter().any(|word| word == name);
    let mut report = Report::new();
    for (name, services, endpoints) in
        [("1000", 1000, 10), ("10000", 10_000, 10), ("40000", 40_000, 10), ("250000-endpoints", 25_000, 10)]
    {
        if wanted(name) {
            at_size(&mut report, services, endpoints);
        }
    }
    for (name, variant) in [("iptables-nft", Variant::Nft), ("iptables-legacy", Variant::Legacy)] {
        for services in [1000, 10_000].into_iter().filter(|_| wanted(name)) {
            chains_at_size(&mut report, variant, (services, 10));
        }
    }
    if wanted("large-service") {
        large_service(&mut report);
    }
    if wanted("connections") {
        connections(&mut report);
    }
    if wanted("memory") {
        let named = options.iter().find_map(|word| word.strip_prefix("--daemon="));
        memory::run(&mut report, &workspace().join(named.unwrap_or(DAEMON)));
    }
    if wanted("ipvs") {
        ipvs::run(&mut report);
    }
}
