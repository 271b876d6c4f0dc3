//! The cgroup drivers against a kernel with cgroup v2 controllers: the kernel guest, and for systemd the
//! node VM. Each test has a group of its own below the root, named after itself.

#![allow(clippy::unwrap_used)]

mod common;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use longshore_core::pod::step::CgroupLimits;
use longshore_kernel::cgroup::{CgroupError, Cgroups, DEFAULT_ROOT, FsCgroups, SystemdCgroups};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A process that sleeps, put into a group.
fn sleeper(path: &str) -> Child {
    let child = Command::new("/bin/sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap();
    std::fs::write(format!("{DEFAULT_ROOT}{path}/cgroup.procs"), child.id().to_string()).unwrap();
    child
}

fn file(path: &str, name: &str) -> String {
    let folder = format!("{DEFAULT_ROOT}{path}");
    let text = std::fs::read_to_string(format!("{folder}/{name}"));
    let text = text.unwrap_or_else(|err| {
        let enabled = std::fs::read_to_string(format!("{folder}/cgroup.controllers"));
        panic!("{folder}/{name}: {err}; its controllers: {enabled:?}")
    });
    text.trim().to_owned()
}

fn limits() -> CgroupLimits {
    CgroupLimits {
        cpu_weight: Some(20),
        cpu_max: Some((50_000, 100_000)),
        memory_max: Some(64 << 20),
        pids_max: Some(17),
        ..CgroupLimits::default()
    }
}

fn has_controller(path: &str, file_name: &str) -> bool {
    let name = file_name.split('.').next().unwrap();
    file(path, "cgroup.controllers").split(' ').any(|known| known == name)
}

/// What every driver has to do, on groups of its own form of name.
async fn lifecycle(cgroups: &dyn Cgroups, top: &str, pod: &str) {
    assert_eq!(cgroups.stat(pod).await, Ok(None));
    cgroups.kill(pod).await.unwrap();
    cgroups.ensure(pod, &limits()).await.unwrap();
    cgroups.ensure(pod, &limits()).await.unwrap();
    assert_eq!(file(pod, "cpu.weight"), "20");
    assert_eq!(file(pod, "cpu.max"), "50000 100000");
    assert_eq!(file(pod, "memory.max"), (64 << 20).to_string());
    assert_eq!(file(pod, "pids.max"), "17");

    let container = format!("{pod}/container");
    std::fs::create_dir(format!("{DEFAULT_ROOT}{container}")).unwrap();
    let mut child = sleeper(&container);
    let stat = cgroups.stat(pod).await.unwrap().unwrap();
    assert!(stat.populated);
    assert_eq!(stat.pids.unwrap().current, 1);
    assert_eq!(stat.pids.unwrap().max, Some(17));
    assert_eq!(stat.memory.unwrap().max, Some(64 << 20));
    assert!(stat.cpu.is_some() && stat.memory_pressure.is_some(), "{stat:?}");

    cgroups.kill(pod).await.unwrap();
    assert!(!child.wait().unwrap().success());
    cgroups.ensure(pod, &CgroupLimits::default()).await.unwrap();
    for name in ["memory.max", "cpu.max", "pids.max"] {
        // systemd takes a controller away that nothing uses: without it there is no limit either.
        let text = std::fs::read_to_string(format!("{DEFAULT_ROOT}{pod}/{name}"));
        assert!(text.is_ok_and(|text| text.starts_with("max")) || !has_controller(pod, name), "{name}");
    }
    cgroups.remove(pod).await.unwrap();
    assert_eq!(cgroups.exists(pod).await, Ok(false));
    cgroups.remove(pod).await.unwrap();
    cgroups.remove(top).await.unwrap();
}

#[test]
fn the_file_system_driver_makes_limits_kills_and_removes() {
    if !common::in_vm() {
        return;
    }
    runtime().block_on(async {
        let cgroups = FsCgroups::open(DEFAULT_ROOT).unwrap();
        for controller in ["cpu", "memory", "pids"] {
            assert!(cgroups.controllers().unwrap().contains(controller), "{controller}");
        }
        lifecycle(&cgroups, "/test-fs-lifecycle", "/test-fs-lifecycle/burstable/podx").await;
    });
}

#[test]
fn a_busy_group_is_refused_and_named() {
    if !common::in_vm() {
        return;
    }
    runtime().block_on(async {
        let cgroups = FsCgroups::open(DEFAULT_ROOT).unwrap();
        let path = "/test-fs-busy/podx";
        cgroups.ensure(path, &CgroupLimits::default()).await.unwrap();
        // Processes may not live in a group whose children have controllers: take them away again.
        let mut child = None;
        let inner = format!("{path}/c");
        std::fs::create_dir(format!("{DEFAULT_ROOT}{inner}")).unwrap();
        child.replace(sleeper(&inner));
        let err = cgroups.remove(path).await.unwrap_err();
        assert_eq!(err.to_string(), format!("cgroup {inner}: remove"));
        assert!(err.is_retryable());
        cgroups.kill(path).await.unwrap();
        child.take().unwrap().wait().unwrap();
        for _ in 0..50 {
            match cgroups.remove("/test-fs-busy").await {
                Err(CgroupError::Io { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                outcome => return outcome.unwrap(),
            }
        }
        panic!("the group stayed busy");
    });
}

#[test]
fn a_value_the_kernel_refuses_is_named() {
    if !common::in_vm() {
        return;
    }
    runtime().block_on(async {
        let cgroups = FsCgroups::open(DEFAULT_ROOT).unwrap();
        let path = "/test-fs-refused";
        let limits = CgroupLimits { cpu_weight: Some(10_001), ..CgroupLimits::default() };
        let err = cgroups.ensure(path, &limits).await.unwrap_err();
        assert_eq!(err.to_string(), "cgroup /test-fs-refused: set cpu.weight to 10001");
        assert!(matches!(err, CgroupError::Io { source: nix::errno::Errno::ERANGE, .. }), "{err:?}");
        cgroups.remove(path).await.unwrap();
    });
}

#[test]
fn the_systemd_driver_makes_limits_kills_and_removes() {
    if !common::in_vm() {
        return;
    }
    if !std::path::Path::new("/run/systemd/system").exists() {
        return common::skip("systemd", "needs a machine that systemd runs (the node VM)");
    }
    runtime().block_on(async {
        let cgroups = SystemdCgroups::new(FsCgroups::open(DEFAULT_ROOT).unwrap());
        let pod = "/longshoretest.slice/longshoretest-podx_y.slice";
        lifecycle(&cgroups, "/longshoretest.slice", pod).await;
    });
}
