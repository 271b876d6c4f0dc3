//! `/logs/`: files of the node's log folder and, where queries are on, what its journal has of services (KEP-2258).
//! What may be asked is decided in core; `journalctl` is run without a shell, bounded in time and bytes.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use longshore_core::kubelet_api::node_log::{
    JournalOptions, LIST_UNITS, NodeLogQuery, QueryFault, files_of, is_listed,
};
use longshore_core::kubelet_api::query::Query;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::{Semaphore, mpsc};

use super::body::{self, Answer};
use super::log_files::Beneath;
use super::logs::STALLED;
use crate::children::Group;
use crate::text::error_chain;

/// Bytes of a file or of the journal read at once.
const CHUNK: usize = 64 << 10;
/// A query's answer has to be there within this, as with the kubelet.
const QUERY_WITHIN: Duration = Duration::from_secs(30);
/// Longest answer of a query, bytes.
const MAX_QUERIED: u64 = 64 << 20;
/// Longest list of units, bytes.
const MAX_UNITS: u64 = 1 << 20;
/// Of what a failed `journalctl` said, bytes.
const MAX_SAID: u64 = 512;

/// Answers with the node's own logs.
pub(super) struct NodeLogs {
    /// `/var/log`.
    pub(super) folder: PathBuf,
    /// `enableSystemLogHandler`.
    pub(super) files: bool,
    /// `enableSystemLogQuery`.
    pub(super) queries: bool,
    /// `journalctl`.
    pub(super) journal: PathBuf,
    /// Logs under way at the same time, those of containers among them.
    pub(super) readers: Arc<Semaphore>,
}

type Pieces = mpsc::Sender<io::Result<Bytes>>;

impl NodeLogs {
    pub(super) async fn answer(&self, parts: &[String], query: &str) -> Answer {
        if !self.files {
            return body::text(StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled.\n");
        }
        if !self.queries {
            return self.file(parts).await;
        }
        let malformed = QueryFault::Malformed;
        match Query::parse(query).map_err(malformed).and_then(|query| NodeLogQuery::parse(&query)) {
            Ok(None) => self.file(parts).await,
            Ok(Some(_)) if !parts.is_empty() => {
                body::text(StatusCode::NOT_ACCEPTABLE, "a query takes no path; ask /logs/\n")
            }
            Ok(Some(NodeLogQuery::File(parts))) => self.file(&parts).await,
            Ok(Some(NodeLogQuery::Services { names, options })) => self.services(names, options),
            Err(fault) => {
                let status = match &fault {
                    QueryFault::Malformed(_) => StatusCode::BAD_REQUEST,
                    QueryFault::NotAcceptable(_) => StatusCode::NOT_ACCEPTABLE,
                };
                body::text(status, format!("{fault}\n"))
            }
        }
    }

    /// A file of the log folder, or what a folder below it holds.
    async fn file(&self, parts: &[String]) -> Answer {
        let Ok(place) = self.readers.clone().try_acquire_owned() else { return body::busy("logs") };
        let (root, below) = (self.folder.clone(), parts.iter().collect::<PathBuf>());
        let found = tokio::task::spawn_blocking(move || node_log(&root, &below)).await;
        match found.map_err(io::Error::other).and_then(|found| found) {
            Ok(NodeLog::Folder(names)) => {
                body::answer(StatusCode::OK, "text/html; charset=utf-8", body::whole(listing(&names)))
            }
            Ok(NodeLog::File(file, length)) => {
                let (sender, pieces) = mpsc::channel(1);
                tokio::spawn(async move {
                    let _ = send_file(file, length, &sender).await;
                    drop(place);
                });
                body::answer(StatusCode::OK, "text/plain; charset=utf-8", body::flow(pieces))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                body::text(StatusCode::NOT_FOUND, "404 page not found\n")
            }
            // What it would lead to is not for the caller to know.
            Err(error) => {
                tracing::debug!(%error, path = parts.join("/"), "a node's log is not shown");
                body::text(StatusCode::FORBIDDEN, "this is not a plain file below the log folder\n")
            }
        }
    }

    /// What the journal has of services, then the files of those it does not know. What goes wrong on the way is a
    /// line of the answer, which has begun by then.
    fn services(&self, names: Vec<String>, options: JournalOptions) -> Answer {
        let Ok(place) = self.readers.clone().try_acquire_owned() else { return body::busy("logs") };
        let (sender, pieces) = mpsc::channel(1);
        let sent = send_services(self.journal.clone(), self.folder.clone(), (names, options), sender.clone());
        tokio::spawn(async move {
            tokio::select! {
                _ = sent => {}
                () = sender.closed() => {}
                () = tokio::time::sleep(QUERY_WITHIN) => {
                    let _ = sender.try_send(Ok(note(&format!("cut after {} s", QUERY_WITHIN.as_secs()))));
                }
            }
            drop(place);
        });
        body::answer(StatusCode::OK, "text/plain; charset=utf-8", body::flow(pieces))
    }
}

/// A line of ours between those of logs.
fn note(text: &str) -> Bytes {
    format!("\n-- {text} --\n").into()
}

/// Ends where the answer is not taken any more.
async fn send_services(
    journal: PathBuf,
    folder: PathBuf,
    (names, options): (Vec<String>, JournalOptions),
    sender: Pieces,
) -> Option<()> {
    // Without a journal there are still files.
    let listed = units(&journal).await.unwrap_or_default();
    let (units, files): (Vec<String>, Vec<String>) =
        names.into_iter().partition(|name| is_listed(name, &listed));
    if !units.is_empty()
        && let Err(error) = send_journal(&journal, &options.arguments(&units), &sender).await
    {
        sender.send(Ok(note(&error_chain(&error)))).await.ok()?;
    }
    for name in files {
        if !options.is_empty() {
            let text = format!(
                "the journal has nothing of {name}, and a file is given whole, without other parameters"
            );
            sender.send(Ok(note(&text))).await.ok()?;
            continue;
        }
        let root = folder.clone();
        let (service, wanted) = (name.clone(), files_of(&name));
        let found = tokio::task::spawn_blocking(move || first_file(&root, &wanted)).await;
        match found.map_err(io::Error::other).and_then(|found| found) {
            Ok(Some((file, length))) => send_file(file, length.min(MAX_QUERIED), &sender).await?,
            Ok(None) => sender.send(Ok(note(&format!("no log of {service} was found")))).await.ok()?,
            Err(error) => {
                tracing::debug!(%error, service, "a node's log is not shown");
                sender
                    .send(Ok(note(&format!("the log of {service} is no plain file below the log folder"))))
                    .await
                    .ok()?;
            }
        }
    }
    Some(())
}

/// The first of these files that is there; folders of that name are none.
fn first_file(root: &Path, names: &[String]) -> io::Result<Option<(std::fs::File, u64)>> {
    for name in names {
        match node_log(root, Path::new(name)) {
            Ok(NodeLog::File(file, length)) => return Ok(Some((file, length))),
            Ok(NodeLog::Folder(_)) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn command(journal: &Path) -> Command {
    let mut command = Command::new(journal);
    command
        // Nothing of the daemon's own settings changes what is shown.
        .env_clear()
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    command
}

/// Units the journal has entries of, one a line.
async fn units(journal: &Path) -> io::Result<String> {
    let mut group = Group(command(journal).args(LIST_UNITS).stderr(Stdio::null()).spawn()?);
    let mut listed = Vec::new();
    if let Some(stdout) = group.0.stdout.take() {
        stdout.take(MAX_UNITS).read_to_end(&mut listed).await?;
    }
    let _ = group.0.wait().await?;
    Ok(String::from_utf8_lossy(&listed).into_owned())
}

/// Why there is nothing, or not all, of the journal.
#[derive(Debug, thiserror::Error)]
enum JournalFault {
    #[error("the journal cannot be read")]
    Unread(#[from] io::Error),
    #[error("the journal cannot be read: {0}")]
    Refused(String),
    #[error("cut after {MAX_QUERIED} bytes; ask for a shorter time or fewer lines")]
    TooLong,
}

async fn send_journal(journal: &Path, arguments: &[String], sender: &Pieces) -> Result<(), JournalFault> {
    let mut group = Group(command(journal).args(arguments).spawn()?);
    let (stdout, stderr) = (group.0.stdout.take(), group.0.stderr.take());
    let ((), said) = tokio::try_join!(send_output(stdout, sender), overhear(stderr))?;
    let status = group.0.wait().await?;
    // It ends with 1 where no entry matches, and says nothing then.
    if status.success() || said.is_empty() { Ok(()) } else { Err(JournalFault::Refused(said)) }
}

async fn send_output(stream: Option<impl AsyncRead + Unpin>, sender: &Pieces) -> Result<(), JournalFault> {
    let Some(mut stream) = stream else { return Ok(()) };
    let mut left = MAX_QUERIED;
    loop {
        let mut piece = Vec::with_capacity(CHUNK);
        if (&mut stream).take(left.min(CHUNK as u64)).read_buf(&mut piece).await? == 0 {
            return if left == 0 { Err(JournalFault::TooLong) } else { Ok(()) };
        }
        left -= piece.len() as u64;
        let taken = sender.send(Ok(piece.into())).await;
        taken.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
    }
}

/// The beginning of what was said, on one line; the rest is taken and let go.
async fn overhear(stream: Option<impl AsyncRead + Unpin>) -> Result<String, JournalFault> {
    let Some(mut stream) = stream else { return Ok(String::new()) };
    let mut bytes = Vec::new();
    (&mut stream).take(MAX_SAID).read_to_end(&mut bytes).await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    Ok(String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<_>>().join(" "))
}

enum NodeLog {
    Folder(Vec<(String, bool)>),
    /// With its length of now: a file that grows has an end all the same.
    File(std::fs::File, u64),
}

fn node_log(root: &Path, below: &Path) -> io::Result<NodeLog> {
    if below.as_os_str().is_empty() {
        return Ok(NodeLog::Folder(Beneath::open(root, below)?.names()?));
    }
    let top = Beneath::open(root, Path::new(""))?;
    match Beneath::open(root, below) {
        Ok(folder) => Ok(NodeLog::Folder(folder.names()?)),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            let file = top.file(below)?.ok_or(io::ErrorKind::NotFound)?;
            let length = file.metadata()?.len();
            Ok(NodeLog::File(file, length))
        }
        Err(error) => Err(error),
    }
}

/// As Go's file server shows a folder.
fn listing(names: &[(String, bool)]) -> String {
    let mut html =
        String::from("<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n");
    for (name, is_folder) in names {
        let slash = if *is_folder { "/" } else { "" };
        html.push_str(&format!("<a href=\"{}{slash}\">{}{slash}</a>\n", link(name), escape(name)));
    }
    html.push_str("</pre>\n");
    html
}

fn link(name: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    name.bytes()
        .map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn escape(name: &str) -> String {
    name.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&#34;")
        .replace('\'', "&#39;")
}

/// `None` where nobody takes it any more.
async fn send_file(file: std::fs::File, length: u64, sender: &Pieces) -> Option<()> {
    let mut at = 0;
    let file = Arc::new(file);
    while at < length {
        let (file, wanted) = (file.clone(), usize::try_from(length - at).unwrap_or(CHUNK).min(CHUNK));
        let read = tokio::task::spawn_blocking(move || {
            let mut block = vec![0; wanted];
            let count = std::os::unix::fs::FileExt::read_at(&*file, &mut block, at)?;
            block.truncate(count);
            Ok::<_, io::Error>(block)
        });
        let piece = read.await.map_err(io::Error::other).and_then(|read| read);
        let ends = piece.as_ref().map_or(true, Vec::is_empty);
        at += piece.as_ref().map_or(0, Vec::len) as u64;
        if matches!(&piece, Ok(piece) if piece.is_empty()) {
            // Cut meanwhile.
            return Some(());
        }
        sender.send_timeout(piece.map(Bytes::from), STALLED).await.ok()?;
        if ends {
            return None;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_logs_are_shown_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("sub")).unwrap();
        std::fs::write(root.path().join("sub/a.log"), "text").unwrap();
        std::os::unix::fs::symlink("/etc", root.path().join("out")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("passwd")).unwrap();
        let at = |below: &str| node_log(root.path(), Path::new(below));
        assert!(matches!(at("").unwrap(), NodeLog::Folder(names) if names.len() == 3));
        assert!(
            matches!(at("sub").unwrap(), NodeLog::Folder(names) if names == [("a.log".to_owned(), false)])
        );
        assert!(matches!(at("sub/a.log").unwrap(), NodeLog::File(_, 4)));
        for below in
            ["out", "out/passwd", "passwd", "..", "../etc/passwd", "sub/../../etc", "/etc/passwd", "none"]
        {
            assert!(at(below).is_err(), "{below}");
        }
    }

    #[test]
    fn names_do_no_harm_in_a_listing() {
        let html = listing(&[("<script>\"".to_owned(), false), ("pods".to_owned(), true)]);
        assert!(html.contains("<a href=\"%3Cscript%3E%22\">&lt;script&gt;&#34;</a>"), "{html}");
        assert!(html.contains("<a href=\"pods/\">pods/</a>"), "{html}");
    }

    /// A `journalctl` that knows the unit `cron`, and does this for it.
    fn fake_journal(path: &Path, script: &str) {
        let known = "[ \"$2\" = --field=_SYSTEMD_UNIT ] && { echo cron.service; exit 0; }";
        let text = format!("#!/bin/sh\n{known}\n{script}\n");
        // Written by another process: a program that anybody has open for writing cannot be started, and a child
        // started meanwhile by another test would have it.
        let write = "rm -f \"$0\" && printf %s \"$1\" > \"$0\" && chmod 755 \"$0\"";
        let written = std::process::Command::new("/bin/sh").arg("-c").arg(write).arg(path).arg(text).status();
        assert!(written.unwrap().success());
    }

    async fn asked(logs: &NodeLogs, query: &str) -> (u16, String) {
        let answer = logs.answer(&[], query).await;
        let status = answer.status().as_u16();
        let text = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&text).into_owned())
    }

    fn node_logs(root: &Path) -> NodeLogs {
        let folder = root.join("log");
        std::fs::create_dir_all(folder.join("own")).unwrap();
        std::fs::write(folder.join("proxy.log"), "of a file\n").unwrap();
        std::fs::write(folder.join("own/own.log"), "of its folder\n").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.join("evil.log")).unwrap();
        let journal = root.join("journalctl");
        fake_journal(&journal, "for word; do echo \"[$word]\"; done; env | grep -c SECRET");
        NodeLogs { folder, files: true, queries: true, journal, readers: Arc::new(Semaphore::new(1)) }
    }

    #[tokio::test]
    async fn services_come_from_the_journal_or_from_their_files() {
        let root = tempfile::tempdir().unwrap();
        let mut logs = node_logs(root.path());
        let text = "[--quiet]\n[--utc]\n[--no-pager]\n[--output=short-precise]\n[--lines=3]\n[--unit=cron]\n\
                    [--grep=a b]\n[--boot=0]\n0\n";
        assert_eq!(asked(&logs, "query=cron&tailLines=3&pattern=a+b").await, (200, text.to_owned()));
        for (query, expected) in [
            ("query=proxy", "of a file\n"),
            ("query=proxy.log", "of a file\n"),
            ("query=own", "of its folder\n"),
            ("query=/proxy.log", "of a file\n"),
            ("query=none", "\n-- no log of none was found --\n"),
            ("query=evil", "\n-- the log of evil is no plain file below the log folder --\n"),
        ] {
            assert_eq!(asked(&logs, query).await, (200, expected.to_owned()), "{query}");
        }
        let (_, text) = asked(&logs, "query=proxy&tailLines=1").await;
        assert!(text.contains("a file is given whole") && !text.contains("of a file"), "{text}");
        for (query, status) in
            [("query=/none.log", 404), ("query=/evil.log", 403), ("query=a;b", 406), ("query=a&boot=x", 400)]
        {
            assert_eq!(asked(&logs, query).await.0, status, "{query}");
        }
        let with_path = logs.answer(&["proxy.log".to_owned()], "query=cron").await;
        assert_eq!(with_path.status(), 406);
        let _place = logs.readers.clone().try_acquire_owned().unwrap();
        assert_eq!(asked(&logs, "query=cron").await.0, 429);
        drop(_place);
        logs.queries = false;
        assert!(asked(&logs, "query=cron").await.1.contains("proxy.log"), "a listing, as upstream");
        logs.files = false;
        assert_eq!(asked(&logs, "query=cron").await.0, 405);
    }

    #[tokio::test]
    async fn a_journal_that_fails_or_is_missing_is_a_line_of_the_answer() {
        let root = tempfile::tempdir().unwrap();
        let mut logs = node_logs(root.path());
        fake_journal(&logs.journal, "echo first; echo no such boot >&2; exit 1");
        let expected = "first\n\n-- the journal cannot be read: no such boot --\n";
        assert_eq!(asked(&logs, "query=cron&boot=-7").await, (200, expected.to_owned()));
        logs.journal = root.path().join("none");
        assert_eq!(asked(&logs, "query=proxy").await.1, "of a file\n");
        assert_eq!(asked(&logs, "query=cron").await.1, "\n-- no log of cron was found --\n");
    }

    #[tokio::test]
    async fn a_journal_that_never_ends_is_cut_and_leaves_no_process() {
        let root = tempfile::tempdir().unwrap();
        let logs = node_logs(root.path());
        let pid = root.path().join("pid");
        let script =
            |rest: &str| fake_journal(&logs.journal, &format!("echo $$ > {}; {rest}", pid.display()));
        script("exec cat /dev/zero");
        let (status, text) = asked(&logs, "query=cron").await;
        let cut = format!("-- cut after {MAX_QUERIED} bytes; ask");
        assert!(
            status == 200 && text.len() < MAX_QUERIED as usize + 1000 && text.contains(&cut),
            "{}",
            text.len()
        );
        // A reader that leaves ends it too.
        script("exec sleep 1000");
        let answer = logs.answer(&[], "query=cron").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let started = std::fs::read_to_string(&pid).unwrap();
        let there = || Path::new("/proc").join(started.trim()).join("cwd").exists();
        assert!(there());
        drop(answer);
        for _ in 0..100 {
            if !there() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the journal is still read for nobody");
    }
}
