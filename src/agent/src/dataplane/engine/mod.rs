//! The state of the dataplane and its rounds: take changes, plan, carry out, remember what the kernel
//! acknowledged. `applied` changes only after an acknowledgement, per object; what was refused stays
//! dirty with a back-off of its own. Timing and channels are in `task`.

mod checked;
mod compare;
mod look;
mod others;
mod ranges;
mod retire;
mod start;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use longshore_core::conntrack::UdpFrontends;
use longshore_core::ruleset::Protocol;
use longshore_core::ruleset::chains;
use longshore_core::ruleset::desired::{BackEnd, Desired};
use longshore_core::ruleset::diff::{self, Applied, Op};
use longshore_core::ruleset::ipvs::{RealServerKey, VirtualServerKey};
use longshore_core::ruleset::nft::NftTable;
use longshore_core::ruleset::object::{Claim, DEVICE, Objects};
use longshore_core::ruleset::render_ipvs::{self, NodeNetwork};
use longshore_core::service::cidr::{self, Cidr};
use longshore_core::service::problems::{ObjectProblem, Problems};
use longshore_core::service::table::{ServiceTable, TableChange};
use longshore_core::service::topology::NodeTopology;
use longshore_core::service::view::Counters;
use longshore_kernel::iptables::Iptables;
use longshore_kernel::route::Link;
use tokio::time::Instant;

use super::iptables;
use super::kernel::{self, Kernel, KernelError, in_full};
use super::metrics::{IptablesRound, Round};
use super::{Change, DataplaneConfig, OpenKernel};
use checked::CheckedServices;
#[cfg(test)]
pub(super) use look::SAMPLE;
use look::Trust;
use retire::Retirement;
use views::unavailable;

/// A refused object is tried again after this, doubling up to the limit.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// Nearly all Services have fewer endpoints; each chain is one rule and one element.
pub(super) const PREPARED_CHAINS: u32 = 16;
/// Texts of left-out parts that are shown; more are counted by what they cost nobody.
const MAX_SKIPPED_SHOWN: usize = 100;

/// What serves Services.
#[derive(Clone, Debug)]
enum Mode {
    /// Not tried yet.
    Unknown,
    Serving(Box<Served>),
    /// Nothing does, and why; pods run all the same.
    None {
        reason: String,
    },
}

/// A back end in use.
#[derive(Clone)]
struct Served {
    kernel: Kernel,
    /// The programs of iptables mode.
    iptables: Option<Arc<dyn Iptables>>,
    back_end: BackEnd,
    /// The dummy device of IPVS mode.
    link: Option<Link>,
    reason: String,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served")
            .field("back_end", &self.back_end)
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
struct Failure {
    error: String,
    since: Timestamp,
    attempts: u32,
    retry_at: Timestamp,
}

/// The dataplane's whole state.
#[derive(Debug)]
pub struct Engine {
    config: DataplaneConfig,
    open: OpenKernel,
    mode: Mode,
    /// What serves, or would be tried first: its settings count.
    in_force: BackEnd,
    table: ServiceTable,
    desired: Desired,
    applied: Applied,
    chains: [NftTable; 2],
    /// The kernel has nf_tables for IPv6.
    ipv6: bool,
    dirty: BTreeSet<Claim>,
    /// In the kernel and wanted by nobody; they go with the next audit.
    idle: BTreeSet<Claim>,
    failures: BTreeMap<Claim, Failure>,
    /// UDP frontends that changed since flows were last compared.
    udp: UdpFrontends,
    /// An operation showed that the kernel is not as believed.
    suspect: bool,
    /// What an earlier run left in the sets that grow with Services is not in `applied` yet.
    unread: bool,
    sources_synced: bool,
    synced_at: Option<Timestamp>,
    /// The next round looks at every claim.
    everything: bool,
    /// The last round could write nothing of what it had to.
    stuck: bool,
    flows_compared: Option<(u64, Duration)>,
    /// What the programs of iptables mode were given since the last round began.
    iptables_round: IptablesRound,
    checks: CheckedServices,
    retirement: Retirement,
    trust: Trust,
    /// Ranges of Services' addresses as they were told; `None` until then.
    ranges: Option<Vec<Cidr>>,
    problems: Problems,
    warnings: Vec<String>,
    counters: Counters,
}

impl Engine {
    pub fn new(config: DataplaneConfig, open: OpenKernel) -> Self {
        let node = NodeTopology { name: config.node_name.as_str().into(), zone: None };
        let chains = [false, true].map(|ipv6| chains::ipvs_table(&config.chains, ipv6));
        let back_end = BackEnd::Ipvs { scheduler: config.scheduler };
        Engine {
            mode: Mode::Unknown,
            in_force: back_end,
            table: ServiceTable::new(node),
            desired: Desired::new(back_end, NodeNetwork::default()).with_prepared_chains(PREPARED_CHAINS),
            applied: Applied::default(),
            chains,
            ipv6: true,
            dirty: BTreeSet::new(),
            idle: BTreeSet::new(),
            failures: BTreeMap::new(),
            udp: UdpFrontends::default(),
            suspect: false,
            unread: false,
            sources_synced: false,
            synced_at: None,
            everything: false,
            stuck: false,
            flows_compared: None,
            iptables_round: IptablesRound::default(),
            checks: CheckedServices::default(),
            retirement: Retirement::default(),
            trust: Trust::default(),
            ranges: None,
            problems: Problems::default(),
            warnings: Vec::new(),
            counters: Counters::default(),
            config,
            open,
        }
    }

    fn soil(&mut self, claims: impl IntoIterator<Item = Claim>) {
        let ipv6 = self.ipv6;
        for claim in claims.into_iter().filter(|claim| ipv6 || !claim.is_ipv6()) {
            // What was asked for anew is tried at once.
            self.failures.remove(&claim);
            let (now, other) = match self.may_idle(&claim) {
                true => (&mut self.idle, &mut self.dirty),
                false => (&mut self.dirty, &mut self.idle),
            };
            other.remove(&claim);
            now.insert(claim);
        }
    }

    /// A chain that spreads over as many endpoints as no Service has now. It stays until the next audit: a
    /// Service that is rolled out has one endpoint more and one less all the time, and for each chain that
    /// comes the kernel looks at every element of the maps that it names (`nf_tables_bind_set`): 6 ms with
    /// 10,000 Services.
    fn may_idle(&self, claim: &Claim) -> bool {
        matches!(claim, Claim::Spread(_)) && self.desired.objects(claim).is_empty()
    }

    /// What nobody uses any more goes with the next round.
    fn soil_idle(&mut self) {
        self.dirty.append(&mut self.idle);
    }

    /// Take a change into the wanted state, without effects. True where the host's addresses have to be
    /// read again.
    pub fn take(&mut self, change: Change) -> bool {
        match change {
            Change::Service(service) => {
                let change = self.table.upsert_service(&service);
                self.follow(change);
                self.checks.service(&service.key(), &self.table);
                self.problems.service(&self.table, &service.key());
            }
            Change::ServiceGone(key) => {
                let change = self.table.remove_service(&key);
                self.follow(change);
                self.checks.service(&key, &self.table);
                self.problems.service(&self.table, &key);
            }
            Change::Slice(slice) => {
                self.checks.slice(slice.service().as_ref());
                let mut change = self.table.upsert_slice(&slice);
                self.problems.slice(&self.table, &slice, std::mem::take(&mut change.skipped));
                self.follow(change);
            }
            Change::SliceGone(key) => {
                self.checks.slice(None);
                let change = self.table.remove_slice(&key);
                self.problems.slice_gone(&key);
                self.follow(change);
            }
            Change::Lacking(key, lacking) => {
                self.table.set_lacking(key.clone(), lacking);
                self.problems.service(&self.table, &key);
            }
            Change::Zone(zone) => {
                let change = self.table.set_zone(zone.map(Into::into));
                self.follow(change);
            }
            Change::PodNetworks(networks) => {
                if self.config.by_pod_networks && self.config.chains.cluster_cidrs != networks {
                    self.config.chains.cluster_cidrs = networks;
                    self.remake_chains();
                    self.suspect = true;
                }
            }
            Change::ServiceRanges(ranges) => self.ranges = Some(cidr::outermost(ranges)),
            Change::HostAddresses => return true,
            Change::SourcesSynced => self.sources_are_synced(),
        }
        false
    }

    fn sources_are_synced(&mut self) {
        if self.sources_synced {
            return;
        }
        self.sources_synced = true;
        self.soil_everything();
    }

    /// Look at every claim anew: what is wanted, and what an earlier run left that nobody wants.
    fn soil_everything(&mut self) {
        let left = self.applied.claims().copied();
        let all: Vec<Claim> = left.chain(self.desired.claims().copied()).collect();
        self.everything = true;
        self.soil(all);
        self.soil_idle();
    }

    /// Problems of objects that were not told yet.
    pub fn take_problems(&mut self) -> Vec<ObjectProblem> {
        self.problems.take_news()
    }

    fn follow(&mut self, change: TableChange) {
        for port in change.ports {
            if port.id.name.protocol == Protocol::Udp {
                if let Some(before) = &port.before {
                    for (_, addr, number) in render_ipvs::frontends(before, self.desired.node()) {
                        self.udp.was_served(SocketAddr::new(addr, number));
                    }
                }
                if let Some(after) = &port.after {
                    self.udp.serve(after, self.desired.node());
                }
            }
            let dirty = self.desired.change(port.before.as_ref(), port.after.as_ref());
            self.soil(dirty);
        }
    }

    /// The host's addresses changed.
    pub async fn host_addresses_changed(&mut self) {
        let Mode::Serving(served) = self.mode.clone() else { return };
        if let Err(error) = self.refresh_network(&served).await {
            tracing::warn!(
                error = in_full(&error),
                "cannot read the host's addresses; tried again with the next audit"
            );
        }
    }

    /// One round: bring what is dirty and due into the kernel.
    ///
    /// Returns what the round cost, where there was one.
    pub async fn sync(&mut self, now: Timestamp) -> Option<Round> {
        let Mode::Serving(served) = self.mode.clone() else {
            self.nobody_serves(now);
            return None;
        };
        if !self.sources_synced {
            return None;
        }
        if let Err(error) = self.read_rest(&served).await {
            let reason = unavailable(&error);
            tracing::warn!(%reason, "what an earlier run left cannot be read; tried again with the next audit");
            self.mode = Mode::None { reason };
            return None;
        }
        let (began, refused) = (Instant::now(), self.counters.refusals);
        let mut round = None;
        if !self.due(now).is_empty() {
            let full = std::mem::take(&mut self.everything);
            self.iptables_round = IptablesRound::default();
            self.round(&served, now, &|_, _| false).await;
            let (took, refusals) = (began.elapsed(), self.counters.refusals - refused);
            self.counters.syncs += 1;
            self.counters.last_sync_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            let iptables = served.iptables.is_some().then_some(self.iptables_round);
            round = Some(Round { took, full, refusals, iptables });
        }
        if self.suspect {
            self.suspect = false;
            self.compare(&served).await;
            if let Mode::Serving(served) = self.mode.clone() {
                self.round(&served, now, &|_, _| false).await;
                // The comparison may have asked for a look at every claim; this round was it.
                self.everything = false;
            }
        }
        self.forget_flows(&served.kernel).await;
        if self.synced_at.is_none() {
            tracing::info!(
                objects = self.applied.len(),
                ms = self.counters.last_sync_ms,
                "first full sync is in the kernel"
            );
            self.synced_at = Some(now);
        }
        self.follow_ranges().await;
        round
    }

    /// Whether what was told is in the kernel, or at least some of it could be written: one object that
    /// the kernel refuses does not make the whole proxy late.
    pub fn keeps_up(&self) -> bool {
        matches!(self.mode, Mode::Serving(_)) && self.sources_synced && !self.stuck
    }

    pub fn is_nftables(&self) -> bool {
        self.in_force == BackEnd::Nftables
    }

    /// How many flows the last comparison deleted and how long it took, once.
    pub fn take_flows_compared(&mut self) -> Option<(u64, Duration)> {
        self.flows_compared.take()
    }

    /// Without a back end there is nothing to wait for: pods must not wait for Services for ever.
    fn nobody_serves(&mut self, now: Timestamp) {
        if matches!(self.mode, Mode::None { .. }) && self.synced_at.is_none() {
            self.synced_at = Some(now);
        }
    }

    fn due(&self, now: Timestamp) -> Vec<Claim> {
        let due = |claim: &&Claim| self.failures.get(claim).is_none_or(|failure| failure.retry_at <= now);
        self.dirty.iter().filter(due).copied().collect()
    }

    async fn round(
        &mut self,
        served: &Served,
        now: Timestamp,
        drained: &(dyn Fn(&VirtualServerKey, &RealServerKey) -> bool + Sync),
    ) {
        let due = self.due(now);
        let ops =
            diff::plan(&self.desired, &self.applied, due.iter().copied(), &|key, real| drained(key, real));
        let written = self.counters.writes;
        let mut failed: BTreeMap<Claim, KernelError> = BTreeMap::new();
        let mut rest = ops.as_slice();
        while !rest.is_empty() {
            let (batch, later) = rest.split_at(kernel::batch_len(rest));
            rest = later;
            let (held, ready): (Vec<Op>, Vec<Op>) =
                batch.iter().cloned().partition(|op| stands_on_failure(op, &failed).is_some());
            for op in held {
                let cause =
                    stands_on_failure(&op, &failed).map(|claim| claim.to_string()).unwrap_or_default();
                failed.entry(op.claim).or_insert(KernelError::Waits(cause));
            }
            let outcomes = match &served.iptables {
                Some(iptables) if kernel::are_chains(&ready) => {
                    iptables::execute(iptables.as_ref(), &ready).await
                }
                _ => served.kernel.execute(served.link.as_ref(), &ready).await,
            };
            for (op, outcome) in ready.iter().zip(outcomes) {
                self.settle(op, outcome, &mut failed);
            }
        }
        self.stuck = !failed.is_empty() && self.counters.writes == written;
        for claim in due {
            match failed.remove(&claim) {
                None => {
                    self.failures.remove(&claim);
                    self.dirty.remove(&claim);
                }
                Some(error) => self.note_failure(claim, &error, now),
            }
        }
    }

    fn settle(
        &mut self,
        op: &Op,
        outcome: Result<(), KernelError>,
        failed: &mut BTreeMap<Claim, KernelError>,
    ) {
        self.iptables_round.note(op, outcome.is_ok());
        match outcome {
            Ok(()) => {
                self.counters.writes += 1;
                self.applied.acknowledge(op);
            }
            Err(error) => {
                self.counters.refusals += 1;
                self.suspect |= error.is_drift();
                failed.entry(op.claim).or_insert(error);
            }
        }
    }

    fn note_failure(&mut self, claim: Claim, error: &KernelError, now: Timestamp) {
        let text = in_full(error);
        let before = self.failures.get(&claim);
        if before.is_none_or(|failure| failure.error != text) {
            tracing::warn!(%claim, error = text, "the kernel refused a change; it is tried again");
        }
        let attempts = before.map_or(1, |failure| failure.attempts.saturating_add(1));
        let delay = FIRST_RETRY.saturating_mul(1 << (attempts - 1).min(10)).min(LAST_RETRY);
        let since = before.map_or(now, |failure| failure.since);
        let retry_at = now.saturating_add(delay).unwrap_or(Timestamp::MAX);
        self.failures.insert(claim, Failure { error: text, since, attempts, retry_at });
    }

    /// When a refused object is due again.
    pub fn next_retry(&self) -> Option<Timestamp> {
        self.failures.values().map(|failure| failure.retry_at).min()
    }

    /// Compare the kernel with what is believed of it and mend both; returns how many objects differed.
    /// In nftables mode only part of it is read where nobody else touched our tables (`look`).
    pub async fn audit(&mut self, now: Timestamp) -> u64 {
        self.start().await;
        let Mode::Serving(served) = self.mode.clone() else { return 0 };
        self.make_settings(&served.kernel, served.back_end);
        self.host_addresses_changed().await;
        let found = if self.looks_untouched(&served).await {
            self.counters.audits += 1;
            0
        } else {
            self.compare(&served).await
        };
        self.soil_idle();
        self.sync(now).await;
        found
    }

    /// The same, whatever was told by the kernel: everything is read.
    pub async fn audit_whole(&mut self, now: Timestamp) -> u64 {
        self.trust.untouched = false;
        self.audit(now).await
    }

    /// Take the kernel's word for what is there; what differs from the wanted is dirty now.
    async fn compare(&mut self, served: &Served) -> u64 {
        self.counters.audits += 1;
        let before = self.counters.drift;
        if let Err(error) = self.compare_all(served).await {
            // The device or a table may be gone: make them again before anything else.
            tracing::warn!(error = in_full(&error), "cannot compare with the kernel");
            self.mode = Mode::None { reason: unavailable(&error) };
            self.start().await;
        }
        self.counters.drift - before
    }

    async fn compare_all(&mut self, served: &Served) -> Result<(), KernelError> {
        let mut served = served.clone();
        if let Some(known) = &served.link {
            let link = served.kernel.routes.ensure_dummy(DEVICE).await?;
            self.counters.drift += u64::from(link.index != known.index);
            served.link = Some(link);
            self.mode = Mode::Serving(Box::new(served.clone()));
        }
        let heard = self.hear(&served.kernel).await;
        self.read_rest(&served).await?;
        let mut dump = self.read(&served).await?;
        let rewritten = self.ensure_chains(&served, &dump.tables).await?;
        self.counters.drift += rewritten;
        if rewritten > 0 {
            dump = self.read(&served).await?;
            // What waited for a table that was not there waits no longer.
            self.soil_everything();
        }
        let seen = Applied::adopt(dump.objects);
        for claim in seen.differing(&self.applied) {
            let have = seen.objects(&claim).unwrap_or_default();
            let drift = differing(&have, &self.applied.objects(&claim).unwrap_or_default());
            tracing::warn!(%claim, objects = drift, "the kernel differs from what was acknowledged; repairing it");
            self.counters.drift += drift;
            self.applied.replace(claim, have.into_owned());
            self.soil([claim]);
        }
        self.trust.untouched = heard;
        Ok(())
    }

    /// Look at real servers that wait for their last connection, and remove those that lost it.
    pub async fn drain(&mut self, now: Timestamp) {
        let Mode::Serving(served) = self.mode.clone() else { return };
        let mut drained = BTreeSet::new();
        let servers: BTreeSet<VirtualServerKey> =
            self.applied.draining().iter().map(|(key, _)| *key).collect();
        for key in servers {
            let Ok(ipvs) = &served.kernel.ipvs else { return };
            let reals = match ipvs.reals(key).await {
                Ok(reals) => reals,
                Err(error) => {
                    tracing::warn!(%key, error = in_full(&error), "cannot read connections");
                    continue;
                }
            };
            let idle = reals.iter().filter(|(_, (_, connections))| connections.is_drained());
            drained.extend(idle.map(|(real, _)| (key, *real)));
        }
        drained.retain(|pair| self.applied.draining().contains(pair));
        if drained.is_empty() || !self.sources_synced {
            return;
        }
        let claims = drained.iter().filter_map(|(key, _)| match key {
            VirtualServerKey::Address { addr, port, protocol } => {
                Some(Claim::Frontend { addr: *addr, port: *port, protocol: *protocol })
            }
            VirtualServerKey::FwMark { .. } => None,
        });
        let claims: Vec<Claim> = claims.collect();
        self.soil(claims);
        self.round(&served, now, &|key, real| drained.contains(&(*key, *real))).await;
    }

    pub fn audit_period(&self) -> Duration {
        self.tuning().sync_period.max(Duration::from_secs(1))
    }

    /// The shortest time between two rounds, where the configuration names one.
    pub fn min_sync_period(&self) -> Option<Duration> {
        self.tuning().min_sync_period
    }

    pub fn drain_period(&self) -> Duration {
        self.config.drain_period.max(Duration::from_secs(1))
    }

    /// Whether real servers wait for their last connection.
    pub fn is_draining(&self) -> bool {
        !self.applied.draining().is_empty()
    }

    /// Delete UDP flows whose endpoint is gone; TCP finds out by itself.
    async fn forget_flows(&mut self, kernel: &Kernel) {
        let Some(tracker) = kernel.flows.as_ref().filter(|_| !self.udp.is_empty()) else { return };
        let began = Instant::now();
        let flows = match tracker.flows().await {
            Ok(flows) => flows,
            Err(error) => {
                // Kept for the next round.
                tracing::warn!(%error, "cannot read the connection tracker's UDP flows");
                return;
            }
        };
        let stale: Vec<_> = flows.into_iter().filter(|flow| self.udp.is_stale(flow)).collect();
        let outcomes = tracker.forget(&stale).await;
        let refused = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).next();
        let deleted = outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64;
        self.counters.flows_deleted += deleted;
        self.flows_compared = Some((deleted, began.elapsed()));
        match refused {
            Some(error) => {
                tracing::warn!(%error, "cannot delete a UDP flow; tried again with the next change")
            }
            None => self.udp = UdpFrontends::default(),
        }
    }

    /// Whether ordinary pods may start.
    pub fn is_synced(&self) -> bool {
        self.synced_at.is_some()
    }
}

/// The failed claim an operation must not go ahead of: its own, or a frontend on the address it binds,
/// since an address whose virtual servers are missing would show the host's own ports.
fn stands_on_failure(op: &Op, failed: &BTreeMap<Claim, KernelError>) -> Option<Claim> {
    if failed.contains_key(&op.claim) {
        return Some(op.claim);
    }
    match op.claim {
        Claim::Address(addr) if !op.is_removal() => failed
            .keys()
            .copied()
            .find(|claim| matches!(claim, Claim::Frontend { addr: frontend, .. } if *frontend == addr)),
        _ => None,
    }
}

fn differing(have: &Objects, believed: &Objects) -> u64 {
    let changed = have.iter().filter(|(key, value)| believed.get(key) != Some(value)).count();
    let gone = believed.keys().filter(|key| !have.contains_key(key)).count();
    (changed + gone) as u64
}
