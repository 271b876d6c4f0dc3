//! What a test says beforehand about containers, commands and pulls.

use std::time::Duration;

use tonic::Code;

/// One life of a container, from its start on. The default runs until it is stopped and then ends at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// CreateContainer fails with this text.
    pub create_error: Option<String>,
    /// StartContainer fails with this text; the container is then exited, 128, `StartError`.
    pub start_error: Option<String>,
    /// How it ends by itself; `None` runs for ever.
    pub exit: Option<Exit>,
    pub on_stop: OnStop,
    /// Lines on standard output right after the start, where logs are written.
    pub output: Vec<String>,
}

/// The end of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// After the start.
    pub after: Duration,
    pub code: i32,
    /// As containerd says it: `Completed`, `Error`, `OOMKilled`.
    pub reason: String,
}

/// What a process does with the stop signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnStop {
    ExitAfter {
        after: Duration,
        code: i32,
    },
    /// Only SIGKILL at the end of the grace period ends it.
    Ignore,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            create_error: None,
            start_error: None,
            exit: None,
            // 128 + SIGTERM: a process without a handler of its own.
            on_stop: OnStop::ExitAfter { after: Duration::ZERO, code: 143 },
            output: Vec::new(),
        }
    }
}

impl Run {
    /// Runs until it is stopped.
    pub fn forever() -> Self {
        Self::default()
    }

    /// Ends by itself; `Completed` for code 0, else `Error`.
    pub fn exits(after: Duration, code: i32) -> Self {
        Self { exit: Some(Exit { after, code, reason: reason_of(code).to_owned() }), ..Self::default() }
    }

    /// Ends with `code` as soon as it is started.
    pub fn crashes(code: i32) -> Self {
        Self::exits(Duration::ZERO, code)
    }

    /// Is killed by the kernel for using too much memory.
    pub fn oom_killed(after: Duration) -> Self {
        let exit = Exit { after, code: 137, reason: "OOMKilled".to_owned() };
        Self { exit: Some(exit), ..Self::default() }
    }

    /// Cannot be started.
    pub fn cannot_start(text: &str) -> Self {
        Self { start_error: Some(text.to_owned()), ..Self::default() }
    }

    /// Ends `after` the stop signal with `code`.
    #[must_use]
    pub fn stops_after(self, after: Duration, code: i32) -> Self {
        Self { on_stop: OnStop::ExitAfter { after, code }, ..self }
    }

    /// Ignores the stop signal, so that stopping takes the whole grace period.
    #[must_use]
    pub fn ignores_stop(self) -> Self {
        Self { on_stop: OnStop::Ignore, ..self }
    }
}

/// containerd's word for an exit code.
pub(super) fn reason_of(code: i32) -> &'static str {
    if code == 0 { "Completed" } else { "Error" }
}

/// What commands run in a container give. The default ends at once with code 0 and no output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecScript {
    pub takes: Duration,
    pub exit_code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl ExecScript {
    pub fn exits(exit_code: i32) -> Self {
        Self { exit_code, ..Self::default() }
    }
}

/// What pulling an image does. The default succeeds at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullScript {
    pub takes: Duration,
    pub failure: Option<PullError>,
    /// User and password without which the registry refuses.
    pub wants: Option<(String, String)>,
}

/// Of a registry that wants other credentials, in containerd's words.
pub(super) const REFUSED: &str = "pull access denied, repository does not exist or may require authorization: \
                                  server message: insufficient_scope: authorization failed";

/// How a pull fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullError {
    pub code: Code,
    pub text: String,
    /// So many pulls fail, then they succeed; `None` fails for ever.
    pub times: Option<u32>,
}

impl PullScript {
    pub fn slow(takes: Duration) -> Self {
        Self { takes, ..Self::default() }
    }

    /// The registry has no such image; the text is containerd's.
    pub fn not_found(image: &str) -> Self {
        let text = format!(
            "failed to pull and unpack image {image:?}: failed to resolve reference {image:?}: {image}: not found"
        );
        Self { failure: Some(PullError { code: Code::NotFound, text, times: None }), ..Self::default() }
    }

    /// The registry wants credentials that nobody has.
    pub fn refused() -> Self {
        let text = REFUSED.to_owned();
        Self { failure: Some(PullError { code: Code::Unknown, text, times: None }), ..Self::default() }
    }

    /// The registry gives the image to this user only.
    pub fn wants(user: &str, password: &str) -> Self {
        Self { wants: Some((user.to_owned(), password.to_owned())), ..Self::default() }
    }

    /// The registry cannot be reached for the next `times` pulls.
    pub fn unreachable(times: u32) -> Self {
        let text = "failed to do request: dial tcp 192.0.2.1:443: connect: connection refused".to_owned();
        Self { failure: Some(PullError { code: Code::Unknown, text, times: Some(times) }), ..Self::default() }
    }
}
