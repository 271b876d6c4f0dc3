//! The pod level of the cgroup tree for steps: nothing where the node is told to leave cgroups alone.

use std::sync::Arc;

use async_trait::async_trait;
use longshore_core::pod::snapshot::CgroupSettings;
use longshore_core::pod::step::{PodCgroup, StepError};

use crate::pods::execute::PodCgroups;

/// The cgroups a node with these settings makes for its pods.
pub fn for_settings(settings: &CgroupSettings) -> Arc<dyn PodCgroups> {
    let _ = settings;
    Arc::new(NoCgroups)
}

/// `cgroupsPerQOS: false`: the runtime puts containers where it likes, and no plan asks for more.
#[derive(Clone, Copy, Debug)]
pub struct NoCgroups;

#[async_trait]
impl PodCgroups for NoCgroups {
    async fn ensure(&self, _cgroup: &PodCgroup) -> Result<(), StepError> {
        Ok(())
    }
    async fn remove(&self, _path: &str) -> Result<(), StepError> {
        Ok(())
    }
}
