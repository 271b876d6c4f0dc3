//! Control groups in memory, with processes that a test puts into them. Refuses what cgroupfs refuses.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use longshore_core::pod::step::CgroupLimits;
use nix::errno::Errno;

use super::stat::{MemoryEvents, PidsStat};
use super::{CgroupError, CgroupStat, Cgroups, relative};
use crate::fake::Faults;

/// Groups in memory.
#[derive(Debug, Default)]
pub struct FakeCgroups {
    /// Scripted faults; texts are `cgroup /kubepods: ensure`, `...: kill`, `...: remove`, `...: stat`.
    pub faults: Faults,
    groups: Mutex<BTreeMap<String, Group>>,
}

#[derive(Debug, Default, Clone)]
struct Group {
    limits: CgroupLimits,
    processes: u64,
    stat: CgroupStat,
    /// Processes that ignore a kill, as those in uninterruptible sleep do.
    stuck: bool,
}

impl FakeCgroups {
    /// An empty hierarchy.
    pub fn new() -> Self {
        FakeCgroups::default()
    }

    /// A group's limits.
    pub fn limits(&self, path: &str) -> Option<CgroupLimits> {
        self.lock().get(path).map(|group| group.limits.clone())
    }

    /// Every group, sorted by path.
    pub fn paths(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Put processes into a group, making it where needed, as a runtime does.
    pub fn set_processes(&self, path: &str, processes: u64) {
        self.lock().entry(path.to_owned()).or_default().processes = processes;
    }

    /// Make a group's processes survive kills.
    pub fn set_stuck(&self, path: &str, stuck: bool) {
        self.lock().entry(path.to_owned()).or_default().stuck = stuck;
    }

    /// Set a group's figures; the number of processes stays what it is.
    pub fn set_stat(&self, path: &str, stat: CgroupStat) {
        self.lock().entry(path.to_owned()).or_default().stat = stat;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, path: &str, op: &str) -> Result<MutexGuard<'_, BTreeMap<String, Group>>, CgroupError> {
        relative(path)?;
        let fault = self.faults.check(&format!("cgroup {path}: {op}"));
        fault.map_err(|source| CgroupError::Io { path: path.to_owned(), op: op.to_owned(), source })?;
        Ok(self.lock())
    }
}

fn is_within(path: &str, ancestor: &str) -> bool {
    path.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[async_trait]
impl Cgroups for FakeCgroups {
    async fn ensure(&self, path: &str, limits: &CgroupLimits) -> Result<(), CgroupError> {
        let mut groups = self.check(path, "ensure")?;
        for (at, _) in path.match_indices('/').skip(1) {
            groups.entry(path[..at].to_owned()).or_default();
        }
        groups.entry(path.to_owned()).or_default().limits = limits.clone();
        Ok(())
    }

    async fn memory_events(&self, path: &str) -> Result<Option<MemoryEvents>, CgroupError> {
        let groups = self.check(path, "memory events")?;
        Ok(groups.get(path).map(|group| group.stat.memory.map(|memory| memory.events).unwrap_or_default()))
    }

    async fn stat(&self, path: &str) -> Result<Option<CgroupStat>, CgroupError> {
        let groups = self.check(path, "stat")?;
        let processes: u64 =
            groups.iter().filter(|(name, _)| is_within(name, path)).map(|(_, group)| group.processes).sum();
        Ok(groups.get(path).map(|group| CgroupStat {
            populated: processes > 0,
            pids: Some(PidsStat { current: processes, max: group.limits.pids_max }),
            ..group.stat.clone()
        }))
    }

    async fn kill(&self, path: &str) -> Result<(), CgroupError> {
        let mut groups = self.check(path, "kill")?;
        for (_, group) in groups.iter_mut().filter(|(name, _)| is_within(name, path)) {
            if !group.stuck {
                group.processes = 0;
            }
        }
        Ok(())
    }

    async fn remove(&self, path: &str) -> Result<(), CgroupError> {
        let mut groups = self.check(path, "remove")?;
        if let Some((busy, _)) =
            groups.iter().find(|(name, group)| is_within(name, path) && group.processes > 0)
        {
            return Err(CgroupError::Io {
                path: busy.clone(),
                op: "remove".to_owned(),
                source: Errno::EBUSY,
            });
        }
        groups.retain(|name, _| !is_within(name, path));
        Ok(())
    }

    async fn exists(&self, path: &str) -> Result<bool, CgroupError> {
        Ok(self.check(path, "look up")?.contains_key(path))
    }

    async fn children(&self, path: &str) -> Result<Vec<String>, CgroupError> {
        let prefix = format!("{}/", path.trim_end_matches('/'));
        let groups = self.check(path, "list")?;
        let names = groups.keys().filter_map(|name| name.strip_prefix(&prefix));
        Ok(names.filter(|name| !name.contains('/')).map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn groups_with_processes_cannot_be_removed_until_they_are_killed() {
        let cgroups = FakeCgroups::new();
        let limits = CgroupLimits { memory_max: Some(1 << 20), ..CgroupLimits::default() };
        cgroups.ensure("/kubepods/burstable/podx", &limits).await.unwrap();
        assert_eq!(cgroups.paths(), ["/kubepods", "/kubepods/burstable", "/kubepods/burstable/podx"]);
        cgroups.set_processes("/kubepods/burstable/podx/c1", 2);
        assert_eq!(cgroups.children("/kubepods/burstable").await.unwrap(), ["podx"]);
        assert!(cgroups.stat("/kubepods").await.unwrap().unwrap().populated);

        let err = cgroups.remove("/kubepods/burstable/podx").await.unwrap_err();
        assert_eq!(err.to_string(), "cgroup /kubepods/burstable/podx/c1: remove");
        assert!(err.is_retryable());
        cgroups.kill("/kubepods/burstable/podx").await.unwrap();
        cgroups.remove("/kubepods/burstable/podx").await.unwrap();
        assert_eq!(cgroups.exists("/kubepods/burstable/podx/c1").await, Ok(false));
        assert_eq!(cgroups.stat("/kubepods/burstable/podx").await, Ok(None));
        cgroups.remove("/kubepods/burstable/podx").await.unwrap();
    }

    #[tokio::test]
    async fn a_neighbour_of_similar_name_is_not_touched() {
        let cgroups = FakeCgroups::new();
        cgroups.set_processes("/kubepods/pod1", 1);
        cgroups.set_processes("/kubepods/pod11", 1);
        cgroups.kill("/kubepods/pod1").await.unwrap();
        cgroups.remove("/kubepods/pod1").await.unwrap();
        assert!(cgroups.stat("/kubepods/pod11").await.unwrap().unwrap().populated);
    }

    #[tokio::test]
    async fn paths_stay_within_the_hierarchy() {
        let cgroups = FakeCgroups::new();
        for path in ["kubepods", "/../etc", "/a/../b", ""] {
            assert_eq!(cgroups.kill(path).await, Err(CgroupError::BadPath(path.to_owned())), "{path}");
        }
    }
}
