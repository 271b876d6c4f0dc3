//! What the daemon sets on its own process at start: OOM score and the limit of open files.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::NodeSettings;

/// Applies both; what is not permitted is a warning, because nothing but the daemon's own comfort
/// depends on it.
pub fn apply(node: &NodeSettings) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", node.oom_score_adj.to_string()) {
        tracing::warn!(%error, value = node.oom_score_adj, "cannot set the daemon's OOM score");
    }
    if let Err(error) = raise_open_files(node.max_open_files) {
        tracing::warn!(%error, value = node.max_open_files, "cannot set the daemon's limit of open files");
    }
}

/// Refuses to go on with swap where the configuration wants none: a limit of memory would not mean what
/// it says (`failSwapOn`). `swaps` is the text of /proc/swaps.
///
/// # Errors
/// Names the swap and what to do.
pub fn refuse_swap(node: &NodeSettings, swaps: &str) -> Result<(), String> {
    let mut devices = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    match devices.next().filter(|_| node.fail_swap_on) {
        None => Ok(()),
        Some(device) => Err(format!(
            "swap is on ({device}), and failSwapOn is true: turn it off (swapoff -a), or set failSwapOn: false"
        )),
    }
}

/// Soft and hard limit to `wanted`, or the soft one to the hard one where that cannot be raised.
fn raise_open_files(wanted: u64) -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted.max(hard)).is_ok() {
        return Ok(());
    }
    let reachable = wanted.min(hard);
    if reachable > soft {
        setrlimit(Resource::RLIMIT_NOFILE, reachable, hard)?;
    }
    if reachable < wanted { Err(io::Error::from(io::ErrorKind::PermissionDenied)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_reaches_what_is_permitted() {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        raise_open_files(soft).unwrap();
        raise_open_files(hard).unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
