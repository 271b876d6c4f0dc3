//! The flags of `longshore agent`: the few that matter here, the rest in [`super::flags`].

use std::path::PathBuf;

use super::flags::GivenFlags;

/// Flags of the daemon. Kubernetes' own spellings where Kubernetes has the flag.
#[derive(Clone, Debug, clap::Args)]
pub struct AgentArgs {
    /// Run without a control plane, from --manifests
    #[arg(long)]
    pub standalone: bool,
    /// Folder of Pods, Services, EndpointSlices, ConfigMaps and Secrets (YAML or JSON)
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// KubeletConfiguration v1beta1 file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder of *.conf files merged over --config in the order of their names
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// KubeProxyConfiguration v1alpha1 file
    #[arg(long, value_name = "FILE")]
    pub proxy_config: Option<PathBuf>,
    /// Halves of the node to run
    #[arg(long, value_name = "LIST", default_value = "node,proxy", value_delimiter = ',')]
    pub roles: Vec<String>,
    /// Name of the node instead of the host's
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Address of the node, or one per family with a comma
    #[arg(long, value_name = "IP[,IP]")]
    pub node_ip: Option<String>,
    /// Labels of the node
    #[arg(long, value_name = "K=V,...", value_delimiter = ',')]
    pub node_labels: Vec<String>,
    /// Folder of the pods' volumes and the daemon's own state
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    pub root_dir: PathBuf,
    /// Socket the command line talks to
    #[arg(long, value_name = "PATH", default_value = "/run/longshore/longshore.sock")]
    pub socket: PathBuf,
    /// Log verbosity: 0 decisions, 2 and above details, 5 and above everything
    #[arg(short = 'v', long = "v", value_name = "N")]
    pub verbosity: Option<u32>,
    /// Join a control plane with these credentials; without it the node runs alone
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Credentials to get the first certificate with, and another after one has expired
    #[arg(long, value_name = "FILE")]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// Folder of the node's certificates and keys
    #[arg(long, value_name = "DIR", default_value = longshore_core::certificates::DEFAULT_FOLDER)]
    pub cert_dir: PathBuf,
    /// CredentialProviderConfig file, or a folder of such: plugins that have credentials for images
    #[arg(long, value_name = "PATH")]
    pub image_credential_provider_config: Option<PathBuf>,
    /// Folder of the programs of these plugins
    #[arg(long, value_name = "DIR")]
    pub image_credential_provider_bin_dir: Option<PathBuf>,
    /// Remove everything of ours from the kernel's Service tables, then end
    #[arg(long)]
    pub cleanup: bool,
    /// With --cleanup: only say what would be removed
    #[arg(long, requires = "cleanup")]
    pub dry_run: bool,
    /// Make the kernel settings the proxy half wants, then end (for a privileged init container)
    #[arg(long, conflicts_with = "cleanup")]
    pub init_only: bool,
    /// Write the proxy's configuration with every default to a file, then end
    #[arg(long, value_name = "FILE", conflicts_with_all = ["cleanup", "init_only"])]
    pub write_config_to: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Fields of the configuration files")]
    pub fields: GivenFlags,
}

impl AgentArgs {
    /// Whether a node or a proxy is to run, which needs somebody to say what; the other tasks look at this machine
    /// alone and end.
    pub fn serves(&self) -> bool {
        !self.cleanup && !self.init_only && self.write_config_to.is_none()
    }
}
