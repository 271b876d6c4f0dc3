//! Keeps emptyDir volumes on disk to their `sizeLimit`: measures them from time to time and ends the pod
//! of one that grew beyond it, as the kubelet's eviction does. What counts is decided in
//! `longshore_core::volume::limits`.

use std::path::PathBuf;
use std::time::Duration;

use longshore_core::ids::PodUid;
use longshore_core::pod::lifecycle::Lifecycle;
use longshore_core::volume::limits::{GRACE_SECONDS, LimitedVolume, limited, over_limit};

use crate::pods::Pods;
use crate::text::error_chain;
use crate::volumes::disk_usage;

/// Between two measurements, as `volumeStatsAggPeriod` is upstream.
const PERIOD: Duration = Duration::from_secs(60);

/// The emptyDir volumes of all pods.
#[derive(Clone, Debug)]
pub struct EmptyDirs {
    pub pods: Pods,
    /// `/var/lib/kubelet`.
    pub root: PathBuf,
}

impl EmptyDirs {
    /// Measures for as long as it is polled.
    pub async fn keep(self) {
        loop {
            tokio::time::sleep(PERIOD).await;
            self.look().await;
        }
    }

    async fn look(&self) {
        for view in self.pods.view().list() {
            if !matches!(view.lifecycle, Lifecycle::Syncing) {
                continue;
            }
            let pod_dir = self.root.join("pods").join(view.uid.as_str());
            let volumes = limited(&view.pod, &pod_dir);
            if volumes.is_empty() {
                continue;
            }
            let measured = tokio::task::spawn_blocking(move || first_over(&volumes)).await;
            match measured {
                Ok(Some(message)) => self.evict(&view.uid, message),
                Ok(None) => {}
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
    }

    fn evict(&self, uid: &PodUid, message: String) {
        tracing::warn!(%uid, message, "pod evicted");
        self.pods.evict(uid, message, GRACE_SECONDS);
    }
}

fn first_over(volumes: &[LimitedVolume]) -> Option<String> {
    volumes.iter().find_map(|volume| match disk_usage(&volume.path) {
        Ok(used) => over_limit(volume, used),
        // Not set up yet, most likely.
        Err(error) => {
            tracing::debug!(error = error_chain(&error), "volume not measured");
            None
        }
    })
}
