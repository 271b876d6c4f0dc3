//! Worlds for tests against the real kernel: a network namespace of the test's own on a thread of its
//! own, and the rules for skipping. A test that cannot run says so, and fails where it was asked for.

#![allow(dead_code, clippy::unwrap_used)] // Each test binary uses its part.

use longshore_kernel::netns::{self, NetNsError};

/// Run an async test body in a network namespace of its own, or skip it where none can be made.
pub fn in_new_netns<F>(body: impl FnOnce() -> F + Send)
where
    F: Future<Output = ()>,
{
    let outcome = netns::run_in_new(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(body());
    });
    match outcome {
        Ok(()) => {}
        Err(err @ (NetNsError::Make(_) | NetNsError::Enter { .. })) => {
            skip("netns", &format!("{err}: {}", std::error::Error::source(&err).unwrap()));
        }
        Err(err) => panic!("{err}"),
    }
}

/// Name a test that did not run; a failure where `LONGSHORE_REQUIRE` asks for this tier.
pub fn skip(tier: &str, reason: &str) {
    let required = std::env::var("LONGSHORE_REQUIRE").unwrap_or_default();
    if required.split(',').any(|asked| asked == tier || asked == "all") {
        panic!("tier {tier} was required, and cannot run: {reason}");
    }
    println!("SKIPPED: {reason}");
}

/// Whether the tests of the VM tier run here; otherwise the test is skipped by name.
pub fn in_vm() -> bool {
    let here = std::env::var("LONGSHORE_TIER").is_ok_and(|tier| tier == "vm");
    if !here {
        skip("vm", "needs the kernel guest (LONGSHORE_TIER=vm)");
    }
    here
}
