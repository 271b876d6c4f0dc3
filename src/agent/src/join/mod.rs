//! `longshore join`: from an address, a token and the hash of an authority's key to the files of a node
//! that has joined. What is believed and written is decided in `core::bootstrap`; the daemon, started
//! with these files, asks for its certificate itself.

mod discover;
mod files;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use longshore_cluster::kubeconfig::{Login, Source};
use longshore_cluster::{
    ApiClient, ApiError, CredentialsError, DiscoveryTransport, Kubeconfig, TlsTransport,
};
use longshore_core::bootstrap::{Endpoint, JoinFolders, JoinPlan, Token, Trust, join_files};

use crate::certificates::render;
use crate::text::error_chain;

/// Options, spelled as `kubeadm join` spells them.
#[derive(Clone, Debug, clap::Args)]
pub struct JoinArgs {
    /// Address of the API server; the port is 6443 unless given
    #[arg(value_name = "ADDRESS[:PORT]")]
    pub address: String,
    /// Bootstrap token
    #[arg(long, value_name = "TOKEN")]
    pub token: String,
    /// SHA-256 of the public key of the cluster's authority; repeat for more than one
    #[arg(long = "discovery-token-ca-cert-hash", value_name = "sha256:HEX", value_delimiter = ',')]
    pub pins: Vec<String>,
    /// Trust whoever answers and knows the token, without a hash
    #[arg(long = "discovery-token-unsafe-skip-ca-verification")]
    pub unsafe_skip: bool,
    /// Name of the node instead of the host's
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Socket of the container runtime, where the cluster's configuration does not name it
    #[arg(long, value_name = "unix://PATH")]
    pub cri_socket: Option<String>,
    /// Say what would be written and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Replace the files of a node that has joined before
    #[arg(long)]
    pub force: bool,
    /// Folder of kubeconfigs and the authority
    #[arg(long, value_name = "DIR", default_value = "/etc/kubernetes")]
    pub kubernetes_dir: PathBuf,
    /// Folder of the configuration and the node's state
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    pub root_dir: PathBuf,
}

/// Why the node did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("--{flag}: {message}")]
    Flag { flag: &'static str, message: String },
    #[error("cannot read {what} of {server}")]
    Ask {
        what: &'static str,
        server: String,
        #[source]
        source: Box<ApiError>,
    },
    #[error(transparent)]
    Tls(#[from] CredentialsError),
    #[error(
        "cluster-info of {server} is not signed with token {id:?}: the token has expired, or belongs to another \
         cluster; `kubeadm token create --print-join-command` makes another"
    )]
    Unsigned { server: String, id: String },
    #[error("cluster-info of {server}: its signature {message}; somebody else may be answering")]
    Forged { server: String, message: String },
    #[error("cluster-info of {server}: {message}")]
    Info { server: String, message: String },
    #[error("the authority that {server} names {message}: this is not the cluster that was meant")]
    Authority { server: String, message: String },
    #[error(
        "{server} shows a certificate that does not count with the authority its cluster-info names: either somebody \
         else answers there, or the API server's certificate is not for this address"
    )]
    Impostor {
        server: String,
        #[source]
        source: Box<ApiError>,
    },
    #[error("cluster-info of {server} says one thing to anybody and another over the checked connection")]
    Changed { server: String },
    #[error(
        "the API server does not take token {id:?} any more; `kubeadm token create --print-join-command` makes \
         another"
    )]
    Expired { id: String },
    #[error("this node has joined before: {} there already; --force replaces it", there(.0))]
    Joined(Vec<PathBuf>),
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

fn there(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    format!("{} {}", paths.join(", "), if paths.len() == 1 { "is" } else { "are" })
}

/// The three ways a joining node talks to its API server.
trait Doors {
    /// To whoever answers.
    fn anybody(&self, server: &Endpoint) -> Result<ApiClient, JoinError>;
    /// To a server of this authority, PEM.
    fn checked(&self, server: &Endpoint, authority: &[u8]) -> Result<ApiClient, JoinError>;
    /// With credentials.
    fn known(&self, config: &Kubeconfig) -> ApiClient;
}

struct RealDoors;

impl Doors for RealDoors {
    fn anybody(&self, server: &Endpoint) -> Result<ApiClient, JoinError> {
        let transport = DiscoveryTransport::believing_anybody(&server.host, server.port)?;
        Ok(ApiClient::new(Arc::new(transport)))
    }

    fn checked(&self, server: &Endpoint, authority: &[u8]) -> Result<ApiClient, JoinError> {
        let transport = DiscoveryTransport::believing(&server.host, server.port, authority)?;
        Ok(ApiClient::new(Arc::new(transport)))
    }

    fn known(&self, config: &Kubeconfig) -> ApiClient {
        ApiClient::new(Arc::new(TlsTransport::new(config.clone())))
    }
}

/// Joins, or says why not.
pub fn main(args: &JoinArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(args, &RealDoors)),
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    match result {
        Ok(lines) => {
            println!("{}", lines.join("\n"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {}", error_chain(&error));
            ExitCode::from(if matches!(error, JoinError::Flag { .. }) { 2 } else { 1 })
        }
    }
}

/// What was found out about who answers.
fn believed(token: &Token, trust: &Trust) -> String {
    let signed = format!("cluster-info is signed with token {}", token.id());
    match trust {
        Trust::Pins(_) => format!("{signed}; its authority has a key that was given"),
        Trust::TokenOnly => format!(
            "{signed}; its authority is not checked, as --discovery-token-unsafe-skip-ca-verification asks: whoever \
             knows the token could have answered"
        ),
    }
}

/// Everything of joining; gives what there is to say.
async fn run(args: &JoinArgs, doors: &dyn Doors) -> Result<Vec<String>, JoinError> {
    let flag = |flag| move |message| JoinError::Flag { flag, message };
    let server = Endpoint::parse(&args.address).map_err(flag("ADDRESS"))?;
    let token = Token::parse(&args.token).map_err(flag("token"))?;
    let trust = Trust::new(&args.pins, args.unsafe_skip).map_err(flag("discovery-token-ca-cert-hash"))?;
    let folders = JoinFolders { kubernetes: args.kubernetes_dir.clone(), root: args.root_dir.clone() };
    let found = discover::cluster(doors, &server, &token, &trust).await?;
    let mut lines = vec![believed(&token, &trust)];
    let config = Kubeconfig {
        host: found.server.host.clone(),
        port: found.server.port,
        base: found.base.clone(),
        tls_server_name: None,
        authority: Source::Inline(found.authority.clone().into_bytes()),
        login: Login::Token(Source::Inline(token.whole().into_bytes())),
    };
    let kubelet = match discover::kubelet_config(&doors.known(&config), &token).await? {
        Ok(text) => Some(text),
        Err(why) => {
            lines.push(format!(
                "the cluster's kubelet-config cannot be read ({why}); a plain configuration is used"
            ));
            None
        }
    };
    let files = join_files(&JoinPlan {
        folders: &folders,
        authority: &found.authority,
        bootstrap: &render(&config),
        config: kubelet.as_deref(),
        node_name: args.node_name.as_deref(),
        cri_socket: args.cri_socket.as_deref(),
    });
    lines.extend(files::write(&folders, &files, args.force, args.dry_run)?);
    if !args.dry_run {
        lines.push("now start the daemon: systemctl enable --now longshore".into());
        lines.push("see how it goes: longshore why node, and kubectl get nodes on the control plane".into());
    }
    Ok(lines)
}
