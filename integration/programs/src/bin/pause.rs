//! The sandbox's first process: it holds the namespaces, reaps orphans where the pod shares one process namespace,
//! and ends on SIGTERM or SIGINT.

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

fn main() {
    let wanted: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().collect();
    wanted.thread_block().expect("a signal set can be blocked");
    loop {
        match wanted.wait() {
            Ok(Signal::SIGCHLD) => reap(),
            Ok(_) => return,
            Err(Errno::EINTR) => {}
            Err(error) => panic!("cannot wait for signals: {error}"),
        }
    }
}

/// Takes every child that has ended; one SIGCHLD may stand for several.
fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
    }
}
