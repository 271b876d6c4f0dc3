//! What this kernel offers, as one value: for the choice of a Service mode at the start and for
//! `longshore doctor`. Objects made to find out live in a network namespace of their own and go with it,
//! so that asking changes nothing. What follows from the answers is decided elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use longshore_core::ruleset::Protocol;
use longshore_core::ruleset::ipvs::{IpvsOp, Scheduler, VirtualServer, VirtualServerKey};
use longshore_core::ruleset::nft::{
    Expr, Family, FieldType, HeaderField, LookupTarget, MetaKey, NatFlags, NatKind, NftBatch, NftOp,
    NumgenMode, Reg, Rule, SetSpec, TableKey,
};

use crate::capabilities::{self, Need, Role};
use crate::cgroup::{CgroupError, FsCgroups};
use crate::ipvs::{Ipvs, IpvsError, RealIpvs};
use crate::modules::{ModuleState, Modules, RealModules};
use crate::netns::{self, NetNsError};
use crate::nft::{Nft, NftError, RealNft};
use crate::proc::{PressureOf, Proc};
use crate::route::{RealRoutes, RouteError, Routes};

/// Whether something works here, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Support {
    /// It works: it was tried.
    Works,
    /// It does not; the whole chain of causes.
    Missing(String),
    /// It could not be tried.
    Unknown(String),
}

impl Support {
    /// Whether it works.
    pub fn works(&self) -> bool {
        *self == Support::Works
    }

    fn of<T, E: std::error::Error>(outcome: Result<T, E>) -> Support {
        match outcome {
            Ok(_) => Support::Works,
            Err(err) => Support::Missing(chain(&err)),
        }
    }
}

/// What the kernel offers.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelSupport {
    /// The kernel's version.
    pub release: String,
    /// nf_tables with everything a Service table needs: maps, numgen, nat.
    pub nftables: Support,
    /// IPVS.
    pub ipvs: Support,
    /// The schedulers IPVS has, those it could load included.
    pub ipvs_schedulers: BTreeSet<Scheduler>,
    /// The dummy device, which IPVS mode keeps its addresses on.
    pub dummy: Support,
    /// The version 2 cgroup hierarchy.
    pub cgroup_v2: Support,
    /// Its controllers.
    pub cgroup_controllers: BTreeSet<String>,
    /// Pressure stall information.
    pub pressure: bool,
    /// The overlay file system, as far as the kernel has loaded it.
    pub overlay: bool,
    /// Capabilities this process lacks.
    pub missing_capabilities: Vec<Need>,
    /// Modules of interest and whether they are there.
    pub modules: BTreeMap<&'static str, ModuleState>,
}

/// Modules the agent or a runtime beside it uses.
const MODULES: [&str; 9] = [
    "overlay",
    "br_netfilter",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_tables",
    "ip_vs",
    "ip_vs_rr",
    "dummy",
    "nft_chain_nat",
];

/// Ask the kernel. Blocks for some milliseconds, and longer where modules get loaded by being asked for.
pub fn probe(cgroup_root: &str) -> KernelSupport {
    let files = Proc::default();
    let modules = RealModules::default();
    let network = netns::run_in_new(probe_network);
    let network = network.unwrap_or_else(|err| Network::unknown(&err));
    let cgroups = FsCgroups::open(cgroup_root);
    let controllers = cgroups.as_ref().map_or(Ok(BTreeSet::new()), FsCgroups::controllers);
    KernelSupport {
        release: files.kernel_release().unwrap_or_default(),
        nftables: network.nftables,
        ipvs: network.ipvs,
        ipvs_schedulers: network.schedulers,
        dummy: network.dummy,
        cgroup_v2: Support::of::<_, CgroupError>(cgroups),
        cgroup_controllers: controllers.unwrap_or_default(),
        pressure: files.pressure(PressureOf::Memory).is_some(),
        overlay: files.filesystems().is_ok_and(|known| known.iter().any(|name| name == "overlay")),
        missing_capabilities: capabilities::missing(&[Role::Node, Role::Proxy]).unwrap_or_default(),
        modules: MODULES
            .into_iter()
            .map(|name| (name, modules.state(name).unwrap_or(ModuleState::Absent)))
            .collect(),
    }
}

struct Network {
    nftables: Support,
    ipvs: Support,
    schedulers: BTreeSet<Scheduler>,
    dummy: Support,
}

impl Network {
    fn unknown(err: &NetNsError) -> Self {
        let unknown = || Support::Unknown(chain(err));
        Network { nftables: unknown(), ipvs: unknown(), schedulers: BTreeSet::new(), dummy: unknown() }
    }
}

/// Runs on a thread of its own, in a network namespace of its own.
fn probe_network() -> Network {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(err) => {
            let unknown = || Support::Unknown(format!("start a runtime: {err}"));
            return Network {
                nftables: unknown(),
                ipvs: unknown(),
                schedulers: BTreeSet::new(),
                dummy: unknown(),
            };
        }
    };
    runtime.block_on(async {
        let (ipvs, schedulers) = match probe_ipvs().await {
            Ok(schedulers) => (Support::Works, schedulers),
            Err(err) => (Support::Missing(chain(&err)), BTreeSet::new()),
        };
        Network {
            nftables: Support::of(probe_nftables().await),
            ipvs,
            schedulers,
            dummy: Support::of(probe_dummy().await),
        }
    })
}

/// A small Service table, as the nftables mode makes it.
async fn probe_nftables() -> Result<(), NftError> {
    let nft = RealNft::open()?;
    let key = [FieldType::Ipv4Addr, FieldType::InetProto, FieldType::InetService, FieldType::Index];
    let exprs = vec![
        Expr::load(HeaderField::Ip4Daddr, Reg(0)),
        Expr::meta(MetaKey::L4Proto, Reg(1)),
        Expr::load(HeaderField::Dport, Reg(2)),
        Expr::Numgen { mode: NumgenMode::Random, modulus: 2, offset: 0, dst: Reg(3) },
        Expr::Lookup { set: "endpoints".into(), src: Reg(0), target: LookupTarget::Data(Reg(4)) },
        Expr::Nat {
            kind: NatKind::Dnat,
            ipv6: false,
            addr: Some(Reg(4)),
            port: Some(Reg(5)),
            flags: NatFlags::default(),
        },
    ];
    let spec = SetSpec::map(&key, &[FieldType::Ipv4Addr, FieldType::InetService]);
    let ops = vec![
        NftOp::AddTable,
        NftOp::AddSet { set: "endpoints".into(), spec },
        NftOp::AddChain { chain: "n2".into(), base: None },
        NftOp::AddRule { chain: "n2".into(), rule: Rule::new(exprs) },
    ];
    nft.apply(&NftBatch { table: TableKey::new(Family::Ip, "longshore-probe"), ops }, None).await
}

/// A virtual server of every scheduler, at an address of the documentation range (RFC 5737).
async fn probe_ipvs() -> Result<BTreeSet<Scheduler>, IpvsError> {
    let ipvs = RealIpvs::open()?;
    let ops: Vec<IpvsOp> = Scheduler::ALL
        .iter()
        .zip(20_000u16..)
        .map(|(scheduler, port)| {
            let key = VirtualServerKey::new(IpAddr::from([198, 51, 100, 0]), port, Protocol::Tcp);
            IpvsOp::AddService { key, server: VirtualServer::new(&key, *scheduler) }
        })
        .collect();
    let outcomes = ipvs.apply(&ops).await;
    let works = Scheduler::ALL.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok());
    let schedulers: BTreeSet<Scheduler> = works.map(|(scheduler, _)| *scheduler).collect();
    match outcomes.into_iter().find_map(Result::err) {
        // Not one scheduler works: what the first one failed of is what IPVS fails of.
        Some(err) if schedulers.is_empty() => Err(err),
        _ => Ok(schedulers),
    }
}

async fn probe_dummy() -> Result<(), RouteError> {
    RealRoutes::open()?.ensure_dummy("longshoreprobe").await.map(drop)
}

fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text.push_str(&format!(": {err}"));
        cause = err.source();
    }
    text
}
