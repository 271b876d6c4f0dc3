//! A kernel without nf_tables, on fakes: IPVS is served with iptables chains around it, and iptables mode as
//! everywhere.

use longshore_core::explain::Query;
use longshore_core::ruleset::Protocol;
use longshore_core::ruleset::ipt::Table;
use longshore_core::ruleset::trace::{Fate, Origin};
use longshore_kernel::iptables::{FakeIptables, Variant};
use longshore_kernel::ipvs::IpvsError;
use longshore_kernel::netlink::{NetlinkError, Refusal};
use longshore_kernel::nft::{MissingNft, NftError};
use nix::errno::Errno;

use super::tests::{NODE_IP, Node, at, config, endpoints, population, settled, take};
use super::*;

fn kernel(node: &Node) -> Kernel {
    let why = NftError::Unavailable(NetlinkError::Refused(Refusal::new(Errno::EINVAL)));
    assert!(why.is_missing());
    Kernel { nft: Arc::new(MissingNft::new(why)), ..node.kernel() }
}

fn engine(kernel: &Kernel, mode: ModeRequest, iptables: Option<&Arc<FakeIptables>>) -> Engine {
    let kernel = kernel.clone();
    let mut open = OpenKernel::new(move || Ok(kernel.clone()));
    if let Some(iptables) = iptables {
        open = open.with_iptables(OpenIptables::given(iptables.clone()));
    }
    Engine::new(DataplaneConfig { mode, ..config() }, open)
}

fn fate(engine: &Engine, dst: &str, origin: Origin, src: [u8; 4]) -> Fate {
    let query = Query { dst: dst.parse().unwrap(), protocol: Protocol::Tcp, origin, src: src.into() };
    engine.explain(&query).fate
}

#[tokio::test]
async fn virtual_servers_are_served_adopted_and_repaired_with_chains_around_them() {
    let (node, iptables) = (Node::new(), Arc::new(FakeIptables::new(Variant::Legacy)));
    let start = || engine(&kernel(&node), ModeRequest::Ipvs, Some(&iptables));
    let mut engine = settled(start(), population()).await;
    let view = engine.view();
    assert_eq!((view.mode.as_str(), view.failures.len(), view.synced), ("ipvs", 0, true), "{view:?}");
    let (servers, objects, runs) = (node.ipvs.state(), iptables.objects(), iptables.runs().len());
    assert_eq!(servers.services.len(), 12);
    let pod = |engine: &Engine, dst: &str| fate(engine, dst, Origin::Pod, [10, 244, 1, 9]);
    let Fate::Endpoints(to) = pod(&engine, "10.96.0.1:80") else { panic!("web has endpoints") };
    assert_eq!((to.len(), to.iter().any(|one| one.masqueraded)), (2, false));
    let outside = fate(&engine, "192.168.0.1:30001", Origin::Outside, [203, 0, 113, 7]);
    assert!(matches!(&outside, Fate::Endpoints(to) if to.iter().all(|one| one.masqueraded)), "{outside:?}");
    assert_eq!(pod(&engine, "10.96.0.3:80"), Fate::Rejected, "it has no endpoint");
    assert_eq!(pod(&engine, "10.96.0.1:22"), Fate::Rejected, "no port of the host answers there");
    assert_eq!(fate(&engine, "10.96.0.1:22", Origin::Node, NODE_IP), Fate::Rejected);
    // A restart on an unchanged state writes nothing.
    let mut restarted = settled(start(), population()).await;
    assert_eq!((restarted.audit(at(1)).await, iptables.runs().len()), (0, runs));
    // Chains flushed by hand, and a virtual server deleted.
    iptables.flush(false, Table::Mangle);
    assert!(restarted.audit(at(2)).await > 0);
    assert_eq!((iptables.objects(), node.ipvs.state()), (objects, servers));
    // Endpoints are IPVS's alone.
    let runs = iptables.runs().len();
    take(&mut restarted, endpoints("web", &["10.244.2.1", "10.244.2.2", "10.244.2.3"]));
    take(&mut restarted, endpoints("web", &["10.244.1.1", "10.244.1.2"]));
    restarted.sync(at(3)).await;
    assert_eq!(iptables.runs().len(), runs);
    assert_eq!(engine.audit(at(4)).await, 0);
}

#[tokio::test]
async fn auto_takes_ipvs_with_chains_then_chains_alone_and_says_what_is_missing() {
    let (node, iptables) = (Node::new(), Arc::new(FakeIptables::new(Variant::Legacy)));
    let with_ipvs = kernel(&node);
    let no_ipvs = IpvsError::Unavailable(NetlinkError::NoFamily("IPVS"));
    let without = Kernel { ipvs: Err(no_ipvs), ..with_ipvs.clone() };
    let auto = async |kernel: &Kernel, iptables: Option<&Arc<FakeIptables>>| {
        let view = settled(engine(kernel, ModeRequest::Auto, iptables), population()).await.view();
        (view.mode, view.reason)
    };
    let (mode, reason) = auto(&with_ipvs, Some(&iptables)).await;
    assert_eq!(mode, "ipvs");
    assert!(
        reason.starts_with("the kernel has IPVS, and not nftables: nf_tables is not available"),
        "{reason}"
    );
    let (mode, reason) = auto(&without, Some(&iptables)).await;
    assert_eq!(mode, "iptables", "{reason}");
    let (mode, reason) = auto(&with_ipvs, None).await;
    assert_eq!(mode, "none");
    assert!(reason.contains("IPVS: nf_tables is not available"), "{reason}");
    assert!(reason.contains("there are no programs for it"), "{reason}");
}
