//! The `cgroupfs` driver: groups are folders of the cgroup file system. Limits are written through
//! cgroups-rs' controllers; making groups, enabling controllers, killing and reading are ours, since
//! cgroups-rs drops the errors of the second and reads failures as 0 in the last.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::hugetlb::HugeTlbController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use longshore_core::pod::step::CgroupLimits;
use nix::errno::Errno;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::stat::{self, CgroupStat, MemoryEvents, MemoryStat, PidsStat};
use super::{CgroupError, Cgroups, needed, relative};

/// What pods and containers may use, enabled on the way down where the kernel has it. `cpuset` and `io`
/// are for containers: runtimes expect them below the pod.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];

/// No file of a group is longer; `memory.stat` has about 1.5 KiB, `io.stat` a line per device.
const MAX_FILE: u64 = 256 * 1024;

/// The kernel's default of `cpu.max`'s period, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;
const DEFAULT_WEIGHT: u64 = 100;

/// Groups as folders below a mount of the version 2 hierarchy.
#[derive(Debug, Clone)]
pub struct FsCgroups {
    root: PathBuf,
}

impl FsCgroups {
    /// Groups below `root`, which has to be a cgroup v2 mount or a folder in one.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, CgroupError> {
        let root = root.into();
        match statfs(&root) {
            Ok(kind) if kind.filesystem_type() == CGROUP2_SUPER_MAGIC => Ok(FsCgroups { root }),
            _ => Err(CgroupError::NotV2(root.display().to_string())),
        }
    }

    /// The controllers the kernel offers at the root.
    pub fn controllers(&self) -> Result<BTreeSet<String>, CgroupError> {
        self.words("/", &self.root.join("cgroup.controllers"))
    }

    /// The folder of a group.
    pub(super) fn folder(&self, path: &str) -> Result<PathBuf, CgroupError> {
        Ok(self.root.join(relative(path)?))
    }

    fn words(&self, path: &str, file: &Path) -> Result<BTreeSet<String>, CgroupError> {
        let text = read_bounded(file).map_err(|err| failure(path, read_op(file), &err))?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }

    /// Enable controllers for the children of every group from the root down to `path` itself.
    fn enable_down_to(&self, path: &str, needed: &[&'static str]) -> Result<(), CgroupError> {
        let mut folder = self.root.clone();
        let mut at = String::from("/");
        let mut rest = relative(path)?.components();
        loop {
            self.enable(path, &folder, &at, needed)?;
            let Some(part) = rest.next() else { return Ok(()) };
            folder.push(part);
            at = format!("{}/{}", at.trim_end_matches('/'), part.as_os_str().to_string_lossy());
            match fs::create_dir(&folder) {
                Ok(()) => {}
                Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
                Err(err) => return Err(failure(&at, "make".to_owned(), &err)),
            }
        }
    }

    fn enable(
        &self,
        path: &str,
        folder: &Path,
        at: &str,
        needed: &[&'static str],
    ) -> Result<(), CgroupError> {
        let available = self.words(at, &folder.join("cgroup.controllers"))?;
        let control = folder.join("cgroup.subtree_control");
        let enabled = self.words(at, &control)?;
        for controller in CONTROLLERS {
            let is_needed = needed.contains(&controller);
            if enabled.contains(controller) {
                continue;
            }
            if !available.contains(controller) {
                if is_needed {
                    return Err(CgroupError::NoController {
                        path: path.to_owned(),
                        controller,
                        at: at.to_owned(),
                    });
                }
                continue;
            }
            // The group itself has no children yet that a limit could need it for.
            let optional = !is_needed || at == path;
            match write_file(&control, &format!("+{controller}")) {
                Ok(()) => {}
                Err(_) if optional => {}
                Err(err) => {
                    let op = format!("enable controller {controller} for groups below {at}");
                    return Err(failure(path, op, &err));
                }
            }
        }
        Ok(())
    }

    /// Write the limits that differ, through cgroups-rs.
    fn limit(&self, path: &str, limits: &CgroupLimits) -> Result<(), CgroupError> {
        let folder = self.folder(path)?;
        let current = |file: &str| read_bounded(&folder.join(file)).ok();
        let point = || (folder.clone(), self.root.clone());
        let cpu = || CpuController::new(point().0, point().1, true);
        let weight = limits.cpu_weight.unwrap_or(DEFAULT_WEIGHT);
        if current("cpu.weight").is_some_and(|now| stat::number(&now) != Some(weight)) {
            written(path, format!("set cpu.weight to {weight}"), cpu().set_shares(weight))?;
        }
        let (quota, period) = match limits.cpu_max {
            Some((quota, period)) => (i64::try_from(quota).unwrap_or(i64::MAX), period),
            None => (-1, DEFAULT_PERIOD),
        };
        let quota_text = if quota < 0 { "max".to_owned() } else { quota.to_string() };
        let max = format!("{quota_text} {period}");
        if current("cpu.max").is_some_and(|now| now.trim() != max) {
            let outcome = cpu().set_cfs_quota_and_period(Some(quota), Some(period));
            written(path, format!("set cpu.max to {max}"), outcome)?;
        }
        if current("memory.max").is_some_and(|now| stat::limit(&now) != Some(page_floor(limits.memory_max))) {
            let value = limits.memory_max.map_or(-1, |max| i64::try_from(max).unwrap_or(i64::MAX));
            let outcome = MemController::new(point().0, point().1, true).set_limit(value);
            written(path, format!("set memory.max to {}", or_max(limits.memory_max)), outcome)?;
        }
        if current("pids.max").is_some_and(|now| stat::limit(&now) != Some(limits.pids_max)) {
            let max = limits.pids_max.map(|max| i64::try_from(max).unwrap_or(i64::MAX));
            let value = max.map_or(MaxValue::Max, MaxValue::Value);
            let outcome = PidController::new(point().0, point().1, true).set_pid_max(value);
            written(path, format!("set pids.max to {}", or_max(limits.pids_max)), outcome)?;
        }
        self.limit_hugetlb(path, limits)
    }

    /// Also used by the systemd driver, since systemd knows nothing of huge pages.
    pub(super) fn limit_hugetlb(&self, path: &str, limits: &CgroupLimits) -> Result<(), CgroupError> {
        if limits.hugetlb.is_empty() {
            return Ok(());
        }
        let controller = HugeTlbController::new(self.folder(path)?, self.root.clone(), true);
        for (size, max) in &limits.hugetlb {
            let op = format!("set hugetlb.{size}.max to {max}");
            written(path, op, controller.set_limit_in_bytes(size, *max))?;
        }
        Ok(())
    }

    fn read_memory_events(&self, path: &str) -> Result<Option<MemoryEvents>, CgroupError> {
        match read_bounded(&self.folder(path)?.join("memory.events")) {
            Ok(text) => Ok(Some(stat::parse_memory_events(&text))),
            Err(err) if is_gone(&err) => Ok(None),
            Err(err) => Err(failure(path, "read memory.events".to_owned(), &err)),
        }
    }

    fn read_stat(&self, path: &str) -> Result<Option<CgroupStat>, CgroupError> {
        let folder = self.folder(path)?;
        let events = match read_bounded(&folder.join("cgroup.events")) {
            Ok(events) => events,
            Err(err) if is_gone(&err) && !folder.exists() => return Ok(None),
            // The root has no events; it is always populated.
            Err(err) if is_gone(&err) => "populated 1".to_owned(),
            Err(err) => return Err(failure(path, "read cgroup.events".to_owned(), &err)),
        };
        let read = |file: &str| read_bounded(&folder.join(file)).ok();
        let pressure = |file: &str| read(file).and_then(|text| stat::parse_pressure(&text));
        let memory = read("memory.current").and_then(|text| stat::number(&text)).map(|current| {
            let mut memory = MemoryStat {
                current,
                max: read("memory.max").and_then(|text| stat::limit(&text)).flatten(),
                swap: read("memory.swap.current").and_then(|text| stat::number(&text)),
                ..MemoryStat::default()
            };
            let text = |file: &str| read(file).unwrap_or_default();
            stat::parse_memory(&mut memory, &text("memory.stat"), &text("memory.events"));
            memory
        });
        let pids = read("pids.current").and_then(|text| stat::number(&text)).map(|current| PidsStat {
            current,
            max: read("pids.max").and_then(|text| stat::limit(&text)).flatten(),
        });
        Ok(Some(CgroupStat {
            populated: stat::field(&events, "populated") == Some(1),
            memory,
            cpu: read("cpu.stat").and_then(|text| stat::parse_cpu(&text)),
            pids,
            io: read("io.stat").map(|text| stat::parse_io(&text)).unwrap_or_default(),
            cpu_pressure: pressure("cpu.pressure"),
            memory_pressure: pressure("memory.pressure"),
            io_pressure: pressure("io.pressure"),
        }))
    }

    fn child_names(&self, path: &str) -> Result<Vec<String>, CgroupError> {
        let entries = match fs::read_dir(self.folder(path)?) {
            Ok(entries) => entries,
            Err(err) if is_gone(&err) => return Ok(vec![]),
            Err(err) => return Err(failure(path, "list".to_owned(), &err)),
        };
        let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let mut names: Vec<String> =
            folders.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Groups are removed leaves first; their files go with them, so that this never deletes data.
    fn remove_tree(&self, path: &str) -> Result<(), CgroupError> {
        for child in self.child_names(path)? {
            self.remove_tree(&format!("{}/{child}", path.trim_end_matches('/')))?;
        }
        match fs::remove_dir(self.folder(path)?) {
            Ok(()) => Ok(()),
            Err(err) if is_gone(&err) => Ok(()),
            Err(err) => Err(failure(path, "remove".to_owned(), &err)),
        }
    }

    pub(super) fn kill_all(&self, path: &str) -> Result<(), CgroupError> {
        let folder = self.folder(path)?;
        match write_file(&folder.join("cgroup.kill"), "1") {
            Ok(()) => Ok(()),
            Err(err) if is_gone(&err) && !folder.exists() => Ok(()),
            Err(err) => Err(failure(path, "kill".to_owned(), &err)),
        }
    }

    /// Run file system work, which may wait for the kernel's cgroup lock, off the async threads.
    async fn blocking<T: Send + 'static>(
        &self,
        path: &str,
        work: impl FnOnce(&FsCgroups, &str) -> Result<T, CgroupError> + Send + 'static,
    ) -> Result<T, CgroupError> {
        let (this, owned) = (self.clone(), path.to_owned());
        let outcome = tokio::task::spawn_blocking(move || work(&this, &owned)).await;
        outcome.unwrap_or_else(|_| {
            let op = "work ended before it was done".to_owned();
            Err(CgroupError::Io { path: path.to_owned(), op, source: Errno::EINTR })
        })
    }
}

#[async_trait]
impl Cgroups for FsCgroups {
    async fn ensure(&self, path: &str, limits: &CgroupLimits) -> Result<(), CgroupError> {
        let limits = limits.clone();
        self.blocking(path, move |this, path| {
            this.enable_down_to(path, &needed(&limits))?;
            this.limit(path, &limits)
        })
        .await
    }

    async fn stat(&self, path: &str) -> Result<Option<CgroupStat>, CgroupError> {
        self.blocking(path, FsCgroups::read_stat).await
    }

    async fn memory_events(&self, path: &str) -> Result<Option<MemoryEvents>, CgroupError> {
        self.blocking(path, FsCgroups::read_memory_events).await
    }

    async fn kill(&self, path: &str) -> Result<(), CgroupError> {
        self.blocking(path, FsCgroups::kill_all).await
    }

    async fn remove(&self, path: &str) -> Result<(), CgroupError> {
        self.blocking(path, FsCgroups::remove_tree).await
    }

    async fn exists(&self, path: &str) -> Result<bool, CgroupError> {
        self.blocking(path, |this, path| Ok(this.folder(path)?.is_dir())).await
    }

    async fn children(&self, path: &str) -> Result<Vec<String>, CgroupError> {
        self.blocking(path, FsCgroups::child_names).await
    }
}

/// The kernel keeps memory limits in whole pages, rounded down.
fn page_floor(bytes: Option<u64>) -> Option<u64> {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    let page = page.and_then(|page| u64::try_from(page).ok()).unwrap_or(4096);
    bytes.map(|bytes| bytes / page * page)
}

fn or_max(limit: Option<u64>) -> String {
    limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string())
}

fn is_gone(err: &io::Error) -> bool {
    // ENODEV is what an open file of a removed group answers with.
    matches!(err.raw_os_error().map(Errno::from_raw), Some(Errno::ENOENT | Errno::ENODEV))
}

fn read_op(file: &Path) -> String {
    format!("read {}", file.file_name().unwrap_or_default().to_string_lossy())
}

fn read_bounded(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(file)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// Never creates the file, which on another file system would look like a success.
fn write_file(file: &Path, value: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(file)?;
    io::Write::write_all(&mut file, value.as_bytes())
}

fn failure(path: &str, op: String, err: &io::Error) -> CgroupError {
    let source = Errno::from_raw(err.raw_os_error().unwrap_or(0));
    CgroupError::Io { path: path.to_owned(), op, source }
}

fn written(
    path: &str,
    op: String,
    outcome: Result<(), cgroups_rs::fs::error::Error>,
) -> Result<(), CgroupError> {
    outcome.map_err(|err| {
        let cause = std::error::Error::source(&err).and_then(|cause| cause.downcast_ref::<io::Error>());
        let source = cause.and_then(io::Error::raw_os_error).map_or(Errno::EINVAL, Errno::from_raw);
        CgroupError::Io { path: path.to_owned(), op, source }
    })
}
