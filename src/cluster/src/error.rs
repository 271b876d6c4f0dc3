//! The one error of a call to the API server: what was asked, of which path, and why it did not work.
//! Classifying answers belongs here; deciding what to do about them does not.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;

use crate::credentials::CredentialsError;

/// Longest text of a server that is kept, bytes.
const MAX_TEXT: usize = 2048;

/// A call to the API server that did not give what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("cannot connect to the API server {server}")]
    Connect {
        server: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot connect to the API server {server}: no answer within {} s", .after.as_secs())]
    ConnectTimeout { server: String, after: Duration },
    #[error(
        "the API server {server} does not speak HTTP/2; is there a proxy before it that speaks HTTP/1.1 only?"
    )]
    NoHttp2 { server: String },
    #[error("the connection to the API server broke at {call}")]
    Broken {
        call: String,
        #[source]
        source: hyper::Error,
    },
    #[error("{call}: no answer within {} s", .after.as_secs())]
    Timeout { call: String, after: Duration },
    /// The server answered, and not with what was asked for.
    #[error("{call}: {code} {reason}: {message}")]
    Refused {
        call: String,
        code: u16,
        /// `metav1.Status.reason`, for example `NotFound`; empty where there is none.
        reason: String,
        message: String,
        retry_after: Option<Duration>,
    },
    #[error("{call}: the answer is larger than {limit} bytes")]
    TooLarge { call: String, limit: usize },
    #[error("{call}: the answer is not understood")]
    Decode {
        call: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{call}: the request cannot be written")]
    Encode {
        call: String,
        #[source]
        source: serde_json::Error,
    },
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

impl ApiError {
    /// From an answer of 400 or above.
    pub(crate) fn refused(call: String, code: u16, body: &[u8], retry_after: Option<Duration>) -> Self {
        let status: Option<Status> = serde_json::from_slice(body).ok();
        let told = status.as_ref().and_then(|status| status.details.as_ref()?.retry_after_seconds);
        let told = told.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
        let (reason, message) = match status {
            Some(status) => (status.reason.unwrap_or_default(), status.message.unwrap_or_default()),
            None => (String::new(), String::from_utf8_lossy(body).trim().to_owned()),
        };
        let retry_after = retry_after.or(told.map(Duration::from_secs));
        Self::Refused { call, code, reason, message: cut(message), retry_after }
    }

    /// HTTP status of a refusal.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    fn reason(&self) -> &str {
        match self {
            Self::Refused { reason, .. } => reason,
            _ => "",
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// An object of that name is there already.
    pub fn is_already_exists(&self) -> bool {
        self.code() == Some(409) && self.reason() == "AlreadyExists"
    }

    /// The object is another one than was meant: changed since, or another uid.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409) && self.reason() != "AlreadyExists"
    }

    /// The resource version is too old to go on from; list again.
    pub fn is_gone(&self) -> bool {
        self.code() == Some(410)
    }

    /// The server asks for fewer requests, or cannot serve any at the moment.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The same call may work later without anybody changing it.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::NoHttp2 { .. }
            | Self::Broken { .. }
            | Self::Timeout { .. }
            | Self::Credentials(_) => true,
            Self::Refused { code, .. } => matches!(code, 401 | 403 | 408 | 429 | 500..),
            Self::TooLarge { .. } | Self::Decode { .. } | Self::Encode { .. } => false,
        }
    }

    /// The server was reached and showed a certificate that does not count: another authority's, another name's, or
    /// one that is over.
    pub fn is_untrusted(&self) -> bool {
        let Self::Connect { source, .. } = self else { return false };
        let tls = source.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
        matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
    }

    /// The whole chain in one line, for logs and `why`.
    pub fn one_line(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16, body: &str) -> ApiError {
        ApiError::refused("GET /x".into(), code, body.as_bytes(), None)
    }

    #[test]
    fn refusals_are_told_apart() {
        let exists = refused(409, r#"{"reason":"AlreadyExists","message":"nodes \"a\" already exists"}"#);
        assert!(exists.is_already_exists() && !exists.is_conflict() && !exists.is_retryable());
        let conflict = refused(409, r#"{"reason":"Conflict"}"#);
        assert!(conflict.is_conflict() && !conflict.is_already_exists());
        assert!(refused(410, "{}").is_gone());
        assert!(refused(404, "404 page not found").is_not_found());
        for code in [429, 500, 503] {
            assert!(refused(code, "").is_retryable(), "{code}");
        }
        assert!(!refused(422, "").is_retryable());
    }

    #[test]
    fn a_plain_text_answer_is_shown_and_cut() {
        let error = refused(502, &"x".repeat(5000));
        assert!(error.to_string().len() < 2200, "{error}");
        let told = refused(429, r#"{"details":{"retryAfterSeconds":7}}"#);
        assert_eq!(told.retry_after(), Some(Duration::from_secs(7)));
    }
}
