//! What this machine is: name, addresses, processors, memory, DNS, huge pages. Read from /proc, /sys
//! and the routing table; nothing is decided here.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use longshore_core::pod::snapshot::DnsSettings;
use longshore_kernel::route::{IpFamily, Routes};

use super::resolv;

#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    #[error("read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} has no {what}")]
    Missing { path: &'static str, what: &'static str },
}

/// Facts of the machine at start.
#[derive(Clone, Debug)]
pub struct Facts {
    pub hostname: String,
    /// Sources of the default routes, IPv4 first; else any address that is not loopback.
    pub ips: Vec<IpAddr>,
    /// Online logical processors.
    pub cpus: u64,
    pub memory_bytes: u64,
    /// All swap devices and files together.
    pub swap_bytes: u64,
    /// Of the node's resolver file; the cluster's part stays empty.
    pub dns: DnsSettings,
    /// As the kernel spells them in cgroup files: `2MB`, `1GB`.
    pub hugepage_sizes: Vec<String>,
    /// Major and minor version of the running kernel.
    pub kernel_version: (u32, u32),
}

impl Facts {
    /// Reads all of them. A missing resolver file gives pods an empty one.
    pub async fn read(routes: &dyn Routes, resolv_conf: Option<&Path>) -> Result<Self, FactsError> {
        let dns = match resolv_conf {
            None => DnsSettings::default(),
            Some(path) => match std::fs::read_to_string(path) {
                Ok(text) => resolv::parse(&text),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "no resolver file; pods get none of the node's DNS");
                    DnsSettings::default()
                }
            },
        };
        Ok(Self {
            hostname: read("/proc/sys/kernel/hostname")?.trim().to_owned(),
            ips: addresses(routes).await,
            cpus: cpus(&read("/proc/stat")?),
            memory_bytes: memory(&read("/proc/meminfo")?)?,
            swap_bytes: kibibytes(&read("/proc/meminfo")?, "SwapTotal:").unwrap_or(0),
            dns,
            hugepage_sizes: hugepage_sizes(Path::new("/sys/kernel/mm/hugepages")),
            kernel_version: kernel_version(&read("/proc/sys/kernel/osrelease")?),
        })
    }
}

fn read(path: &str) -> Result<String, FactsError> {
    std::fs::read_to_string(path).map_err(|source| FactsError::Read { path: path.into(), source })
}

async fn addresses(routes: &dyn Routes) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for family in [IpFamily::V4, IpFamily::V6] {
        match routes.default_source(family).await {
            Ok(source) => ips.extend(source),
            Err(error) => tracing::warn!(error = crate::text::error_chain(&error), "default route"),
        }
    }
    if ips.is_empty()
        && let Ok(all) = routes.addresses().await
    {
        let usable =
            |ip: &IpAddr| !ip.is_loopback() && !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        ips.extend(all.into_iter().map(|address| address.addr).find(usable));
    }
    ips
}

/// `cpuN` lines of /proc/stat: those online.
fn cpus(stat: &str) -> u64 {
    let is_cpu = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    (stat.lines().filter(is_cpu).count() as u64).max(1)
}

fn memory(meminfo: &str) -> Result<u64, FactsError> {
    kibibytes(meminfo, "MemTotal:").ok_or(FactsError::Missing { path: "/proc/meminfo", what: "MemTotal" })
}

/// A line of /proc/meminfo, in bytes.
fn kibibytes(meminfo: &str, name: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// `6.12.48+deb13-amd64` -> 6, 12; what cannot be read counts as the oldest.
fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn hugepage_sizes(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut sizes: Vec<u64> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()
        })
        .collect();
    sizes.sort_unstable();
    sizes.into_iter().map(hugepage_name).collect()
}

/// The kernel's own spelling (mm/hugetlb_cgroup.c): the largest unit that divides.
fn hugepage_name(kib: u64) -> String {
    match kib {
        _ if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        _ if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        _ => format!("{kib}KB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_proc() {
        assert_eq!(cpus("cpu  1 2\ncpu0 1\ncpu1 1\nintr 5\n"), 2);
        assert_eq!(memory("MemTotal:       2048 kB\nMemFree: 1 kB\n").unwrap(), 2 << 20);
        assert!(memory("MemFree: 1 kB\n").is_err());
        assert_eq!(kibibytes("SwapTotal:       4 kB\n", "SwapTotal:"), Some(4096));
        assert_eq!(kernel_version("6.12.48+deb13-amd64\n"), (6, 12));
        assert_eq!(kernel_version("6.18\n"), (6, 18));
        let names: Vec<_> = [64, 2048, 1_048_576].into_iter().map(hugepage_name).collect();
        assert_eq!(names, ["64KB", "2MB", "1GB"]);
    }
}
