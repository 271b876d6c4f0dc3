//! The one error of this crate: what was asked of the runtime, about which object, and why it did not
//! work. Classifying answers belongs here; deciding what to do about them does not.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};

use crate::convert::ConvertError;
use crate::counters::Operation;
use crate::pull_failure::PullFailure;

/// Longest text of a runtime that is kept; containerd can quote a whole OCI spec.
const MAX_TEXT: usize = 2048;

/// A call to the runtime that did not give what was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot {} {object}: {kind}", .operation.verb())]
pub struct CriError {
    /// The call.
    pub operation: Operation,
    /// Pod, container, image or id it was about; the endpoint for calls about the runtime itself.
    pub object: String,
    pub kind: ErrorKind,
    #[source]
    pub cause: Cause,
}

/// What a caller can tell errors apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The runtime has no such sandbox, container or image.
    NotFound,
    /// No connection, or it broke: the call may or may not have been carried out.
    Unavailable,
    /// No answer in time: the call may or may not have been carried out.
    DeadlineExceeded,
    /// The runtime lacks this call.
    Unimplemented,
    /// The runtime refuses the request as such.
    InvalidArgument,
    /// A sandbox or container of this name and attempt exists.
    AlreadyExists,
    /// The answer is larger than one message may be; ask with a narrower filter.
    TooLarge,
    /// The answer came and makes no sense.
    BadAnswer,
    /// An image could not be pulled.
    ImagePull(PullFailure),
    /// Everything else the runtime says; containerd answers most failures this way.
    Other,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "the runtime has no such object",
            Self::Unavailable => "the runtime cannot be reached",
            Self::DeadlineExceeded => "no answer in time",
            Self::Unimplemented => "the runtime does not have this call",
            Self::InvalidArgument => "the runtime refuses the request",
            Self::AlreadyExists => "its name is taken",
            Self::TooLarge => "the answer is too large",
            Self::BadAnswer => "the runtime's answer makes no sense",
            Self::ImagePull(failure) => failure.describe(),
            Self::Other => "the runtime failed",
        })
    }
}

/// The text behind an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// In the runtime's own words, cut at 2 KiB.
    #[error("{0}")]
    Runtime(String),
    /// What broke between us and the runtime.
    #[error("{0}")]
    Transport(String),
    #[error("waited {0:?}")]
    Deadline(Duration),
    #[error(transparent)]
    Answer(ConvertError),
}

impl CriError {
    /// `false`: trying again cannot help until something else changes.
    pub fn is_retryable(&self) -> bool {
        match self.kind {
            ErrorKind::Unavailable | ErrorKind::DeadlineExceeded | ErrorKind::Other => true,
            ErrorKind::ImagePull(failure) => failure.is_retryable(),
            ErrorKind::NotFound
            | ErrorKind::Unimplemented
            | ErrorKind::InvalidArgument
            | ErrorKind::AlreadyExists
            | ErrorKind::TooLarge
            | ErrorKind::BadAnswer => false,
        }
    }

    /// `true`: nobody knows whether the runtime did it; look before asking again.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self.kind, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded)
    }

    /// Error and cause in one line, for a pod's condition or event.
    pub fn one_line(&self) -> String {
        format!("{self}: {}", self.cause).replace('\n', " ")
    }

    /// From a gRPC status; `endpoint` is named when it cannot be reached.
    pub(crate) fn from_status(operation: Operation, object: String, endpoint: &str, status: &Status) -> Self {
        let kind = classify(operation, status);
        let cause = match kind {
            ErrorKind::Unavailable => Cause::Transport(format!("{endpoint}: {}", innermost_text(status))),
            _ => Cause::Runtime(bounded(status.message(), MAX_TEXT)),
        };
        Self { operation, object, kind, cause }
    }

    pub(crate) fn deadline(operation: Operation, object: String, waited: Duration) -> Self {
        Self { operation, object, kind: ErrorKind::DeadlineExceeded, cause: Cause::Deadline(waited) }
    }

    pub(crate) fn bad_answer(operation: Operation, object: String, error: ConvertError) -> Self {
        Self { operation, object, kind: ErrorKind::BadAnswer, cause: Cause::Answer(error) }
    }
}

fn classify(operation: Operation, status: &Status) -> ErrorKind {
    let text = status.message();
    // A status with a source was made on our side of the socket: nothing was answered.
    let local = status.source().is_some();
    match status.code() {
        Code::Cancelled if text == "Timeout expired" => ErrorKind::DeadlineExceeded,
        Code::OutOfRange | Code::ResourceExhausted
            if text.contains("larger than max") || text.contains("too large") =>
        {
            ErrorKind::TooLarge
        }
        Code::DeadlineExceeded => ErrorKind::DeadlineExceeded,
        Code::Unimplemented => ErrorKind::Unimplemented,
        Code::Unknown | Code::Cancelled | Code::Internal if local => ErrorKind::Unavailable,
        // A registry that is away is not a runtime that is away.
        _ if operation == Operation::PullImage && (!local || status.code() != Code::Unavailable) => {
            ErrorKind::ImagePull(PullFailure::classify(status.code(), text))
        }
        Code::Unavailable => ErrorKind::Unavailable,
        Code::NotFound => ErrorKind::NotFound,
        Code::InvalidArgument => ErrorKind::InvalidArgument,
        Code::AlreadyExists => ErrorKind::AlreadyExists,
        // containerd gives reserved names no code of their own.
        Code::Unknown if text.contains("is reserved for") => ErrorKind::AlreadyExists,
        _ => ErrorKind::Other,
    }
}

/// The last error of a chain says what happened (`No such file or directory (os error 2)`).
fn innermost_text(status: &Status) -> String {
    let mut deepest: Option<&dyn std::error::Error> = status.source();
    while let Some(next) = deepest.and_then(|error| error.source()) {
        deepest = Some(next);
    }
    let text = deepest.map_or_else(|| status.message().to_owned(), ToString::to_string);
    bounded(&text, MAX_TEXT)
}

/// `text` cut to at most `limit` bytes at a character's border.
pub(crate) fn bounded(text: &str, limit: usize) -> String {
    text[..text.floor_char_boundary(limit.min(text.len()))].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(operation: Operation, status: &Status) -> CriError {
        CriError::from_status(operation, "default/web".to_owned(), "unix:///run/x.sock", status)
    }

    #[test]
    fn codes_become_kinds_and_say_whether_to_retry() {
        let cases = [
            (Status::not_found("x"), ErrorKind::NotFound, false),
            (Status::unavailable("x"), ErrorKind::Unavailable, true),
            (Status::deadline_exceeded("x"), ErrorKind::DeadlineExceeded, true),
            (Status::cancelled("Timeout expired"), ErrorKind::DeadlineExceeded, true),
            (Status::unimplemented("x"), ErrorKind::Unimplemented, false),
            (Status::invalid_argument("x"), ErrorKind::InvalidArgument, false),
            (Status::already_exists("x"), ErrorKind::AlreadyExists, false),
            (
                Status::unknown("failed to reserve sandbox name \"a\": name \"a\" is reserved for \"b\""),
                ErrorKind::AlreadyExists,
                false,
            ),
            (
                Status::resource_exhausted("trying to send message larger than max (17 vs. 16)"),
                ErrorKind::TooLarge,
                false,
            ),
            (
                Status::out_of_range("Error, decoded message length too large: found 9 bytes"),
                ErrorKind::TooLarge,
                false,
            ),
            (Status::resource_exhausted("no more shims"), ErrorKind::Other, true),
            (Status::unknown("failed to create containerd task"), ErrorKind::Other, true),
            (Status::internal("x"), ErrorKind::Other, true),
        ];
        for (status, kind, retryable) in cases {
            let error = of(Operation::RunPodSandbox, &status);
            assert_eq!((error.kind, error.is_retryable()), (kind, retryable), "{status:?}");
        }
    }

    #[test]
    fn a_broken_connection_is_unavailable_whatever_its_code() {
        let io = std::io::Error::other("connection reset by peer");
        let error = of(Operation::RunPodSandbox, &Status::from_error(Box::new(io)));
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.outcome_unknown());
        assert_eq!(error.cause, Cause::Transport("unix:///run/x.sock: connection reset by peer".to_owned()));
    }

    #[test]
    fn texts_name_the_call_and_object_once() {
        let error = of(Operation::StartContainer, &Status::unknown("no\nshim"));
        assert_eq!(error.to_string(), "cannot start container default/web: the runtime failed");
        assert_eq!(error.one_line(), "cannot start container default/web: the runtime failed: no shim");
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let error = of(Operation::StartContainer, &Status::unknown("é".repeat(5000)));
        let Cause::Runtime(text) = error.cause else { panic!("{error:?}") };
        assert_eq!(text.len(), MAX_TEXT);
        assert_eq!(bounded("aé", 2), "a");
    }
}
