//! IPVS mode, in the emulated kernel guest, since few kernels that benches run on have IPVS: a full sync, one
//! endpoint changed, an audit and a restart at two sizes. kube-proxy's figure is from an emulated machine too.

use longshore_agent::dataplane::{Kernel, ModeRequest, OpenKernel};
use longshore_integration::guest;
use serde_json::{Value, json};

use super::{Figure, IN_GUEST, Report, Running, command, in_netns, milliseconds, population, slice};

/// How often one change is measured, each at another Service of the smallest size.
const CHANGES: usize = 100;
const AUDITS: usize = 5;

/// The guest says so to what it runs.
pub(super) fn is_guest() -> bool {
    std::env::var("LONGSHORE_TIER").as_deref() == Ok("vm")
}

pub(super) fn run(report: &mut Report) {
    if is_guest() {
        [100, 1000].into_iter().for_each(|services| at_size(report, services, 10));
        return;
    }
    let program = std::env::current_exe().expect("this program has a path");
    let output = guest::run_bench(&program, "ipvs").expect("the guest runs the bench");
    for line in output.lines().filter_map(|line| line.strip_prefix(IN_GUEST)) {
        report.tell_line(&serde_json::from_str(line).expect("a figure is JSON"));
    }
}

/// Sync from empty, changes, an audit and a restart at one size.
fn at_size(report: &mut Report, services: usize, endpoints: usize) {
    let compared = services == 1000;
    let mut tell = |name: &str, unit, values, goal: Value, peer: Value| {
        let (goal, peer) = if compared { (goal, peer) } else { (Value::Null, Value::Null) };
        let endpoints = services * endpoints;
        report.tell(Figure { mode: "ipvs", name, services, endpoints, unit, values, goal, peer });
    };
    let start = || Running::with(ModeRequest::Ipvs, OpenKernel::new(|| Kernel::open(None)));
    in_netns(async || {
        // IPVS refuses real servers of a namespace that has no address of its own.
        command("ip link set lo up");
        let running = start();
        let sync = running.fill(population(services, endpoints)).await;
        assert_eq!(running.handle.view().mode, "ipvs", "{}", running.handle.view().reason);
        let peer = json!({"name": "kube-proxy 1.36.3 ipvs, emulated", "value": 66_900.0});
        tell("full sync from empty", "ms", vec![sync], json!(6700), peer);
        let (mut added, mut drained) = (Vec::new(), Vec::new());
        for number in 0..CHANGES {
            let service = number * 7919 % services;
            added.push(running.change(slice(service, 0, endpoints + 1)).await);
            drained.push(running.change(slice(service, 0, endpoints)).await);
        }
        tell("endpoint added: event to kernel", "ms", added, Value::Null, Value::Null);
        tell("endpoint drained: event to kernel", "ms", drained, Value::Null, Value::Null);
        let mut audits = Vec::new();
        for _ in 0..AUDITS {
            let began = std::time::Instant::now();
            running.handle.audit().await.expect("the audit answers");
            audits.push(milliseconds(began));
        }
        tell("audit of an unchanged table", "ms", audits, Value::Null, Value::Null);
        running.stop().await;
        let again = start();
        let restart = again.fill(population(services, endpoints)).await;
        tell("restart over an unchanged table", "ms", vec![restart], Value::Null, Value::Null);
        let writes = again.handle.view().counters.writes;
        tell("writes of that restart", "writes", vec![writes as f64], json!(0), Value::Null);
        again.stop().await;
    });
}
