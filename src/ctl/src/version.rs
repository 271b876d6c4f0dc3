//! `longshore version`: of the command, the agent and the runtime, those that answer.

use longshore_core::wire::NodeView;
use longshore_cri::RuntimeInfo;
use serde::Serialize;

use crate::error::CliError;
use crate::output::{Screen, print, structured};
use crate::pods::Node;

#[derive(Debug, Serialize)]
struct Versions {
    command: &'static str,
    /// None where it does not run.
    agent: Option<String>,
    runtime: Option<String>,
}

/// Shows the versions; what does not answer is no error.
pub async fn run(node: &Node, screen: &Screen) -> Result<(), CliError> {
    let agent = node.daemon.get::<NodeView>("/v1/node").await.ok().map(|view| view.version);
    let runtime = match node.cri() {
        Ok(cri) => cri.version().await.ok().map(|version| format!("{} {}", version.name, version.version)),
        Err(_) => None,
    };
    let versions = Versions { command: env!("CARGO_PKG_VERSION"), agent, runtime };
    if structured(screen, &versions)? {
        return Ok(());
    }
    let shown = |version: &Option<String>| version.clone().unwrap_or_else(|| "does not answer".into());
    print(&format!(
        "command  {}\nagent    {}\nruntime  {}\n",
        versions.command,
        shown(&versions.agent),
        shown(&versions.runtime)
    ))
}
