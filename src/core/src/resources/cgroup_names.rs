//! Names of the cgroups above containers, exactly as the kubelet computes them for both drivers
//! (pkg/kubelet/cm/cgroup_manager_linux.go), so that either program adopts the other's pods.
//! All results are in cgroupfs form from the top of the hierarchy.

use crate::ids::PodUid;
use crate::pod::snapshot::{CgroupDriver, CgroupSettings};
use crate::resources::qos::QosClass;

/// `/kubepods` or `/kubepods.slice`, below the configured root.
pub fn kubepods(settings: &CgroupSettings) -> String {
    render(settings, &[])
}

/// The cgroup of a QoS class; Guaranteed pods live in [`kubepods`] itself.
pub fn qos(settings: &CgroupSettings, class: QosClass) -> String {
    render(settings, qos_parts(class))
}

/// The cgroup of a pod; empty where the settings ask for no tree at all (`cgroupsPerQOS: false`).
pub fn pod(settings: &CgroupSettings, class: QosClass, uid: &PodUid) -> String {
    if !settings.per_qos {
        return String::new();
    }
    let own = format!("pod{uid}");
    let mut parts = qos_parts(class).to_vec();
    parts.push(&own);
    render(settings, &parts)
}

fn qos_parts(class: QosClass) -> &'static [&'static str] {
    match class {
        QosClass::Guaranteed => &[],
        QosClass::Burstable => &["burstable"],
        QosClass::BestEffort => &["besteffort"],
    }
}

fn render(settings: &CgroupSettings, parts: &[&str]) -> String {
    let root = settings.root.split('/').filter(|part| !part.is_empty());
    let all: Vec<&str> = root.chain(["kubepods"]).chain(parts.iter().copied()).collect();
    match settings.driver {
        CgroupDriver::Cgroupfs => format!("/{}", all.join("/")),
        CgroupDriver::Systemd => slices(&all),
    }
}

/// systemd nests slices by name: each level repeats its parents, `-` separates, and a `-` of a name
/// itself becomes `_`.
fn slices(parts: &[&str]) -> String {
    let mut path = String::new();
    let mut name = String::new();
    for part in parts {
        if !name.is_empty() {
            name.push('-');
        }
        name.push_str(&part.strip_suffix(".slice").unwrap_or(part).replace('-', "_"));
        path.push_str(&format!("/{name}.slice"));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::node;

    #[test]
    fn names_match_the_kubelets() {
        let uid: PodUid = "1234-abcd".into();
        let cases = [
            (CgroupDriver::Cgroupfs, "", QosClass::Guaranteed, "/kubepods", "/kubepods/pod1234-abcd"),
            (
                CgroupDriver::Cgroupfs,
                "/",
                QosClass::Burstable,
                "/kubepods/burstable",
                "/kubepods/burstable/pod1234-abcd",
            ),
            (
                CgroupDriver::Cgroupfs,
                "/top",
                QosClass::BestEffort,
                "/top/kubepods/besteffort",
                "/top/kubepods/besteffort/pod1234-abcd",
            ),
            (
                CgroupDriver::Systemd,
                "",
                QosClass::Guaranteed,
                "/kubepods.slice",
                "/kubepods.slice/kubepods-pod1234_abcd.slice",
            ),
            (
                CgroupDriver::Systemd,
                "/",
                QosClass::Burstable,
                "/kubepods.slice/kubepods-burstable.slice",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1234_abcd.slice",
            ),
            (
                CgroupDriver::Systemd,
                "/top",
                QosClass::BestEffort,
                "/top.slice/top-kubepods.slice/top-kubepods-besteffort.slice",
                "/top.slice/top-kubepods.slice/top-kubepods-besteffort.slice/top-kubepods-besteffort-pod1234_abcd.slice",
            ),
        ];
        for (driver, root, class, level, own) in cases {
            let settings = CgroupSettings { driver, root: root.to_owned(), ..node().cgroups };
            assert_eq!(qos(&settings, class), level);
            assert_eq!(pod(&settings, class, &uid), own);
        }
        let off = CgroupSettings { per_qos: false, ..node().cgroups };
        assert_eq!(pod(&off, QosClass::Burstable, &uid), "");
    }
}
