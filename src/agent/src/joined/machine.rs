//! What the Node object says of the machine: ids, kernel, distribution, file system. Read once at start;
//! a fact that cannot be read stays empty, as upstream leaves it.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::NodeSystemInfo;

/// The version the API server and kubectl compare with theirs: the Kubernetes release this node behaves
/// like, with our own as build metadata (semver 2.0.0 section 10).
pub(super) const KUBELET_VERSION: &str = concat!("v1.36.3+longshore.", env!("CARGO_PKG_VERSION"));

/// `runtime` is `containerd://1.7.24`; empty until the runtime has answered.
pub(super) fn system_info(runtime: &str) -> NodeSystemInfo {
    let os = os_release(&text("/etc/os-release"));
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: text("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: runtime.to_owned(),
        kernel_version: text("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        machine_id: text("/etc/machine-id"),
        operating_system: "linux".to_owned(),
        os_image: os,
        swap: None,
        system_uuid: system_uuid(),
    }
}

fn text(path: &str) -> String {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Of the firmware; machines without one have their machine id there, as upstream.
fn system_uuid() -> String {
    let uuid = text("/sys/class/dmi/id/product_uuid");
    if uuid.is_empty() { text("/etc/machine-id") } else { uuid }
}

/// As Go spells architectures, which is what images and node labels use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn os_release(text: &str) -> String {
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches(['"', '\'']).to_owned()
}

/// Bytes of the file system that holds `path`; 0 where it cannot be asked.
pub(super) fn storage_bytes(path: &Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(0, |stat| stat.blocks() * stat.fragment_size())
}

/// Bytes set aside per size of huge pages.
pub(super) fn hugepages(root: &Path) -> BTreeMap<u64, u64> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kib = name.strip_prefix("hugepages-").and_then(|rest| rest.strip_suffix("kB"));
        let Some(kib) = kib.and_then(|kib| kib.parse::<u64>().ok()) else { continue };
        let pages = std::fs::read_to_string(entry.path().join("nr_hugepages")).unwrap_or_default();
        let pages: u64 = pages.trim().parse().unwrap_or(0);
        all.insert(kib * 1024, pages.saturating_mul(kib * 1024));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distribution_is_named_as_it_names_itself() {
        for (text, expected) in [
            ("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\n", "Debian GNU/Linux 13 (trixie)"),
            ("PRETTY_NAME=Plain\n", "Plain"),
            ("", "Linux"),
        ] {
            assert_eq!(os_release(text), expected);
        }
    }

    #[test]
    fn huge_pages_count_in_bytes() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("hugepages-2048kB");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("nr_hugepages"), "3\n").unwrap();
        assert_eq!(hugepages(root.path()), BTreeMap::from([(2 << 20, 6 << 20)]));
    }
}
