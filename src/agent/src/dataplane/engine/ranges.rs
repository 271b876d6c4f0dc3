//! The ranges Services get their addresses from, in nftables mode: what goes to an address there that no
//! Service has is dropped. No address may be dropped because its Service was not read yet, so ranges
//! come into force after the first sync, and a restart goes on with those it finds.

use longshore_core::ruleset::chains;
use longshore_core::ruleset::desired::BackEnd;
use longshore_core::ruleset::nft::NftTable;

use super::super::kernel::{KernelError, in_full};
use super::{Engine, Mode, Served};

impl Engine {
    /// Until the first sync the ranges an earlier run wrote stay as they are.
    pub(super) fn keep_ranges(&mut self, found: &[Option<NftTable>; 2]) {
        if self.is_synced() {
            return;
        }
        let of = |(table, ipv6): (&Option<NftTable>, bool)| {
            table.as_ref().map(|table| chains::service_ranges(table, ipv6)).unwrap_or_default()
        };
        self.config.chains.service_ranges = found.iter().zip([false, true]).flat_map(of).collect();
        self.remake_chains();
    }

    /// Bring the ranges that were told into force. What cannot be written is found missing by the next
    /// audit.
    pub(super) async fn follow_ranges(&mut self) {
        let Some(told) = self.ranges.as_ref().filter(|told| **told != self.config.chains.service_ranges)
        else {
            return;
        };
        let Mode::Serving(served) = self.mode.clone() else { return };
        let ranges: Vec<String> = told.iter().map(ToString::to_string).collect();
        self.config.chains.service_ranges.clone_from(told);
        self.remake_chains();
        if served.back_end != BackEnd::Nftables {
            return;
        }
        tracing::info!(?ranges, "ranges of Services' addresses: what goes to nobody's in them is dropped");
        if let Err(error) = self.write_chains(&served).await {
            self.trust.untouched = false;
            tracing::warn!(
                error = in_full(&error),
                "the ranges of Services' addresses cannot be written; tried again with the next audit"
            );
        }
    }

    async fn write_chains(&mut self, served: &Served) -> Result<(), KernelError> {
        let outline = served.kernel.outline(self.ipv6).await?;
        self.ensure_chains(served, &outline.tables).await.map(drop)
    }
}
