//! Programs the daemon starts: none of them outlives what it was started for.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Child;

/// A process that was started as the first of its group, and what it started; killed together unless it has ended
/// and was waited for.
#[derive(Debug)]
pub struct Group(pub Child);

impl Drop for Group {
    fn drop(&mut self) {
        // Without an id it was waited for, and the number may be another's by now.
        if let Some(id) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            // It may have ended this moment.
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
}
