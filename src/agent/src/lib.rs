//! longshore-agent

pub mod admin;
