//! Other programs that touch our nf_tables tables: heard of from the kernel at once, so that a table
//! deleted by hand is missing for a moment and not until the next audit.

use std::time::Duration;

use jiff::Timestamp;
use longshore_core::ruleset::object::TABLE;
use tokio::time::sleep;

use super::super::kernel::in_full;
use super::{Engine, Mode};

/// Commits of one program often come in a row.
const SETTLING: Duration = Duration::from_millis(50);

impl Engine {
    /// Wait until another program touches our tables; says which, where that is known. For ever while
    /// nothing is served, or where it cannot be heard. May be dropped without losing anything.
    pub async fn touched_by_others(&self) -> Option<String> {
        // The kernel writes a note of every element while somebody listens: not during the first sync.
        if let (Mode::Serving(served), true) = (&self.mode, self.is_synced()) {
            match served.kernel.nft.touched_by_others(TABLE).await {
                Ok(touched) => return touched.by,
                Err(error) => {
                    tracing::debug!(error = in_full(&error), "cannot hear of other programs' changes");
                }
            }
        }
        std::future::pending().await
    }

    /// Look at our tables after another program touched them, and mend them.
    pub async fn mend(&mut self, by: Option<String>, now: Timestamp) {
        self.trust.untouched = false;
        sleep(SETTLING).await;
        let drift = self.audit(now).await;
        if drift > 0 {
            let by = by.as_deref().unwrap_or("not known");
            tracing::warn!(by, drift, "another program changed our nf_tables table; it is repaired");
        }
    }
}
