//! longshore-core: every decision the node agent makes, as pure functions over values.
//!
//! Nothing here acts: no async, clock, files, sockets, environment. Time is always a parameter
//! (`jiff::Timestamp`). The crates around it observe the world into these types and execute the
//! steps these functions return.

pub mod bootstrap;
pub mod certificates;
pub mod conntrack;
pub mod event;
pub mod explain;
pub mod go_duration;
pub mod ids;
pub mod image;
pub mod kubelet_api;
pub mod mask;
pub mod node;
pub mod pod;
pub mod probe;
pub mod resources;
pub mod ruleset;
pub mod service;
pub mod volume;
pub mod why;
pub mod wire;
