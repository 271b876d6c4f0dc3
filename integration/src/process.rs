//! Runs a program with a deadline and collects what it said. Nothing here knows about nodes or tests.
//! A program that outlives its deadline is killed, so no test can hang on one.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What a program left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; 128 + signal where a signal ended it, as shells count.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub fn success(&self) -> bool {
        self.code == 0
    }

    /// Standard output and error together, for messages.
    pub fn text(&self) -> String {
        match (self.stdout.trim_end(), self.stderr.trim_end()) {
            (out, "") => out.to_owned(),
            ("", err) => err.to_owned(),
            (out, err) => format!("{out}\n{err}"),
        }
    }
}

/// A program to run: arguments, environment, standard input and a deadline (default 60 s).
#[derive(Debug, Clone)]
pub struct Run {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(String, String)>,
    stdin: Vec<u8>,
    deadline: Duration,
}

impl Run {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            stdin: Vec::new(),
            deadline: Duration::from_secs(60),
        }
    }

    /// A shell line, by `sh -ec`.
    pub fn shell(line: &str) -> Self {
        Self::new("sh").args(["-ec", line])
    }

    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    pub fn arg_path(mut self, path: &std::path::Path) -> Self {
        self.args.push(path.as_os_str().to_owned());
        self
    }

    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The command as one line, for messages.
    pub fn line(&self) -> String {
        let mut line = self.program.to_string_lossy().into_owned();
        for arg in &self.args {
            line.push(' ');
            line.push_str(&arg.to_string_lossy());
        }
        line
    }

    /// Runs to the end, whatever the exit code.
    ///
    /// # Errors
    /// Where the program cannot be started or outlives the deadline; the message carries what it had printed.
    pub fn output(&self) -> Result<Output> {
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(if self.stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.to_string_lossy()))?;
        if let Some(mut pipe) = child.stdin.take() {
            let bytes = self.stdin.clone();
            // A program that does not read its input closes the pipe; that is its right.
            thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        let stdout = Collector::start(child.stdout.take());
        let stderr = Collector::start(child.stderr.take());
        let Some(code) = wait(&mut child, self.deadline)? else {
            bail!(
                "{} was still running after {:?}; it had printed: {}{}",
                self.line(),
                self.deadline,
                stdout.finish(),
                stderr.finish()
            );
        };
        Ok(Output { code, stdout: stdout.finish(), stderr: stderr.finish() })
    }

    /// Runs and insists on exit code 0; gives standard output.
    ///
    /// # Errors
    /// As `output`, and with what the program printed where it failed.
    pub fn check(&self) -> Result<String> {
        let output = self.output()?;
        if !output.success() {
            bail!("{} ended with {}: {}", self.line(), output.code, output.text());
        }
        Ok(output.stdout)
    }
}

/// Waits for the child; kills it at the deadline and gives `None` then.
fn wait(child: &mut Child, deadline: Duration) -> Result<Option<i32>> {
    use std::os::unix::process::ExitStatusExt;
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            let signal = status.signal().map_or(255, |s| 128 + s);
            return Ok(Some(status.code().unwrap_or(signal)));
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Reads a pipe in a thread of its own. A daemon the program left behind may hold the pipe open, so the end of the
/// program, not of the pipe, is waited for.
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    fn start(pipe: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let thread = pipe.map(|mut pipe| {
            thread::spawn(move || {
                let mut chunk = [0; 16384];
                while let Ok(n @ 1..) = pipe.read(&mut chunk) {
                    sink.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&chunk[..n]);
                }
            })
        });
        Self { bytes, thread }
    }

    fn finish(self) -> String {
        let end = Instant::now() + Duration::from_millis(500);
        while self.thread.as_ref().is_some_and(|t| !t.is_finished()) && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A child of ours that is ended when this value is dropped.
#[derive(Debug)]
pub struct Owned {
    child: Child,
    name: String,
}

impl Owned {
    pub fn new(name: &str, child: Child) -> Self {
        Self { child, name: name.to_owned() }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// The exit code where the program has ended by itself.
    pub fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten().map(|s| s.code().unwrap_or(255))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        if let Err(error) = self.child.wait() {
            eprintln!("cannot wait for {}: {error}", self.name);
        }
    }
}

/// Tries `attempt` every `pause` until it gives a value or `deadline` is over; the last reason is in the error.
///
/// # Errors
/// The last refusal, with how long was waited.
pub fn wait_until<T>(
    deadline: Duration,
    pause: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() + pause > deadline => {
                return Err(error.context(format!("not so after {:.1} s", start.elapsed().as_secs_f32())));
            }
            Err(_) => thread::sleep(pause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collects_both_streams_and_the_code() {
        let out = Run::shell("cat; echo err >&2; exit 3").stdin("in").output().unwrap();
        assert_eq!((out.code, out.stdout.as_str(), out.stderr.as_str()), (3, "in", "err\n"));
    }

    #[test]
    fn kills_at_the_deadline_and_keeps_what_was_printed() {
        let run = Run::shell("echo started; exec sleep 60").deadline(Duration::from_millis(200));
        let error = run.output().unwrap_err().to_string();
        assert!(error.contains("started"), "{error}");
    }

    #[test]
    fn a_daemon_left_behind_does_not_hold_the_caller() {
        let start = Instant::now();
        Run::shell("sleep 20 & echo done").check().unwrap();
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn waiting_gives_the_last_reason() {
        let mut n = 0;
        let result: Result<()> = wait_until(Duration::from_millis(30), Duration::from_millis(10), || {
            n += 1;
            bail!("try {n}")
        });
        assert!(format!("{:#}", result.unwrap_err()).ends_with(&format!("try {n}")));
    }
}
