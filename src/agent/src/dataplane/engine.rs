//! The state of the dataplane and its rounds: take changes, plan, carry out, remember what the kernel
//! acknowledged. `applied` changes only after an acknowledgement, per object; what was refused stays
//! dirty with a back-off of its own. Timing and channels are in `task`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use longshore_core::conntrack::UdpFrontends;
use longshore_core::explain::{self, Explanation, Facts, Query};
use longshore_core::ids::ObjectKey as ApiKey;
use longshore_core::ruleset::Protocol;
use longshore_core::ruleset::chains;
use longshore_core::ruleset::desired::{BackEnd, Desired};
use longshore_core::ruleset::diff::{self, Applied, Op};
use longshore_core::ruleset::ipvs::{RealServerKey, VirtualServerKey};
use longshore_core::ruleset::nft::NftTable;
use longshore_core::ruleset::node;
use longshore_core::ruleset::object::{Claim, DEVICE, Objects};
use longshore_core::ruleset::render_ipvs::{self, NodeNetwork};
use longshore_core::ruleset::trace::Rules;
use longshore_core::service::Family;
use longshore_core::service::table::{ServiceTable, TableChange};
use longshore_core::service::topology::NodeTopology;
use longshore_core::service::view::{self, Counters, DataplaneView, FailureView, ServiceRow};
use longshore_kernel::route::Link;
use tokio::time::Instant;

use super::kernel::{self, Dump, Kernel, KernelError, in_full};
use super::{Change, DataplaneConfig, ModeRequest, OpenKernel};

/// A refused object is tried again after this, doubling up to the limit.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// Texts of left-out parts that are shown; more are counted by what they cost nobody.
const MAX_SKIPPED_SHOWN: usize = 100;

/// What serves Services.
#[derive(Clone, Debug)]
enum Mode {
    /// Not tried yet.
    Unknown,
    Serving(Served),
    /// Nothing does, and why; pods run all the same.
    None {
        reason: String,
    },
}

/// A back end in use.
#[derive(Clone, Debug)]
struct Served {
    kernel: Kernel,
    back_end: BackEnd,
    /// The dummy device of IPVS mode.
    link: Option<Link>,
    reason: String,
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
    table: ServiceTable,
    desired: Desired,
    applied: Applied,
    chains: [NftTable; 2],
    /// The kernel has nf_tables for IPv6.
    ipv6: bool,
    dirty: BTreeSet<Claim>,
    failures: BTreeMap<Claim, Failure>,
    /// UDP frontends that changed since flows were last compared.
    udp: UdpFrontends,
    /// An operation showed that the kernel is not as believed.
    suspect: bool,
    sources_synced: bool,
    synced_at: Option<Timestamp>,
    skipped: BTreeMap<ApiKey, Vec<String>>,
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
            table: ServiceTable::new(node),
            desired: Desired::new(back_end, NodeNetwork::default()),
            applied: Applied::default(),
            chains,
            ipv6: true,
            dirty: BTreeSet::new(),
            failures: BTreeMap::new(),
            udp: UdpFrontends::default(),
            suspect: false,
            sources_synced: false,
            synced_at: None,
            skipped: BTreeMap::new(),
            warnings: Vec::new(),
            counters: Counters::default(),
            config,
            open,
        }
    }

    /// Find out what the kernel can do, make what does not depend on Services (masquerade rules first),
    /// and take over what an earlier run left. Nothing is removed. Tried again until it works.
    pub async fn start(&mut self) {
        if matches!(self.mode, Mode::Serving(_)) {
            return;
        }
        match self.adopt().await {
            Ok(served) => {
                let reason = &served.reason;
                tracing::info!(
                    mode = "ipvs",
                    reason,
                    objects = self.applied.len(),
                    "Services are served by IPVS"
                );
                self.mode = Mode::Serving(served);
            }
            Err(error) => {
                let reason = unavailable(&error);
                if !matches!(&self.mode, Mode::None { reason: before } if *before == reason) {
                    tracing::warn!(mode = "none", %reason, "Services are not served; pods run without them");
                }
                self.mode = Mode::None { reason };
            }
        }
    }

    async fn adopt(&mut self) -> Result<Served, KernelError> {
        let kernel = self.open.open(self.config.scheduler).await?;
        let (back_end, reason) = self.choose(&kernel)?;
        let soiled = self.desired.set_back_end(back_end);
        self.soil(soiled);
        self.make_settings(&kernel, back_end);
        let link = match back_end {
            BackEnd::Ipvs { .. } => {
                self.chains = [false, true].map(|ipv6| chains::ipvs_table(&self.config.chains, ipv6));
                self.set_timeouts(&kernel).await?;
                Some(kernel.routes.ensure_dummy(DEVICE).await?)
            }
            BackEnd::Nftables => {
                self.chains = [false, true].map(|ipv6| chains::nftables_table(&self.config.chains, ipv6));
                None
            }
        };
        let served = Served { kernel, back_end, link, reason };
        let dump = self.read(&served).await?;
        self.ensure_chains(&served, &dump).await?;
        self.refresh_network(&served).await?;
        self.remember_udp(&dump.objects);
        self.applied = Applied::adopt(dump.objects);
        self.soil_everything();
        Ok(served)
    }

    async fn set_timeouts(&self, kernel: &Kernel) -> Result<(), KernelError> {
        let ipvs = kernel.ipvs.as_ref().map_err(Clone::clone)?;
        let (wanted, have) = (self.config.timeouts, ipvs.info().await?.timeouts);
        let differs = |want: u32, have: u32| want != 0 && want != have;
        if differs(wanted.tcp, have.tcp)
            || differs(wanted.tcp_fin, have.tcp_fin)
            || differs(wanted.udp, have.udp)
        {
            ipvs.set_timeouts(wanted).await?;
        }
        Ok(())
    }

    /// The back end, and why it is this one.
    fn choose(&self, kernel: &Kernel) -> Result<(BackEnd, String), KernelError> {
        let ipvs = BackEnd::Ipvs { scheduler: self.config.scheduler };
        Ok(match (self.config.mode, &kernel.ipvs) {
            (ModeRequest::Ipvs, Ok(_)) => (ipvs, "asked for by configuration".to_owned()),
            (ModeRequest::Ipvs, Err(error)) => return Err(error.clone().into()),
            (ModeRequest::Auto, Ok(_)) => (ipvs, "the kernel has IPVS".to_owned()),
            (ModeRequest::Auto, Err(_)) => (BackEnd::Nftables, "the kernel has no IPVS".to_owned()),
            (ModeRequest::Nftables, _) => (BackEnd::Nftables, "asked for by configuration".to_owned()),
            (ModeRequest::Iptables, _) => {
                let reason = "mode iptables was asked for and is not in this version".to_owned();
                (BackEnd::Nftables, reason)
            }
        })
    }

    fn make_settings(&mut self, kernel: &Kernel, back_end: BackEnd) {
        let mut families = vec![Family::V4];
        if self.config.node_ips.iter().any(std::net::IpAddr::is_ipv6) {
            families.push(Family::V6);
        }
        self.warnings.clear();
        if kernel.flows.is_none() {
            self.warnings.push(
                "the connection tracker cannot be reached: UDP flows to removed endpoints stay".to_owned(),
            );
        }
        let settings = match back_end {
            BackEnd::Ipvs { .. } => {
                node::ipvs_settings(self.config.kernel_version, self.config.strict_arp, &families)
            }
            BackEnd::Nftables => node::forwarding_settings(&families),
        };
        for setting in settings {
            match kernel.sysctls.ensure(setting.path, setting.value) {
                Ok(true) => {
                    tracing::info!(setting = setting.path, value = setting.value, "kernel setting made")
                }
                Ok(false) => {}
                Err(error) => self.warnings.push(format!("{}: {}", in_full(&error), setting.reason)),
            }
        }
    }

    /// Read the kernel; a kernel without IPv6 is served for IPv4 alone.
    async fn read(&self, served: &Served) -> Result<Dump, KernelError> {
        served.kernel.dump(served.link.as_ref(), &self.config.exclude_cidrs, self.ipv6).await
    }

    async fn ensure_chains(&mut self, served: &Served, dump: &Dump) -> Result<u64, KernelError> {
        let mut written = 0;
        for ipv6 in [false, true] {
            let index = usize::from(ipv6);
            if ipv6 && !self.ipv6 {
                continue;
            }
            match served.kernel.ensure_chains(ipv6, dump.tables[index].as_ref(), &self.chains[index]).await {
                Ok(changed) => written += u64::from(changed),
                Err(error) if ipv6 && !self.has_ipv6_address() => {
                    self.ipv6 = false;
                    self.warnings.push(format!("IPv6 Services are not served: {}", in_full(&error)));
                }
                Err(error) => return Err(error),
            }
        }
        self.counters.writes += written;
        Ok(written)
    }

    fn has_ipv6_address(&self) -> bool {
        self.config.node_ips.iter().any(std::net::IpAddr::is_ipv6)
    }

    async fn refresh_network(&mut self, served: &Served) -> Result<(), KernelError> {
        let addresses = served.kernel.host_addresses().await?;
        let network = node::network(&addresses, &self.config.node_port_addresses, &self.config.node_ips);
        let dirty = self.desired.set_node(network);
        self.soil(dirty);
        Ok(())
    }

    /// UDP frontends an earlier run served: their flows are looked at even if nobody wants them now.
    fn remember_udp(&mut self, objects: &Objects) {
        for claim in objects.keys().filter_map(|key| key.claim()) {
            if let Claim::Frontend { addr, port, protocol: Protocol::Udp } = claim {
                self.udp.was_served(SocketAddr::new(addr, port));
            }
        }
    }

    fn soil(&mut self, claims: impl IntoIterator<Item = Claim>) {
        let ipv6 = self.ipv6;
        for claim in claims.into_iter().filter(|claim| ipv6 || !claim.is_ipv6()) {
            // What was asked for anew is tried at once.
            self.failures.remove(&claim);
            self.dirty.insert(claim);
        }
    }

    /// Take a change into the wanted state, without effects. True where the host's addresses have to be
    /// read again.
    pub fn take(&mut self, change: Change) -> bool {
        match change {
            Change::Service(service) => {
                let change = self.table.upsert_service(&service);
                self.follow(change);
            }
            Change::ServiceGone(key) => {
                let change = self.table.remove_service(&key);
                self.follow(change);
            }
            Change::Slice(slice) => {
                let mut change = self.table.upsert_slice(&slice);
                self.note_skipped(slice.key(), std::mem::take(&mut change.skipped));
                self.follow(change);
            }
            Change::SliceGone(key) => {
                let change = self.table.remove_slice(&key);
                self.skipped.remove(&key);
                self.follow(change);
            }
            Change::Zone(zone) => {
                let change = self.table.set_zone(zone.map(Into::into));
                self.follow(change);
            }
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
        let left = self.applied.claims().map(|(claim, _)| *claim);
        let all: Vec<Claim> = left.chain(self.desired.claims().copied()).collect();
        self.soil(all);
    }

    fn note_skipped(&mut self, slice: ApiKey, skipped: Vec<String>) {
        if skipped.is_empty() {
            self.skipped.remove(&slice);
        } else {
            skipped.iter().for_each(|text| tracing::warn!("{text}"));
            self.skipped.insert(slice, skipped);
        }
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
    pub async fn sync(&mut self, now: Timestamp) {
        let Mode::Serving(served) = self.mode.clone() else {
            self.nobody_serves(now);
            return;
        };
        if !self.sources_synced {
            return;
        }
        if !self.due(now).is_empty() {
            let began = Instant::now();
            self.round(&served, now, &|_, _| false).await;
            self.counters.syncs += 1;
            self.counters.last_sync_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        }
        if self.suspect {
            self.suspect = false;
            self.compare(&served).await;
            if let Mode::Serving(served) = self.mode.clone() {
                self.round(&served, now, &|_, _| false).await;
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
            let outcomes = served.kernel.execute(served.link.as_ref(), &ready).await;
            for (op, outcome) in ready.iter().zip(outcomes) {
                self.settle(op, outcome, &mut failed);
            }
        }
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
    pub async fn audit(&mut self, now: Timestamp) -> u64 {
        self.start().await;
        let Mode::Serving(served) = self.mode.clone() else { return 0 };
        self.make_settings(&served.kernel, served.back_end);
        self.host_addresses_changed().await;
        let found = self.compare(&served).await;
        self.sync(now).await;
        found
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
            self.mode = Mode::Serving(served.clone());
        }
        let dump = self.read(&served).await?;
        let rewritten = self.ensure_chains(&served, &dump).await?;
        self.counters.drift += rewritten;
        let seen = Applied::adopt(dump.objects);
        let claims: BTreeSet<Claim> =
            seen.claims().chain(self.applied.claims()).map(|(claim, _)| *claim).collect();
        for claim in claims {
            let (have, believed) = (seen.objects(&claim), self.applied.objects(&claim));
            if have == believed {
                continue;
            }
            let drift = differing(have, believed);
            tracing::warn!(%claim, objects = drift, "the kernel differs from what was acknowledged; repairing it");
            self.counters.drift += drift;
            self.applied.replace(claim, have.cloned().unwrap_or_default());
            self.soil([claim]);
        }
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
        self.config.audit_period.max(Duration::from_secs(1))
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
        self.counters.flows_deleted += outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64;
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

    fn rules(&self, ipv6: bool) -> Option<Rules<'_>> {
        matches!(self.mode, Mode::Serving(_)).then(|| Rules {
            table: &self.chains[usize::from(ipv6)],
            applied: &self.applied,
            node: self.desired.node(),
        })
    }

    pub fn explain(&self, query: &Query) -> Explanation {
        let unavailable = match &self.mode {
            Mode::None { reason } => reason.as_str(),
            _ => "the dataplane has not started yet",
        };
        let rules = self.rules(query.dst.is_ipv6());
        explain::explain(Facts { table: &self.table, desired: &self.desired, rules, unavailable }, query)
    }

    pub fn list(&self) -> Vec<ServiceRow> {
        view::rows(&self.table, &self.desired)
    }

    /// Kernel changes still due, in words.
    pub fn pending(&self) -> Vec<String> {
        let ops = diff::plan(&self.desired, &self.applied, self.dirty.iter().copied(), &|_, _| false);
        ops.iter().map(ToString::to_string).collect()
    }

    pub fn view(&self) -> DataplaneView {
        let (mode, reason) = match &self.mode {
            Mode::Unknown => ("starting", String::new()),
            Mode::Serving(served) => (mode_name(served.back_end), served.reason.clone()),
            Mode::None { reason } => ("none", reason.clone()),
        };
        let failures = self.failures.iter().map(|(claim, failure)| FailureView {
            claim: claim.to_string(),
            error: failure.error.clone(),
            since: failure.since,
            attempts: failure.attempts,
            retry_at: failure.retry_at,
        });
        let clashes = self.desired.clashes();
        let clash = |clash: &longshore_core::ruleset::desired::Clash| {
            format!(
                "{} is wanted by {} and {}; {} has it",
                clash.claim, clash.holder.name, clash.loser.name, clash.holder.name
            )
        };
        DataplaneView {
            mode: mode.to_owned(),
            reason,
            synced: self.is_synced(),
            synced_at: self.synced_at,
            services: self.table.services().len(),
            objects: self.applied.len(),
            draining: self.applied.draining().len(),
            failures: failures.collect(),
            clashes: clashes.iter().map(clash).collect(),
            skipped: self.skipped.values().flatten().take(MAX_SKIPPED_SHOWN).cloned().collect(),
            warnings: self.warnings.clone(),
            counters: self.counters,
        }
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

fn differing(have: Option<&Objects>, believed: Option<&Objects>) -> u64 {
    let nothing = Objects::new();
    let (have, believed) = (have.unwrap_or(&nothing), believed.unwrap_or(&nothing));
    let changed = have.iter().filter(|(key, value)| believed.get(key) != Some(value)).count();
    let gone = believed.keys().filter(|key| !have.contains_key(key)).count();
    (changed + gone) as u64
}

fn mode_name(back_end: BackEnd) -> &'static str {
    match back_end {
        BackEnd::Ipvs { .. } => "ipvs",
        BackEnd::Nftables => "nftables",
    }
}

/// Why Services are not served, with the command that mends it.
fn unavailable(error: &KernelError) -> String {
    use longshore_kernel::ipvs::IpvsError;
    use longshore_kernel::nft::NftError;
    use longshore_kernel::route::RouteError;
    let mend = match error {
        KernelError::Ipvs(IpvsError::Unavailable(_)) => {
            "load it with: modprobe ip_vs; where there is no such module, this kernel was built without IPVS \
             (CONFIG_IP_VS) and another kernel is needed"
        }
        KernelError::Nft(NftError::Unavailable(_)) => "load it with: modprobe nf_tables",
        KernelError::Routes(RouteError::Refused { .. }) => {
            "load the dummy device's module with: modprobe dummy"
        }
        _ => "tried again with the next audit",
    };
    format!("{}; {mend}", in_full(error))
}
