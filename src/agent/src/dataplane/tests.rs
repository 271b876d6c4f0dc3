//! The dataplane on the kernel's fakes: first sync, adoption, faults, kill at every operation, audits,
//! draining, and the task around it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use longshore_core::conntrack::Flow;
use longshore_core::explain::Query;
use longshore_core::ids::ObjectKey;
use longshore_core::ruleset::Protocol;
use longshore_core::ruleset::chains::ChainConfig;
use longshore_core::ruleset::ipvs::{
    Connections, IpvsDump, IpvsOp, IpvsState, IpvsTimeouts, RealServerKey, Scheduler, VirtualServer,
    VirtualServerKey,
};
use longshore_core::ruleset::nft::{ElementKey, ElementValue, NftBatch, NftTable, TableKey};
use longshore_core::ruleset::node::NodePortAddresses;
use longshore_core::ruleset::object::{self, DEVICE, Spread};
use longshore_core::ruleset::trace::{Fate, Origin};
use longshore_kernel::iptables::{FakeIptables, Variant};
use longshore_kernel::ipvs::{FakeIpvs, Ipvs, IpvsError, IpvsInfo, Reals};
use longshore_kernel::netlink::{NetlinkError, Refusal};
use longshore_kernel::nft::{FakeNft, Guess, Nft, NftDump, NftError, Touched};
use longshore_kernel::route::{AddressOp, FakeRoutes, IpFamily, Link, LinkAddress, RouteError, Routes};
use longshore_kernel::sysctl::{FakeSysctls, Sysctls};
use nix::errno::Errno;
use serde_json::{Value, json};

use super::engine::PREPARED_CHAINS;
use super::kernel::table_key;
use super::*;

/// Kernel settings this node has, all off.
const SYSCTLS: [&str; 4] = [
    "net/ipv4/vs/conntrack",
    "net/ipv4/vs/expire_nodest_conn",
    "net/ipv4/vs/expire_quiescent_template",
    "net/ipv4/ip_forward",
];
pub(super) const NODE_IP: [u8; 4] = [192, 168, 0, 1];

/// The kernel of a node that outlives the daemons of a test.
pub(super) struct Node {
    pub(super) ipvs: Arc<FakeIpvs>,
    pub(super) nft: Arc<FakeNft>,
    pub(super) routes: Arc<FakeRoutes>,
    pub(super) flows: Arc<FakeFlows>,
    pub(super) sysctls: Arc<FakeSysctls>,
}

#[derive(Default)]
pub(super) struct FakeFlows(Mutex<BTreeSet<Flow>>);

#[async_trait]
impl UdpFlows for FakeFlows {
    async fn flows(&self) -> Result<Vec<Flow>, String> {
        Ok(self.0.lock().unwrap().iter().copied().collect())
    }

    async fn forget(&self, flows: &[Flow]) -> Vec<Result<(), String>> {
        let mut known = self.0.lock().unwrap();
        flows
            .iter()
            .map(|flow| {
                known.remove(flow);
                Ok(())
            })
            .collect()
    }
}

impl Node {
    pub(super) fn new() -> Self {
        Node {
            ipvs: Arc::new(FakeIpvs::new()),
            nft: Arc::new(FakeNft::new()),
            routes: Arc::new(FakeRoutes::new(IpAddr::from(NODE_IP))),
            flows: Arc::default(),
            sysctls: Arc::new(FakeSysctls::new(&SYSCTLS.map(|name| (name, "0")))),
        }
    }

    pub(super) fn kernel(&self) -> Kernel {
        Kernel {
            ipvs: Ok(self.ipvs.clone()),
            nft: self.nft.clone(),
            routes: self.routes.clone(),
            flows: Some(self.flows.clone()),
            sysctls: self.sysctls.clone(),
        }
    }

    fn engine(&self) -> Engine {
        let kernel = self.kernel();
        Engine::new(config(), OpenKernel::new(move || Ok(kernel.clone())))
    }

    /// The same on a kernel without IPVS.
    pub(super) fn engine_without_ipvs(&self) -> Engine {
        let kernel = Kernel { ipvs: Err(no_ipvs()), ..self.kernel() };
        let config = DataplaneConfig { mode: ModeRequest::Auto, ..config() };
        Engine::new(config, OpenKernel::new(move || Ok(kernel.clone())))
    }

    /// Everything that packets could notice.
    pub(super) fn state(&self) -> (IpvsState, Vec<IpAddr>, [Option<NftTable>; 2]) {
        let tables = [false, true].map(|ipv6| self.nft.table(&table_key(ipv6)));
        (self.ipvs.state(), self.routes.addresses_of(DEVICE), tables)
    }

    /// Operations the kernel took so far.
    fn writes(&self) -> usize {
        self.ipvs.applied().len() + self.nft.batches().len() + self.routes.addresses_of(DEVICE).len()
    }
}

fn no_ipvs() -> IpvsError {
    IpvsError::Unavailable(NetlinkError::Refused(Refusal::new(Errno::ENOENT)))
}

pub(super) fn config() -> DataplaneConfig {
    let new = DataplaneConfig::new(ModeRequest::Ipvs, "n1", vec![IpAddr::from(NODE_IP)]);
    DataplaneConfig {
        chains: ChainConfig { cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()], ..new.chains.clone() },
        node_port_addresses: Some(NodePortAddresses::All),
        exclude_cidrs: vec!["203.0.113.0/24".parse().unwrap()],
        ..new
    }
}

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

pub(super) fn service(name: &str, number: u8) -> Change {
    let spec = json!({"type": "NodePort", "clusterIP": format!("10.96.0.{number}"), "ports": [
        {"name": "p", "port": 80, "nodePort": 30000 + u32::from(number)},
        {"name": "u", "port": 53, "protocol": "UDP", "nodePort": 30000 + u32::from(number)}]});
    let value: Value = json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec});
    Change::Service(Box::new(serde_json::from_value(value).unwrap()))
}

pub(super) fn endpoints(service: &str, addrs: &[&str]) -> Change {
    let list: Vec<Value> = addrs.iter().map(|addr| json!({"addresses": [addr], "nodeName": "n1"})).collect();
    let value = json!({"metadata": {"name": format!("{service}-1"), "namespace": "ns",
            "labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4", "endpoints": list,
        "ports": [{"name": "p", "port": 8080}, {"name": "u", "port": 8053, "protocol": "UDP"}]});
    Change::Slice(Box::new(serde_json::from_value(value).unwrap()))
}

/// Three Services, one of them without endpoints.
pub(super) fn population() -> Vec<Change> {
    vec![
        endpoints("web", &["10.244.1.1", "10.244.1.2"]),
        endpoints("api", &["10.244.1.3"]),
        service("web", 1),
        service("api", 2),
        service("none", 3),
        Change::SourcesSynced,
    ]
}

pub(super) fn take(engine: &mut Engine, change: Change) {
    assert!(!engine.take(change), "none of these is about the host's addresses");
}

pub(super) async fn settled(mut engine: Engine, changes: Vec<Change>) -> Engine {
    engine.start().await;
    changes.into_iter().for_each(|change| take(&mut engine, change));
    engine.sync(at(0)).await;
    engine
}

/// The state a node has after one faultless sync of these changes.
pub(super) async fn fresh(changes: Vec<Change>) -> (IpvsState, Vec<IpAddr>, [Option<NftTable>; 2]) {
    let node = Node::new();
    settled(node.engine(), changes).await;
    node.state()
}

pub(super) fn web_tcp() -> VirtualServerKey {
    VirtualServerKey::new(IpAddr::from([10, 96, 0, 1]), 80, Protocol::Tcp)
}

#[tokio::test]
async fn nothing_is_programmed_before_the_sources_are_complete() {
    let node = Node::new();
    let mut engine = settled(node.engine(), population().into_iter().take(5).collect()).await;
    assert!(node.ipvs.applied().is_empty() && !engine.is_synced());
    assert!(node.nft.table(&table_key(false)).is_some(), "masquerade rules come first of all");
    engine.take(Change::SourcesSynced);
    engine.sync(at(1)).await;
    assert!(engine.is_synced());
    // ClusterIP and NodePort, TCP and UDP, of three Services.
    assert_eq!(node.ipvs.state().services.len(), 12);
    assert_eq!(node.ipvs.state().services[&web_tcp()].reals.len(), 2);
    assert_eq!(node.routes.addresses_of(DEVICE).len(), 3);
    assert_eq!(node.sysctls.read("net/ipv4/vs/conntrack").as_deref(), Ok("1"));
    assert_eq!(engine.view().warnings, [] as [&str; 0]);
    assert_eq!(engine.pending(), [] as [&str; 0]);
}

#[tokio::test]
async fn a_restart_on_an_unchanged_state_writes_nothing() {
    let node = Node::new();
    settled(node.engine(), population()).await;
    let (state, writes) = (node.state(), node.writes());
    let mut engine = settled(node.engine(), population()).await;
    assert_eq!((node.state(), node.writes()), (state, writes));
    assert_eq!(engine.audit(at(1)).await, 0);
    assert_eq!(node.writes(), writes);
    assert_eq!(engine.view().counters.writes, 0);
}

#[tokio::test]
async fn a_restart_removes_what_went_away_meanwhile_but_only_once_sources_are_complete() {
    let node = Node::new();
    settled(node.engine(), population()).await;
    let (state, writes) = (node.state(), node.writes());
    // The Services are told before their endpoints, as a slow source would.
    let mut engine = settled(node.engine(), vec![service("web", 1)]).await;
    assert_eq!((node.state(), node.writes()), (state, writes), "nothing shrinks");
    engine.take(endpoints("web", &["10.244.1.1"]));
    engine.take(Change::SourcesSynced);
    engine.sync(at(1)).await;
    assert_eq!(node.routes.addresses_of(DEVICE), [IpAddr::from([10, 96, 0, 1])]);
    assert_eq!(node.ipvs.state().services.len(), 4);
    assert!(engine.is_draining(), "the endpoint that went keeps its connections");
}

#[tokio::test]
async fn a_tenth_of_all_operations_failing_ends_where_a_fresh_sync_ends() {
    let node = Node::new();
    for faults in [&node.ipvs.faults, &node.nft.faults, &node.routes.faults] {
        faults.every(10, Errno::EAGAIN);
    }
    let mut engine = node.engine();
    for _ in 0..20 {
        engine.start().await;
    }
    let history = [
        population(),
        vec![
            endpoints("web", &["10.244.1.9"]),
            service("new", 4),
            Change::ServiceGone(ObjectKey::new("ns", "api")),
        ],
        vec![
            endpoints("new", &["10.244.1.5", "10.244.1.6"]),
            Change::SliceGone(ObjectKey::new("ns", "web-1")),
        ],
        vec![endpoints("web", &["10.244.1.1", "10.244.1.2", "10.244.1.3"])],
    ];
    let mut now = 0;
    for changes in history {
        changes.into_iter().for_each(|change| take(&mut engine, change));
        for _ in 0..12 {
            now += 61;
            engine.sync(at(now)).await;
            engine.drain(at(now)).await;
        }
    }
    let injected = node.ipvs.faults.injected() + node.nft.faults.injected() + node.routes.faults.injected();
    assert!(injected > 10, "{injected}");
    for faults in [&node.ipvs.faults, &node.nft.faults, &node.routes.faults] {
        faults.clear();
    }
    for _ in 0..3 {
        now += 61;
        engine.audit(at(now)).await;
        engine.drain(at(now)).await;
    }
    let wanted = vec![
        endpoints("web", &["10.244.1.1", "10.244.1.2", "10.244.1.3"]),
        endpoints("new", &["10.244.1.5", "10.244.1.6"]),
        endpoints("api", &["10.244.1.3"]),
        service("web", 1),
        service("none", 3),
        service("new", 4),
        Change::SourcesSynced,
    ];
    assert_eq!(node.state(), fresh(wanted).await);
    assert_eq!(engine.view().failures, []);
}

/// A kernel that dies with the daemon: after so many operations it answers nothing any more.
struct Dying {
    node: Kernel,
    ipvs: Arc<FakeIpvs>,
    left: Arc<AtomicI64>,
}

impl Dying {
    fn alive(&self) -> bool {
        self.left.fetch_sub(1, Ordering::SeqCst) > 0
    }
}

#[async_trait]
impl Ipvs for Dying {
    async fn dump(&self) -> Result<IpvsDump, IpvsError> {
        self.ipvs.dump().await
    }
    async fn reals(&self, key: VirtualServerKey) -> Result<Reals, IpvsError> {
        self.ipvs.reals(key).await
    }
    async fn apply(&self, ops: &[IpvsOp]) -> Vec<Result<(), IpvsError>> {
        let mut outcomes = Vec::new();
        for op in ops {
            if self.alive() {
                outcomes.extend(self.ipvs.apply(std::slice::from_ref(op)).await);
            } else {
                outcomes
                    .push(Err(IpvsError::NoAnswer { op: op.to_string(), source: NetlinkError::ThreadEnded }));
            }
        }
        outcomes
    }
    async fn set_timeouts(&self, timeouts: IpvsTimeouts) -> Result<(), IpvsError> {
        self.ipvs.set_timeouts(timeouts).await
    }
    async fn info(&self) -> Result<IpvsInfo, IpvsError> {
        self.ipvs.info().await
    }
}

#[async_trait]
impl Nft for Dying {
    async fn apply(&self, batch: &NftBatch, generation: Option<u32>) -> Result<(), NftError> {
        if self.alive() {
            return self.node.nft.apply(batch, generation).await;
        }
        Err(NftError::NoAnswer { table: batch.table.clone(), source: NetlinkError::ThreadEnded })
    }
    async fn dump(&self, table: &TableKey, leave_out: &[&str]) -> Result<NftDump, NftError> {
        self.node.nft.dump(table, leave_out).await
    }
    async fn dump_guessed(&self, table: &TableKey, guess: Guess) -> Result<NftDump, NftError> {
        self.node.nft.dump_guessed(table, guess).await
    }
    async fn elements(
        &self,
        table: &TableKey,
        set: &str,
        keys: &[ElementKey],
    ) -> Result<Vec<Option<ElementValue>>, NftError> {
        self.node.nft.elements(table, set, keys).await
    }
    async fn tables(&self) -> Result<Vec<TableKey>, NftError> {
        self.node.nft.tables().await
    }
    async fn touched_by_others(&self, name: &str) -> Result<Touched, NftError> {
        self.node.nft.touched_by_others(name).await
    }
    async fn generation(&self) -> Result<u32, NftError> {
        self.node.nft.generation().await
    }
}

#[async_trait]
impl Routes for Dying {
    async fn link(&self, name: &str) -> Result<Option<Link>, RouteError> {
        self.node.routes.link(name).await
    }
    async fn addresses(&self) -> Result<Vec<LinkAddress>, RouteError> {
        self.node.routes.addresses().await
    }
    async fn ensure_dummy(&self, name: &str) -> Result<Link, RouteError> {
        self.node.routes.ensure_dummy(name).await
    }
    async fn remove_device(&self, name: &str) -> Result<(), RouteError> {
        self.node.routes.remove_device(name).await
    }
    async fn set_up(&self, link: &Link, up: bool) -> Result<(), RouteError> {
        self.node.routes.set_up(link, up).await
    }
    async fn change_addresses(&self, link: &Link, ops: &[AddressOp]) -> Vec<Result<(), RouteError>> {
        let mut outcomes = Vec::new();
        for op in ops {
            if self.alive() {
                outcomes.extend(self.node.routes.change_addresses(link, std::slice::from_ref(op)).await);
            } else {
                outcomes
                    .push(Err(RouteError::NoAnswer { op: format!("{op:?}"), detail: "killed".to_owned() }));
            }
        }
        outcomes
    }
    async fn default_source(&self, family: IpFamily) -> Result<Option<IpAddr>, RouteError> {
        self.node.routes.default_source(family).await
    }
}

#[tokio::test]
async fn killed_at_any_operation_the_next_one_finishes_and_the_one_after_writes_nothing() {
    let wanted = fresh(population()).await;
    for budget in 0.. {
        let node = Node::new();
        let left = Arc::new(AtomicI64::new(budget));
        let dying = Arc::new(Dying { node: node.kernel(), ipvs: node.ipvs.clone(), left: left.clone() });
        let kernel = Kernel {
            ipvs: Ok(dying.clone()),
            nft: dying.clone(),
            routes: dying,
            flows: Some(node.flows.clone()),
            sysctls: node.sysctls.clone(),
        };
        settled(Engine::new(config(), OpenKernel::new(move || Ok(kernel.clone()))), population()).await;
        let finished = left.load(Ordering::SeqCst) > 0;
        settled(node.engine(), population()).await;
        assert_eq!(node.state(), wanted, "killed after {budget} operations");
        let writes = node.writes();
        settled(node.engine(), population()).await;
        assert_eq!(node.writes(), writes, "killed after {budget} operations");
        if finished {
            assert!(budget > 20, "{budget} operations are too few to have tested anything");
            return;
        }
    }
}

#[tokio::test]
async fn an_audit_finds_and_repairs_what_others_did() {
    let node = Node::new();
    let mut engine = settled(node.engine(), population()).await;
    let wanted = node.state();
    let foreign = VirtualServerKey::new(IpAddr::from([198, 51, 100, 7]), 80, Protocol::Tcp);
    let excluded = VirtualServerKey::new(IpAddr::from([203, 0, 113, 7]), 80, Protocol::Tcp);
    let link = node.routes.ensure_dummy(DEVICE).await.unwrap();
    node.routes.change_addresses(&link, &[AddressOp::Remove(IpAddr::from([10, 96, 0, 1]))]).await;
    node.ipvs.tamper(|state| {
        state.services.remove(&web_tcp());
    });
    node.nft.tamper(|ruleset| {
        let table = ruleset.tables.get_mut(&table_key(false)).unwrap();
        table.sets.get_mut("frontends").unwrap().elements.clear();
        table.chains.get_mut("mark").unwrap().rules.clear();
    });
    for key in [foreign, excluded] {
        let server = VirtualServer::new(&key, Scheduler::Rr);
        assert_eq!(node.ipvs.apply(&[IpvsOp::AddService { key, server }]).await, [Ok(())]);
    }
    // The address; server and two real servers; twelve elements and the rule; the foreign server.
    assert_eq!(engine.audit(at(1)).await, 1 + 3 + 12 + 1 + 1);
    let (mut ipvs, addresses, tables) = node.state();
    assert!(ipvs.services.remove(&excluded).is_some(), "excluded networks are left alone");
    assert_eq!((ipvs, addresses, tables), wanted);
    assert_eq!(engine.audit(at(2)).await, 0);
}

#[tokio::test]
async fn an_operation_that_meets_an_unexpected_kernel_looks_before_it_tries_again() {
    let node = Node::new();
    let mut engine = settled(node.engine(), population()).await;
    node.ipvs.tamper(|state| {
        state.services.remove(&web_tcp());
    });
    engine.take(endpoints("web", &["10.244.1.1", "10.244.1.2", "10.244.1.3"]));
    engine.sync(at(1)).await;
    assert_eq!(node.ipvs.state().services[&web_tcp()].reals.len(), 3);
    assert_eq!(engine.view().failures, []);
}

#[tokio::test]
async fn an_endpoint_leaves_when_its_last_connection_is_over() {
    let node = Node::new();
    let mut engine = settled(node.engine(), population()).await;
    let leaving = RealServerKey::new(IpAddr::from([10, 244, 1, 2]), 8080);
    let busy = Connections { active: 1, ..Connections::default() };
    node.ipvs.set_connections(web_tcp(), leaving, busy);
    engine.take(endpoints("web", &["10.244.1.1"]));
    engine.sync(at(1)).await;
    engine.drain(at(61)).await;
    assert_eq!(node.ipvs.state().services[&web_tcp()].reals[&leaving].weight, 0);
    node.ipvs.set_connections(web_tcp(), leaving, Connections::default());
    engine.drain(at(121)).await;
    assert!(!node.ipvs.state().services[&web_tcp()].reals.contains_key(&leaving));
    assert!(!engine.is_draining());
}

#[tokio::test]
async fn kernel_settings_and_time_outs_of_ipvs_mode_are_made_as_configured() {
    let node = Node::new();
    let arp = ["net/ipv4/conf/all/arp_ignore", "net/ipv4/conf/all/arp_announce"];
    let reuse = "net/ipv4/vs/conn_reuse_mode";
    let all: Vec<(&str, &str)> =
        SYSCTLS.into_iter().chain(arp).chain([reuse]).map(|path| (path, "9")).collect();
    let sysctls = Arc::new(FakeSysctls::new(&all));
    let kernel = Kernel { sysctls: sysctls.clone(), ..node.kernel() };
    let open = OpenKernel::new(move || Ok(kernel.clone()));
    let config = DataplaneConfig {
        strict_arp: true,
        kernel_version: (5, 4),
        timeouts: IpvsTimeouts { tcp: 901, tcp_fin: 0, udp: 301 },
        ..config()
    };
    let before = node.ipvs.info().await.unwrap().timeouts;
    let engine = settled(Engine::new(config, open), population()).await;
    assert_eq!(engine.view().warnings, [] as [&str; 0]);
    let values = SYSCTLS.into_iter().chain(arp).chain([reuse]).map(|path| sysctls.read(path).unwrap());
    assert_eq!(values.collect::<Vec<_>>(), ["1", "1", "1", "1", "1", "2", "0"]);
    let after = node.ipvs.info().await.unwrap().timeouts;
    assert_eq!(
        after,
        IpvsTimeouts { tcp: 901, tcp_fin: before.tcp_fin, udp: 301 },
        "a zero leaves the kernel's"
    );
}

#[tokio::test]
async fn a_refused_service_is_named_and_stops_no_other() {
    let node = Node::new();
    node.ipvs.faults.script("ipvs 10.96.0.1:80/tcp: add service", Errno::ENOMEM, 2);
    let mut engine = settled(node.engine(), population()).await;
    let view = engine.view();
    let claims: Vec<&str> = view.failures.iter().map(|failure| failure.claim.as_str()).collect();
    assert_eq!(claims, ["10.96.0.1:80/tcp"]);
    assert!(view.failures[0].error.contains("add service (rr): "), "{}", view.failures[0].error);
    let dst = "10.96.0.1:80".parse().unwrap();
    let query = Query { dst, protocol: Protocol::Tcp, origin: Origin::Node, src: IpAddr::from(NODE_IP) };
    assert_eq!(engine.explain(&query).fate, Fate::Rejected, "the host's own port 80 does not show");
    assert_eq!(node.ipvs.state().services.len(), 11, "the others are served");
    assert!(view.synced, "one bad Service does not keep pods waiting");
    // Not before its time, then again with a longer wait, then done.
    engine.sync(at(0)).await;
    assert_eq!(engine.view().failures[0].attempts, 1);
    engine.sync(at(1)).await;
    assert_eq!((engine.view().failures[0].attempts, engine.next_retry()), (2, Some(at(3))));
    engine.sync(at(3)).await;
    assert_eq!((engine.view().failures, engine.next_retry()), (vec![], None));
    assert_eq!(node.state(), fresh(population()).await);
}

#[tokio::test]
async fn a_missing_scheduler_module_is_named() {
    let node = Node::new();
    node.ipvs.remove_scheduler(Scheduler::Rr);
    let engine = settled(node.engine(), population()).await;
    let view = engine.view();
    assert!(view.failures[0].error.contains("kernel module ip_vs_rr"), "{}", view.failures[0].error);
}

#[tokio::test]
async fn without_ipvs_pods_run_and_the_reason_is_said_until_it_is_there() {
    let node = Node::new();
    let kernel = node.kernel();
    let loaded = Arc::new(AtomicI64::new(0));
    let flag = loaded.clone();
    let open = OpenKernel::new(move || match flag.load(Ordering::SeqCst) {
        0 => Ok(Kernel { ipvs: Err(no_ipvs()), ..kernel.clone() }),
        _ => Ok(kernel.clone()),
    });
    let asked = DataplaneConfig { mode: ModeRequest::Ipvs, ..config() };
    let mut engine = settled(Engine::new(asked, open), population()).await;
    let view = engine.view();
    assert_eq!((view.mode.as_str(), view.synced), ("none", true));
    assert!(view.reason.contains("modprobe ip_vs"), "{}", view.reason);
    let query = Query {
        dst: "10.96.0.1:80".parse().unwrap(),
        protocol: Protocol::Tcp,
        origin: Origin::Node,
        src: IpAddr::from(NODE_IP),
    };
    let answer = engine.explain(&query);
    assert!(answer.sentence.contains("nothing serves it"), "{}", answer.sentence);
    loaded.store(1, Ordering::SeqCst);
    engine.audit(at(30)).await;
    assert_eq!(engine.view().mode, "ipvs");
    assert_eq!(node.state(), fresh(population()).await);
}

#[tokio::test]
async fn on_a_kernel_without_ipvs_nftables_serves() {
    let node = Node::new();
    let mut engine = settled(node.engine_without_ipvs(), population()).await;
    let view = engine.view();
    assert_eq!((view.mode.as_str(), view.reason.as_str()), ("nftables", "the kernel has nftables"));
    assert!(view.synced && view.failures.is_empty(), "{view:?}");
    let dst = "10.96.0.1:80".parse().unwrap();
    let query =
        Query { dst, protocol: Protocol::Tcp, origin: Origin::Pod, src: IpAddr::from([10, 244, 1, 9]) };
    assert!(matches!(engine.explain(&query).fate, Fate::Endpoints(to) if to.len() == 2));
    // One more endpoint is one batch; a restart and an audit are none.
    let batches = node.nft.batches().len();
    take(&mut engine, endpoints("web", &["10.244.1.1", "10.244.1.2", "10.244.1.3"]));
    engine.sync(at(1)).await;
    assert_eq!(node.nft.batches().len(), batches + 1);
    // The chain for three was there, and the one for two stays.
    assert_eq!(engine.audit(at(1)).await, 0);
    assert_eq!(node.nft.batches().len(), batches + 1);
    let mut again = population();
    again[0] = endpoints("web", &["10.244.1.1", "10.244.1.2", "10.244.1.3"]);
    let mut restarted = settled(node.engine_without_ipvs(), again).await;
    assert_eq!((restarted.audit(at(2)).await, node.nft.batches().len()), (0, batches + 1));
    // Everything goes again but the fixed rules.
    for name in ["web", "api", "none"] {
        take(&mut restarted, Change::ServiceGone(ObjectKey::new("ns", name)));
    }
    restarted.sync(at(3)).await;
    // Chains that spread stay until the next audit: there may be endpoints again. They are no difference.
    assert!(node.nft.table(&table_key(false)).unwrap().chains.contains_key("n3"));
    assert!(restarted.diff().await.differences.is_empty());
    assert_eq!(restarted.audit(at(4)).await, 0);
    let mut table = node.nft.table(&table_key(false)).unwrap();
    assert_eq!(object::take_objects(&mut table, false).len(), 0);
    assert!(!table.chains.contains_key("n3"));
    assert!(node.ipvs.applied().is_empty() && node.routes.addresses_of(DEVICE).is_empty());
}

#[tokio::test]
async fn an_idle_chain_that_cannot_go_is_tried_again_later_and_not_at_once() {
    let node = Node::new();
    let mut engine = settled(node.engine_without_ipvs(), population()).await;
    for count in [17, 18] {
        take(&mut engine, so_many_endpoints("web", count));
        engine.sync(at(1)).await;
    }
    assert_eq!((engine.next_retry(), engine.pending()), (None, Vec::new()), "nothing is due");
    node.nft.faults.script("chain n17: delete", Errno::EBUSY, 10_000);
    engine.audit(at(2)).await;
    for _ in 0..2 {
        let due = engine.next_retry().expect("the kernel refused it");
        engine.sync(due).await;
        assert!(engine.next_retry().is_some_and(|next| next > due), "the task would spin");
    }
    node.nft.faults.clear();
    engine.sync(engine.next_retry().unwrap()).await;
    assert_eq!(engine.next_retry(), None);
    assert!(!node.nft.table(&table_key(false)).unwrap().chains.contains_key("n17"));
}

/// For a chain that comes later the kernel looks at every element of the maps it names.
#[tokio::test]
async fn only_a_service_with_more_endpoints_than_chains_are_prepared_brings_one() {
    let node = Node::new();
    let mut engine = settled(node.engine_without_ipvs(), population()).await;
    let chains = |ipv6| {
        let table = node.nft.table(&table_key(ipv6)).unwrap();
        table.chains.keys().filter(|name| Spread::from_chain(name, ipv6).is_some()).count()
    };
    let prepared = PREPARED_CHAINS as usize;
    assert_eq!((chains(false), chains(true)), (prepared, 0), "no Service has an IPv6 address");
    // Endpoints of the Service, and the chains there are then and after an audit.
    for (count, now, later) in
        [(1, 0, 0), (16, 0, 0), (17, 1, 1), (18, 2, 1), (3, 1, 0), (0, 0, 0), (16, 0, 0)]
    {
        take(&mut engine, so_many_endpoints("web", count));
        engine.sync(at(1)).await;
        assert_eq!(chains(false), prepared + now, "{count}");
        engine.audit(at(2)).await;
        assert_eq!(chains(false), prepared + later, "{count}");
    }
    assert!(engine.diff().await.differences.is_empty());
}

fn so_many_endpoints(service: &str, count: usize) -> Change {
    let all: Vec<String> = (1..=count).map(|host| format!("10.244.2.{host}")).collect();
    endpoints(service, &all.iter().map(String::as_str).collect::<Vec<_>>())
}

#[tokio::test]
async fn nftables_mode_survives_a_tenth_of_its_batches_failing() {
    let node = Node::new();
    let mut engine = settled(node.engine_without_ipvs(), population()).await;
    node.nft.faults.every(10, Errno::EAGAIN);
    let lists: [&[&str]; 4] = [&[], &["10.244.1.1"], &["10.244.1.2", "10.244.1.4"], &["10.244.1.5"]];
    let mut now = 0;
    for list in lists.iter().cycle().take(12) {
        take(&mut engine, endpoints("web", list));
        for _ in 0..4 {
            now += 61;
            engine.sync(at(now)).await;
        }
    }
    assert!(node.nft.faults.injected() > 5);
    node.nft.faults.clear();
    engine.audit(at(now + 61)).await;
    engine.sync(at(now + 122)).await;
    let other = Node::new();
    let mut last = population();
    last[0] = endpoints("web", &["10.244.1.5"]);
    settled(other.engine_without_ipvs(), last).await;
    assert_eq!(node.nft.table(&table_key(false)), other.nft.table(&table_key(false)));
}

/// A table that is none of ours, as a CNI plug-in has one.
fn foreign(node: &Node) -> Option<NftTable> {
    node.nft.table(&TableKey::new(longshore_core::ruleset::nft::Family::Ip, "cni"))
}

fn add_foreign(node: &Node) {
    let mut table = NftTable::default();
    table.chains.insert("hostports".to_owned(), Default::default());
    let key = TableKey::new(longshore_core::ruleset::nft::Family::Ip, "cni");
    node.nft.tamper(|ruleset| drop(ruleset.tables.insert(key, table)));
}

#[tokio::test]
async fn whatever_nf_tables_refuses_is_named_tried_again_and_disturbs_nothing() {
    let other = Node::new();
    settled(other.engine_without_ipvs(), population()).await;
    for errno in [
        Errno::ENOBUFS,
        Errno::EBUSY,
        Errno::ENOENT,
        Errno::EEXIST,
        Errno::ENOSPC,
        Errno::EINTR,
        Errno::ENOMEM,
    ] {
        let node = Node::new();
        add_foreign(&node);
        // With the blank: elements, not the set itself.
        node.nft.faults.script("set services: add ", errno, 10_000);
        let mut engine = settled(node.engine_without_ipvs(), population()).await;
        let failures = engine.view().failures;
        assert!(!failures.is_empty(), "{errno}");
        assert!(failures.iter().all(|failure| failure.claim.contains(':')), "{errno}: {failures:?}");
        assert!(engine.is_synced(), "pods do not wait for what the kernel refuses");
        node.nft.faults.clear();
        engine.sync(at(120)).await;
        assert_eq!(engine.view().failures, [], "{errno}");
        assert_eq!(node.nft.table(&table_key(false)), other.nft.table(&table_key(false)), "{errno}");
        assert!(foreign(&node).is_some());
        assert_eq!(engine.audit(at(121)).await, 0, "{errno}");
    }
}

#[tokio::test]
async fn a_table_deleted_by_hand_is_back_with_the_next_change_at_the_cost_of_a_sync() {
    let node = Node::new();
    let mut engine = settled(node.engine_without_ipvs(), population()).await;
    let whole = node.nft.table(&table_key(false));
    add_foreign(&node);
    node.nft.tamper(|ruleset| drop(ruleset.tables.remove(&table_key(false))));
    let batches = node.nft.batches().len();
    take(&mut engine, endpoints("web", &["10.244.1.1"]));
    take(&mut engine, endpoints("web", &["10.244.1.1", "10.244.1.2"]));
    take(&mut engine, service("more", 4));
    engine.sync(at(1)).await;
    take(&mut engine, Change::ServiceGone(ObjectKey::new("ns", "more")));
    engine.sync(at(2)).await;
    assert_eq!(node.nft.table(&table_key(false)), whole);
    // The chains, everything anew, and the Service gone again.
    assert_eq!(node.nft.batches().len() - batches, 3);
    assert!(foreign(&node).is_some() && engine.view().failures.is_empty());
    // The same without a change, found by an audit.
    node.nft.tamper(|ruleset| drop(ruleset.tables.remove(&table_key(false))));
    assert!(engine.audit(at(3)).await > 10);
    assert_eq!(node.nft.table(&table_key(false)), whole);
}

#[tokio::test]
async fn udp_flows_to_endpoints_that_are_gone_are_forgotten_also_after_a_restart() {
    let node = Node::new();
    check_flows(&node, &|| node.engine()).await;
    let node = Node::new();
    let nftables = || DataplaneConfig { mode: ModeRequest::Nftables, ..config() };
    let kernel = node.kernel();
    let open = OpenKernel::new(move || Ok(kernel.clone()));
    check_flows(&node, &|| Engine::new(nftables(), open.clone())).await;
    let node = Node::new();
    let iptables = Arc::new(FakeIptables::new(Variant::Legacy));
    check_flows(&node, &|| super::former_tests::iptables_engine(&node, &iptables)).await;
}

async fn check_flows(node: &Node, engine: &dyn Fn() -> Engine) {
    let flow = |dst: &str, answers: &str| Flow {
        src: "10.244.1.9:4000".parse().unwrap(),
        dst: dst.parse().unwrap(),
        answers: answers.parse().unwrap(),
    };
    let mut running = settled(engine(), population()).await;
    let live = flow("10.96.0.1:53", "10.244.1.1:8053");
    let dead = flow("10.96.0.1:53", "10.244.1.2:8053");
    let deleted = flow("192.168.0.1:30002", "10.244.1.3:8053");
    let other = flow("8.8.8.8:53", "8.8.8.8:53");
    node.flows.0.lock().unwrap().extend([live, dead, deleted, other]);
    take(&mut running, endpoints("web", &["10.244.1.1"]));
    running.sync(at(1)).await;
    assert_eq!(*node.flows.0.lock().unwrap(), BTreeSet::from([live, deleted, other]));
    // While nobody was looking, Service `api` went away.
    let rest =
        vec![endpoints("web", &["10.244.1.1"]), service("web", 1), service("none", 3), Change::SourcesSynced];
    let again = settled(engine(), rest).await;
    let mode = again.view().mode;
    assert_eq!(*node.flows.0.lock().unwrap(), BTreeSet::from([live, other]), "{mode}");
    assert_eq!(again.view().counters.flows_deleted, 1, "{mode}");
}

#[tokio::test]
async fn a_new_host_address_serves_node_ports() {
    let node = Node::new();
    let mut engine = settled(node.engine(), population()).await;
    let addr = IpAddr::from([10, 0, 0, 5]);
    node.routes.add_address(LinkAddress { link: 2, addr, prefix: 24, link_local: false });
    engine.host_addresses_changed().await;
    engine.sync(at(1)).await;
    let key = VirtualServerKey::new(addr, 30001, Protocol::Tcp);
    assert_eq!(node.ipvs.state().services[&key].reals.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_others_do_to_the_table_is_repaired_before_any_audit_is_due() {
    let node = Node::new();
    let kernel = Kernel { ipvs: Err(no_ipvs()), ..node.kernel() };
    let stop = CancellationToken::new();
    let open = OpenKernel::new(move || Ok(kernel.clone()));
    let (handle, task) = dataplane(config(), open, Clock::System, stop.clone());
    let task = tokio::spawn(task);
    population().into_iter().for_each(|change| handle.tell(change));
    handle.synced().wait_for(|synced| *synced).await.unwrap();
    let whole = node.nft.table(&table_key(false));
    tokio::time::sleep(Duration::from_millis(10)).await;
    node.nft.tamper(|ruleset| drop(ruleset.tables.remove(&table_key(false))));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(node.nft.table(&table_key(false)), whole);
    stop.cancel();
    task.await.unwrap();
}

struct Running {
    handle: DataplaneHandle,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn run(node: &Node) -> Running {
    let kernel = node.kernel();
    let stop = CancellationToken::new();
    let clock = Clock::following_tokio(at(0));
    let (handle, task) =
        dataplane(config(), OpenKernel::new(move || Ok(kernel.clone())), clock, stop.clone());
    Running { handle, stop, task: tokio::spawn(task) }
}

#[tokio::test(start_paused = true)]
async fn the_task_applies_at_once_coalesces_and_leaves_everything_when_stopped() {
    let node = Node::new();
    let running = run(&node);
    let mut synced = running.handle.synced();
    for _ in 0..100 {
        population().into_iter().for_each(|change| running.handle.tell(change));
    }
    let before = tokio::time::Instant::now();
    synced.wait_for(|done| *done).await.unwrap();
    assert_eq!(before.elapsed(), Duration::ZERO, "no timer stands before a change");
    assert_eq!(node.state(), fresh(population()).await);
    assert!(running.handle.view().counters.syncs <= 2, "{:?}", running.handle.view().counters);
    let rows = running.handle.list().await.unwrap();
    assert_eq!(rows.len(), 3);
    let dst: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let query =
        Query { dst, protocol: Protocol::Tcp, origin: Origin::Pod, src: IpAddr::from([10, 244, 1, 9]) };
    let answer = running.handle.explain(query).await.unwrap();
    assert!(matches!(answer.fate, Fate::Endpoints(ref to) if to.len() == 2), "{answer:?}");
    // A fault is retried by time alone.
    node.ipvs.faults.script("add destination 10.244.1.7:8080", Errno::EAGAIN, 1);
    running.handle.tell(endpoints("web", &["10.244.1.1", "10.244.1.2", "10.244.1.7"]));
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(!running.handle.view().failures.is_empty());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(running.handle.view().failures, []);
    // Drift is found by the audit.
    node.ipvs.tamper(|state| state.services.clear());
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(node.ipvs.state().services.len(), 12);
    let state = node.state();
    running.stop.cancel();
    running.task.await.unwrap();
    assert_eq!(node.state(), state);
    assert_eq!(running.handle.list().await, Err(DataplaneGone));
}
