//! `longshore logs`: what containers wrote, from the runtime's log files. Works without the daemon
//! and, for containers that ended, without the runtime's help.

pub mod files;
pub mod line;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use longshore_core::pod::observed::ObservedContainer;

use self::files::{LogFile, Window};
use self::line::Record;
use crate::error::CliError;
use crate::pods::{Node, NodePod};
use crate::target::PodName;

/// How often followed files are looked at.
const POLL: Duration = Duration::from_millis(100);
/// How often the daemon is asked whether a followed container has ended.
const ASK_STATE: Duration = Duration::from_secs(1);

/// What `logs` was asked for.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub container: Option<String>,
    pub all_containers: bool,
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub prefix: bool,
    pub window: Window,
}

/// One log to show, with the label its lines may carry.
struct Source {
    label: String,
    container: ObservedContainer,
    log: LogFile,
}

/// Shows the logs of one pod.
pub async fn run(node: &Node, name: &PodName, wanted: &Wanted) -> Result<(), CliError> {
    let pod = node.pod(name).await?;
    let mut sources = sources(&pod, wanted)?;
    let mut out = Output { prefix: wanted.prefix || sources.len() > 1, timestamps: wanted.timestamps };
    let mut present = Vec::new();
    for source in &mut sources {
        let mut records =
            source.log.read_present(wanted.window).map_err(|error| unreadable(&source.container, &error))?;
        if !wanted.follow {
            source.log.finish(&mut |record| records.push_back(record));
        }
        present.push(records);
    }
    if !out.merged(&sources, present)? {
        return Ok(());
    }
    if wanted.follow {
        follow(node, name, &mut sources, &mut out).await?;
    }
    let malformed: u64 = sources.iter().map(|source| source.log.malformed()).sum();
    if malformed > 0 {
        eprintln!("note: {malformed} lines are not in the CRI log format and were left out");
    }
    Ok(())
}

fn unreadable(container: &ObservedContainer, error: &io::Error) -> CliError {
    let text = format!("cannot read {}: {error}", container.log_path);
    match error.kind() {
        io::ErrorKind::PermissionDenied => CliError::new(text).hint("run the command as root (sudo)"),
        _ => CliError::new(text),
    }
}

fn sources(pod: &NodePod, wanted: &Wanted) -> Result<Vec<Source>, CliError> {
    let names = if wanted.all_containers {
        pod.container_names()
    } else {
        vec![pod.container(wanted.container.as_deref())?]
    };
    let mut sources = Vec::new();
    for name in &names {
        let container = match instance(pod, name, wanted.previous) {
            Ok(container) => container,
            // With all containers, those that have not started yet have nothing to show.
            Err(_) if names.len() > 1 => continue,
            Err(error) => return Err(error),
        };
        let path = PathBuf::from(&container.log_path);
        let log = LogFile::open(&path).map_err(|error| unreadable(container, &error))?;
        sources.push(Source { label: format!("[{}/{name}] ", pod.key()), container: container.clone(), log });
    }
    Ok(sources)
}

/// The instance whose log is meant: the newest, or with `previous` the last that ended before it.
fn instance<'a>(pod: &'a NodePod, name: &'a str, previous: bool) -> Result<&'a ObservedContainer, CliError> {
    let mut instances = pod.instances(name);
    let newest = instances.next().ok_or_else(|| {
        CliError::new(format!("container {name} of pod {} has not been created yet", pod.key()))
            .hint(format!("longshore why pod/{} tells what it waits for", pod.key()))
    })?;
    if !previous {
        return Ok(newest);
    }
    // While a container waits to be started again, the instance that just ended is the previous one.
    if !newest.may_run() && waits_to_restart(pod, name) {
        return Ok(newest);
    }
    instances.next().ok_or_else(|| {
        CliError::new(format!("container {name} of pod {} has no previous instance", pod.key()))
            .hint("leave out --previous: it has not been restarted, or its last instance was cleaned up")
    })
}

fn waits_to_restart(pod: &NodePod, name: &str) -> bool {
    let Some(view) = &pod.view else { return false };
    let statuses =
        view.status.container_statuses.iter().chain(&view.status.init_container_statuses).flatten();
    statuses
        .filter(|status| status.name == name)
        .any(|status| status.state.as_ref().is_some_and(|state| state.waiting.is_some()))
}

async fn follow(
    node: &Node,
    name: &PodName,
    sources: &mut [Source],
    out: &mut Output,
) -> Result<(), CliError> {
    let mut asked = tokio::time::Instant::now();
    loop {
        let mut any = false;
        for source in sources.iter_mut() {
            let mut records = Vec::new();
            any |= source
                .log
                .poll(&mut |record| records.push(record))
                .map_err(|error| unreadable(&source.container, &error))?;
            for record in &records {
                if !out.record(&source.label, record)? {
                    return Ok(());
                }
            }
        }
        if any {
            continue;
        }
        if asked.elapsed() >= ASK_STATE {
            asked = tokio::time::Instant::now();
            let ended = ended(node, name, sources).await;
            if ended.iter().all(|ended| *ended) {
                return last_words(sources, out);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

/// Which of the followed containers have ended; while nobody can tell, none has.
async fn ended(node: &Node, name: &PodName, sources: &[Source]) -> Vec<bool> {
    let known = state_now(node, name).await;
    let ended = |source: &Source| match &known {
        None => false,
        Some(containers) => containers
            .iter()
            .find(|c| c.id == source.container.id)
            .is_none_or(|container| !container.may_run()),
    };
    sources.iter().map(ended).collect()
}

async fn state_now(node: &Node, name: &PodName) -> Option<Vec<ObservedContainer>> {
    let views = node.daemon.get::<Vec<longshore_core::wire::PodView>>("/v1/pods").await;
    let observed = match views {
        Ok(views) => views.into_iter().map(|view| Arc::unwrap_or_clone(view.observed)).collect(),
        Err(_) => node.observed().await.ok()?,
    };
    let mine = observed.into_iter().filter(|pod| {
        *pod.key.name == *name.name
            && name.namespace.as_deref().is_none_or(|namespace| namespace == &*pod.key.namespace)
    });
    Some(mine.flat_map(|pod| pod.containers).collect())
}

/// What was written between the last look and the end.
fn last_words(sources: &mut [Source], out: &mut Output) -> Result<(), CliError> {
    for source in sources {
        let mut records = Vec::new();
        source
            .log
            .poll(&mut |record| records.push(record))
            .map_err(|error| unreadable(&source.container, &error))?;
        source.log.finish(&mut |record| records.push(record));
        for record in &records {
            if !out.record(&source.label, record)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Writes records as the options want them.
struct Output {
    prefix: bool,
    timestamps: bool,
}

impl Output {
    /// Writes the records of all sources in the order of their times; false when nobody reads any more.
    fn merged(&mut self, sources: &[Source], mut queues: Vec<VecDeque<Record>>) -> Result<bool, CliError> {
        loop {
            let next = queues
                .iter()
                .enumerate()
                .filter_map(|(index, queue)| queue.front().map(|record| (record.at, index)))
                .min();
            let Some((_, index)) = next else { return Ok(true) };
            if let Some(record) = queues[index].pop_front()
                && !self.record(&sources[index].label, &record)?
            {
                return Ok(false);
            }
        }
    }

    fn record(&mut self, label: &str, record: &Record) -> Result<bool, CliError> {
        let line = self.line(label, record);
        let mut out = io::stdout().lock();
        match out.write_all(&line).and_then(|()| out.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn line(&self, label: &str, record: &Record) -> Vec<u8> {
        let mut line = Vec::with_capacity(record.text.len() + 64);
        if self.prefix {
            line.extend_from_slice(label.as_bytes());
        }
        if self.timestamps {
            line.extend_from_slice(format!("{} ", record.at).as_bytes());
        }
        line.extend_from_slice(&record.text);
        // Lines of several containers must not run into each other.
        if record.whole || self.prefix {
            line.push(b'\n');
        }
        line
    }
}

/// Reads `--since`: a span back from now (`90s`, `5m`, `1h30m`, `2d`) or a time (RFC 3339).
pub fn since(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let bad = || format!("{text:?} is neither a span (90s, 5m, 1h30m, 2d) nor a time (2026-11-21T10:00:00Z)");
    let mut seconds: i64 = 0;
    let mut number = String::new();
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let unit = match c {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86400,
            _ => return Err(bad()),
        };
        let value: i64 = number.parse().map_err(|_| bad())?;
        seconds = value.checked_mul(unit).and_then(|s| s.checked_add(seconds)).ok_or_else(bad)?;
        number.clear();
    }
    if !number.is_empty() || text.is_empty() {
        return Err(bad());
    }
    now.checked_sub(SignedDuration::from_secs(seconds)).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::line::Stream;

    #[test]
    fn since_takes_spans_and_times() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let cases = [
            ("90s", Some("2026-01-01T23:58:30Z")),
            ("1h30m", Some("2026-01-01T22:30:00Z")),
            ("1d", Some("2026-01-01T00:00:00Z")),
            ("2026-01-01T10:00:00Z", Some("2026-01-01T10:00:00Z")),
            ("90", None),
            ("m", None),
            ("", None),
            ("-5m", None),
            ("99999999999999999d", None),
            ("tomorrow", None),
        ];
        for (text, expected) in cases {
            assert_eq!(since(text, now).ok(), expected.map(|t| t.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_line_carries_what_was_asked_for() {
        let record = Record {
            at: "2026-01-02T03:04:05.5Z".parse().unwrap(),
            stream: Stream::Stdout,
            text: b"hi".to_vec(),
            whole: true,
        };
        for (prefix, timestamps, expected) in [
            (false, false, "hi\n"),
            (true, false, "[default/web/a] hi\n"),
            (false, true, "2026-01-02T03:04:05.5Z hi\n"),
            (true, true, "[default/web/a] 2026-01-02T03:04:05.5Z hi\n"),
        ] {
            let line = Output { prefix, timestamps }.line("[default/web/a] ", &record);
            assert_eq!(String::from_utf8(line).unwrap(), expected);
        }
        let piece = Record { whole: false, ..record };
        assert_eq!(Output { prefix: false, timestamps: false }.line("", &piece), b"hi");
        assert_eq!(Output { prefix: true, timestamps: false }.line("[a] ", &piece), b"[a] hi\n");
    }
}
