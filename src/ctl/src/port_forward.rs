//! `longshore port-forward`: local ports that lead into a pod, over the runtime's streaming server. No
//! daemon, no Service and no route to the pod's network are needed. Each local connection gets a stream
//! connection of its own, so that one that hangs holds up no other.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use longshore_core::ids::SandboxId;
use longshore_core::pod::observed::SandboxState;
use longshore_cri::{CriClient, Streams};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::Sender;

use crate::error::{CliError, one_line};
use crate::exec::spdy::frame::{Decoder, Encoder, Frame};
use crate::exec::upgrade;
use crate::pods::{Node, NodePod};
use crate::target::PodName;

/// Bytes sent in one frame.
const CHUNK: usize = 32 * 1024;
const ERROR: u32 = 1;
const DATA: u32 = 3;
/// How long the runtime's words are waited for after the end of the data.
const WORDS: Duration = Duration::from_secs(2);
/// Bytes of the runtime's words that are kept.
const MAX_MESSAGE: usize = 4096;

/// `8080`, `8080:80`, `:80`: where to listen, 0 for a free one, and the pod's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    pub local: u16,
    pub remote: u16,
}

impl std::str::FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |word: &str| word.parse::<u16>().ok().filter(|port| *port > 0);
        let ports = match text.split_once(':') {
            None => port(text).map(|both| Self { local: both, remote: both }),
            Some(("", remote)) => port(remote).map(|remote| Self { local: 0, remote }),
            Some((local, remote)) => {
                port(local).zip(port(remote)).map(|(local, remote)| Self { local, remote })
            }
        };
        ports.ok_or_else(|| format!("{text:?} names no ports; write 8080, 8080:80 or :80"))
    }
}

/// Forwards until Ctrl-C.
pub async fn run(node: &Node, name: &PodName, address: IpAddr, ports: &[Ports]) -> Result<(), CliError> {
    let pod = node.pod(name).await?;
    let sandbox = sandbox(&pod)?;
    let mut listeners = Vec::new();
    for wanted in ports {
        let at = SocketAddr::new(address, wanted.local);
        let listener = TcpListener::bind(at).await.map_err(|error| {
            CliError::new(format!("cannot listen on {at}: {error}"))
                .hint("choose another port, or :PORT for a free one")
        })?;
        println!("forwarding {} -> {} port {}", listener.local_addr()?, pod.key(), wanted.remote);
        listeners.push((listener, wanted.remote));
    }
    let cri = node.cri()?;
    let accepting =
        listeners.into_iter().map(|(listener, port)| accept(listener, port, cri.clone(), sandbox.clone()));
    tokio::select! {
        _ = futures_util::future::join_all(accepting) => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}

fn sandbox(pod: &NodePod) -> Result<SandboxId, CliError> {
    let ready = pod.observed.sandboxes.iter().find(|sandbox| sandbox.state == SandboxState::Ready);
    ready.map(|sandbox| sandbox.id.clone()).ok_or_else(|| {
        CliError::new(format!("pod {} does not run", pod.key()))
            .hint(format!("longshore why pod/{}", pod.key()))
    })
}

async fn accept(listener: TcpListener, port: u16, cri: CriClient, sandbox: SandboxId) {
    let mut refused = false;
    loop {
        let (client, from) = match listener.accept().await {
            Ok(taken) => taken,
            Err(error) => {
                if !std::mem::replace(&mut refused, true) {
                    eprintln!("cannot take a connection for port {port}: {error}; it is tried again");
                }
                // Out of file descriptors, most likely.
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        refused = false;
        let (cri, sandbox) = (cri.clone(), sandbox.clone());
        tokio::spawn(async move {
            if let Err(error) = connect(client, port, &cri, &sandbox).await {
                eprintln!("{from}: {}", one_line(&error.message));
            }
        });
    }
}

async fn connect(client: TcpStream, port: u16, cri: &CriClient, sandbox: &SandboxId) -> Result<(), CliError> {
    let url = cri.port_forward_url(sandbox, &[port]).await?;
    let connection = upgrade::open(&url, upgrade::PORT_FORWARD).await?;
    carry(connection, client, port).await
}

fn opening(stream: u32, kind: &str, port: u16) -> Frame {
    let header = |name: &str, value: String| (name.to_owned(), value);
    let headers = vec![
        header("streamtype", kind.to_owned()),
        header("port", port.to_string()),
        header("requestid", "0".to_owned()),
    ];
    Frame::SynStream { stream, fin: false, headers }
}

/// One forwarded connection: an error stream that is only read, and a data stream both ways.
async fn carry<S, C>(connection: S, client: C, port: u16) -> Result<(), CliError>
where
    S: AsyncRead + AsyncWrite,
    C: AsyncRead + AsyncWrite,
{
    let (from_pod, mut to_pod) = tokio::io::split(connection);
    let (mut from_client, to_client) = tokio::io::split(client);
    let (pongs_in, mut pongs) = tokio::sync::mpsc::channel(4);
    let send = async {
        let mut encoder = Encoder::default();
        let mut out = BytesMut::new();
        let open = [
            opening(ERROR, "error", port),
            Frame::Data { stream: ERROR, fin: true, payload: Bytes::new() },
            opening(DATA, "data", port),
        ];
        for frame in &open {
            encoder.encode(frame, &mut out).map_err(|error| CliError::new(error.to_string()))?;
        }
        let mut chunk = vec![0; CHUNK];
        let mut reading = true;
        loop {
            to_pod.write_all(&out).await?;
            to_pod.flush().await?;
            out.clear();
            let frame = tokio::select! {
                pong = pongs.recv() => match pong {
                    Some(frame) => frame,
                    None => return Ok::<(), CliError>(()),
                },
                count = from_client.read(&mut chunk), if reading => {
                    let count = count.unwrap_or(0);
                    reading = count > 0;
                    Frame::Data { stream: DATA, fin: !reading, payload: Bytes::copy_from_slice(&chunk[..count]) }
                }
            };
            encoder.encode(&frame, &mut out).map_err(|error| CliError::new(error.to_string()))?;
        }
    };
    let receive = receive(from_pod, to_client, pongs_in);
    tokio::pin!(send, receive);
    tokio::select! {
        end = &mut receive => end,
        sent = &mut send => match sent {
            Ok(()) => receive.await,
            // A runtime that refuses the connection closes it after its words, which are still to be read.
            Err(error) => tokio::time::timeout(WORDS, receive).await.unwrap_or(Err(error)),
        },
    }
}

/// What comes from the pod, until both streams have ended. The words of a connection that could not be made
/// come after the data stream's end: containerd closes that one first.
async fn receive<R, W>(mut from_pod: R, mut to_client: W, pongs: Sender<Frame>) -> Result<(), CliError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut decoder = Decoder::default();
    let mut buffer = BytesMut::with_capacity(2 * CHUNK);
    let mut message = Vec::new();
    let (mut data_ended, mut words_ended) = (None, false);
    while data_ended.is_none() || !words_ended {
        let decoded = decoder.decode(&mut buffer).map_err(|error| CliError::new(error.to_string()))?;
        let Some(frame) = decoded else {
            let left =
                data_ended.map_or(Duration::MAX, |ended: Instant| WORDS.saturating_sub(ended.elapsed()));
            match tokio::time::timeout(left, from_pod.read_buf(&mut buffer)).await {
                Ok(Ok(0)) | Err(_) => break,
                Ok(Err(error)) => return Err(error.into()),
                Ok(Ok(_)) => continue,
            }
        };
        let ended = ended_by(&frame);
        match frame {
            Frame::Data { stream: DATA, payload, .. } => {
                to_client.write_all(&payload).await?;
                to_client.flush().await?;
            }
            Frame::Data { stream: ERROR, payload, .. } => {
                let room = MAX_MESSAGE.saturating_sub(message.len());
                message.extend_from_slice(&payload[..payload.len().min(room)]);
            }
            Frame::GoAway { .. } => break,
            Frame::Ping { id } if id % 2 == 0 => {
                // The sender is there as long as this is polled.
                let _ = pongs.send(Frame::Ping { id }).await;
            }
            _ => {}
        }
        match ended {
            Some(ERROR) => words_ended = true,
            Some(DATA) if data_ended.is_none() => {
                data_ended = Some(Instant::now());
                let _ = to_client.shutdown().await;
            }
            _ => {}
        }
    }
    // What the client still waits for is its end.
    let _ = to_client.shutdown().await;
    match String::from_utf8_lossy(&message).trim() {
        "" => Ok(()),
        words => Err(CliError::new(words)),
    }
}

/// The stream on which nothing more comes after this frame: any frame of a stream may be its last.
fn ended_by(frame: &Frame) -> Option<u32> {
    match frame {
        Frame::Data { stream, fin: true, .. }
        | Frame::SynStream { stream, fin: true, .. }
        | Frame::SynReply { stream, fin: true, .. }
        | Frame::Headers { stream, fin: true, .. }
        | Frame::Reset { stream, .. } => Some(*stream),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_people_write_them() {
        let cases = [
            ("8080", Some((8080, 8080))),
            ("8080:80", Some((8080, 80))),
            (":80", Some((0, 80))),
            ("0", None),
            ("80:", None),
            ("http", None),
            ("80:99999", None),
            ("1:2:3", None),
        ];
        for (text, expected) in cases {
            let ports = text.parse::<Ports>().ok().map(|ports| (ports.local, ports.remote));
            assert_eq!(ports, expected, "{text}");
        }
    }

    /// A streaming server that expects the two streams, answers with `answer` and then says `error`.
    async fn server(peer: tokio::io::DuplexStream, answer: &'static [u8], error: &'static [u8]) -> Vec<u8> {
        let (mut read, mut write) = tokio::io::split(peer);
        let (mut decoder, mut encoder) = (Decoder::default(), Encoder::default());
        let (mut buffer, mut out) = (BytesMut::new(), BytesMut::new());
        let (mut heard, mut kinds) = (Vec::new(), Vec::new());
        loop {
            match decoder.decode(&mut buffer).unwrap() {
                None => assert!(read.read_buf(&mut buffer).await.unwrap() > 0, "ended early"),
                Some(Frame::SynStream { headers, .. }) => {
                    assert!(headers.contains(&("port".to_owned(), "80".to_owned())), "{headers:?}");
                    kinds.push(headers[0].1.clone());
                }
                Some(Frame::Data { stream: DATA, fin, payload }) => {
                    heard.extend_from_slice(&payload);
                    if fin {
                        break;
                    }
                }
                Some(_) => {}
            }
        }
        assert_eq!(kinds, ["error", "data"]);
        for frame in [
            Frame::Data { stream: DATA, fin: true, payload: Bytes::from_static(answer) },
            Frame::Data { stream: ERROR, fin: true, payload: Bytes::from_static(error) },
        ] {
            encoder.encode(&frame, &mut out).unwrap();
        }
        write.write_all(&out).await.unwrap();
        heard
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_the_runtimes_words_come_through() {
        for (answer, error, told) in
            [(&b"pong"[..], &b""[..], None), (b"", b"connection refused\n", Some("connection refused"))]
        {
            let (ours, theirs) = tokio::io::duplex(1024);
            let (client, mut person) = tokio::io::duplex(1024);
            let serving = tokio::spawn(server(theirs, answer, error));
            let carrying = tokio::spawn(carry(ours, client, 80));
            person.write_all(b"ping").await.unwrap();
            person.shutdown().await.unwrap();
            let mut got = Vec::new();
            person.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, answer);
            assert_eq!(serving.await.unwrap(), b"ping");
            let end = carrying.await.unwrap();
            assert_eq!(end.err().map(|error| error.message).as_deref(), told);
        }
    }

    fn encoded(frames: &[Frame]) -> BytesMut {
        let (mut encoder, mut out) = (Encoder::default(), BytesMut::new());
        frames.iter().for_each(|frame| encoder.encode(frame, &mut out).unwrap());
        out
    }

    #[tokio::test]
    async fn any_last_frame_of_a_stream_ends_it() {
        let reply = |stream| Frame::SynReply { stream, fin: true, headers: Vec::new() };
        let more = |stream| Frame::Headers { stream, fin: true, headers: Vec::new() };
        let reset = |stream| Frame::Reset { stream, status: 1 };
        let data = |stream| Frame::Data { stream, fin: true, payload: Bytes::new() };
        let makers: [&dyn Fn(u32) -> Frame; 4] = [&reply, &more, &reset, &data];
        for (number, make) in makers.into_iter().enumerate() {
            let (ours, mut theirs) = tokio::io::duplex(1024);
            let (client, mut person) = tokio::io::duplex(1024);
            let carrying = tokio::spawn(carry(ours, client, 80));
            theirs.write_all(&encoded(&[make(DATA), make(ERROR)])).await.unwrap();
            // Neither the connection nor the person's own side ends.
            let (mut got, within) = (Vec::new(), Duration::from_secs(10));
            tokio::time::timeout(within, person.read_to_end(&mut got)).await.expect("an end").unwrap();
            let end = tokio::time::timeout(within, carrying).await.expect("an end").unwrap();
            assert!(end.is_ok() && got.is_empty(), "frame {number}");
        }
    }

    /// A connection that takes nothing any more and still has bytes to be read.
    struct HalfClosed(std::io::Cursor<Vec<u8>>);

    impl AsyncRead for HalfClosed {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            context: &mut std::task::Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::pin::Pin::new(&mut self.0).poll_read(context, buffer)
        }
    }

    impl AsyncWrite for HalfClosed {
        fn poll_write(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &[u8],
        ) -> std::task::Poll<std::io::Result<usize>> {
            std::task::Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn poll_shutdown(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn the_runtimes_words_are_told_where_it_takes_nothing_any_more() {
        let words = Bytes::from_static(b"no such sandbox");
        let frames = [
            Frame::Data { stream: DATA, fin: true, payload: Bytes::new() },
            Frame::Data { stream: ERROR, fin: true, payload: words },
        ];
        let connection = HalfClosed(std::io::Cursor::new(encoded(&frames).to_vec()));
        let (client, _person) = tokio::io::duplex(1024);
        let error = carry(connection, client, 80).await.unwrap_err();
        assert_eq!(error.message, "no such sandbox");
    }
}
