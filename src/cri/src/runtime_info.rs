//! What the runtime says of itself: version, conditions, set-up.

use async_trait::async_trait;

use crate::api::v1;
use crate::client::CriClient;
use crate::convert;
use crate::counters::Operation;
use crate::error::{CriError, ErrorKind};

/// Facts about the runtime as a whole.
#[async_trait]
pub trait RuntimeInfo: Send + Sync {
    async fn version(&self) -> Result<RuntimeVersion, CriError>;
    async fn status(&self) -> Result<RuntimeStatus, CriError>;
    /// The cgroup driver the runtime is set up for; `None` where it does not tell (containerd before 2.0,
    /// CRI-O before 1.28): then the configuration says.
    async fn cgroup_driver(&self) -> Result<Option<CgroupDriver>, CriError>;
    /// Tells the runtime the pods' address range, for runtimes that write their own CNI configuration.
    async fn update_pod_cidr(&self, cidr: &str) -> Result<(), CriError>;
}

/// Who the runtime is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeVersion {
    /// As `containerd`.
    pub name: String,
    pub version: String,
    /// Of the CRI; `v1`.
    pub api_version: String,
}

/// Conditions and abilities of the runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeStatus {
    pub conditions: Vec<RuntimeCondition>,
    pub handlers: Vec<RuntimeHandler>,
    /// Honours `supplementalGroupsPolicy: Strict`.
    pub supplemental_groups_policy: bool,
}

impl RuntimeStatus {
    /// Condition `RuntimeReady`; absent counts as not ready.
    pub fn runtime_ready(&self) -> bool {
        self.condition("RuntimeReady").is_some_and(|condition| condition.status)
    }

    /// Condition `NetworkReady`; absent counts as not ready.
    pub fn network_ready(&self) -> bool {
        self.condition("NetworkReady").is_some_and(|condition| condition.status)
    }

    pub fn condition(&self, kind: &str) -> Option<&RuntimeCondition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeCondition {
    pub kind: String,
    pub status: bool,
    /// One word.
    pub reason: String,
    pub message: String,
}

/// A runtime class handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeHandler {
    /// Empty for the default one.
    pub name: String,
    pub recursive_read_only_mounts: bool,
    pub user_namespaces: bool,
}

/// Who makes cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    Systemd,
    Cgroupfs,
}

#[async_trait]
impl RuntimeInfo for CriClient {
    async fn version(&self) -> Result<RuntimeVersion, CriError> {
        let call = self.call_itself(Operation::Version);
        // The kubelet has always sent its own API version, 0.1.0, and no runtime looks at it.
        let request = v1::VersionRequest { version: "0.1.0".to_owned() };
        let answer = self.run(&call, request, |mut c, r| async move { c.version(r).await }).await?;
        Ok(RuntimeVersion {
            name: answer.runtime_name,
            version: answer.runtime_version,
            api_version: answer.runtime_api_version,
        })
    }

    async fn status(&self) -> Result<RuntimeStatus, CriError> {
        let call = self.call_itself(Operation::Status);
        let request = v1::StatusRequest { verbose: false };
        let answer = self.run(&call, request, |mut c, r| async move { c.status(r).await }).await?;
        Ok(convert::runtime_status(answer))
    }

    async fn cgroup_driver(&self) -> Result<Option<CgroupDriver>, CriError> {
        let call = self.call_itself(Operation::RuntimeConfig);
        let request = v1::RuntimeConfigRequest::default();
        match self.run(&call, request, |mut c, r| async move { c.runtime_config(r).await }).await {
            Ok(answer) => convert::cgroup_driver(&answer).map_err(|error| call.bad_answer(error)),
            Err(error) if error.kind == ErrorKind::Unimplemented => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn update_pod_cidr(&self, cidr: &str) -> Result<(), CriError> {
        let call = self.call_itself(Operation::UpdateRuntimeConfig);
        let network_config = Some(v1::NetworkConfig { pod_cidr: cidr.to_owned() });
        let request =
            v1::UpdateRuntimeConfigRequest { runtime_config: Some(v1::RuntimeConfig { network_config }) };
        self.run(&call, request, |mut c, r| async move { c.update_runtime_config(r).await }).await.map(drop)
    }
}
