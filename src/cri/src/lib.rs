//! The container runtime as longshore sees it: a CRI v1 client, its event stream, and the conversion
//! between CRI messages and `longshore_core`'s types. No decision is made here.
//!
//! [`Runtime`] is what the agent holds: one `Arc<dyn ..>` per subject, served by [`CriClient`]. The same
//! bundle of a [`fake::FakeRuntime`] (feature `fake`) serves tests and benches.

pub mod api;
pub mod client;
pub mod containers;
pub mod convert;
pub mod counters;
pub mod error;
pub mod events;
#[cfg(feature = "fake")]
pub mod fake;
pub mod images;
pub mod observe;
pub mod pull_failure;
pub mod runtime_info;
pub mod sandboxes;
pub mod streaming_url;
pub mod streams;

use std::sync::Arc;

pub use client::{CriClient, Timeouts};
pub use containers::{ContainerFilter, ContainerPhase, ContainerUpkeep, Containers};
pub use convert::{ConvertError, Listing};
pub use counters::{CallCounters, Operation, OperationCount};
pub use error::{CriError, ErrorKind};
pub use events::{ContainerEvents, EventKind, RuntimeEvent};
pub use images::{ImagePull, Images, RegistryAuth};
pub use observe::{NodeObservation, Observer, PodDigest};
pub use pull_failure::PullFailure;
pub use runtime_info::{CgroupDriver, RuntimeHandler, RuntimeInfo, RuntimeStatus, RuntimeVersion};
pub use sandboxes::{SandboxFilter, Sandboxes};
pub use streaming_url::{StreamingUrl, StreamingUrlError};
pub use streams::{ExecOutput, StreamIo, Streams};

/// A runtime by subject. Hand each task the few handles it needs.
#[derive(Clone)]
pub struct Runtime {
    pub sandboxes: Arc<dyn Sandboxes>,
    pub containers: Arc<dyn Containers>,
    pub upkeep: Arc<dyn ContainerUpkeep>,
    pub images: Arc<dyn Images>,
    pub streams: Arc<dyn Streams>,
    pub info: Arc<dyn RuntimeInfo>,
    pub events: Arc<dyn ContainerEvents>,
    pub counters: Arc<CallCounters>,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Runtime")
    }
}

impl Runtime {
    /// Everything over one client.
    pub fn new(client: CriClient) -> Self {
        let counters = Arc::clone(client.counters());
        let client = Arc::new(client);
        Self {
            sandboxes: client.clone(),
            containers: client.clone(),
            upkeep: client.clone(),
            images: client.clone(),
            streams: client.clone(),
            info: client.clone(),
            events: client,
            counters,
        }
    }

    /// The same with another client for images (`imageServiceEndpoint`); see [`CriClient::at`].
    #[must_use]
    pub fn with_images(self, images: CriClient) -> Self {
        Self { images: Arc::new(images), ..self }
    }

    /// Reads whole pods from it.
    pub fn observer(&self) -> Observer {
        Observer::new(Arc::clone(&self.sandboxes), Arc::clone(&self.containers))
    }
}
