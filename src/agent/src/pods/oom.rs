//! Whether the kernel killed an ended container for want of memory, where the runtime does not say so: its own
//! news of the kill can be lost when the container's cgroup goes first. The pod's cgroup outlives its
//! containers, and `memory.events` there counts the kills below it (cgroup-v2.rst, `memory.events`).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longshore_core::ids::{ContainerId, PodUid};
use longshore_core::pod::snapshot::NodeContext;
use longshore_core::resources::cgroup_names;
use longshore_core::resources::qos::QosClass;
use tokio::sync::watch;

use super::execute::PodCgroups;

/// Kills by pod, and whose ends were put down to them.
#[derive(Clone, Debug)]
pub struct OomKills {
    cgroups: Arc<dyn PodCgroups>,
    node: watch::Receiver<Arc<NodeContext>>,
    counts: Arc<Mutex<HashMap<PodUid, Count>>>,
}

#[derive(Debug, Default)]
struct Count {
    kills: u64,
    judged: HashSet<ContainerId>,
}

impl OomKills {
    pub fn new(cgroups: Arc<dyn PodCgroups>, node: watch::Receiver<Arc<NodeContext>>) -> Self {
        Self { cgroups, node, counts: Arc::default() }
    }

    /// Kills from now on count, where none were counted for this pod yet.
    pub async fn begin(&self, uid: &PodUid) {
        if !self.lock().contains_key(uid) {
            let kills = self.read(uid).await.unwrap_or_default();
            self.lock().entry(uid.clone()).or_insert(Count { kills, ..Count::default() });
        }
    }

    /// Which of these, ended by SIGKILL, the kernel ended: as many of those not asked about before as there were
    /// kills since the last question. Ends from before [`Self::begin`] are nobody's: that is not known.
    pub async fn ended_by_kernel(&self, uid: &PodUid, ended: &[ContainerId]) -> Vec<ContainerId> {
        if ended.is_empty()
            || self.lock().get(uid).is_some_and(|c| ended.iter().all(|id| c.judged.contains(id)))
        {
            return Vec::new();
        }
        let Some(kills) = self.read(uid).await else { return Vec::new() };
        let mut counts = self.lock();
        let known = counts.contains_key(uid);
        let count = counts.entry(uid.clone()).or_default();
        let more = if known { kills.saturating_sub(count.kills) } else { 0 };
        count.kills = kills;
        let fresh: Vec<_> = ended.iter().filter(|id| count.judged.insert((*id).clone())).collect();
        fresh.into_iter().take(usize::try_from(more).unwrap_or(usize::MAX)).cloned().collect()
    }

    /// The pod is gone.
    pub fn forget(&self, uid: &PodUid) {
        self.lock().remove(uid);
    }

    /// Kills below the pod's cgroup since it was made; `None` where the node makes none or it is gone. The class
    /// of a pod that is only known from the runtime is not known.
    async fn read(&self, uid: &PodUid) -> Option<u64> {
        let settings = self.node.borrow().cgroups.clone();
        for class in [QosClass::Burstable, QosClass::Guaranteed, QosClass::BestEffort] {
            let path = cgroup_names::pod(&settings, class, uid);
            if path.is_empty() {
                return None;
            }
            if let Some(kills) = self.cgroups.oom_kills(settings.driver, &path).await {
                return Some(kills);
            }
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PodUid, Count>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use async_trait::async_trait;
    use longshore_core::pod::snapshot::CgroupDriver;
    use longshore_core::pod::step::{PodCgroup, StepError};

    use super::*;
    use crate::pods::tests::node_context;

    /// One pod's cgroup, whose kernel counts.
    #[derive(Debug, Default)]
    pub(crate) struct Kernel(AtomicU64);

    impl Kernel {
        pub fn kill(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[async_trait]
    impl PodCgroups for Kernel {
        async fn ensure(&self, _: CgroupDriver, _: &PodCgroup) -> Result<(), StepError> {
            Ok(())
        }
        async fn remove(&self, _: CgroupDriver, _: &str) -> Result<(), StepError> {
            Ok(())
        }
        async fn oom_kills(&self, _: CgroupDriver, path: &str) -> Option<u64> {
            path.contains("besteffort").then(|| self.0.load(Ordering::Relaxed))
        }
    }

    /// A kernel that a test kills with, and what asks it.
    pub(crate) fn fake() -> (Arc<Kernel>, OomKills) {
        let mut node = node_context();
        node.cgroups.per_qos = true;
        let kernel = Arc::new(Kernel::default());
        (kernel.clone(), OomKills::new(kernel, watch::Sender::new(Arc::new(node)).subscribe()))
    }

    #[tokio::test]
    async fn a_kill_is_put_down_to_the_end_that_came_with_it() {
        let (kernel, kills) = fake();
        let uid: PodUid = "u".into();
        let ended = |names: &[&str]| names.iter().map(|n| ContainerId::from(*n)).collect::<Vec<_>>();
        kernel.kill();
        kills.begin(&uid).await;
        // (new kills, ended by SIGKILL so far, those that the kernel ended)
        let turns: [(u64, &[&str], &[&str]); 5] = [
            (0, &["stopped-by-us"], &[]),
            (1, &["stopped-by-us", "hungry"], &["hungry"]),
            (0, &["stopped-by-us", "hungry"], &[]),
            // Several processes of one container.
            (5, &["hungry", "again"], &["again"]),
            (0, &["again", "stopped-later"], &[]),
        ];
        for (new, all, by_kernel) in turns {
            (0..new).for_each(|_| kernel.kill());
            assert_eq!(kills.ended_by_kernel(&uid, &ended(all)).await, ended(by_kernel), "{new} {all:?}");
        }
    }

    #[tokio::test]
    async fn what_ended_before_the_daemon_looked_is_nobodys() {
        let (kernel, kills) = fake();
        let uid: PodUid = "u".into();
        kernel.kill();
        assert!(kills.ended_by_kernel(&uid, &["old".into()]).await.is_empty());
        kernel.kill();
        let ended = ["old".into(), "new".into()];
        assert_eq!(kills.ended_by_kernel(&uid, &ended).await, [ContainerId::from("new")]);
    }
}
