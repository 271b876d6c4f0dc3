//! Services with real packets in the kernel guest before it has nf_tables, so that nothing but the legacy
//! programs writes rules: the table of cases through IPVS, and through chains alone.

#![allow(clippy::unwrap_used)]

#[path = "services/case.rs"]
#[allow(dead_code, reason = "traces use more of it")]
mod case;
#[path = "services/wire.rs"]
mod wire;

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use case::{Case, Mode};
use longshore_agent::dataplane::OpenIptables;
use longshore_kernel::iptables::{RealIptables, Tools, Variant};
use longshore_kernel::netns;
use longshore_kernel::nft::RealNft;
use wire::{Way, World};

fn packets_go_where_the_cases_say(mode: Mode) {
    if std::env::var("LONGSHORE_TIER").as_deref() != Ok("vm") {
        println!("SKIPPED: it needs a kernel without nf_tables, which the kernel guest is at first");
        return;
    }
    let missing = RealNft::open().err().is_some_and(|error| error.is_missing());
    assert!(missing, "the guest has nf_tables already");
    let outcome = netns::run_in_new(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let began = Instant::now();
            let told = |what: &str| {
                // Beside the captured output: how far it came must be seen even if the guest is cut off.
                let _ = writeln!(std::io::stderr(), "{:>6.1} s {what}", began.elapsed().as_secs_f32());
            };
            let cases: Vec<Case> = case::all();
            let world = World::new(&cases);
            told(&format!("world built, mode {mode}"));
            let programs = RealIptables::open(Some(Variant::Legacy), Tools::default()).await.unwrap();
            let iptables = Some(OpenIptables::given(Arc::new(programs)));
            let way = Way { mode, iptables, reads_back: false };
            let wrong = wire::run_in_turn(&world, &cases, &way).await;
            wrong.iter().for_each(|text| told(text));
            told(&format!("{} cases done, SCTP {}", cases.len(), world.has_sctp()));
            assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
        });
    });
    outcome.unwrap();
}

#[test]
fn packets_go_where_the_cases_say_in_ipvs_mode() {
    packets_go_where_the_cases_say(Mode::IpvsByIptables);
}

#[test]
fn packets_go_where_the_cases_say_in_iptables_mode() {
    packets_go_where_the_cases_say(Mode::Iptables);
}
