//! `longshore cp`: files into and out of a container, as `tar` on both sides of an exec session. The
//! container needs a `tar`; nothing is written outside the folder that was named.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use longshore_cri::{StreamIo, Streams};
use tokio::process::Command;
use tokio::sync::mpsc;

use crate::error::{CliError, chain};
use crate::exec::spdy::session::{self, ExecEnd, LocalEnds, Wanted};
use crate::exec::{running, upgrade};
use crate::pods::Node;
use crate::target::PodName;

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Local(PathBuf),
    /// `POD:PATH`, `NAMESPACE/POD:PATH`.
    Pod {
        name: PodName,
        path: String,
    },
}

impl End {
    /// Reads what was typed; a path that starts with `/` or `.` is local, whatever follows.
    pub fn parse(text: &str, namespace: Option<&str>) -> Result<Self, CliError> {
        let local = text.starts_with(['/', '.']);
        match text.split_once(':').filter(|_| !local) {
            Some((name, path)) if !path.is_empty() => {
                Ok(Self::Pod { name: PodName::parse(name, namespace)?, path: path.to_owned() })
            }
            Some(_) => Err(CliError::usage(format!("{text:?} names no path")).hint("write POD:/path")),
            None => Ok(Self::Local(PathBuf::from(text))),
        }
    }
}

/// Copies; exactly one end is in a pod.
pub async fn run(node: &Node, from: &End, to: &End, container: Option<&str>) -> Result<(), CliError> {
    match (from, to) {
        (End::Local(from), End::Pod { name, path }) => into(node, from, (name, path), container).await,
        (End::Pod { name, path }, End::Local(to)) => out_of(node, (name, path), to, container).await,
        _ => Err(CliError::usage("one end must be in a pod and the other here")
            .hint("longshore cp web:/var/log/app.log . ; longshore cp page.html web:/srv")),
    }
}

/// Folder and last name of a path: what `tar` is told on the side that packs.
fn split(path: &str) -> Result<(String, String), CliError> {
    let trimmed = path.trim_end_matches('/');
    let (folder, name) = trimmed.rsplit_once('/').unwrap_or((".", trimmed));
    let folder = if folder.is_empty() { "/" } else { folder };
    match name {
        "" | "." | ".." => Err(CliError::usage(format!("{path:?} does not name a file or folder"))),
        name => Ok((folder.to_owned(), name.to_owned())),
    }
}

async fn into(
    node: &Node,
    from: &Path,
    (name, path): (&PodName, &str),
    container: Option<&str>,
) -> Result<(), CliError> {
    let from = from.canonicalize().map_err(|error| CliError::new(format!("{}: {error}", from.display())))?;
    let (folder, file) = split(&from.to_string_lossy())?;
    let mut tar = Command::new("tar")
        .args(["cf", "-", "-C", &folder, "--", &file])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(no_tar)?;
    let command = ["tar", "xmf", "-", "-C", path].map(str::to_owned);
    let output = tar.stdout.take().ok_or_else(|| CliError::new("tar has no output"))?;
    let wanted = Wanted { stdin: true, tty: false };
    session(node, name, container, &command, (wanted, output, tokio::io::sink())).await?;
    finished(tar.wait().await?)
}

async fn out_of(
    node: &Node,
    (name, path): (&PodName, &str),
    to: &Path,
    container: Option<&str>,
) -> Result<(), CliError> {
    if !to.is_dir() {
        return Err(CliError::usage(format!("{} is not a folder on this machine", to.display()))
            .hint(format!("make it first: mkdir -p {}", to.display())));
    }
    let (folder, file) = split(path)?;
    // GNU tar takes no absolute names, no .. and no links out of the folder it unpacks into; owners are
    // the container's and mean nothing here, and neither do bits that give a file's user rights.
    let mut tar = Command::new("tar")
        .args(["xf", "-", "--no-same-owner", "--no-same-permissions", "--no-overwrite-dir", "-C"])
        .arg(to)
        .stdin(Stdio::piped())
        .spawn()
        .map_err(no_tar)?;
    let command = ["tar", "cf", "-", "-C", &folder, &file].map(str::to_owned);
    let input = tar.stdin.take().ok_or_else(|| CliError::new("tar has no input"))?;
    let wanted = Wanted { stdin: false, tty: false };
    session(node, name, container, &command, (wanted, tokio::io::empty(), input)).await?;
    finished(tar.wait().await?)
}

fn no_tar(error: std::io::Error) -> CliError {
    CliError::new(format!("cannot run tar: {error}")).hint("install tar on this node")
}

fn finished(status: std::process::ExitStatus) -> Result<(), CliError> {
    if status.success() {
        Ok(())
    } else {
        Err(CliError::new(format!("tar on this node ended with {status}")))
    }
}

/// One exec session with these ends; what the container's `tar` says goes to stderr.
async fn session<I, O>(
    node: &Node,
    name: &PodName,
    container: Option<&str>,
    command: &[String],
    (wanted, stdin, stdout): (Wanted, I, O),
) -> Result<(), CliError>
where
    I: tokio::io::AsyncRead + Unpin,
    O: tokio::io::AsyncWrite + Unpin,
{
    let pod = node.pod(name).await?;
    let container = running(&pod, container)?;
    let io = StreamIo { tty: false, stdin: wanted.stdin, stdout: true, stderr: true };
    let url = node.cri()?.exec_url(&container.id, command, io).await?;
    let connection = upgrade::open(&url, upgrade::REMOTE_COMMAND).await?;
    // Nobody resizes what is no terminal.
    let (_, sizes) = mpsc::channel(1);
    let local = LocalEnds { stdin, stdout, stderr: tokio::io::stderr(), sizes };
    match session::run(connection, wanted, local).await {
        Ok(ExecEnd::Exited(0)) => Ok(()),
        Ok(ExecEnd::Exited(code)) => {
            Err(CliError::new(format!("tar in container {} ended with code {code}", container.name)))
        }
        Ok(ExecEnd::Refused(message)) => {
            Err(CliError::new(format!("no tar ran in container {}: {message}", container.name))
                .hint("the image needs tar; longshore exec -i with cat copies one file without it"))
        }
        Err(error) => Err(CliError::new(chain(&error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        let pod = |namespace: Option<&str>, name: &str, path: &str| {
            let name = PodName { namespace: namespace.map(str::to_owned), name: name.to_owned() };
            Some(End::Pod { name, path: path.to_owned() })
        };
        let local = |path: &str| Some(End::Local(PathBuf::from(path)));
        let cases = [
            ("web:/etc/hosts", pod(None, "web", "/etc/hosts")),
            ("shop/web:data", pod(Some("shop"), "web", "data")),
            ("pod/web:/x:y", pod(None, "web", "/x:y")),
            ("page.html", local("page.html")),
            ("./web:1", local("./web:1")),
            ("/a:b", local("/a:b")),
            ("web:", None),
            ("a/b/c/d:/x", None),
        ];
        for (text, expected) in cases {
            assert_eq!(End::parse(text, None).ok(), expected, "{text}");
        }
    }

    #[test]
    fn the_packing_side_is_told_folder_and_name() {
        let cases = [
            ("/etc/hosts", Some(("/etc", "hosts"))),
            ("/etc/", Some(("/", "etc"))),
            ("data/x", Some(("data", "x"))),
            ("x", Some((".", "x"))),
            ("/", None),
            ("..", None),
            ("/a/..", None),
        ];
        for (path, expected) in cases {
            let found = split(path).ok();
            let found = found.as_ref().map(|(folder, name)| (folder.as_str(), name.as_str()));
            assert_eq!(found, expected, "{path}");
        }
    }
}
