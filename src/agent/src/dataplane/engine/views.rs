//! What the dataplane tells of itself: lists, explanations, its state and what is wrong with it. Reads
//! the engine's state, never the kernel.

use longshore_core::explain::{self, Explanation, Facts, Query};
use longshore_core::ruleset::desired::BackEnd;
use longshore_core::ruleset::diff;
use longshore_core::ruleset::trace::Rules;
use longshore_core::service::view::{self, DataplaneView, FailureView, ServiceRow};

use super::super::kernel::{KernelError, in_full};
use super::{Engine, MAX_SKIPPED_SHOWN, Mode};

impl Engine {
    fn rules(&self, ipv6: bool) -> Option<Rules<'_>> {
        matches!(self.mode, Mode::Serving(_)).then(|| Rules {
            table: &self.chains[usize::from(ipv6)],
            applied: &self.applied,
            node: self.desired.node(),
        })
    }

    fn waiting_for_connections(&self) -> Option<String> {
        let kept = Some(self.retirement.kept).filter(|kept| *kept > 0)?;
        Some(format!("{kept} virtual servers of IPVS mode stay until their last connection is over"))
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
            skipped: self.problems.sentences().take(MAX_SKIPPED_SHOWN).collect(),
            warnings: self.warnings.iter().cloned().chain(self.waiting_for_connections()).collect(),
            counters: self.counters,
        }
    }
}

pub(super) fn mode_name(back_end: BackEnd) -> &'static str {
    match back_end {
        BackEnd::Ipvs { .. } | BackEnd::IpvsByIptables { .. } => "ipvs",
        BackEnd::Nftables => "nftables",
        BackEnd::Iptables => "iptables",
    }
}

/// Why Services are not served, with the command that mends it.
pub(super) fn unavailable(error: &KernelError) -> String {
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
