//! How the dataplane starts: which back end the kernel can serve by, the kernel settings it needs, the
//! fixed chains, and taking over what an earlier run left. Nothing is removed here.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use longshore_core::ruleset::Protocol;
use longshore_core::ruleset::chains::{self, ChainConfig};
use longshore_core::ruleset::desired::BackEnd;
use longshore_core::ruleset::diff::Applied;
use longshore_core::ruleset::node::{self, NodePortAddresses};
use longshore_core::ruleset::object::{Claim, DEVICE, Objects};
use longshore_core::service::Family;

use super::super::ModeRequest;
use super::super::kernel::{Dump, Kernel, KernelError, in_full};
use super::views::{mode_name, unavailable};
use super::{Engine, Mode, Served};
use crate::config::ModeTuning;

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
        self.in_force = back_end;
        self.make_settings(&kernel, back_end);
        let link = match back_end {
            BackEnd::Ipvs { .. } => {
                self.chains = [false, true].map(|ipv6| chains::ipvs_table(&self.chain_config(), ipv6));
                self.set_timeouts(&kernel).await?;
                Some(kernel.routes.ensure_dummy(DEVICE).await?)
            }
            BackEnd::Nftables => {
                self.chains = [false, true].map(|ipv6| chains::nftables_table(&self.chain_config(), ipv6));
                None
            }
        };
        let served = Served { kernel, back_end, link, reason };
        let mut dump = self.read(&served).await?;
        if self.ensure_chains(&served, &dump).await? > 0 {
            // A set of another shape was made anew, without what it held.
            dump = self.read(&served).await?;
        }
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

    pub(super) fn make_settings(&mut self, kernel: &Kernel, back_end: BackEnd) {
        let mut families = vec![Family::V4];
        if self.config.node_ips.iter().any(IpAddr::is_ipv6) {
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
        let cpus = self.config.cpus;
        let tracked = kernel.sysctls.read("net/netfilter/nf_conntrack_max").ok();
        let tracked = tracked.and_then(|text| text.parse().ok()).unwrap_or(u32::MAX);
        for setting in settings.into_iter().chain(self.config.conntrack.settings(cpus, tracked)) {
            match kernel.sysctls.ensure(setting.path, &setting.value) {
                Ok(true) => {
                    tracing::info!(setting = setting.path, value = &*setting.value, "kernel setting made")
                }
                Ok(false) => {}
                Err(error) => self.warnings.push(format!("{}: {}", in_full(&error), setting.reason)),
            }
        }
    }

    /// Read the kernel; a kernel without IPv6 is served for IPv4 alone.
    pub(super) async fn read(&self, served: &Served) -> Result<Dump, KernelError> {
        served.kernel.dump(served.link.as_ref(), &self.config.exclude_cidrs, self.ipv6).await
    }

    pub(super) async fn ensure_chains(&mut self, served: &Served, dump: &Dump) -> Result<u64, KernelError> {
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
        self.config.node_ips.iter().any(IpAddr::is_ipv6)
    }

    pub(super) async fn refresh_network(&mut self, served: &Served) -> Result<(), KernelError> {
        let addresses = served.kernel.host_addresses().await?;
        let network = node::network(&addresses, &self.node_port_addresses(), &self.config.node_ips);
        let dirty = self.desired.set_node(network);
        if !dirty.is_empty() {
            self.checks.addresses();
        }
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

    /// The settings of the mode in force, or of the one that would be tried first.
    pub(super) fn tuning(&self) -> ModeTuning {
        match self.in_force {
            BackEnd::Ipvs { .. } => self.config.tuning.ipvs,
            BackEnd::Nftables => self.config.tuning.nftables,
        }
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
            (None, BackEnd::Ipvs { .. }) => Cow::Owned(NodePortAddresses::All),
        }
    }
}
