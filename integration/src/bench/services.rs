//! All figures of Services. The program that measures them is a bench of cargo's (`benches/services`): it stands in
//! network namespaces itself, and boots with a guest where IPVS is measured.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::tiers::workspace_root;

/// Runs that program in full, with this daemon where it measures one.
///
/// # Errors
/// Where it cannot be built, or what it measures is not done.
pub fn run(binary: &Path) -> Result<()> {
    let status = Command::new("cargo")
        .args(["bench", "-q", "--locked", "-p", "longshore-integration", "--bench", "services", "--"])
        .arg(format!("--daemon={}", binary.display()))
        .current_dir(workspace_root())
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("cargo bench --bench services failed");
    }
    Ok(())
}
