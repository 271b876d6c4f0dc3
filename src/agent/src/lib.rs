//! longshore-agent: the daemon. Sources, pod workers, volumes, probes, dataplane and admin socket,
//! put together in `wiring`. Decisions live in `longshore-core`; here they are carried out.

pub mod admin;
pub mod config;
pub mod document;
pub mod journal;
pub mod metrics;
pub mod pods;
pub mod sources;
pub mod text;
pub mod volumes;
