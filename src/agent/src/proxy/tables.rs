//! Tells the dataplane at once when somebody deleted its table; anything smaller is found by its audit.

use std::time::Duration;

use longshore_core::ruleset::object::TABLE;
use longshore_kernel::nft::monitor::TableDeletions;
use tokio::time::sleep;

use crate::dataplane::{Change, DataplaneHandle};
use crate::text::error_chain;

/// A socket that breaks is opened again after this.
const OPEN_AGAIN: Duration = Duration::from_secs(30);
/// Who deletes a table may delete the next one too.
const SETTLE: Duration = Duration::from_millis(20);

/// Runs until the daemon ends. The first sync writes everything, and listening to that would slow it:
/// this begins after it.
pub async fn watch(dataplane: DataplaneHandle) {
    if dataplane.synced().wait_for(|synced| *synced).await.is_err() {
        return;
    }
    loop {
        match TableDeletions::open() {
            Ok(mut deletions) => {
                while deletions.deleted(TABLE).await {
                    sleep(SETTLE).await;
                    dataplane.tell(Change::TableLost);
                }
            }
            Err(error) => {
                tracing::debug!(error = error_chain(&error), "deleted tables are found by audits only");
            }
        }
        sleep(OPEN_AGAIN).await;
    }
}
