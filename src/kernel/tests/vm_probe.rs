//! The probe on a kernel that has everything: the kernel guest.

mod common;

use longshore_core::ruleset::ipvs::Scheduler;
use longshore_kernel::cgroup::DEFAULT_ROOT;
use longshore_kernel::probe::probe;

#[test]
fn the_guest_has_everything() {
    if !common::in_vm() {
        return;
    }
    let support = probe(DEFAULT_ROOT);
    assert!(support.ipvs.works() && support.dummy.works() && support.cgroup_v2.works(), "{support:#?}");
    assert_eq!(support.ipvs_schedulers, Scheduler::ALL.iter().copied().collect());
    assert!(support.cgroup_controllers.contains("memory"));
    assert_eq!(support.missing_capabilities, []);
}
