//! How the dataplane starts: which back end the kernel can serve by, the kernel settings it needs, the
//! fixed chains, and taking over what an earlier run left. Nothing is removed here.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use longshore_core::ruleset::Protocol;
use longshore_core::ruleset::chains::{self, ChainConfig};
use longshore_core::ruleset::choice::{self, Chosen, Probed};
use longshore_core::ruleset::desired::BackEnd;
use longshore_core::ruleset::diff::Applied;
use longshore_core::ruleset::nft::NftTable;
use longshore_core::ruleset::node::{self, NodePortAddresses};
use longshore_core::ruleset::object::{Claim, DEVICE, ObjectKey, Objects};

use longshore_core::ruleset::render_ipt::{self, IptSettings};
use longshore_kernel::iptables::Iptables;
use longshore_kernel::nft::Guess;

use super::super::kernel::{Dump, Kernel, KernelError, in_full};
use super::super::settings;
use super::super::{ModeRequest, iptables};
use super::views::{mode_name, unavailable};
use super::{Engine, Mode, Served};
use crate::config::ModeTuning;
use longshore_kernel::route::IpFamily;

/// Virtual servers do not say who may come, and as whom: that takes nf_tables or iptables.
fn ipvs_works<T>(
    kernel: &Kernel,
    nf_tables: &Result<(), String>,
    iptables: &Result<T, String>,
) -> Result<(), String> {
    match (&kernel.ipvs, nf_tables, iptables) {
        (Err(error), ..) => Err(in_full(error)),
        (Ok(_), Err(nf_tables), Err(iptables)) => Err(format!("{nf_tables}; {iptables}")),
        (Ok(_), ..) => Ok(()),
    }
}

impl Engine {
    /// Find out what the kernel can do, make what does not depend on Services (masquerade rules first),
    /// and take over what an earlier run left. Nothing is removed. Tried again until it works.
    pub async fn start(&mut self) {
        if matches!(self.mode, Mode::Serving(_)) {
            return;
        }
        match self.adopt().await {
            Ok(served) => {
                let reason = &served.reason;
                let mode = mode_name(served.back_end);
                tracing::info!(mode, reason, objects = self.applied.len(), "Services are served");
                self.mode = Mode::Serving(Box::new(served));
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
        let (kernel, iptables, (back_end, reason)) = self.choose().await?;
        let soiled = self.desired.set_back_end(back_end);
        self.soil(soiled);
        self.in_force = back_end;
        self.set_iptables(iptables.as_deref());
        self.make_settings(&kernel, back_end);
        self.remake_chains();
        let link = if back_end.is_ipvs() {
            self.set_timeouts(&kernel).await?;
            Some(kernel.routes.ensure_dummy(DEVICE).await?)
        } else {
            None
        };
        let served = Served { kernel, iptables, back_end, link, reason };
        let heard = self.hear(&served.kernel).await;
        // What is probably there is known with the sources; until then nothing of it is needed.
        let waits = !self.sources_synced && back_end == BackEnd::Nftables;
        let read = async |engine: &Engine, waits: bool| match waits {
            true => served.kernel.outline(engine.ipv6).await,
            false => engine.read(&served).await,
        };
        self.unread = true;
        let mut dump = read(self, waits).await?;
        // Of a table that was not there nothing has to be guessed.
        self.unread = dump.tables.iter().any(Option::is_some);
        let waits = waits && self.unread;
        self.keep_ranges(&dump.tables);
        if self.ensure_chains(&served, &dump.tables).await? > 0 {
            // A set of another shape was made anew, without what it held.
            dump = read(self, waits).await?;
        }
        self.refresh_network(&served).await?;
        self.take_over(dump.objects);
        self.unread = waits;
        self.trust.untouched = heard;
        Ok(served)
    }

    fn take_over(&mut self, objects: Objects) {
        self.remember_udp(&objects);
        self.applied = Applied::adopt(objects);
        self.soil_everything();
    }

    /// Read what an earlier run left in the sets that grow with Services.
    pub(super) async fn read_rest(&mut self, served: &Served) -> Result<(), KernelError> {
        if self.unread {
            let dump = self.read(served).await?;
            self.take_over(dump.objects);
            self.unread = false;
        }
        Ok(())
    }

    /// Keys that are probably in our tables: those the kernel acknowledged, and before it was read those that
    /// are wanted, since an earlier run wanted nearly the same.
    fn guesses(&self) -> [Guess; 2] {
        let mut guesses = [Guess::new(), Guess::new()];
        let mut note = |objects: &Objects| {
            for key in objects.keys() {
                if let ObjectKey::Element { set, ipv6, key } = key
                    && set.grows()
                {
                    let keys = guesses[usize::from(*ipv6)].entry(set.name().to_owned()).or_default();
                    keys.push(key.clone());
                }
            }
        };
        if self.unread {
            self.desired.claims().for_each(|claim| note(&self.desired.objects(claim)));
        } else {
            self.applied.by_claim().for_each(|(_, objects)| note(&objects));
        }
        guesses
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

    /// The kernel, the back end, and why it is this one. IPVS and its device are only loaded where they
    /// are asked for, or where nftables does not work.
    async fn choose(&self) -> Result<(Kernel, Option<Arc<dyn Iptables>>, (BackEnd, String)), KernelError> {
        let asked = self.config.mode;
        let scheduler = format!("ip_vs_{}", self.config.scheduler);
        let all = ["nf_tables", "nf_conntrack", "ip_vs", &scheduler, "dummy"];
        let first = if asked == ModeRequest::Ipvs { &all[..] } else { &all[..2] };
        let mut kernel = self.open.open(first).await?;
        let mut nftables = Ok(());
        if asked == ModeRequest::Auto {
            let wanted = chains::nftables_table(&self.config.chains, false);
            nftables = kernel.probe_nftables(&wanted).await;
            if nftables.is_err() {
                kernel = self.open.open(&all).await?;
            }
        }
        let nf_tables = match kernel.nft.generation().await {
            Ok(_) => Ok(()),
            Err(why) if why.is_missing() => Err(in_full(&why)),
            Err(error) => return Err(error.into()),
        };
        let needed = asked == ModeRequest::Iptables
            || nf_tables.is_err()
            || (nftables.is_err() && kernel.ipvs.is_err());
        let iptables = match needed {
            true => self.open.iptables(nf_tables.is_ok()).await,
            false => Err("it was not needed".to_owned()),
        };
        let probed = Probed {
            nftables: nftables.map_err(|error| in_full(&error)),
            ipvs: ipvs_works(&kernel, &nf_tables, &iptables),
            iptables: iptables.as_ref().map(drop).map_err(Clone::clone),
        };
        match choice::choose(asked, &probed) {
            Ok((Chosen::Nftables, reason)) => Ok((kernel, None, (BackEnd::Nftables, reason))),
            Ok((Chosen::Ipvs, reason)) => {
                let scheduler = self.config.scheduler;
                let (iptables, back_end) = match nf_tables {
                    Ok(()) => (None, BackEnd::Ipvs { scheduler }),
                    Err(_) => (iptables.ok(), BackEnd::IpvsByIptables { scheduler }),
                };
                Ok((kernel, iptables, (back_end, reason)))
            }
            Ok((Chosen::Iptables, reason)) => Ok((kernel, iptables.ok(), (BackEnd::Iptables, reason))),
            Err(reason) => match kernel.ipvs {
                Err(error) if asked == ModeRequest::Ipvs => Err(error.into()),
                _ => Err(KernelError::NoMode(reason)),
            },
        }
    }

    pub(super) fn make_settings(&mut self, kernel: &Kernel, back_end: BackEnd) {
        self.warnings.clear();
        if kernel.flows.is_none() {
            self.warnings.push(
                "the connection tracker cannot be reached: UDP flows to removed endpoints stay".to_owned(),
            );
        }
        let mode = match back_end {
            BackEnd::Ipvs { .. } | BackEnd::IpvsByIptables { .. } => ModeRequest::Ipvs,
            BackEnd::Nftables => ModeRequest::Nftables,
            BackEnd::Iptables => ModeRequest::Iptables,
        };
        self.warnings.extend(settings::make(&self.config, mode, kernel.sysctls.as_ref()));
    }

    /// Read the kernel; a kernel without IPv6 is served for IPv4 alone.
    pub(super) async fn read(&self, served: &Served) -> Result<Dump, KernelError> {
        if let Some(iptables) = &served.iptables {
            let mut objects = iptables::dump(iptables.as_ref(), self.ipv6).await?;
            if let Some(link) = &served.link {
                objects.extend(served.kernel.dump_ipvs(link, &self.config.exclude_cidrs).await?);
            }
            return Ok(Dump { objects, ..Dump::default() });
        }
        served.kernel.dump(served.link.as_ref(), &self.config.exclude_cidrs, self.ipv6, self.guesses()).await
    }

    /// Bring the fixed chains and sets of our tables, as they were read, to what is wanted; how many tables
    /// were written.
    pub(super) async fn ensure_chains(
        &mut self,
        served: &Served,
        found: &[Option<NftTable>; 2],
    ) -> Result<u64, KernelError> {
        if served.iptables.is_some() {
            // Its fixed chains are objects like the others.
            return Ok(0);
        }
        let mut written = 0;
        for ipv6 in [false, true] {
            let index = usize::from(ipv6);
            if ipv6 && !self.ipv6 {
                continue;
            }
            match served
                .kernel
                .ensure_chains(ipv6, found[index].as_ref(), &self.chains[index], !self.retirement.is_done())
                .await
            {
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
        self.config.node_ips.iter().any(IpAddr::is_ipv6)
    }

    pub(super) async fn refresh_network(&mut self, served: &Served) -> Result<(), KernelError> {
        self.follow_primary(served).await;
        let addresses = served.kernel.host_addresses().await?;
        let network = node::network(&addresses, &self.node_port_addresses(), &self.config.node_ips);
        let dirty = self.desired.set_node(network);
        if !dirty.is_empty() {
            self.checks.addresses();
        }
        self.soil(dirty);
        Ok(())
    }

    /// The node's own addresses are those of its default routes, where nobody named others.
    async fn follow_primary(&mut self, served: &Served) {
        if !self.config.follow_primary {
            return;
        }
        let mut found = Vec::new();
        for family in [IpFamily::V4, IpFamily::V6] {
            if let Ok(Some(addr)) = served.kernel.routes.default_source(family).await {
                found.push(addr);
            }
        }
        // Without any default route the node keeps the addresses it is known by.
        if !found.is_empty() && found != self.config.node_ips {
            tracing::info!(addresses = ?found, "the node's primary addresses changed");
            self.config.node_ips = found;
        }
    }

    /// UDP frontends an earlier run served: their flows are looked at even if nobody wants them now.
    fn remember_udp(&mut self, objects: &Objects) {
        for claim in objects.keys().filter_map(|key| key.claim()) {
            if let Claim::Frontend { addr, port, protocol: Protocol::Udp } = claim {
                self.udp.was_served(SocketAddr::new(addr, port));
            }
        }
        if self.in_force == BackEnd::Iptables {
            // Chains are not named after frontends; their rules are read.
            let frontends = render_ipt::udp_frontends(objects, self.desired.node());
            frontends.into_iter().for_each(|frontend| self.udp.was_served(frontend));
        }
    }

    /// The settings of the mode in force, or of the one that would be tried first.
    pub(super) fn tuning(&self) -> ModeTuning {
        match self.in_force {
            BackEnd::Ipvs { .. } | BackEnd::IpvsByIptables { .. } => self.config.tuning.ipvs,
            BackEnd::Nftables => self.config.tuning.nftables,
            BackEnd::Iptables => self.config.tuning.iptables,
        }
    }

    /// The fixed chains of the mode in force, as it is set now.
    pub(super) fn remake_chains(&mut self) {
        let config = self.chain_config();
        self.chains = [false, true].map(|ipv6| match self.in_force {
            BackEnd::Ipvs { .. } => chains::ipvs_table(&config, ipv6),
            BackEnd::Nftables => chains::nftables_table(&config, ipv6),
            BackEnd::Iptables | BackEnd::IpvsByIptables { .. } => NftTable::default(),
        });
    }

    /// What iptables mode's chains depend on, as it is set now.
    fn set_iptables(&mut self, iptables: Option<&dyn Iptables>) {
        let Some(iptables) = iptables else { return };
        // Without ip6tables there is nothing to write for IPv6.
        let settings = IptSettings {
            chains: self.chain_config(),
            node_ports: self.node_port_addresses().into_owned(),
            localhost_node_ports: self.config.localhost_node_ports,
            random_fully: iptables.features().random_fully(),
            drop_invalid: !self.config.conntrack.tcp_be_liberal,
        };
        let soiled = self.desired.set_iptables(settings);
        self.soil(soiled);
    }

    fn chain_config(&self) -> ChainConfig {
        let tuning = self.tuning();
        ChainConfig {
            masquerade_mark: 1 << tuning.masquerade_bit.min(31),
            masquerade_all: tuning.masquerade_all,
            ..self.config.chains.clone()
        }
    }

    /// As configured; else as kube-proxy has it: primary addresses with nftables, all of them otherwise.
    pub(super) fn node_port_addresses(&self) -> Cow<'_, NodePortAddresses> {
        match (&self.config.node_port_addresses, self.in_force) {
            (Some(given), _) => Cow::Borrowed(given),
            (None, BackEnd::Nftables) => Cow::Owned(NodePortAddresses::Primary),
            (None, BackEnd::Ipvs { .. } | BackEnd::IpvsByIptables { .. } | BackEnd::Iptables) => {
                Cow::Owned(NodePortAddresses::All)
            }
        }
    }
}
