//! `longshore exec` and `attach`: a command in a container, or the container's own process, over the
//! runtime's streaming server, with stdin and its end, a terminal, and the command's own exit code. No
//! daemon and no API server are needed.

pub mod spdy;
pub mod terminal;
pub mod upgrade;

use std::io::IsTerminal;
use std::time::Duration;

use longshore_core::pod::observed::ObservedContainer;
use longshore_cri::{StreamIo, Streams};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use self::spdy::session::{self, ExecEnd, LocalEnds, SessionError, TerminalSize, Wanted};
use self::terminal::RawMode;
use crate::error::{CliError, chain};
use crate::pods::{Node, NodePod};
use crate::target::PodName;

/// What `exec` was asked for.
#[derive(Clone, Debug)]
pub struct Request {
    pub container: Option<String>,
    pub stdin: bool,
    pub tty: bool,
    pub command: Vec<String>,
}

/// Runs the command and returns its exit code.
pub async fn run(node: &Node, name: &PodName, request: &Request) -> Result<u8, CliError> {
    let pod = node.pod(name).await?;
    let container = running(&pod, request.container.as_deref())?;
    let mut tty = request.tty;
    if tty && !std::io::stdin().is_terminal() {
        eprintln!("note: stdin is no terminal, going on without one");
        tty = false;
    }
    let wanted = Wanted { stdin: request.stdin, tty };
    let io = StreamIo { tty, stdin: wanted.stdin, stdout: true, stderr: !tty };
    let cri = node.cri()?;
    let url = cri.exec_url(&container.id, &request.command, io).await?;
    match stream(&url, wanted).await? {
        Ok(ExecEnd::Exited(code)) => Ok(code.clamp(0, 255) as u8),
        Ok(ExecEnd::Refused(message)) => Err(refused(&pod, request, &message)),
        Err(error) => Err(broken(&error)),
    }
}

/// Attaches to a container's own process; its exit code is not told by the runtime.
pub async fn attach(node: &Node, name: &PodName, request: &Request) -> Result<u8, CliError> {
    let pod = node.pod(name).await?;
    let container = running(&pod, request.container.as_deref())?;
    // Whether there is a terminal was decided when the container was made.
    let tty = has_terminal(&pod, container.name.as_str()).unwrap_or(request.tty);
    let wanted = Wanted { stdin: request.stdin, tty };
    let io = StreamIo { tty, stdin: wanted.stdin, stdout: true, stderr: !tty };
    let url = node.cri()?.attach_url(&container.id, io).await?;
    match stream(&url, wanted).await? {
        Ok(ExecEnd::Exited(code)) => Ok(code.clamp(0, 255) as u8),
        Ok(ExecEnd::Refused(message)) => Err(CliError::new(format!(
            "cannot attach to container {} of pod {}: {message}",
            container.name,
            pod.key()
        ))),
        // The process ended, and an attachment has no exit code of its own.
        Err(SessionError::NoStatus) => Ok(0),
        Err(error) => Err(broken(&error)),
    }
}

/// The spec's `tty`; `None` where the daemon, which has the spec, is down.
fn has_terminal(pod: &NodePod, container: &str) -> Option<bool> {
    let spec = pod.view.as_ref()?.pod.spec.as_ref()?;
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let found = all.into_iter().find(|given| given.name == container)?;
    Some(found.tty.unwrap_or(false))
}

/// Carries this program's own streams until the session ends or a signal comes.
async fn stream(url: &str, wanted: Wanted) -> Result<Result<ExecEnd, SessionError>, CliError> {
    let connection = upgrade::open(url, upgrade::REMOTE_COMMAND).await?;
    let (sizes_in, sizes) = mpsc::channel(4);
    let raw = if wanted.tty && wanted.stdin { RawMode::enter()? } else { None };
    let resizes = tokio::spawn(send_sizes(sizes_in, wanted.tty));
    let local = LocalEnds {
        stdin: tokio::io::stdin(),
        stdout: tokio::io::stdout(),
        stderr: tokio::io::stderr(),
        sizes,
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let end = tokio::select! {
        end = session::run(connection, wanted, local) => end,
        _ = terminate.recv() => Ok(ExecEnd::Exited(128 + 15)),
        _ = hangup.recv() => Ok(ExecEnd::Exited(128 + 1)),
    };
    resizes.abort();
    drop(raw);
    Ok(end)
}

fn broken(error: &SessionError) -> CliError {
    CliError::new(chain(error)).hint("longshore ps shows whether the container still runs")
}

fn refused(pod: &NodePod, request: &Request, message: &str) -> CliError {
    let program = request.command.first().map_or("", String::as_str);
    let error = CliError::new(format!("{program} did not run in pod {}: {message}", pod.key()));
    if message.contains("not found") || message.contains("no such file") {
        return error.hint("the image has no such program; try another, or write its whole path");
    }
    error
}

pub(crate) fn running<'a>(pod: &'a NodePod, wanted: Option<&str>) -> Result<&'a ObservedContainer, CliError> {
    let name = pod.container(wanted)?;
    let newest = pod.observed.containers.iter().find(|container| container.name.as_str() == name);
    match newest {
        Some(container) if container.is_running() => Ok(container),
        _ => Err(CliError::new(format!("container {name} of pod {} does not run", pod.key()))
            .hint(format!("longshore why pod/{}", pod.key()))),
    }
}

/// Sends the terminal's size now and after each change.
async fn send_sizes(sizes: mpsc::Sender<TerminalSize>, tty: bool) {
    if !tty {
        return;
    }
    let Ok(mut changed) = signal(SignalKind::window_change()) else { return };
    loop {
        if let Some(size) = terminal::size()
            && sizes.send(size).await.is_err()
        {
            return;
        }
        if changed.recv().await.is_none() {
            return;
        }
        // Dragging a window's edge changes its size many times.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
