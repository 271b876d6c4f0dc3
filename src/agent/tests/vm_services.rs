//! The table of Service cases with real packets through IPVS, in the kernel guest: every case in IPv4,
//! and of those in IPv6 every fourth, since the guest's processor is mostly an emulated one.

#![allow(clippy::unwrap_used)]

#[path = "services/case.rs"]
#[allow(dead_code, reason = "traces use more of it")]
mod case;
#[path = "services/wire.rs"]
mod wire;

use case::{Case, Mode};
use longshore_kernel::netns;
use wire::World;

#[test]
fn packets_go_where_the_cases_say_in_ipvs_mode() {
    if std::env::var("LONGSHORE_TIER").as_deref() != Ok("vm") {
        println!("SKIPPED: it needs IPVS, which the kernel guest has");
        return;
    }
    let outcome = netns::run_in_new(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let cases: Vec<Case> = case::all();
            let world = World::new(&cases);
            let mut wrong = Vec::new();
            let (mut ran, mut packets) = (0, 0);
            for (number, case) in cases.iter().enumerate() {
                if case.name.ends_with("(IPv6)") && number % 4 != 0 {
                    continue;
                }
                wrong.extend(world.run(case, Mode::Ipvs).await);
                ran += 1;
                packets += case.steps.iter().map(|step| step.packets.len()).sum::<usize>();
            }
            println!("{ran} cases, {packets} packets, mode ipvs, SCTP {}", world.has_sctp());
            assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
        });
    });
    outcome.unwrap();
}
