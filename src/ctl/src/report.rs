//! `longshore report`: what a person who helps needs to see of this node, in one file. It runs the other commands and
//! reads a few files of the kernel; everything is masked before it is written. It changes nothing on the node.

use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use longshore_core::mask;
use serde::Serialize;
use serde_json::Value;
use tokio::process::Command;

use crate::args::Where;
use crate::error::{CliError, one_line};
use crate::output::{Format, print, yaml};

/// What one source may take of time and give of text.
const DEADLINE: Duration = Duration::from_secs(30);
const MAX_BYTES: usize = 2 << 20;
/// Pods that are explained one by one; a node has 110 by default, and most of them are well.
const MAX_EXPLAINED: usize = 50;
/// Lines of each journal.
const JOURNAL_LINES: &str = "500";

/// The commands of this program, least costly first.
const OWN: [&[&str]; 16] = [
    &["version"],
    &["doctor"],
    &["get", "node"],
    &["why", "node"],
    &["ps", "-o", "wide"],
    &["ps", "--containers", "-o", "wide"],
    &["svc", "status"],
    &["svc", "list", "-o", "wide"],
    &["svc", "diff"],
    &["conntrack", "--stale"],
    &["top", "node"],
    &["top"],
    &["mounts", "-o", "wide"],
    &["images"],
    &["get", "services", "-o", "json"],
    &["get", "pods", "-o", "json"],
];

/// Other programs, where they are installed.
const OTHERS: [&[&str]; 3] = [
    &["systemctl", "--no-pager", "status", "longshore", "containerd", "kubelet", "kube-proxy"],
    &["journalctl", "--no-pager", "-o", "short-iso-precise", "-n", JOURNAL_LINES, "-u", "longshore"],
    &["journalctl", "--no-pager", "-o", "short-iso-precise", "-n", JOURNAL_LINES, "-u", "containerd"],
];

const FILES: [&str; 11] = [
    "/etc/os-release",
    "/proc/version",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/pressure/cpu",
    "/proc/pressure/memory",
    "/proc/pressure/io",
    "/proc/sys/net/netfilter/nf_conntrack_count",
    "/proc/sys/net/netfilter/nf_conntrack_max",
    "/proc/self/mountinfo",
];

/// What one source gave.
#[derive(Debug, Serialize)]
struct Section {
    /// The command or the file.
    source: String,
    /// Why it is not all there, or the exit code that is no success.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    text: String,
}

/// Collects and writes the file; `to` is its path, `-` for standard output, else one in this folder with the time in
/// its name.
pub async fn run(at: &Where, format: Format, to: Option<PathBuf>, now: Timestamp) -> Result<(), CliError> {
    let target = match to {
        Some(path) if path == Path::new("-") => None,
        Some(path) => Some(path),
        None => Some(PathBuf::from(file_name(format, now))),
    };
    // Before the work, not after it.
    let mut file = target.as_deref().map(create).transpose()?;
    let sections = collect(at).await?;
    let text = written(&sections, format, now)?;
    let (Some(file), Some(path)) = (&mut file, &target) else { return print(&text) };
    file.write_all(text.as_bytes())
        .map_err(|error| CliError::new(format!("cannot write {}: {error}", path.display())))?;
    print(&summary(path, text.len(), &sections))
}

fn file_name(format: Format, now: Timestamp) -> String {
    let ending = match format {
        Format::Json => "json",
        Format::Yaml => "yaml",
        Format::Table | Format::Wide => "txt",
    };
    format!("longshore-report-{}.{ending}", now.strftime("%Y%m%dT%H%M%SZ"))
}

/// A new file that only its owner reads; what is there already is somebody's.
fn create(path: &Path) -> Result<std::fs::File, CliError> {
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AlreadyExists => "name another file: longshore report -f FILE",
            _ => "name a file that can be written: longshore report -f FILE",
        };
        CliError::new(format!("cannot write {}: {error}", path.display())).hint(hint)
    })
}

async fn collect(at: &Where) -> Result<Vec<Section>, CliError> {
    let own = std::env::current_exe()
        .map_err(|error| CliError::new(format!("cannot find this program again: {error}")))?;
    let mut sections = Vec::new();
    for arguments in OWN {
        sections.push(own_section(&own, at, arguments).await);
    }
    let unwell = sections.last().map(|pods| unwell(&pods.text)).unwrap_or_default();
    for pod in unwell.iter().take(MAX_EXPLAINED) {
        sections.push(own_section(&own, at, &["why", pod]).await);
        sections.push(own_section(&own, at, &["timeline", pod]).await);
    }
    for command in OTHERS {
        progress(&command.join(" "));
        let mut process = Command::new(command[0]);
        process.args(&command[1..]);
        sections.push(masked(command.join(" "), output(process).await));
    }
    for file in FILES {
        sections.push(masked(file.to_owned(), read(file).await));
    }
    Ok(sections)
}

async fn own_section(own: &Path, at: &Where, arguments: &[&str]) -> Section {
    let source = format!("longshore {}", arguments.join(" "));
    progress(&source);
    let mut process = Command::new(own);
    process
        .args(arguments)
        .env("LONGSHORE_SOCKET", &at.socket)
        .env("CONTAINER_RUNTIME_ENDPOINT", &at.runtime_endpoint);
    masked(source, output(process).await)
}

/// On a terminal, what is looked at now; the whole takes seconds.
fn progress(source: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("  {source}");
    }
}

/// What a source gave, and what is to be said of it.
type Given = (Vec<u8>, Option<String>);

/// Both streams of a program, and what became of it.
async fn output(mut process: Command) -> Given {
    process.stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(DEADLINE, process.output()).await {
        Err(_) => (Vec::new(), Some(format!("gave no answer within {} s", DEADLINE.as_secs()))),
        Ok(Err(error)) => (Vec::new(), Some(format!("cannot be run: {error}"))),
        Ok(Ok(output)) => {
            let mut bytes = output.stdout;
            bytes.extend(output.stderr);
            (bytes, (!output.status.success()).then(|| output.status.to_string()))
        }
    }
}

async fn read(path: &str) -> Given {
    match tokio::fs::read(path).await {
        Ok(bytes) => (bytes, None),
        Err(error) => (Vec::new(), Some(format!("cannot be read: {error}"))),
    }
}

/// Objects lose their values, texts what looks like a secret; too much is cut.
fn masked(source: String, (bytes, mut note): Given) -> Section {
    let text = String::from_utf8_lossy(&bytes);
    let mut text = match serde_json::from_str::<Value>(&text) {
        Ok(mut value) => {
            mask::object(&mut value);
            format!("{value:#}\n")
        }
        Err(_) => mask::text(&text),
    };
    if text.len() > MAX_BYTES {
        text.truncate(text.floor_char_boundary(MAX_BYTES));
        let cut = format!("cut after {} MiB", MAX_BYTES >> 20);
        note = Some(note.map_or(cut.clone(), |note| format!("{note}; {cut}")));
    }
    // A terminal must not obey what a container wrote into the journal.
    text.retain(|c| !c.is_control() || matches!(c, '\n' | '\t'));
    Section { source, note, text }
}

/// Pods of a list of objects that are neither ready nor done.
fn unwell(list: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(list).unwrap_or_default();
    let is_well = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array();
        let ready =
            conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
        ready || pod["status"]["phase"] == "Succeeded"
    };
    let name = |pod: &Value| {
        let meta = &pod["metadata"];
        Some(format!("{}/{}", meta["namespace"].as_str().unwrap_or("default"), meta["name"].as_str()?))
    };
    let items = list["items"].as_array().cloned().unwrap_or_default();
    items.iter().filter(|pod| !is_well(pod)).filter_map(name).collect()
}

fn written(sections: &[Section], format: Format, now: Timestamp) -> Result<String, CliError> {
    match format {
        Format::Json => {
            serde_json::to_string_pretty(sections).map_err(|error| CliError::new(error.to_string()))
        }
        Format::Yaml => yaml(&sections),
        Format::Table | Format::Wide => {
            let head = format!("longshore report of {now:.0}; values, keys and tokens are masked\n");
            let body = sections.iter().map(|section| {
                let note =
                    section.note.as_ref().map_or(String::new(), |note| format!(" ({})", one_line(note)));
                format!("\n==== {}{note}\n{}", section.source, section.text)
            });
            Ok(std::iter::once(head).chain(body).collect())
        }
    }
}

fn summary(path: &Path, bytes: usize, sections: &[Section]) -> String {
    let lacking: Vec<&Section> = sections.iter().filter(|section| section.text.is_empty()).collect();
    let mut text = format!(
        "{}: {} KiB from {} sources; values, keys and tokens are masked\n",
        path.display(),
        bytes.div_ceil(1024),
        sections.len() - lacking.len()
    );
    for section in lacking {
        let why = section.note.as_deref().unwrap_or("it is empty");
        text.push_str(&format!("  without {}: {}\n", section.source, one_line(why)));
    }
    text.push_str(
        "look through it before you pass it on: names of objects, images and addresses are in it\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(source: &str, text: &str, note: Option<&str>) -> Section {
        masked(source.to_owned(), (text.as_bytes().to_vec(), note.map(str::to_owned)))
    }

    #[test]
    fn pods_that_are_neither_ready_nor_done_are_explained() {
        let pod = |name: &str, phase: &str, ready: &str| {
            serde_json::json!({
                "metadata": {"name": name, "namespace": "shop"},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
            })
        };
        let list = serde_json::json!({"items": [
            pod("up", "Running", "True"),
            pod("down", "Running", "False"),
            pod("done", "Succeeded", "False"),
            pod("lost", "Failed", "False"),
        ]});
        assert_eq!(unwell(&list.to_string()), ["shop/down", "shop/lost"]);
        assert_eq!(unwell("error: the agent does not run"), [] as [&str; 0]);
    }

    #[test]
    fn every_form_holds_every_source_and_no_secret() {
        let sections = [
            section("a", "DB_PASSWORD=hunter2\n", None),
            section("b", r#"{"kind":"Secret","data":{"key":"aHVudGVyMg=="}}"#, Some("exit status: 1")),
            section("c", "", Some("cannot be run: not installed")),
            section("d", "red \u{1b}[31m\n", None),
        ];
        for format in [Format::Table, Format::Json, Format::Yaml] {
            let text = written(&sections, format, Timestamp::UNIX_EPOCH).unwrap();
            for wanted in ["DB_PASSWORD=[masked]", "exit status: 1", "not installed", "red"] {
                assert!(text.contains(wanted), "{format:?} lacks {wanted}: {text}");
            }
            for unwanted in ["hunter2", "aHVudGVyMg", "\u{1b}"] {
                assert!(!text.contains(unwanted), "{format:?} has {unwanted}: {text}");
            }
        }
        let summary = summary(Path::new("r.txt"), 3000, &sections);
        assert!(summary.starts_with("r.txt: 3 KiB from 3 sources"), "{summary}");
        assert!(summary.contains("  without c: cannot be run: not installed\n"), "{summary}");
    }

    #[test]
    fn a_file_that_is_there_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.txt");
        std::fs::write(&path, "mine").unwrap();
        let error = create(&path).unwrap_err();
        assert!(error.hint.unwrap().contains("-f FILE"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        let new = folder.path().join("new.txt");
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&create(&new).unwrap().metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_a_note() {
        let (bytes, note) = output(Command::new("/no/such/program")).await;
        assert!(bytes.is_empty() && note.unwrap().starts_with("cannot be run: "));
    }
}
