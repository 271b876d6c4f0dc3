//! One target per parser of bytes from outside: no input may panic, loop or grow without bound, and
//! what reads back must read back the same. `cargo test` feeds each target random input for a moment;
//! `cargo bolero test -p longshore-integration TARGET` drives the same targets by coverage for as long as
//! wanted. Targets of parsers that are private to their crate stand beside them as property tests.

mod documents;
mod kernel;
mod kubelet_api;
mod streams;
