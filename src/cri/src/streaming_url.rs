//! The URL that a runtime gives for one stream, taken apart: where its streaming server listens, and what to ask
//! for there. Whoever connects speaks what it likes.

use http::Uri;

/// Where to connect and what to ask for there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamingUrl {
    /// `host:port`, the host in brackets where it is IPv6.
    pub server: String,
    /// Path and query. It is the right to use the stream: not for logs.
    pub target: String,
}

/// Why a URL leads nowhere. It is not in the text: its path is a secret for a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamingUrlError {
    #[error("the runtime gave a streaming URL that makes no sense")]
    NoSense,
    #[error("the runtime's streaming server wants TLS")]
    WantsTls,
}

impl StreamingUrl {
    /// # Errors
    /// What is no URL with a host, and one with TLS: the server is on this node, and its certificate nobody's.
    pub fn parse(url: &str) -> Result<Self, StreamingUrlError> {
        let uri: Uri = url.parse().map_err(|_| StreamingUrlError::NoSense)?;
        if uri.scheme_str() == Some("https") {
            return Err(StreamingUrlError::WantsTls);
        }
        let host = match uri.host().ok_or(StreamingUrlError::NoSense)? {
            // A server that listens everywhere says so instead of an address.
            "0.0.0.0" | "" => "127.0.0.1",
            "[::]" => "[::1]",
            host => host,
        };
        let target = uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        Ok(Self { server: format!("{host}:{}", uri.port_u16().unwrap_or(80)), target })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_from_the_url() {
        let cases = [
            ("http://127.0.0.1:4567/exec/Ab-_", Ok(("127.0.0.1:4567", "/exec/Ab-_"))),
            ("http://0.0.0.0:4567/exec/x?y=1", Ok(("127.0.0.1:4567", "/exec/x?y=1"))),
            ("http://[::]:4567/exec/x", Ok(("[::1]:4567", "/exec/x"))),
            ("https://127.0.0.1:4567/exec/x", Err("wants TLS")),
            ("/exec/x", Err("makes no sense")),
            ("", Err("makes no sense")),
        ];
        for (url, expected) in cases {
            match (StreamingUrl::parse(url), expected) {
                (Ok(got), Ok(expected)) => {
                    assert_eq!((got.server.as_str(), got.target.as_str()), expected, "{url}");
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{url}: {error}"),
                (got, _) => panic!("{url}: {got:?}"),
            }
        }
    }
}
