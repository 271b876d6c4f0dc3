//! `longshore exec`.

pub mod spdy;
