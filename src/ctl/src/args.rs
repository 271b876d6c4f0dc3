//! The command line's grammar: every command with its options, and help that teaches by example.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use longshore_core::service::cidr::Cidr;

use crate::output::Format;

/// Where the daemon and the runtime are.
#[derive(Args, Clone, Debug)]
pub struct Where {
    /// Socket of the agent
    #[arg(
        long,
        value_name = "PATH",
        env = "LONGSHORE_SOCKET",
        default_value = "/run/longshore/longshore.sock"
    )]
    pub socket: PathBuf,
    /// Socket of the container runtime, read where the agent is down
    #[arg(
        long,
        value_name = "ENDPOINT",
        env = "CONTAINER_RUNTIME_ENDPOINT",
        default_value = "unix:///run/containerd/containerd.sock"
    )]
    pub runtime_endpoint: String,
}

/// `-o`.
#[derive(Args, Clone, Debug)]
pub struct Out {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub output: Format,
}

/// `-n`.
#[derive(Args, Clone, Debug)]
pub struct Namespace {
    /// Only this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
}

/// Commands that look at the node and run things in its containers. None needs an API server.
#[derive(Subcommand, Clone, Debug)]
pub enum CtlCommand {
    /// List the pods of this node
    #[command(after_help = "Examples:
  longshore ps                   all pods
  longshore ps -o wide           with source, image and what each waits on
  longshore ps -c -n shop        the containers of one namespace
  longshore ps -o json | jq '.[] | select(.restarts > 0).name'")]
    Ps {
        /// List containers, ended ones too, instead of pods
        #[arg(short, long)]
        containers: bool,
        #[command(flatten)]
        namespace: Namespace,
        #[command(flatten)]
        out: Out,
        #[command(flatten)]
        at: Where,
    },
    /// Show objects: pods, services, endpointslices, configmaps, secrets, node
    #[command(after_help = "Examples:
  longshore get pod web -o yaml  a pod with its present status
  longshore get svc              names of all Services
  longshore get cm/page          a ConfigMap
  longshore get node             the node on one screen")]
    Get {
        /// Kind, or KIND/NAME
        kind: String,
        /// One object, NAME or NAMESPACE/NAME
        name: Option<String>,
        #[command(flatten)]
        namespace: Namespace,
        #[command(flatten)]
        out: Out,
        #[command(flatten)]
        at: Where,
    },
    /// Show all that is known of one pod
    #[command(after_help = "Examples:
  longshore describe pod web
  longshore describe pod/shop/database-0")]
    Describe {
        /// `pod` and a name, or pod/NAME
        #[arg(required = true, num_args = 1..=2, value_name = "POD")]
        pod: Vec<String>,
        #[command(flatten)]
        namespace: Namespace,
        #[command(flatten)]
        out: Out,
        #[command(flatten)]
        at: Where,
    },
    /// Show what containers wrote
    #[command(after_help = "Examples:
  longshore logs web                    all that is kept, rotated files too
  longshore logs web -f --tail 20       the last lines, then follow
  longshore logs web --previous         of the instance before the last restart
  longshore logs shop/db -c main --since 10m --timestamps
  longshore logs web --all-containers   of all containers, in the order of time")]
    Logs {
        /// NAME, NAMESPACE/NAME or pod/NAME
        pod: String,
        #[command(flatten)]
        options: LogOptions,
        #[command(flatten)]
        namespace: Namespace,
        #[command(flatten)]
        at: Where,
    },
    /// Run a command in a container
    #[command(after_help = "Examples:
  longshore exec web -- cat /etc/hosts
  longshore exec -it web -- sh
  longshore exec shop/web -c main -- sh -c 'exit 3'
  tar c . | longshore exec -i web -- tar x -C /data

The exit code is the command's own.")]
    Exec {
        /// Container; else the pod's first
        #[arg(short, long)]
        container: Option<String>,
        /// Pass stdin to the command, and its end
        #[arg(short = 'i', long)]
        stdin: bool,
        /// Give the command a terminal
        #[arg(short, long)]
        tty: bool,
        #[command(flatten)]
        namespace: Namespace,
        #[command(flatten)]
        at: Where,
        /// NAME, NAMESPACE/NAME or pod/NAME
        pod: String,
        /// The command and its arguments
        #[arg(required = true, last = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Attach to the process a container was started with
    #[command(after_help = "Examples:
  longshore attach web               see what it writes from now on
  longshore attach -i shop/console   and type into it, where its spec has stdin: true")]
    Attach {
        /// Container; else the pod's first
        #[arg(short, long)]
        container: Option<String>,
        /// Pass stdin on
        #[arg(short = 'i', long)]
        stdin: bool,
        #[command(flatten)]
        namespace: Namespace,
        #[command(flatten)]
        at: Where,
        /// NAME, NAMESPACE/NAME or pod/NAME
        pod: String,
    },
    /// Forward local ports into a pod
    #[command(after_help = "Examples:
  longshore port-forward web 8080:80      http://127.0.0.1:8080 is port 80 of the pod
  longshore port-forward shop/db 5432     the same port on both sides
  longshore port-forward web :80 :443     free local ports, told when they listen")]
    PortForward {
        /// NAME, NAMESPACE/NAME or pod/NAME
        pod: String,
        /// LOCAL:REMOTE, PORT for both, or :REMOTE for a free local port
        #[arg(required = true, value_name = "PORTS")]
        ports: Vec<crate::port_forward::Ports>,
        /// Local address to listen on
        #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
        address: std::net::IpAddr,
        #[command(flatten)]
        namespace: Namespace,
        #[command(flatten)]
        at: Where,
    },
    /// Copy files into or out of a container, which needs a tar
    #[command(after_help = "Examples:
  longshore cp web:/var/log/app.log .      out of the pod, into this folder
  longshore cp page.html web:/srv          into the pod's folder /srv
  longshore cp shop/db:/data ./backup -c main")]
    Cp {
        /// PATH here, or POD:PATH
        from: String,
        /// A folder: PATH here, or POD:PATH
        to: String,
        /// Container; else the pod's first
        #[arg(short, long)]
        container: Option<String>,
        #[command(flatten)]
        namespace: Namespace,
        #[command(flatten)]
        at: Where,
    },
    /// Show what pods or the node use now
    #[command(after_help = "Examples:
  longshore top                  pods, the most busy first
  longshore top pod -c -n shop   containers of one namespace
  longshore top node
  longshore top -o json | jq '.[] | select(.memoryBytes > 1e9).pod'")]
    Top {
        /// `pod` or `node`
        #[arg(value_parser = ["pod", "pods", "node"], default_value = "pod")]
        what: String,
        /// Containers instead of pods
        #[arg(short, long)]
        containers: bool,
        #[command(flatten)]
        namespace: Namespace,
        #[command(flatten)]
        out: Out,
        #[command(flatten)]
        at: Where,
    },
    /// Show a pod's cgroups: what they hold beside what they may
    #[command(after_help = "Examples:
  longshore cgroups pod/web
  longshore cgroups shop/db -o wide   with swap, pressure and paths")]
    Cgroups {
        /// NAME, NAMESPACE/NAME or pod/NAME
        pod: String,
        /// Parent of the kubepods cgroup, as cgroupRoot of the configuration
        #[arg(long, value_name = "CGROUP", default_value = "")]
        cgroup_root: String,
        #[command(flatten)]
        namespace: Namespace,
        #[command(flatten)]
        out: Out,
        #[command(flatten)]
        at: Where,
    },
    /// Show what is mounted for pods, and mounts no pod accounts for
    #[command(after_help = "Examples:
  longshore mounts               all pods, orphans last
  longshore mounts pod/web -o wide")]
    Mounts {
        /// NAME, NAMESPACE/NAME or pod/NAME; else all
        pod: Option<String>,
        /// Folder of the pods' volumes
        #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
        root_dir: PathBuf,
        #[command(flatten)]
        namespace: Namespace,
        #[command(flatten)]
        out: Out,
        #[command(flatten)]
        at: Where,
    },
    /// List the node's images, or say what a collection would remove
    #[command(after_help = "Examples:
  longshore images
  longshore images gc --dry-run   what would go now, and why the rest stays")]
    #[command(args_conflicts_with_subcommands = true)]
    Images {
        #[command(subcommand)]
        command: Option<ImagesCommand>,
        #[command(flatten)]
        out: Out,
        #[command(flatten)]
        at: Where,
    },
    /// Say in one sentence why a pod or the node is as it is, and what to do
    #[command(after_help = "Examples:
  longshore why pod/web
  longshore why node")]
    Why {
        /// pod/NAME, NAMESPACE/NAME, or node
        subject: String,
        #[command(flatten)]
        namespace: Namespace,
        #[command(flatten)]
        out: Out,
        #[command(flatten)]
        at: Where,
    },
    /// Show what happened to a pod, each step with its milliseconds
    #[command(after_help = "Examples:
  longshore timeline pod/web
  longshore timeline web -o wide   with bars")]
    Timeline {
        /// NAME, NAMESPACE/NAME or pod/NAME
        pod: String,
        #[command(flatten)]
        namespace: Namespace,
        #[command(flatten)]
        out: Out,
        #[command(flatten)]
        at: Where,
    },
    /// Services: list them, explain an address, compare with the kernel, trace a flow, render rules
    #[command(visible_alias = "service")]
    Svc {
        #[command(subcommand)]
        command: SvcCommand,
    },
    /// Show the tracked flows to Services, or those that lead to endpoints that are gone
    #[command(
        after_help = "Exit code 1 where --stale finds any. Stale UDP flows are forgotten by the agent itself; TCP ones
end with their connections.

Examples:
  longshore conntrack               flows to Services, with who answers them
  longshore conntrack --stale       only those whose endpoint is gone
  longshore conntrack -o json | jq 'group_by(.endpoint) | map({(.[0].endpoint): length}) | add'"
    )]
    Conntrack {
        /// Only flows whose endpoint is gone
        #[arg(long)]
        stale: bool,
        #[command(flatten)]
        out: Out,
        #[command(flatten)]
        at: Where,
    },
    /// Check that this node can run pods, and say what mends each fault
    #[command(after_help = "Exit code 1 where a check failed.

Examples:
  longshore doctor
  longshore doctor -o json | jq '.[] | select(.level == \"FAIL\")'")]
    Doctor {
        /// Folder of the pods' volumes
        #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
        root_dir: PathBuf,
        /// Folder of the node's certificates
        #[arg(long, value_name = "DIR", default_value = longshore_core::certificates::DEFAULT_FOLDER)]
        cert_dir: PathBuf,
        #[command(flatten)]
        out: Out,
        #[command(flatten)]
        at: Where,
    },
    /// Write what somebody who helps needs to see of this node into one file, with secrets masked
    #[command(
        after_help = "The file has the output of the other commands, why pods that are not well are not, the journals
of the agent and of containerd, and the kernel's figures. Values of Secrets, ConfigMaps and
environment variables, keys, tokens and passwords are masked; logs of containers are not in it.

Examples:
  longshore report                 a new file in this folder
  longshore report -f /tmp/r.txt
  longshore report -f - -o json | jq -r '.[].source'"
    )]
    Report {
        /// The file, or - for standard output; it must not be there yet
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        out: Out,
        #[command(flatten)]
        at: Where,
    },
    /// Show the versions of this command, the agent and the runtime
    Version {
        #[command(flatten)]
        out: Out,
        #[command(flatten)]
        at: Where,
    },
}

#[derive(Subcommand, Clone, Debug)]
pub enum ImagesCommand {
    /// Say what a collection would remove now; the agent collects by itself
    #[command(after_help = "Example:
  longshore images gc --dry-run -o json | jq '.plan.images[] | select(.verdict.remove).names[0]'")]
    Gc {
        /// Only say it
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        out: Out,
        #[command(flatten)]
        at: Where,
    },
}

#[derive(Subcommand, Clone, Debug)]
pub enum SvcCommand {
    /// List the Services this node serves, with their endpoints
    #[command(after_help = "ENDPOINTS are those that get packets, of those known.

Examples:
  longshore svc list
  longshore svc list -o wide -n shop")]
    List {
        #[command(flatten)]
        namespace: Namespace,
        #[command(flatten)]
        out: Out,
        #[command(flatten)]
        at: Where,
    },
    /// Show how the dataplane is doing: mode, kernel objects, what was refused
    Status {
        #[command(flatten)]
        out: Out,
        #[command(flatten)]
        at: Where,
    },
    /// Say what happens to a packet to an address, and why
    #[command(after_help = "Examples:
  longshore svc explain 10.96.0.10:80                  from some pod of this node
  longshore svc explain 10.96.0.10:53 --protocol udp --from pod/web
  longshore svc explain shop/web:8080 --from 192.0.2.7   a client outside
  longshore svc explain 10.0.0.5:30080 --from node")]
    Explain {
        /// IP:PORT, or a Service: NAME, NAMESPACE/NAME, either with :PORT
        to: String,
        /// Who asks: a pod, an address, or `node`; else some pod of this node
        #[arg(long, value_name = "POD|IP|node")]
        from: Option<String>,
        /// Protocol of the packet
        #[arg(long, value_parser = ["tcp", "udp", "sctp"], default_value = "tcp")]
        protocol: String,
        #[command(flatten)]
        out: Out,
        #[command(flatten)]
        at: Where,
    },
    /// Compare what is wanted with what the kernel holds now
    #[command(
        after_help = "The agent reads the kernel anew. Nothing is changed without --repair, and then only the agent's own
objects. Exit code 1 while something differs.

Examples:
  longshore svc diff              what is missing, different or too much
  longshore svc diff --repair     bring the kernel back, then compare again
  longshore svc diff -o json | jq '.differences[].object'"
    )]
    Diff {
        /// Ask the agent to bring the kernel back to what is wanted
        #[arg(long)]
        repair: bool,
        #[command(flatten)]
        out: Out,
        #[command(flatten)]
        at: Where,
    },
    /// Print the rules that manifests come to, without a kernel or an agent
    #[command(
        after_help = "Services and EndpointSlices are taken from the files; what is not served is named on stderr and makes
the exit code 1.

Examples:
  longshore svc render -f web.yaml                         nf_tables, as nft shows it
  longshore svc render -f web.yaml --mode ipvs             virtual servers as ipvsadm -R reads them
  kubectl get svc,endpointslice -A -o yaml | longshore svc render -f - --node-name $(hostname)
  longshore svc render -f web.yaml -o json | jq length     how many kernel objects"
    )]
    Render {
        #[command(flatten)]
        options: RenderOptions,
        #[command(flatten)]
        out: Out,
    },
    /// Send one flow to a Service, or wait for one, and show what the kernel made of it
    #[command(
        after_help = "Opens a TCP connection (or sends one byte by UDP) and shows the connection tracker's entry, the endpoint
that was chosen and how it ended. Exit code 1 where nobody answered, or another than was explained.

Examples:
  longshore svc trace web                             from some pod of this node
  longshore svc trace 10.96.0.10:53 --protocol udp --from pod/web
  longshore svc trace 10.0.0.5:30080 --from node
  longshore svc trace shop/web:8080 --watch --timeout 60   wait for a client's flow"
    )]
    Trace {
        /// IP:PORT, or a Service: NAME, NAMESPACE/NAME, either with :PORT
        to: String,
        /// Who sends: a pod, its address, or `node`; else some pod of this node
        #[arg(long, value_name = "POD|IP|node")]
        from: Option<String>,
        /// Protocol of the flow
        #[arg(long, value_parser = ["tcp", "udp", "sctp"], default_value = "tcp")]
        protocol: String,
        /// Send nothing, wait for somebody else's flow
        #[arg(long)]
        watch: bool,
        /// Seconds to wait for an answer, or for a flow
        #[arg(long, value_name = "SECONDS", default_value_t = 3)]
        timeout: u64,
        #[command(flatten)]
        out: Out,
        #[command(flatten)]
        at: Where,
    },
}

/// In which form `svc render` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RenderMode {
    Nftables,
    Ipvs,
    Iptables,
}

/// What `svc render` works from.
#[derive(Args, Clone, Debug)]
pub struct RenderOptions {
    /// File with Services and EndpointSlices; `-` is stdin
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Back end
    #[arg(long, value_enum, default_value = "nftables")]
    pub mode: RenderMode,
    /// The node, for endpoints on it; else this host's name
    #[arg(long, value_name = "NAME", default_value_t = crate::svc::render::host_name())]
    pub node_name: String,
    /// The node's zone, for topology hints
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
    /// An address node ports are served on
    #[arg(long, value_name = "IP", default_value = "192.0.2.1")]
    pub node_ip: Vec<IpAddr>,
    /// Where pods' addresses come from; without it sources are told by nothing
    #[arg(long, value_name = "CIDR")]
    pub cluster_cidr: Vec<Cidr>,
    /// Where Services without an address get one
    #[arg(long, value_name = "CIDR", default_value = "10.96.0.0/12")]
    pub service_cidr: Vec<Cidr>,
    /// Rewrite the source of everything that goes to a cluster address
    #[arg(long)]
    pub masquerade_all: bool,
}

/// Which lines `logs` shows, and how.
#[derive(Args, Clone, Debug)]
pub struct LogOptions {
    /// Container; else the pod's first
    #[arg(short, long)]
    pub container: Option<String>,
    /// All containers of the pod, each line with its container
    #[arg(long, conflicts_with = "container")]
    pub all_containers: bool,
    /// Go on with what is written from now on, across rotation, until the container ends
    #[arg(short, long)]
    pub follow: bool,
    /// The instance before the last restart
    #[arg(short, long, conflicts_with = "follow")]
    pub previous: bool,
    /// Only lines since a span ago (90s, 5m, 1h30m, 2d) or a time
    #[arg(long, value_name = "SPAN|TIME")]
    pub since: Option<String>,
    /// Only the last N lines
    #[arg(long, value_name = "N")]
    pub tail: Option<usize>,
    /// Each line with its time
    #[arg(long)]
    pub timestamps: bool,
    /// Each line with its pod and container
    #[arg(long)]
    pub prefix: bool,
}
