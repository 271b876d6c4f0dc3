//! All figures of Services. The program that measures them is a bench of cargo's (`benches/services`): it stands in
//! network namespaces itself, and boots with a guest where IPVS is measured.

use std::path::Path;

use anyhow::Result;

use super::cargo;

/// Runs that program in full, with this daemon where it measures one.
///
/// # Errors
/// Where it cannot be built, or what it measures is not done.
pub fn run(binary: &Path) -> Result<()> {
    let daemon = format!("--daemon={}", binary.display());
    cargo(&["bench", "-q", "--locked", "-p", "longshore-integration", "--bench", "services", "--", &daemon])
}
