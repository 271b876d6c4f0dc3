//! Changes of mode, a former kube-proxy and the clean-up, on the kernel's fakes: what serves is complete
//! before anything goes, connections keep what carries them, and what is not ours stays.

use longshore_core::ruleset::Protocol;
use longshore_core::ruleset::ipt::Table;
use longshore_core::ruleset::ipvs::{Connections, IpvsOp, RealServerKey, VirtualServer, VirtualServerKey};
use longshore_core::ruleset::nft::{self, NftBatch, NftOp, NftTable, TableKey};
use longshore_core::ruleset::object::DEVICE;
use longshore_kernel::iptables::{FakeIptables, Variant};
use longshore_kernel::ipvs::Ipvs;
use longshore_kernel::nft::Nft;
use longshore_kernel::route::{AddressOp, Routes};
use longshore_kernel::xtables::{FakeXtables, Which, Xtables};

use nix::errno::Errno;

use super::former;
use super::kernel::table_key;
use super::tests::{NODE_IP, Node, at, config, endpoints, fresh, population, settled, take, web_tcp};
use super::*;

const KUBE_PROXYS: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-SERVICES - [0:0]\n\
    -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\nCOMMIT\n";
const KUBELETS: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";

fn engine(node: &Node, mode: ModeRequest, xtables: &Arc<FakeXtables>) -> Engine {
    let kernel = node.kernel();
    let open = OpenKernel::new(move || Ok(kernel.clone())).clearing(xtables.clone());
    Engine::new(DataplaneConfig { mode, ..config() }, open)
}

fn table(node: &Node) -> NftTable {
    node.nft.table(&table_key(false)).expect("our table is there")
}

async fn kube_proxy_was_here(node: &Node, xtables: &FakeXtables) {
    for family in [nft::Family::Ip, nft::Family::Ip6, nft::Family::Inet] {
        let table = TableKey::new(family, "kube-proxy");
        node.nft.apply(&NftBatch { table, ops: vec![NftOp::AddTable] }, None).await.unwrap();
    }
    Which::ALL.into_iter().for_each(|which| xtables.set(which, KUBE_PROXYS));
}

#[tokio::test]
async fn from_ipvs_to_nftables_established_connections_keep_their_servers() {
    let (node, xtables) = (Node::new(), Arc::new(FakeXtables::default()));
    settled(engine(&node, ModeRequest::Ipvs, &xtables), population()).await;
    let real = RealServerKey::new(IpAddr::from([10, 244, 1, 1]), 8080);
    let busy = Connections { active: 1, ..Connections::default() };
    node.ipvs.set_connections(web_tcp(), real, busy);
    let before = node.ipvs.state();

    let mut engine = engine(&node, ModeRequest::Nftables, &xtables);
    engine.start().await;
    assert!(table(&node).chains.contains_key("input"), "the other mode's chains stay beside ours");
    assert!(!engine.wants_to_retire(), "nothing serves yet");
    population().into_iter().for_each(|change| take(&mut engine, change));
    engine.sync(at(0)).await;
    assert_eq!(node.ipvs.state(), before, "nothing goes before all is there");
    engine.retire().await;
    let state = node.ipvs.state();
    assert_eq!(state.services.keys().collect::<Vec<_>>(), [&web_tcp()]);
    assert!(state.services[&web_tcp()].reals.values().all(|real| real.weight == 0), "no new connections");
    assert_eq!(node.routes.addresses_of(DEVICE), [IpAddr::from([10, 96, 0, 1])]);
    assert!(!table(&node).chains.contains_key("input"));
    assert!(engine.view().warnings[0].starts_with("1 virtual servers of IPVS"), "{:?}", engine.view());
    assert!(engine.wants_to_retire());

    node.ipvs.set_connections(web_tcp(), real, Connections::default());
    engine.retire().await;
    assert!(node.ipvs.state().services.is_empty() && !engine.wants_to_retire());
    assert_eq!(node.routes.link(DEVICE).await.unwrap(), None);
    assert_eq!(engine.audit(at(1)).await, 0, "what is left is what a fresh start makes");
    let fresh = Node::new();
    let fresh_engine = super::former_tests::engine(&fresh, ModeRequest::Nftables, &xtables);
    settled(fresh_engine, population()).await;
    assert_eq!(table(&node), table(&fresh));
}

#[tokio::test]
async fn from_nftables_to_ipvs_the_old_rules_serve_until_the_new_ones_do() {
    let (node, xtables) = (Node::new(), Arc::new(FakeXtables::default()));
    settled(engine(&node, ModeRequest::Nftables, &xtables), population()).await;
    let before = table(&node);
    let mut engine = engine(&node, ModeRequest::Ipvs, &xtables);
    engine.start().await;
    let now = table(&node);
    for (name, chain) in before.chains.iter().filter(|(_, chain)| chain.base.is_some()) {
        assert_eq!(now.chains.get(name), Some(chain), "{name}");
    }
    assert!(before.sets.iter().all(|(name, set)| now.sets[name].elements == set.elements));
    population().into_iter().for_each(|change| take(&mut engine, change));
    engine.sync(at(0)).await;
    engine.retire().await;
    assert_eq!(node.state(), fresh(population()).await);
    assert_eq!(engine.audit(at(1)).await, 0);
}

#[tokio::test]
async fn a_former_kube_proxy_goes_only_after_the_first_full_sync() {
    for mode in [ModeRequest::Nftables, ModeRequest::Ipvs] {
        let (node, xtables) = (Node::new(), Arc::new(FakeXtables::default()));
        kube_proxy_was_here(&node, &xtables).await;
        let mut engine = engine(&node, mode, &xtables);
        engine.start().await;
        engine.retire().await;
        population().into_iter().take(5).for_each(|change| take(&mut engine, change));
        engine.sync(at(0)).await;
        engine.retire().await;
        assert_eq!(xtables.get(Which::ALL[0]), KUBE_PROXYS, "{mode:?}: the sources are not complete");
        take(&mut engine, Change::SourcesSynced);
        engine.sync(at(1)).await;
        engine.retire().await;
        assert!(Which::ALL.into_iter().all(|which| xtables.get(which) == KUBELETS), "{mode:?}");
        let tables = node.nft.tables().await.unwrap();
        let left: Vec<String> = tables.iter().map(ToString::to_string).collect();
        assert!(left.contains(&"inet kube-proxy".to_owned()), "{left:?}: of a family kube-proxy has not");
        assert!(!left.contains(&"ip kube-proxy".to_owned()) && !left.contains(&"ip6 kube-proxy".to_owned()));
        assert!(!engine.wants_to_retire(), "{mode:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_removed_is_tried_again() {
    let (node, xtables) = (Node::new(), Arc::new(FakeXtables::default()));
    kube_proxy_was_here(&node, &xtables).await;
    let mut engine = settled(engine(&node, ModeRequest::Nftables, &xtables), population()).await;
    node.nft.faults.script("nft table ip kube-proxy", Errno::EBUSY, 1);
    engine.retire().await;
    assert!(engine.wants_to_retire());
    assert_eq!(xtables.get(Which::ALL[2]), KUBELETS, "one refusal stops nothing else");
    engine.retire().await;
    assert!(!engine.wants_to_retire());
}

#[tokio::test]
async fn the_clean_up_takes_what_is_ours_and_nothing_else() {
    let (node, xtables) = (Node::new(), Arc::new(FakeXtables::default()));
    settled(engine(&node, ModeRequest::Ipvs, &xtables), population()).await;
    kube_proxy_was_here(&node, &xtables).await;
    let foreign = VirtualServerKey::new(IpAddr::from([198, 51, 100, 7]), 80, Protocol::Tcp);
    let node_port = VirtualServerKey::new(IpAddr::from(NODE_IP), 31_999, Protocol::Tcp);
    for key in [foreign, node_port] {
        let server = VirtualServer::new(&key, Scheduler::Rr);
        assert_eq!(node.ipvs.apply(&[IpvsOp::AddService { key, server }]).await, [Ok(())]);
    }
    let link = node.routes.ensure_dummy(DEVICE).await.unwrap();
    let theirs = IpAddr::from([10, 96, 9, 9]);
    node.routes.change_addresses(&link, &[AddressOp::Ensure(theirs)]).await;
    let xtables_before = xtables.save(Which::ALL[0]).await;

    let before = node.state();
    let named = former::cleanup(&node.kernel(), xtables.as_ref(), &[], true).await.unwrap();
    assert_eq!(node.state(), before, "a dry run changes nothing");
    let done = former::cleanup(&node.kernel(), xtables.as_ref(), &[], false).await.unwrap();
    assert_eq!(done, named);
    assert_eq!(done[0], "12 changes of IPVS, 3 addresses of kube-ipvs0");
    let (ipvs, addresses, tables) = node.state();
    assert_eq!(ipvs.services.keys().collect::<Vec<_>>(), [&node_port, &foreign]);
    assert_eq!((addresses, tables), (vec![theirs], [None, None]));
    assert_eq!(xtables.save(Which::ALL[0]).await, xtables_before);
    assert_eq!(node.nft.tables().await.unwrap().len(), 3, "kube-proxy's");
    assert_eq!(former::cleanup(&node.kernel(), xtables.as_ref(), &[], false).await, Ok(vec![]));
}

#[tokio::test]
async fn auto_takes_ipvs_where_the_kernel_refuses_nftables_chains() {
    let (node, xtables) = (Node::new(), Arc::new(FakeXtables::default()));
    node.nft.faults.script("nft table ip longshore-probe", Errno::ENOENT, 1);
    let engine = settled(engine(&node, ModeRequest::Auto, &xtables), population()).await;
    let view = engine.view();
    assert_eq!(view.mode, "ipvs");
    assert!(view.reason.starts_with("the kernel has IPVS, and not nftables: "), "{}", view.reason);
    let node = Node::new();
    let engine = settled(super::former_tests::engine(&node, ModeRequest::Auto, &xtables), population()).await;
    assert_eq!(
        (engine.view().mode.as_str(), engine.view().reason.as_str()),
        ("nftables", "the kernel has nftables")
    );
    let probe = TableKey::new(nft::Family::Ip, "longshore-probe");
    assert!(!node.nft.tables().await.unwrap().contains(&probe), "nothing of the probe stays");
}

#[tokio::test]
async fn a_deleted_table_is_back_at_once_and_counted() {
    let node = Node::new();
    let xtables = Arc::new(FakeXtables::default());
    let mut engine = settled(engine(&node, ModeRequest::Nftables, &xtables), population()).await;
    let before = table(&node);
    node.nft.tamper(|ruleset| ruleset.tables.clear());
    engine.mend(None, at(1)).await;
    assert_eq!(table(&node), before);
    assert!(engine.view().counters.drift > 0, "{:?}", engine.view().counters);
}

#[tokio::test]
async fn the_node_s_own_pod_networks_turn_the_chains_that_tell_pods() {
    let (node, xtables) = (Node::new(), Arc::new(FakeXtables::default()));
    let kernel = node.kernel();
    let new = config();
    let chains = ChainConfig { cluster_cidrs: Vec::new(), ..new.chains.clone() };
    let config = DataplaneConfig { mode: ModeRequest::Nftables, by_pod_networks: true, chains, ..new };
    let mut by_node = Engine::new(config, OpenKernel::new(move || Ok(kernel.clone())));
    by_node = settled(by_node, population()).await;
    take(&mut by_node, Change::PodNetworks(vec!["10.244.0.0/16".parse().unwrap()]));
    by_node.sync(at(1)).await;
    by_node.retire().await;
    let other = Node::new();
    let by_cluster = super::former_tests::engine(&other, ModeRequest::Nftables, &xtables);
    settled(by_cluster, population()).await;
    assert_eq!(table(&node), table(&other), "as a cluster's network of the same range");
}

pub(super) fn iptables_engine(node: &Node, iptables: &Arc<FakeIptables>) -> Engine {
    let kernel = node.kernel();
    let open = OpenKernel::new(move || Ok(kernel.clone()))
        .clearing(Arc::new(FakeXtables::default()))
        .with_iptables(OpenIptables::given(iptables.clone()));
    Engine::new(DataplaneConfig { mode: ModeRequest::Iptables, ..config() }, open)
}

#[tokio::test]
async fn iptables_mode_serves_adopts_and_repairs() {
    let (node, iptables) = (Node::new(), Arc::new(FakeIptables::new(Variant::Nft)));
    let mut engine = settled(iptables_engine(&node, &iptables), population()).await;
    let view = engine.view();
    assert_eq!((view.mode.as_str(), view.failures.len(), view.synced), ("iptables", 0, true), "{view:?}");
    let (objects, runs) = (iptables.objects(), iptables.runs().len());
    assert!(objects.len() > 10, "{}", objects.len());
    let dst = "10.96.0.1:80".parse().unwrap();
    let src = IpAddr::from([10, 244, 1, 9]);
    let query =
        Query { dst, protocol: Protocol::Tcp, origin: longshore_core::ruleset::trace::Origin::Pod, src };
    let fate = engine.explain(&query).fate;
    assert!(
        matches!(&fate, longshore_core::ruleset::trace::Fate::Endpoints(to) if to.len() == 2),
        "{fate:?}"
    );
    let held = engine.figures().iptables.expect("iptables mode counts its rules");
    assert!(held[0][0] > 5 && held[0][1] > 20, "{held:?}");
    // A restart on an unchanged state writes nothing.
    let mut restarted = settled(iptables_engine(&node, &iptables), population()).await;
    assert_eq!((restarted.audit(at(1)).await, iptables.runs().len()), (0, runs));
    // `iptables -F` by hand is found by the audit.
    iptables.flush(false, Table::Nat);
    assert!(restarted.audit(at(2)).await > 0);
    assert_eq!(iptables.objects(), objects);
    // One endpoint more is one run of the program.
    let runs = iptables.runs().len();
    take(&mut engine, endpoints("web", &["10.244.1.1", "10.244.1.2", "10.244.1.3"]));
    let round = engine.sync(at(3)).await.and_then(|round| round.iptables).unwrap();
    assert_eq!(iptables.runs().len(), runs + 1);
    // The rules of the chains that spread, of TCP and of UDP, and no other's.
    assert_eq!((round.rules, round.refused), ([[0, 6], [0, 0]], [0, 0]));
}

#[tokio::test]
async fn from_nftables_to_iptables_our_table_goes_when_the_chains_are_there() {
    let (node, xtables) = (Node::new(), Arc::new(FakeXtables::default()));
    let iptables = Arc::new(FakeIptables::new(Variant::Legacy));
    settled(engine(&node, ModeRequest::Nftables, &xtables), population()).await;
    let before = table(&node);
    let mut engine = iptables_engine(&node, &iptables);
    engine.start().await;
    engine.retire().await;
    assert_eq!(table(&node), before, "it serves until the new rules do");
    population().into_iter().for_each(|change| take(&mut engine, change));
    engine.sync(at(0)).await;
    engine.retire().await;
    assert_eq!(node.nft.tables().await, Ok(vec![]));
    assert!(!engine.wants_to_retire() && engine.view().failures.is_empty());
}
