//! longshore-ctl: the command line. It asks the daemon over its admin socket, and reads the runtime
//! and the kernel itself where the daemon is down or cannot know. It changes nothing on the node.

pub mod age;
pub mod args;
pub mod cgroups;
pub mod client;
pub mod conntrack;
pub mod cp;
pub mod describe;
pub mod doctor;
pub mod error;
pub mod exec;
pub mod get;
pub mod images;
pub mod logs;
pub mod mounts;
pub mod output;
pub mod pods;
pub mod port_forward;
pub mod ps;
pub mod report;
pub mod shell;
pub mod status_column;
pub mod svc;
pub mod target;
pub mod timeline;
pub mod top;
pub mod version;
pub mod why;

use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;

pub use args::CtlCommand;
use args::{ImagesCommand, LogOptions, Namespace, Out, SvcCommand, Where};
use error::CliError;
use output::Screen;
use pods::Node;
use target::PodName;

/// Runs one command to its end and returns the process's exit code: 0 done, 1 the answer is no,
/// 2 not understood; `exec` passes on the command's own.
pub fn main(command: CtlCommand) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{}", CliError::from(error));
            return ExitCode::from(error::FAILED);
        }
    };
    let result = runtime.block_on(run(command));
    // A read of stdin that nobody waits for any more must not hold the process.
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.code)
        }
    }
}

fn node(at: &Where) -> Node {
    Node { daemon: client::Daemon::new(&at.socket), runtime: at.runtime_endpoint.clone() }
}

fn screen(out: &Out) -> Screen {
    Screen::detect(out.output)
}

fn pod_name(text: &str, namespace: &Namespace) -> Result<PodName, CliError> {
    PodName::parse(text, namespace.namespace.as_deref())
}

async fn run(command: CtlCommand) -> Result<u8, CliError> {
    match command {
        CtlCommand::Ps { containers, namespace, out, at } => {
            ps::run(&node(&at), &screen(&out), namespace.namespace.as_deref(), containers).await?;
        }
        CtlCommand::Get { kind, name, namespace, out, at } => {
            let request = get::Request::new(kind, name, namespace.namespace);
            get::run(&node(&at), &screen(&out), &request).await?;
        }
        CtlCommand::Describe { pod, namespace, out, at } => {
            describe::run(&node(&at), &screen(&out), &pod_name(&described(&pod)?, &namespace)?).await?;
        }
        CtlCommand::Logs { pod, options, namespace, at } => {
            logs::run(&node(&at), &pod_name(&pod, &namespace)?, &log_request(options)?).await?;
        }
        CtlCommand::Exec { container, stdin, tty, namespace, at, pod, command } => {
            let request = exec::Request { container, stdin, tty, command };
            return exec::run(&node(&at), &pod_name(&pod, &namespace)?, &request).await;
        }
        CtlCommand::Attach { container, stdin, namespace, at, pod } => {
            let request = exec::Request { container, stdin, tty: false, command: Vec::new() };
            return exec::attach(&node(&at), &pod_name(&pod, &namespace)?, &request).await;
        }
        CtlCommand::PortForward { pod, ports, address, namespace, at } => {
            port_forward::run(&node(&at), &pod_name(&pod, &namespace)?, address, &ports).await?;
        }
        CtlCommand::Cp { from, to, container, namespace, at } => {
            let end = |text: &str| cp::End::parse(text, namespace.namespace.as_deref());
            cp::run(&node(&at), &end(&from)?, &end(&to)?, container.as_deref()).await?;
        }
        CtlCommand::Why { subject, namespace, out, at } => {
            why::run(&node(&at), &screen(&out), &subject, namespace.namespace.as_deref()).await?;
        }
        CtlCommand::Timeline { pod, namespace, out, at } => {
            timeline::run(&node(&at), &screen(&out), &pod_name(&pod, &namespace)?).await?;
        }
        CtlCommand::Svc { command } => return run_svc(command).await,
        CtlCommand::Conntrack { stale, out, at } => {
            return conntrack::run(&node(&at), &screen(&out), stale).await;
        }
        CtlCommand::Top { what, out, .. } if what == "node" => top::whole_node(&screen(&out)).await?,
        CtlCommand::Top { containers, namespace, out, at, .. } => {
            top::pods(&node(&at), &screen(&out), namespace.namespace.as_deref(), containers).await?;
        }
        CtlCommand::Cgroups { pod, cgroup_root, namespace, out, at } => {
            let pod = pod_name(&pod, &namespace)?;
            cgroups::run(&node(&at), &screen(&out), &pod, &cgroup_root).await?;
        }
        CtlCommand::Mounts { pod, root_dir, namespace, out, at } => {
            let pod = pod.map(|pod| pod_name(&pod, &namespace)).transpose()?;
            mounts::run(&node(&at), &screen(&out), pod.as_ref(), &root_dir).await?;
        }
        CtlCommand::Images { command: Some(ImagesCommand::Gc { dry_run, out, at }), .. } => {
            images::gc(&node(&at), &screen(&out), dry_run).await?;
        }
        CtlCommand::Images { command: None, out, at } => images::list(&node(&at), &screen(&out)).await?,
        CtlCommand::Doctor { root_dir, cert_dir, out, at } => {
            return doctor::run(&node(&at), &screen(&out), (&root_dir, &cert_dir)).await;
        }
        CtlCommand::Report { file, out, at } => report::run(&at, out.output, file, Timestamp::now()).await?,
        CtlCommand::Version { out, at } => version::run(&node(&at), &screen(&out)).await?,
    }
    Ok(0)
}

async fn run_svc(command: SvcCommand) -> Result<u8, CliError> {
    match command {
        SvcCommand::List { namespace, out, at } => {
            svc::list(&node(&at), &screen(&out), namespace.namespace.as_deref()).await?;
        }
        SvcCommand::Status { out, at } => svc::status(&node(&at), &screen(&out)).await?,
        SvcCommand::Explain { to, from, protocol, out, at } => {
            svc::explain::run(&node(&at), &screen(&out), &to, &protocol, from.as_deref()).await?;
        }
        SvcCommand::Diff { repair, out, at } => {
            return svc::diff::run(&node(&at), &screen(&out), repair).await;
        }
        SvcCommand::Render { options, out } => return svc::render::run(&screen(&out), &options),
        SvcCommand::Trace { to, from, protocol, watch, timeout, out, at } => {
            let timeout = Duration::from_secs(timeout);
            let request = svc::trace::Request { to, protocol, from, watch, timeout };
            return svc::trace::run(&node(&at), &screen(&out), &request).await;
        }
    }
    Ok(0)
}

/// `describe pod web`, `describe pod/web`, `describe web`.
fn described(words: &[String]) -> Result<String, CliError> {
    match words {
        [one] if matches!(one.as_str(), "pod" | "pods" | "po" | "node") => {
            Err(CliError::usage(format!("describe {one} needs the name of a pod"))
                .hint("longshore ps shows them"))
        }
        [one] => Ok(one.clone()),
        [kind, name] if matches!(kind.as_str(), "pod" | "pods" | "po") => Ok(name.clone()),
        [kind, ..] => Err(CliError::usage(format!("{kind} cannot be described"))
            .hint("describe knows pods; longshore get shows other objects")),
        [] => Err(CliError::usage("describe needs the name of a pod")),
    }
}

fn log_request(options: LogOptions) -> Result<logs::Wanted, CliError> {
    let since = options
        .since
        .as_deref()
        .map(|text| logs::since(text, Timestamp::now()))
        .transpose()
        .map_err(|message| CliError::usage(format!("--since: {message}")))?;
    Ok(logs::Wanted {
        container: options.container,
        all_containers: options.all_containers,
        follow: options.follow,
        previous: options.previous,
        timestamps: options.timestamps,
        prefix: options.prefix,
        window: logs::files::Window { since, tail: options.tail },
    })
}
