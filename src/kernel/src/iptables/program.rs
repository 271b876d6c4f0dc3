//! Running one of iptables' programs: absolute path, arguments without a shell, a clean environment,
//! input and output at once, bounded, with a deadline.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::IptablesError;

/// What is kept of what the program complains about.
const MAX_ERRORS: usize = 16 * 1024;
/// The longest line of a listing; iptables' own comments end at 256 bytes.
const MAX_LINE: usize = 64 * 1024;
/// The longest listing: several times that of a hundred thousand Services.
const MAX_OUTPUT: usize = 1 << 30;

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// The first part of its standard error.
    pub(crate) errors: String,
}

/// Run `program` with `input`, and give each line it prints to `line`.
pub(crate) async fn run(
    program: &Path,
    args: &[&str],
    input: &str,
    deadline: Duration,
    line: &mut (dyn FnMut(&str) + Send),
) -> Result<Ended, IptablesError> {
    let failed = |err: std::io::Error| IptablesError::Run {
        program: program.to_owned(),
        source: Errno::from_raw(err.raw_os_error().unwrap_or(0)),
    };
    let mut command = Command::new(program);
    command.args(args).env_clear().env("LC_ALL", "C").current_dir("/").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let talk = async {
        let write = async {
            if let Some(mut stdin) = stdin {
                // A program that stops reading says why on its standard error.
                let _ = stdin.write_all(input.as_bytes()).await;
                let _ = stdin.shutdown().await;
            }
        };
        let ((), printed, errors) = tokio::join!(write, lines(stdout, line), first_part(stderr));
        (printed, errors, child.wait().await)
    };
    match tokio::time::timeout(deadline, talk).await {
        Ok((true, errors, status)) => Ok(Ended { status: status.map_err(failed)?, errors }),
        Ok((false, ..)) => Err(IptablesError::TooLong { program: program.to_owned(), limit: MAX_OUTPUT }),
        // Dropping the child kills it.
        Err(_) => Err(IptablesError::Deadline { program: program.to_owned(), after: deadline }),
    }
}

/// Read lines until the end; false when a bound was passed.
async fn lines(from: Option<impl AsyncRead + Unpin>, line: &mut (dyn FnMut(&str) + Send)) -> bool {
    let Some(mut from) = from else { return true };
    let mut buffer = vec![0; 64 * 1024];
    let mut rest: Vec<u8> = Vec::new();
    let (mut total, mut within) = (0, true);
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        total += count;
        within &= total <= MAX_OUTPUT;
        // What is past a bound is still drained, so that the program can end.
        if !within {
            continue;
        }
        let mut bytes = &buffer[..count];
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            rest.extend_from_slice(&bytes[..end]);
            line(&String::from_utf8_lossy(&rest));
            rest.clear();
            bytes = &bytes[end + 1..];
        }
        rest.extend_from_slice(bytes);
        within &= rest.len() <= MAX_LINE;
    }
    if !rest.is_empty() && within {
        line(&String::from_utf8_lossy(&rest));
    }
    within
}

async fn first_part(from: Option<impl AsyncRead + Unpin>) -> String {
    let mut kept = Vec::new();
    if let Some(mut from) = from {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let room = MAX_ERRORS.saturating_sub(kept.len());
            kept.extend_from_slice(&buffer[..count.min(room)]);
        }
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

/// The line of the text a program complains about, counted from 1. The variants and versions write
/// `line 5: RULE_APPEND failed`, `iptables-restore: line 5 failed` and `Error occurred at line: 5`.
pub fn failed_line(errors: &str) -> Option<usize> {
    let mut rest = errors;
    while let Some(at) = rest.find("line") {
        rest = &rest[at + 4..];
        let number = rest.trim_start_matches([':', ' ']);
        let digits = number.len() - number.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
        if digits > 0 && number.len() < rest.len() {
            return number[..digits].parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn the_line_at_fault_is_found_in_every_version_s_words() {
        let cases = [
            (
                "iptables-nft-restore v1.8.9 (nf_tables): \nline 5: RULE_APPEND failed (No such file or directory): rule in chain X",
                Some(5),
            ),
            ("iptables-restore: line 12 failed", Some(12)),
            ("iptables-legacy-restore: line 3 failed: No chain/target/match by that name.", Some(3)),
            (
                "iptables-restore v1.8.9 (legacy): Couldn't load target `X'\n\nError occurred at line: 7\nTry `iptables-restore -h'",
                Some(7),
            ),
            ("Bad command line\nError occurred at line: 2", Some(2)),
            ("unknown option in line", None),
            ("line 99999999999999999999999", None),
            ("", None),
        ];
        for (text, want) in cases {
            assert_eq!(failed_line(text), want, "{text}");
        }
    }

    async fn sh(
        script: &str,
        input: &str,
        deadline: Duration,
    ) -> (Result<Ended, IptablesError>, Vec<String>) {
        let mut seen = Vec::new();
        let program = PathBuf::from("/bin/sh");
        let outcome =
            run(&program, &["-c", script], input, deadline, &mut |line| seen.push(line.to_owned())).await;
        (outcome, seen)
    }

    #[tokio::test]
    async fn input_output_and_errors_pass_at_once_however_large_they_are() {
        let input = "0123456789abcde\n".repeat(40_000);
        let (ended, seen) = sh("cat; echo oops >&2; exit 3", &input, Duration::from_secs(30)).await;
        let ended = ended.unwrap();
        assert_eq!((ended.status.code(), ended.errors.as_str(), seen.len()), (Some(3), "oops", 40_000));
        // A program that reads nothing at all ends the same.
        let (ended, _) = sh("exit 1", &input, Duration::from_secs(30)).await;
        assert_eq!(ended.unwrap().status.code(), Some(1));
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_and_one_that_is_missing_is_named() {
        let (outcome, _) = sh("exec sleep 60", "", Duration::from_millis(50)).await;
        assert!(matches!(outcome, Err(IptablesError::Deadline { .. })), "{outcome:?}");
        let missing = run(Path::new("/no/such"), &[], "", Duration::from_secs(1), &mut |_| {}).await;
        assert_eq!(missing.unwrap_err().to_string(), "run /no/such");
    }

    #[tokio::test]
    async fn a_line_without_end_is_not_kept() {
        let (outcome, seen) = sh("head -c 100000 /dev/zero", "", Duration::from_secs(30)).await;
        assert!(matches!(outcome, Err(IptablesError::TooLong { .. })), "{outcome:?}");
        assert!(seen.is_empty());
    }
}
