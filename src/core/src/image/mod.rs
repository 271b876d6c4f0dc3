//! Images: which registry credentials fit one, how often pulls may begin, what is collected. Pure.

pub mod docker_config;
pub mod gc;
pub mod keyring;
pub mod provider;
pub mod pull_secrets;
pub mod rate;
pub mod reference;
