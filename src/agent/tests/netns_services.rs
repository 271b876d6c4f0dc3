//! The table of Service cases with real packets through nf_tables and iptables: clients, a node, its pods
//! and another node in network namespaces, IPv4 and IPv6, source addresses checked.

#![allow(clippy::unwrap_used)]

#[path = "services/case.rs"]
#[allow(dead_code, reason = "traces use more of it")]
mod case;
#[path = "services/wire.rs"]
mod wire;

use std::process::Command;
use std::sync::Arc;

use case::{Case, Mode};
use longshore_agent::dataplane::OpenIptables;
use longshore_kernel::iptables::{RealIptables, Tools, Variant};
use longshore_kernel::netns::{self, NetNsError};
use wire::{Daemon, Way, World};

/// Who serves the cases.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// A daemon for each, started over what the one before left.
    OneEach,
    /// One daemon, told the next case's objects and that those of the one before are gone.
    OneForAll,
}

async fn way(mode: Mode, variant: Option<Variant>) -> Way {
    let iptables = match variant {
        Some(_) => {
            let programs = RealIptables::open(variant, Tools::default()).await.unwrap();
            Some(OpenIptables::given(Arc::new(programs)))
        }
        None => None,
    };
    Way { mode, iptables, reads_back: true }
}

async fn all(world: &World, cases: &[Case], way: &Way, by: By) -> Vec<String> {
    match by {
        By::OneForAll => wire::run_in_turn(world, cases, way).await,
        By::OneEach => {
            let mut wrong = Vec::new();
            for case in cases {
                let mut daemon = Daemon::start(case, way).await;
                wrong.extend(world.run(case, &mut daemon).await);
            }
            wrong
        }
    }
}

fn run(mode: Mode, variant: Option<Variant>, by: By) {
    if variant == Some(Variant::Legacy) && std::env::var("LONGSHORE_TIER").as_deref() == Ok("netns") {
        // The tier has mounts of its own: there the lock of the programs is nobody else's, and can be
        // made without being root.
        let status = Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]).status();
        assert!(status.unwrap().success(), "a /run of the test's own");
    }
    let outcome = netns::run_in_new(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let cases = case::all();
            let world = World::new(&cases);
            let wrong = all(&world, &cases, &way(mode, variant).await, by).await;
            let packets = cases.iter().flat_map(|case| &case.steps).map(|step| step.packets.len());
            if !world.has_sctp() {
                println!("note: this kernel has no SCTP; its cases are traced only");
            }
            println!("{} cases, {} packets, mode {mode} {variant:?}", cases.len(), packets.sum::<usize>());
            assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
        });
    });
    match outcome {
        Ok(()) => {}
        Err(err @ (NetNsError::Make(_) | NetNsError::Enter { .. })) => skip(&err.to_string()),
        Err(err) => panic!("{err}"),
    }
}

#[test]
fn packets_go_where_the_cases_say_in_nftables_mode() {
    run(Mode::Nftables, None, By::OneEach);
}

#[test]
fn packets_go_where_the_cases_say_in_iptables_mode_by_nf_tables() {
    run(Mode::Iptables, Some(Variant::Nft), By::OneEach);
}

#[test]
fn packets_go_where_the_cases_say_in_iptables_mode_by_the_legacy_programs() {
    run(Mode::Iptables, Some(Variant::Legacy), By::OneForAll);
}

/// Name a test that did not run; a failure where `LONGSHORE_REQUIRE` asks for this tier.
fn skip(reason: &str) {
    let required = std::env::var("LONGSHORE_REQUIRE").unwrap_or_default();
    let asked = required.split(',').any(|asked| asked == "netns" || asked == "all");
    assert!(!asked, "tier netns was required, and cannot run: {reason}");
    println!("SKIPPED: {reason}");
}
