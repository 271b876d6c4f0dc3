//! `longshore agent --cleanup`: takes everything of ours out of the kernel's Service tables and ends.
//! Kernel settings stay: others may rely on them by now.

use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use longshore_kernel::xtables::RealXtables;

use super::lock::WriterLock;
use crate::config::Settings;
use crate::dataplane::{self, Kernel};

/// Removes, or with `dry_run` only names, one line for each thing.
///
/// # Errors
/// A daemon that still serves this network namespace, and what could not be removed.
pub async fn run(settings: &Settings, dry_run: bool) -> anyhow::Result<()> {
    let _lock = WriterLock::take().context("stop the daemon before cleaning up")?;
    let kernel = Kernel::open(None)?;
    let exclude = dataplane::excluded(&settings.dataplane);
    let xtables = Arc::new(RealXtables);
    let done = dataplane::cleanup(&kernel, xtables.as_ref(), &exclude, dry_run).await;
    let done = done.map_err(|problems| anyhow!("{problems}"))?;
    let verb = if dry_run { "would remove" } else { "removed" };
    for what in &done {
        println!("{verb} {what}");
    }
    if done.is_empty() {
        println!("nothing of longshore's is there");
    }
    Ok(())
}
