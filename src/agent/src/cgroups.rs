//! The cgroup tree above the containers: pod level for steps, and the QoS levels kept up beside
//! them. Names and values are decided in `core`, the kernel's files and systemd are in `kernel`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_core::pod::snapshot::{CgroupDriver, CgroupSettings, NodeContext};
use longshore_core::pod::step::{PodCgroup, StepError};
use longshore_core::resources::qos::QosClass;
use longshore_core::resources::{cgroup_names, cgroup_values};
use longshore_kernel::cgroup::{CgroupError, Cgroups, DEFAULT_ROOT, FsCgroups, SystemdCgroups};
use tokio::sync::watch;

use crate::pods::PodsView;
use crate::pods::execute::PodCgroups;
use crate::text::error_chain;

/// Values of the QoS levels are looked at again after this long (kubelet-surface B11), and whenever
/// the pods of the node change.
const QOS_PERIOD: Duration = Duration::from_secs(60);
/// Between two looks: many pods that change together are summed up once.
const QOS_PAUSE: Duration = Duration::from_millis(100);
/// Killed processes leave their cgroup within milliseconds; one that hangs in the kernel may not.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);
const EMPTY_POLL: Duration = Duration::from_millis(20);
/// Memory above allocatable in kubepods' limit, so that eviction acts before the kernel does.
const EVICTION_MEMORY: u64 = 100 << 20;

/// The cgroups a node with these settings makes for its pods.
///
/// # Errors
/// Where cgroups are wanted and cgroup v2 is not there.
pub fn for_settings(settings: &CgroupSettings) -> Result<Arc<dyn PodCgroups>, CgroupError> {
    if !settings.per_qos {
        return Ok(Arc::new(NoCgroups));
    }
    let files = FsCgroups::open(Path::new(DEFAULT_ROOT))?;
    let systemd = SystemdCgroups::new(files.clone());
    Ok(Arc::new(CgroupTree { cgroupfs: Arc::new(files), systemd: Arc::new(systemd) }))
}

/// `cgroupsPerQOS: false`: the runtime puts containers where it likes, and no plan asks for more.
#[derive(Clone, Copy, Debug)]
pub struct NoCgroups;

#[async_trait]
impl PodCgroups for NoCgroups {
    async fn ensure(&self, _driver: CgroupDriver, _cgroup: &PodCgroup) -> Result<(), StepError> {
        Ok(())
    }
    async fn remove(&self, _driver: CgroupDriver, _path: &str) -> Result<(), StepError> {
        Ok(())
    }
}

/// The tree by either driver; which one is in force the runtime says.
pub struct CgroupTree {
    pub cgroupfs: Arc<dyn Cgroups>,
    pub systemd: Arc<dyn Cgroups>,
}

impl std::fmt::Debug for CgroupTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CgroupTree")
    }
}

impl CgroupTree {
    fn by(&self, driver: CgroupDriver) -> &dyn Cgroups {
        match driver {
            CgroupDriver::Systemd => &*self.systemd,
            CgroupDriver::Cgroupfs => &*self.cgroupfs,
        }
    }
}

#[async_trait]
impl PodCgroups for CgroupTree {
    async fn ensure(&self, driver: CgroupDriver, cgroup: &PodCgroup) -> Result<(), StepError> {
        self.by(driver).ensure(&cgroup.path, &cgroup.limits).await.map_err(|error| step_error(&error))
    }

    async fn oom_kills(&self, driver: CgroupDriver, path: &str) -> Option<u64> {
        self.by(driver).memory_events(path).await.ok().flatten().map(|events| events.oom_kill)
    }

    async fn remove(&self, driver: CgroupDriver, path: &str) -> Result<(), StepError> {
        let cgroups = self.by(driver);
        cgroups.kill(path).await.map_err(|error| step_error(&error))?;
        let begin = tokio::time::Instant::now();
        loop {
            match cgroups.remove(path).await {
                Err(error) if error.is_retryable() && begin.elapsed() < EMPTY_WITHIN => {
                    tokio::time::sleep(EMPTY_POLL).await;
                }
                result => return result.map_err(|error| step_error(&error)),
            }
        }
    }
}

fn step_error(error: &CgroupError) -> StepError {
    StepError {
        reason: "FailedToCreatePodCgroup".into(),
        message: error_chain(error),
        retryable: error.is_retryable(),
    }
}

/// Keeps kubepods and the two QoS levels below it as the pods of the node want them.
pub async fn keep_qos_levels(
    cgroups: Arc<dyn PodCgroups>,
    mut node: watch::Receiver<Arc<NodeContext>>,
    pods: PodsView,
) {
    let mut changes = pods.changes();
    let mut last = None;
    loop {
        let now = node.borrow_and_update().clone();
        if now.cgroups.per_qos {
            let wanted = qos_levels(&now, &pods);
            if last.as_ref() != Some(&wanted) && ensure_all(&*cgroups, now.cgroups.driver, &wanted).await {
                last = Some(wanted);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(QOS_PERIOD) => last = None,
            changed = changes.changed() => if changed.is_err() { return },
            changed = node.changed() => if changed.is_err() { return },
        }
        tokio::time::sleep(QOS_PAUSE).await;
        changes.mark_unchanged();
    }
}

fn qos_levels(node: &NodeContext, pods: &PodsView) -> Vec<PodCgroup> {
    let views = pods.list();
    let all = || views.iter().map(|view| &*view.pod);
    let level = |class| PodCgroup {
        path: cgroup_names::qos(&node.cgroups, class),
        limits: cgroup_values::qos_limits(class, all()),
    };
    vec![
        PodCgroup {
            path: cgroup_names::kubepods(&node.cgroups),
            limits: cgroup_values::kubepods_limits(node, EVICTION_MEMORY, None),
        },
        level(QosClass::Burstable),
        level(QosClass::BestEffort),
    ]
}

async fn ensure_all(cgroups: &dyn PodCgroups, driver: CgroupDriver, wanted: &[PodCgroup]) -> bool {
    for cgroup in wanted {
        if let Err(error) = cgroups.ensure(driver, cgroup).await {
            tracing::error!(path = cgroup.path, error = error.message, "QoS cgroup");
            return false;
        }
    }
    true
}
