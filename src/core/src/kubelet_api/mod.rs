//! The kubelet's API as decisions: which request is which, what a caller must be allowed to do for it, which
//! log of a container is meant and how its lines are shown, what statistics and metrics look like. No
//! sockets, no files, no clock; `longshore_agent::server` listens and acts.
//! Facts: pkg/kubelet/server (server.go, auth.go) of Kubernetes 1.36 and KEP-2862.

pub mod access;
pub mod cache;
pub mod exposition;
pub mod log_source;
pub mod log_text;
pub mod node_log;
pub mod query;
pub mod route;
pub mod summary;
