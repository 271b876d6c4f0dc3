//! Services by IPVS with real packets, in the kernel guest: the table of cases, and how connections end.
//! The guest's processor is mostly an emulated one, where all cases take a minute or two.

#![allow(clippy::unwrap_used)]

#[path = "services/case.rs"]
#[allow(dead_code, reason = "traces use more of it")]
mod case;
#[path = "services/wire.rs"]
mod wire;

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use case::{Case, Mode};
use jiff::Timestamp;
use longshore_agent::dataplane::{self, Change, DataplaneConfig, Engine, Kernel, ModeRequest, OpenKernel};
use longshore_core::ruleset::Protocol;
use longshore_core::ruleset::ipvs::{
    IpvsOp, IpvsState, IpvsTimeouts, Scheduler, VirtualServer, VirtualServerKey,
};
use longshore_kernel::ipvs::{Ipvs, RealIpvs};
use longshore_kernel::netns;
use serde_json::{Value, json};
use wire::{Way, World};

#[test]
fn packets_go_where_the_cases_say_in_ipvs_mode() {
    if !in_guest() {
        return;
    }
    let outcome = netns::run_in_new(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let began = Instant::now();
            let told = |what: &str| {
                // Beside the captured output: how far it came must be seen even if the guest is cut off.
                let _ = writeln!(std::io::stderr(), "{:>6.1} s {what}", began.elapsed().as_secs_f32());
            };
            let cases: Vec<Case> = case::all();
            told("cases read");
            let world = World::new(&cases);
            told("world built");
            let way = Way { mode: Mode::Ipvs, iptables: None, reads_back: false };
            let wrong = wire::run_in_turn(&world, &cases, &way).await;
            wrong.iter().for_each(|text| told(text));
            told(&format!("{} cases done, SCTP {}", cases.len(), world.has_sctp()));
            assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
        });
    });
    outcome.unwrap();
}

const VIP: &str = "10.96.0.1";
const ENDPOINTS: [&str; 2] = ["10.244.1.1", "10.244.1.2"];
const CLIENT: &str = "10.244.1.9";
/// How long the kernel remembers a connection that was reset.
const FORGOTTEN: Duration = Duration::from_secs(15);

fn in_guest() -> bool {
    let there = std::env::var("LONGSHORE_TIER").as_deref() == Ok("vm");
    if !there {
        println!("SKIPPED: it needs IPVS, which the kernel guest has");
    }
    there
}

fn service() -> Change {
    let value = json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": {"clusterIP": VIP, "ports": [
        {"name": "p", "port": 80}, {"name": "u", "port": 53, "protocol": "UDP"}]}});
    Change::Service(Box::new(serde_json::from_value(value).unwrap()))
}

fn endpoints(addrs: &[&str]) -> Change {
    let list: Vec<Value> =
        addrs.iter().map(|addr| json!({"addresses": [addr], "nodeName": case::NODE})).collect();
    let value = json!({"metadata": {"name": "web-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": list,
        "ports": [{"name": "p", "port": 8080}, {"name": "u", "port": 8053, "protocol": "UDP"}]});
    Change::Slice(Box::new(serde_json::from_value(value).unwrap()))
}

fn answer(mut stream: TcpStream, addr: &'static str) {
    std::thread::spawn(move || {
        while stream.read_exact(&mut [0]).is_ok() {
            let _ = stream.write_all(addr.as_bytes());
        }
    });
}

/// Each endpoint says its address to everything it hears.
fn serve(world: &World) {
    for addr in ENDPOINTS {
        world
            .net_of(addr)
            .run(|| {
                let listener = TcpListener::bind((addr, 8080)).unwrap();
                std::thread::spawn(move || {
                    listener.incoming().for_each(|stream| answer(stream.unwrap(), addr));
                });
                let socket = UdpSocket::bind((addr, 8053)).unwrap();
                std::thread::spawn(move || {
                    while let Ok((_, client)) = socket.recv_from(&mut [0; 16]) {
                        let _ = socket.send_to(addr.as_bytes(), client);
                    }
                });
            })
            .unwrap();
    }
}

/// Who answers one more byte on an open connection.
fn ask(stream: &mut TcpStream) -> String {
    let mut answer = [0; ENDPOINTS[0].len()];
    stream.write_all(b"?").and_then(|()| stream.read_exact(&mut answer)).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn connect(world: &World) -> TcpStream {
    world.net_of(CLIENT).run(|| TcpStream::connect((VIP, 80)).unwrap()).unwrap()
}

/// Who answers a datagram; what is lost meanwhile is sent again.
fn ask_udp(socket: &UdpSocket) -> Option<String> {
    let mut answer = [0; 32];
    (0..10).find_map(|_| {
        socket.send(b"?").ok()?;
        let length = socket.recv(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..length]).into_owned())
    })
}

fn setting(path: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/ipv4/{path}")).unwrap().trim().to_owned()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

async fn state(ipvs: &RealIpvs) -> IpvsState {
    ipvs.dump().await.unwrap().state
}

async fn check_ends() {
    let world = World::new(&[]);
    serve(&world);
    let timeouts = IpvsTimeouts { tcp: 901, tcp_fin: 121, udp: 301 };
    let config = DataplaneConfig {
        strict_arp: true,
        timeouts,
        exclude_cidrs: vec!["203.0.113.0/24".parse().unwrap()],
        ..DataplaneConfig::new(ModeRequest::Ipvs, case::NODE, case::primary_addresses())
    };
    let ipvs = RealIpvs::open().unwrap();
    let foreign = ["203.0.113.7", "10.96.9.9"]
        .map(|addr| VirtualServerKey::new(addr.parse::<IpAddr>().unwrap(), 80, Protocol::Tcp));
    let add = foreign.map(|key| IpvsOp::AddService { key, server: VirtualServer::new(&key, Scheduler::Rr) });
    assert!(ipvs.apply(&add).await.into_iter().all(|outcome| outcome.is_ok()));
    let mut engine = Engine::new(config, OpenKernel::new(|| Kernel::open(dataplane::kernel_flows())));
    engine.start().await;
    for change in [service(), endpoints(&ENDPOINTS), Change::SourcesSynced] {
        engine.take(change);
    }
    engine.sync(at(0)).await;
    let view = engine.view();
    assert_eq!((view.mode.as_str(), view.failures.len(), view.warnings.len()), ("ipvs", 0, 0), "{view:?}");
    assert_eq!(ipvs.info().await.unwrap().timeouts, timeouts);
    let paths = ["vs/conntrack", "vs/expire_nodest_conn", "vs/expire_quiescent_template"];
    assert_eq!(paths.map(setting), ["1", "1", "1"]);
    assert_eq!(["conf/all/arp_ignore", "conf/all/arp_announce"].map(setting), ["1", "2"]);
    let held = state(&ipvs).await;
    assert_eq!(
        foreign.map(|key| held.services.contains_key(&key)),
        [true, false],
        "excluded, and a leftover"
    );
    check_leaving(&world, &ipvs, &mut engine).await;
}

async fn check_leaving(world: &World, ipvs: &RealIpvs, engine: &mut Engine) {
    let (mut streams, mut sockets) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        streams.push(connect(world));
        let socket = world.net_of(CLIENT).run(|| UdpSocket::bind((CLIENT, 0)).unwrap()).unwrap();
        socket.connect((VIP, 53)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        sockets.push(socket);
    }
    let place = |answers: [String; 2]| answers.iter().position(|who| who == ENDPOINTS[1]).unwrap();
    // In turns: one of two connections is at the endpoint that leaves.
    let answers = [0, 1].map(|n| ask(&mut streams[n]));
    let mut leaving = streams.remove(place(answers));
    let answers = [0, 1].map(|n| ask_udp(&sockets[n]).unwrap());
    let socket = sockets.remove(place(answers));
    engine.take(endpoints(&ENDPOINTS[..1]));
    engine.sync(at(1)).await;
    let vip: IpAddr = VIP.parse().unwrap();
    let key = |port, protocol| VirtualServerKey::new(vip, port, protocol);
    let weights = |held: &IpvsState, key: VirtualServerKey| -> Vec<(String, u32)> {
        let reals = held.services[&key].reals.iter();
        reals.map(|(real, settings)| (real.addr.to_string(), settings.weight)).collect()
    };
    let (tcp, udp) = (key(80, Protocol::Tcp), key(53, Protocol::Udp));
    let one = |addr: &str, weight: u32| (addr.to_owned(), weight);
    let held = state(ipvs).await;
    assert_eq!(weights(&held, udp), [one(ENDPOINTS[0], 1)], "UDP has no end to wait for");
    assert_eq!(weights(&held, tcp), [one(ENDPOINTS[0], 1), one(ENDPOINTS[1], 0)]);
    assert_eq!(ask(&mut leaving), ENDPOINTS[1], "an open connection goes on");
    assert_eq!([(); 3].map(|()| ask(&mut connect(world))), [ENDPOINTS[0]; 3], "new ones go elsewhere");
    assert_eq!(ask_udp(&socket).as_deref(), Some(ENDPOINTS[0]), "a flow without its endpoint finds another");
    engine.drain(at(61)).await;
    assert_eq!(weights(&state(ipvs).await, tcp).len(), 2, "its connection is open");
    socket2::SockRef::from(&leaving).set_linger(Some(Duration::ZERO)).unwrap();
    drop(leaving);
    let began = Instant::now();
    while weights(&state(ipvs).await, tcp).len() == 2 {
        assert!(began.elapsed() < FORGOTTEN * 2, "a real server without connections stays");
        std::thread::sleep(Duration::from_secs(1));
        engine.drain(at(122)).await;
    }
    assert_eq!((engine.is_draining(), engine.audit(at(123)).await), (false, 0));
}

#[test]
fn endpoints_leave_ipvs_with_their_last_connection_and_settings_are_as_configured() {
    if !in_guest() {
        return;
    }
    let outcome = netns::run_in_new(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check_ends());
    });
    outcome.unwrap();
}
