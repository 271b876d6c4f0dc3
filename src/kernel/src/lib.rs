//! longshore-kernel: every kernel interface the node agent touches, each behind a narrow trait with
//! its real implementation (`Real*`) and, with the feature `fake`, a stateful in-memory one (`Fake*`)
//! that refuses what the kernel refuses.
//!
//! Effects only: what the kernel should hold is decided in `longshore-core`. The only crate of the
//! workspace with `unsafe`, each block allowed by itself and with its reason.

pub mod capabilities;
pub mod cgroup;
pub mod conntrack;
pub mod disk;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod iptables;
pub mod ipvs;
pub mod memory;
pub mod modules;
pub mod mount;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod probe;
pub mod proc;
pub mod route;
pub mod sysctl;
pub mod xtables;
