//! The HTTP side of a stream: asks the runtime's streaming server to switch to SPDY/3.1.

use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use longshore_cri::{StreamingUrl, StreamingUrlError};
use tokio::net::TcpStream;

use crate::error::{CliError, chain};

const DEADLINE: Duration = Duration::from_secs(30);
const MAX_REFUSAL_BYTES: usize = 4096;

/// What is spoken in the streams of exec and attach.
pub const REMOTE_COMMAND: &str = "v4.channel.k8s.io";
/// What is spoken in the streams of port-forward.
pub const PORT_FORWARD: &str = "portforward.k8s.io";

/// Opens the one-use URL the runtime gave and returns the connection, switched to SPDY/3.1 with this
/// protocol in its streams.
pub async fn open(url: &str, protocol: &str) -> Result<TokioIo<Upgraded>, CliError> {
    tokio::time::timeout(DEADLINE, switch(url, protocol)).await.unwrap_or_else(|_| {
        Err(CliError::new(format!(
            "the runtime's streaming server gave no answer within {} s",
            DEADLINE.as_secs()
        )))
    })
}

async fn switch(url: &str, wanted: &str) -> Result<TokioIo<Upgraded>, CliError> {
    let StreamingUrl { server, target } = parsed(url)?;
    let stream = TcpStream::connect(&server).await.map_err(|error| {
        CliError::new(format!("cannot reach the runtime's streaming server on {server}: {error}"))
            .hint("run the command on the node, in the network namespace of the runtime")
    })?;
    // Key strokes are small and must not wait for each other.
    stream.set_nodelay(true)?;
    let failed = |error: hyper::Error| CliError::from_chain("the runtime's streaming server", &error);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::spawn(connection.with_upgrades());
    let request = http::Request::post(target)
        .header(header::HOST, &server)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1")
        .header("X-Stream-Protocol-Version", wanted)
        .header(header::CONTENT_LENGTH, 0)
        .body(Empty::<Bytes>::new())
        .map_err(|error| CliError::new(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(failed)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_REFUSAL_BYTES).collect().await;
        let text =
            body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned()).unwrap_or_default();
        return Err(CliError::new(format!("the runtime's streaming server refused: {status} {text}")));
    }
    let protocol = response.headers().get("X-Stream-Protocol-Version").cloned();
    if protocol.as_ref().is_some_and(|protocol| protocol != wanted) {
        return Err(CliError::new(format!(
            "the runtime's streaming server chose {protocol:?}, not {wanted}"
        )));
    }
    let upgraded = hyper::upgrade::on(response)
        .await
        .map_err(|error| CliError::new(format!("the runtime's streaming server: {}", chain(&error))))?;
    Ok(TokioIo::new(upgraded))
}

fn parsed(url: &str) -> Result<StreamingUrl, CliError> {
    StreamingUrl::parse(url).map_err(|error| match error {
        StreamingUrlError::NoSense => CliError::new(format!("{error}: {url}")),
        StreamingUrlError::WantsTls => CliError::new(format!("{error}, which this command does not speak"))
            .hint("turn it off for the local server (containerd: enable_tls_streaming = false)"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn answering(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/exec/token", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            assert!(head.starts_with("post /exec/token http/1.1\r\n"), "{head}");
            assert!(head.contains("upgrade: spdy/3.1") && head.contains("connection: upgrade"), "{head}");
            stream.write_all(answer.as_bytes()).await.unwrap();
            // Keep the connection open until the client leaves.
            let _ = stream.read(&mut [0; 16]).await;
        });
        url
    }

    #[tokio::test]
    async fn the_switch_works_or_says_what_the_server_said() {
        let cases = [
            (
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
              X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\nleft",
                None,
            ),
            (
                "HTTP/1.1 404 Not Found\r\nContent-Length: 10\r\n\r\nno session",
                Some("404 Not Found no session"),
            ),
            (
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
              X-Stream-Protocol-Version: v1.channel.k8s.io\r\n\r\n",
                Some("v1.channel.k8s.io"),
            ),
            ("what?\r\n\r\n", Some("the runtime's streaming server")),
        ];
        for (answer, expected) in cases {
            let url = answering(answer).await;
            match (open(&url, REMOTE_COMMAND).await, expected) {
                (Ok(mut io), None) => {
                    let mut first = [0; 4];
                    io.read_exact(&mut first).await.unwrap();
                    assert_eq!(&first, b"left", "bytes after the head belong to the stream");
                }
                (Err(error), Some(part)) => assert!(error.message.contains(part), "{error}"),
                (Ok(_), Some(part)) => panic!("opened, expected {part}"),
                (Err(error), None) => panic!("{error}"),
            }
        }
    }
}
