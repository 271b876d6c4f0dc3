//! The table of Service cases with real packets through nf_tables: clients, a node, its pods and another
//! node in network namespaces, IPv4 and IPv6, source addresses checked.

#![allow(clippy::unwrap_used)]

#[path = "services/case.rs"]
#[allow(dead_code, reason = "traces use more of it")]
mod case;
#[path = "services/wire.rs"]
mod wire;

use case::Mode;
use longshore_kernel::netns::{self, NetNsError};
use wire::World;

fn run(mode: Mode) {
    let outcome = netns::run_in_new(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let cases = case::all();
            let world = World::new(&cases);
            let mut wrong = Vec::new();
            let mut packets = 0;
            for case in &cases {
                wrong.extend(world.run(case, mode).await);
                packets += case.steps.iter().map(|step| step.packets.len()).sum::<usize>();
            }
            if !world.has_sctp() {
                println!("note: this kernel has no SCTP; its cases are traced only");
            }
            println!("{} cases, {packets} packets, mode {mode}", cases.len());
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
    run(Mode::Nftables);
}

/// Name a test that did not run; a failure where `LONGSHORE_REQUIRE` asks for this tier.
fn skip(reason: &str) {
    let required = std::env::var("LONGSHORE_REQUIRE").unwrap_or_default();
    let asked = required.split(',').any(|asked| asked == "netns" || asked == "all");
    assert!(!asked, "tier netns was required, and cannot run: {reason}");
    println!("SKIPPED: {reason}");
}
