//! The Kubernetes API as a node uses it: one HTTP/2 connection, watches into bounded slim types, the
//! node's lease, status and events. What is written and when it is worth writing is decided in
//! `longshore_core`; here are only the ways to read and write it, and a fake API server (feature `fake`).

pub mod backoff;
pub mod client;
pub mod credentials;
pub mod discovery;
pub mod error;
pub mod events;
#[cfg(feature = "fake")]
pub mod fake;
pub mod kubeconfig;
pub mod lease;
pub mod lines;
pub mod node;
mod object;
pub mod path;
pub mod pod_status;
pub mod review;
#[cfg(test)]
mod test_tls;
pub mod token;
pub mod transport;
mod version;
pub mod watch;

pub use client::{ApiClient, PatchKind};
pub use credentials::{Credentials, CredentialsError};
pub use discovery::DiscoveryTransport;
pub use error::ApiError;
pub use kubeconfig::{Kubeconfig, KubeconfigError};
pub use path::Path;
pub use transport::{TlsTransport, Transport};
pub use watch::{News, Piece, Selector, Unreadable, Watch};
