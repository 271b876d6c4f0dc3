//! Random histories over the objects of the table of Service cases, on the kernel's fakes: Services and
//! slices come, change and go, the kernel refuses operations, the daemon is killed and started. Whatever
//! happened, the kernel ends with what the last objects want, and a fresh start finds nothing to do.

#![allow(clippy::unwrap_used)]

#[path = "services/case.rs"]
#[allow(dead_code, reason = "traces use more of it")]
mod case;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use case::{Case, Change, Mode};
use jiff::Timestamp;
use longshore_agent::dataplane::{
    self, DataplaneConfig, Engine, Kernel, ModeRequest, OpenIptables, OpenKernel,
};
use longshore_core::ids::ObjectKey;
use longshore_core::service::view::DiffView;
use longshore_kernel::iptables::{FakeIptables, Variant};
use longshore_kernel::ipvs::FakeIpvs;
use longshore_kernel::netlink::{NetlinkError, Refusal};
use longshore_kernel::nft::{FakeNft, MissingNft, Nft, NftError};
use longshore_kernel::route::FakeRoutes;
use longshore_kernel::sysctl::FakeSysctls;
use nix::errno::Errno;
use proptest::prelude::*;

/// The kernel of a node; it outlives its daemons.
struct Node {
    ipvs: Arc<FakeIpvs>,
    nft: Arc<FakeNft>,
    routes: Arc<FakeRoutes>,
    iptables: Arc<FakeIptables>,
    mode: Mode,
}

impl Node {
    fn new(mode: Mode) -> Self {
        let [address, ..] = case::primary_addresses()[..] else { panic!("a node has an address") };
        Node {
            ipvs: Arc::new(FakeIpvs::new()),
            nft: Arc::new(FakeNft::new()),
            routes: Arc::new(FakeRoutes::new(address)),
            iptables: Arc::new(FakeIptables::new(Variant::Nft)),
            mode,
        }
    }

    /// A daemon that was just started and told all there is.
    async fn start(&self, told: &BTreeMap<(bool, ObjectKey), Change>, now: Timestamp) -> Engine {
        let request = match self.mode {
            Mode::Nftables => ModeRequest::Nftables,
            Mode::Ipvs | Mode::IpvsByIptables => ModeRequest::Ipvs,
            Mode::Iptables => ModeRequest::Iptables,
        };
        let config = DataplaneConfig::new(request, case::NODE, case::primary_addresses());
        let kernel = Kernel {
            ipvs: Ok(self.ipvs.clone()),
            nft: self.nf_tables(),
            routes: self.routes.clone(),
            flows: None,
            sysctls: Arc::new(FakeSysctls::new(&[])),
        };
        let open = OpenKernel::new(move || Ok(kernel.clone()))
            .with_iptables(OpenIptables::given(self.iptables.clone()));
        let mut engine = Engine::new(config, open);
        engine.start().await;
        for change in told.values() {
            engine.take(as_told(change));
        }
        engine.take(dataplane::Change::SourcesSynced);
        engine.sync(now).await;
        engine
    }

    fn nf_tables(&self) -> Arc<dyn Nft> {
        match self.mode {
            Mode::IpvsByIptables => {
                let refused = NetlinkError::Refused(Refusal::new(Errno::EINVAL));
                Arc::new(MissingNft::new(NftError::Unavailable(refused)))
            }
            _ => self.nft.clone(),
        }
    }

    /// Every `period`th operation is refused from now on; 0 ends that.
    fn refuse(&self, period: u64) {
        self.ipvs.faults.every(period, Errno::EBUSY);
        self.nft.faults.every(period, Errno::ENOBUFS);
        self.routes.faults.every(period, Errno::EAGAIN);
        // The program is asked less often, and each of its lines counts: most are taken, some are not.
        self.iptables.faults.every(period * 16, Errno::ENOMEM);
    }

    fn writes(&self) -> (usize, usize, usize, Vec<IpAddr>) {
        let device = longshore_core::ruleset::object::DEVICE;
        let (servers, batches) = (self.ipvs.applied().len(), self.nft.batches().len());
        (servers, batches, self.iptables.runs().len(), self.routes.addresses_of(device))
    }
}

fn as_told(change: &Change) -> dataplane::Change {
    match change {
        Change::Service(service) => dataplane::Change::Service(service.clone()),
        Change::Slice(slice) => dataplane::Change::Slice(slice.clone()),
        Change::ServiceGone(key) => dataplane::Change::ServiceGone(key.clone()),
        Change::SliceGone(key) => dataplane::Change::SliceGone(key.clone()),
    }
}

#[derive(Clone, Debug)]
enum Event {
    /// The objects of a case, as far as the step with this number.
    Case(usize, usize),
    /// An object is gone, by its place among those told.
    Gone(usize),
    Sync,
    /// Connections to removed endpoints have ended, and somebody looks.
    Drain,
    Restart,
    /// Every so many operations are refused.
    Refusing(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (any::<usize>(), 0..4usize).prop_map(|(case, step)| Event::Case(case, step)),
        2 => any::<usize>().prop_map(Event::Gone),
        5 => Just(Event::Sync),
        1 => Just(Event::Drain),
        1 => Just(Event::Restart),
        2 => (2..20u64).prop_map(Event::Refusing),
    ]
}

fn cases() -> &'static [Case] {
    static CASES: OnceLock<Vec<Case>> = OnceLock::new();
    CASES.get_or_init(case::all)
}

/// What an event changes, in the order it is told.
fn changes(event: &Event, told: &BTreeMap<(bool, ObjectKey), Change>) -> Vec<Change> {
    match event {
        Event::Case(number, last) => {
            let case = &cases()[number % cases().len()];
            case.steps.iter().take(last + 1).flat_map(|step| step.changes.clone()).collect()
        }
        Event::Gone(number) if !told.is_empty() => {
            let (is_service, key) = told.keys().nth(number % told.len()).unwrap().clone();
            vec![if is_service { Change::ServiceGone(key) } else { Change::SliceGone(key) }]
        }
        _ => Vec::new(),
    }
}

fn remember(told: &mut BTreeMap<(bool, ObjectKey), Change>, change: &Change) {
    match change {
        Change::Service(service) => drop(told.insert((true, service.key()), change.clone())),
        Change::Slice(slice) => drop(told.insert((false, slice.key()), change.clone())),
        Change::ServiceGone(key) => drop(told.remove(&(true, key.clone()))),
        Change::SliceGone(key) => drop(told.remove(&(false, key.clone()))),
    }
}

fn faults(view: &DiffView) -> Vec<String> {
    let all = view.differences.iter().filter(|one| one.deviation.is_fault());
    all.map(|one| format!("{} {}", one.deviation.as_str(), one.object)).collect()
}

async fn check(mode: Mode, history: &[Event]) -> Result<(), TestCaseError> {
    let node = Node::new(mode);
    let mut told = BTreeMap::new();
    let mut clock = 1_800_000_000;
    let mut tick = || {
        clock += 120;
        Timestamp::from_second(clock).unwrap()
    };
    let mut engine = node.start(&told, tick()).await;
    for event in history {
        for change in changes(event, &told) {
            remember(&mut told, &change);
            engine.take(as_told(&change));
        }
        match event {
            Event::Case(..) | Event::Gone(_) => {}
            Event::Sync => {
                engine.sync(tick()).await;
            }
            Event::Drain => engine.drain(tick()).await,
            Event::Restart => engine = node.start(&told, tick()).await,
            Event::Refusing(period) => node.refuse(*period),
        }
    }
    node.refuse(0);
    // What was refused is due again by now, and real servers that drain go once they were looked at.
    for _ in 0..4 {
        engine.start().await;
        engine.sync(tick()).await;
        engine.drain(tick()).await;
    }
    let view = engine.diff().await;
    prop_assert_eq!(&view.error, &None);
    prop_assert_eq!(faults(&view), [] as [&str; 0], "{}", mode);
    prop_assert_eq!(engine.view().failures.len(), 0);
    // Chains that nobody uses any more go with an audit, and nothing else does.
    prop_assert_eq!(engine.audit(tick()).await, 0);
    prop_assert_eq!(faults(&engine.diff().await), [] as [&str; 0], "{}", mode);
    let before = node.writes();
    let again = node.start(&told, tick()).await;
    prop_assert_eq!(node.writes(), before, "a start on an unchanged kernel writes nothing: {}", mode);
    prop_assert_eq!(faults(&again.diff().await), [] as [&str; 0]);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_of_services_ends_where_a_fresh_start_ends(history in proptest::collection::vec(event(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        for mode in [Mode::Nftables, Mode::Ipvs, Mode::IpvsByIptables, Mode::Iptables] {
            runtime.block_on(check(mode, &history))?;
        }
    }
}
