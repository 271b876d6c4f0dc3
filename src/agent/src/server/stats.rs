//! Readings for `/stats/summary` and the metrics: one call to the runtime, and a few files of /proc and of
//! the disk. What they mean together is decided in core.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use longshore_core::ids::ContainerId;
use longshore_core::kubelet_api::summary::*;
use longshore_core::pod::observed::{ContainerState, ObservedContainer};
use longshore_core::resources::quantity::Amount;
use longshore_core::wire::PodView;
use longshore_cri::containers::ContainerUsage;
use longshore_cri::{ContainerFilter, Runtime};
use longshore_kernel::disk;

use super::seldom::Seldom;
use crate::pods::{Clock, PodsView};

/// Parts of a second the kernel counts CPU time in for programs (USER_HZ), on every architecture we know.
const TICKS_PER_SECOND: u64 = 100;
/// Older readings tell nothing of how it is now.
const RATE_OVER: SignedDuration = SignedDuration::from_secs(300);

/// CPU time of everything when it was last read.
type Earlier = HashMap<Option<ContainerId>, (Timestamp, u64)>;

/// Reads statistics.
pub(super) struct Stats {
    pub(super) node: String,
    pub(super) clock: Clock,
    pub(super) pods: PodsView,
    pub(super) runtime: Runtime,
    /// Where pods' data is.
    pub(super) root: PathBuf,
    pub(super) earlier: Mutex<Earlier>,
    /// Lines about a runtime that does not tell.
    pub(super) unread: Seldom,
}

impl Stats {
    pub(super) async fn read(&self) -> Readings {
        let usage = self.runtime.upkeep.container_stats(&ContainerFilter::default()).await;
        if let Err(error) = &usage
            && let Some(more) = self.unread.line()
        {
            tracing::warn!(
                "the runtime does not tell what containers use, so kubectl top and the summary show none: {}{more}",
                error.one_line()
            );
        }
        let images = self.runtime.images.image_fs_info().await.ok();
        let incomplete = usage.as_ref().map_or(true, |usage| !usage.rejected.is_empty());
        let usage: HashMap<_, _> = usage
            .map(|usage| usage.items)
            .unwrap_or_default()
            .into_iter()
            .map(|one| (one.id.clone(), one))
            .collect();
        let (views, node, root) = (self.pods.list(), self.node.clone(), self.root.clone());
        let at = self.clock.now();
        let read = tokio::task::spawn_blocking(move || {
            let pods = views.iter().filter_map(|view| pod(view, &usage, at)).collect();
            (self_reading(node, &root, images.as_ref(), at), pods)
        });
        // The task only panics where this code is wrong; the node is then shown empty and the error told.
        let (node, pods, failed) = match read.await {
            Ok((node, pods)) => (node, pods, false),
            Err(_) => (self_reading(self.node.clone(), &self.root, None, at), Vec::new(), true),
        };
        let mut readings = Readings { at, node, pods, incomplete: incomplete || failed };
        self.rate(&mut readings);
        readings
    }

    /// CPU per second since the reading before.
    fn rate(&self, readings: &mut Readings) {
        let mut earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = Earlier::new();
        let mut rate = |key: Option<ContainerId>, usage: &mut Usage| {
            let Some(cpu) = usage.cpu_nanoseconds else { return };
            let before = earlier.get(&key).copied();
            let recent = before.filter(|(at, _)| usage.at.duration_since(*at) < RATE_OVER);
            usage.nano_cores = recent.and_then(|before| nano_cores(before, (usage.at, cpu)));
            now.insert(key, (usage.at, cpu));
        };
        rate(None, &mut readings.node.usage);
        for container in readings.pods.iter_mut().flat_map(|pod| &mut pod.containers) {
            if let Some(usage) = &mut container.usage {
                rate(Some(container.id.clone()), usage);
            }
        }
        *earlier = now;
    }
}

/// A pod of which something runs.
fn pod(
    view: &Arc<PodView>,
    usage: &HashMap<ContainerId, ContainerUsage>,
    at: Timestamp,
) -> Option<PodReading> {
    let limits = limits(view);
    let containers: Vec<_> = view
        .observed
        .containers
        .iter()
        .filter_map(|container| {
            let ContainerState::Running { started_at } = container.state else { return None };
            let used = usage.get(&container.id);
            Some(ContainerReading {
                id: container.id.clone(),
                name: container.name.to_string(),
                image: container.image.clone(),
                started_at,
                usage: used.map(|used| usage_of(used, at)),
                layer: Disk {
                    used: used.and_then(|used| used.layer_bytes),
                    inodes_used: used.and_then(|used| used.layer_inodes),
                    ..Disk::default()
                },
                logs_bytes: logs_bytes(container),
                limits: limits.get(container.name.as_str()).copied().unwrap_or_default(),
            })
        })
        .collect();
    if containers.is_empty() {
        return None;
    }
    let started_at = view.status.start_time.as_ref().map_or(at, |time| time.0);
    Some(PodReading { key: view.key.clone(), uid: view.uid.clone(), started_at, containers })
}

fn usage_of(used: &ContainerUsage, at: Timestamp) -> Usage {
    Usage {
        at: used.at.unwrap_or(at),
        cpu_nanoseconds: used.cpu_nanoseconds,
        nano_cores: None,
        working_set: used.memory_working_set,
        memory: used.memory_usage,
        rss: used.memory_rss,
        page_faults: used.page_faults,
        major_page_faults: used.major_page_faults,
        swap: used.swap_usage,
    }
}

fn limits(view: &PodView) -> BTreeMap<&str, Limits> {
    let Some(spec) = &view.pod.spec else { return BTreeMap::new() };
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let limits = all.map(|container| {
        let amount = |map: Option<&BTreeMap<String, _>>, name: &str| {
            let quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity = map?.get(name)?;
            Amount::parse(&quantity.0).ok()
        };
        let resources = container.resources.as_ref();
        let limit = |name| amount(resources.and_then(|all| all.limits.as_ref()), name);
        let request = amount(resources.and_then(|all| all.requests.as_ref()), "cpu");
        let millis = |amount: Option<Amount>| {
            amount.map_or(0, |amount| u64::try_from(amount.milli_value()).unwrap_or(0))
        };
        let limits = Limits {
            cpu_request_millis: millis(request.or(limit("cpu"))),
            cpu_limit_millis: millis(limit("cpu")),
            memory_bytes: limit("memory").map_or(0, |amount| amount.unsigned_value()),
        };
        (container.name.as_str(), limits)
    });
    limits.collect()
}

/// All files beside the log of an instance.
fn logs_bytes(container: &ObservedContainer) -> Option<u64> {
    let folder = Path::new(&container.log_path).parent()?;
    let sizes = std::fs::read_dir(folder).ok()?.flatten().filter_map(|entry| entry.metadata().ok());
    Some(sizes.map(|found| found.len()).sum())
}

fn self_reading(
    name: String,
    root: &Path,
    images: Option<&longshore_cri::images::ImageFsInfo>,
    at: Timestamp,
) -> NodeReading {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (stat, meminfo, vmstat) = (text("/proc/stat"), text("/proc/meminfo"), text("/proc/vmstat"));
    let memory = |name: &str| field(&meminfo, name).map(|kib| kib * 1024);
    let used = |total: &str, free: &str| Some(memory(total)?.saturating_sub(memory(free)?));
    let (disk, images, layers) = disks(root, images);
    NodeReading {
        name,
        booted_at: booted_at(&stat).unwrap_or(at),
        usage: Usage {
            at,
            cpu_nanoseconds: busy_nanoseconds(&stat),
            nano_cores: None,
            working_set: used("MemTotal:", "MemAvailable:"),
            memory: used("MemTotal:", "MemFree:"),
            rss: memory("AnonPages:"),
            page_faults: field(&vmstat, "pgfault"),
            major_page_faults: field(&vmstat, "pgmajfault"),
            swap: used("SwapTotal:", "SwapFree:"),
        },
        memory_available: memory("MemAvailable:"),
        swap_available: memory("SwapFree:"),
        cpus: stat.lines().filter(|line| is_cpu(line)).count() as u64,
        memory_total: memory("MemTotal:").unwrap_or(0),
        swap_total: memory("SwapTotal:").unwrap_or(0),
        interfaces: interfaces(&text("/proc/net/dev")),
        disk,
        images,
        layers,
        processes: processes(&text("/proc/sys/kernel/pid_max"), &text("/proc/loadavg")),
        main_interface: main_interface(&text("/proc/net/route")),
    }
}

/// Of the pods' data, the images and the writable layers.
fn disks(root: &Path, info: Option<&longshore_cri::images::ImageFsInfo>) -> (Disk, Disk, Disk) {
    let at = |path: &Path| {
        let found = disk::usage(path).ok();
        found.map_or_else(Disk::default, |found| Disk {
            available: Some(found.available),
            capacity: Some(found.total),
            used: Some(found.used),
            inodes_free: Some(found.inodes_free),
            inodes: Some(found.inodes),
            inodes_used: Some(found.inodes.saturating_sub(found.inodes_free)),
        })
    };
    let own = at(root);
    let of = |all: Option<&Vec<longshore_cri::images::FsUsage>>| {
        let first = all?.first()?;
        let used =
            Disk { used: first.used_bytes, inodes_used: first.used_inodes, ..at(Path::new(&first.path)) };
        Some(used)
    };
    let images = of(info.map(|info| &info.images)).unwrap_or_else(|| own.clone());
    let layers = of(info.map(|info| &info.containers)).unwrap_or_else(|| images.clone());
    (own, images, layers)
}

fn is_cpu(line: &str) -> bool {
    line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Time of all CPUs that was not idle, since boot (proc_stat(5)).
fn busy_nanoseconds(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guest time is in user already.
    let whole: u64 = ticks.iter().take(8).sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    Some(whole.saturating_sub(idle) * (1_000_000_000 / TICKS_PER_SECOND))
}

fn booted_at(stat: &str) -> Option<Timestamp> {
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Timestamp::from_second(seconds).ok()
}

/// The number after a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok())?
    })
}

/// All but the loopback (proc_pid_net(5)): receive bytes packets errs ..., transmit from the ninth on.
fn interfaces(dev: &str) -> Vec<Interface> {
    let line = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let number = |at: usize| numbers.get(at).copied();
        Some(Interface {
            name: name.trim().to_owned(),
            rx_bytes: number(0)?,
            rx_errors: number(2)?,
            tx_bytes: number(8)?,
            tx_errors: number(10)?,
        })
    };
    dev.lines().filter_map(line).filter(|interface| interface.name != "lo").collect()
}

fn main_interface(route: &str) -> Option<String> {
    let default = |line: &&str| line.split_whitespace().nth(1) == Some("00000000");
    route.lines().skip(1).find(default)?.split_whitespace().next().map(str::to_owned)
}

fn processes(most: &str, loadavg: &str) -> Option<(u64, u64)> {
    let now = loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some((most.trim().parse().ok()?, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_proc_are_read() {
        let stat = "cpu  100 0 100 800 50 1 2 3 9 9\ncpu0 1\ncpu1 1\nbtime 1767225600\n";
        assert_eq!(busy_nanoseconds(stat), Some(2_060_000_000));
        assert_eq!(booted_at(stat), Timestamp::from_second(1_767_225_600).ok());
        assert_eq!(stat.lines().filter(|line| is_cpu(line)).count(), 2);
        assert_eq!(field("MemTotal:  2048 kB\nMemTotalX: 1 kB\n", "MemTotal:"), Some(2048));
        assert_eq!(field("pgfault 12\npgmajfault 3\n", "pgmajfault"), Some(3));
        let dev = "Inter-| Receive\n face |bytes\n  lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
                   eth0:10 2 3 0 0 0 0 0 20 4 5 0 0 0 0 0\n";
        let eth0 = Interface { name: "eth0".into(), rx_bytes: 10, rx_errors: 3, tx_bytes: 20, tx_errors: 5 };
        assert_eq!(interfaces(dev), [eth0]);
        let route = "Iface Destination Gateway\neth1 0000FEA9 0\neth0 00000000 0101A8C0\n";
        assert_eq!(main_interface(route).as_deref(), Some("eth0"));
        assert_eq!(processes("32768\n", "0.1 0.2 0.3 2/345 6789\n"), Some((32768, 345)));
        assert_eq!(processes("", ""), None);
    }

    #[test]
    fn this_machine_is_read() {
        let root = tempfile::tempdir().unwrap();
        let node = self_reading("n".into(), root.path(), None, Timestamp::now());
        assert!(node.cpus > 0 && node.memory_total > 0 && node.usage.working_set > Some(0), "{node:?}");
        assert!(node.disk.capacity > Some(0), "{node:?}");
    }
}
