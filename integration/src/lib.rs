//! The harness: test images, throwaway nodes (native and QEMU), scenarios, tiers, the demo and the benches.
//! It starts and ends only processes of its own, inside namespaces or guests it made; no daemon code lives here.

pub mod bench;
pub mod cache;
pub mod check;
pub mod cluster;
pub mod demo;
pub mod fake;
pub mod guest;
pub mod images;
pub mod native;
pub mod node;
pub mod process;
pub mod qemu;
pub mod report;
pub mod root;
pub mod scenario;
pub mod tiers;
pub mod vm;
