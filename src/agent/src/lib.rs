//! longshore-agent: the daemon. Sources, pod workers, volumes, probes, dataplane and admin socket,
//! put together in `wiring`. Decisions live in `longshore-core`; here they are carried out.

pub mod admin;
pub mod config;
pub mod document;
pub mod hooks;
pub mod images;
pub mod journal;
pub mod lock;
pub mod logging;
pub mod metrics;
pub mod node;
pub mod pods;
pub mod probes;
pub mod reads;
pub mod sources;
pub mod supervisor;
pub mod text;
pub mod volumes;
