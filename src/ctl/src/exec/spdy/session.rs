//! One exec or attach over an upgraded connection: opens the streams, carries bytes both ways, and
//! reads how the command ended from the error stream (`v4.channel.k8s.io`). It knows no terminals
//! and no files: the caller hands it readers and writers.

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::frame::{Decoder, Encoder, Frame, FrameError};

/// Bytes of stdin sent in one frame.
const STDIN_CHUNK: usize = 32 * 1024;
/// The error stream carries one small JSON status; more is cut off.
const MAX_STATUS_BYTES: usize = 64 * 1024;

const ERROR: u32 = 1;
const STDIN: u32 = 3;
const STDOUT: u32 = 5;
const STDERR: u32 = 7;
const RESIZE: u32 = 9;

/// Which streams the exec request asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    /// A terminal: stderr comes with stdout, and sizes are sent.
    pub tty: bool,
}

/// Width and height of the terminal in cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEnd {
    Exited(i32),
    /// The runtime could not run it, in its words.
    Refused(String),
}

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("the connection to the runtime's streaming server broke")]
    Io(#[from] std::io::Error),
    #[error("the runtime's streaming server does not speak SPDY/3.1")]
    Protocol(#[from] FrameError),
    #[error("the runtime closed the stream without saying how the command ended")]
    NoStatus,
}

/// What the local side brings to the session.
#[derive(Debug)]
pub struct LocalEnds<I, O, E> {
    /// Read until its end when `Wanted::stdin`; the end is told to the command.
    pub stdin: I,
    pub stdout: O,
    pub stderr: E,
    /// Terminal sizes, the first one at once.
    pub sizes: mpsc::Receiver<TerminalSize>,
}

/// Runs the session until the command has ended and its output was written.
pub async fn run<S, I, O, E>(
    connection: S,
    wanted: Wanted,
    local: LocalEnds<I, O, E>,
) -> Result<ExecEnd, SessionError>
where
    S: AsyncRead + AsyncWrite,
    I: AsyncRead + Unpin,
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    let (read, write) = tokio::io::split(connection);
    let (replies, outgoing) = mpsc::channel(16);
    let LocalEnds { stdin, stdout, stderr, sizes } = local;
    // Both directions move at once: a command that echoes would otherwise stop both sides.
    let receive = receive(read, wanted, stdout, stderr, replies);
    let send = send(write, wanted, stdin, sizes, outgoing);
    tokio::pin!(receive, send);
    tokio::select! {
        end = &mut receive => end,
        sent = &mut send => match sent {
            // The peer stopped reading; what it said before still counts.
            Err(SessionError::Io(_)) | Ok(()) => receive.await,
            Err(error) => Err(error),
        },
    }
}

fn opening(stream: u32, kind: &str) -> Frame {
    Frame::SynStream { stream, fin: false, headers: vec![("streamtype".into(), kind.into())] }
}

async fn send<S: AsyncRead + AsyncWrite, I: AsyncRead + Unpin>(
    mut write: WriteHalf<S>,
    wanted: Wanted,
    mut stdin: I,
    mut sizes: mpsc::Receiver<TerminalSize>,
    mut replies: mpsc::Receiver<Frame>,
) -> Result<(), SessionError> {
    let mut encoder = Encoder::default();
    let mut out = BytesMut::new();
    encoder.encode(&opening(ERROR, "error"), &mut out)?;
    if wanted.stdin {
        encoder.encode(&opening(STDIN, "stdin"), &mut out)?;
    }
    encoder.encode(&opening(STDOUT, "stdout"), &mut out)?;
    if wanted.tty {
        encoder.encode(&opening(RESIZE, "resize"), &mut out)?;
    } else {
        encoder.encode(&opening(STDERR, "stderr"), &mut out)?;
    }
    let mut reading = wanted.stdin;
    let mut resizing = wanted.tty;
    let mut chunk = vec![0; STDIN_CHUNK];
    loop {
        write.write_all(&out).await?;
        write.flush().await?;
        out.clear();
        let frame = tokio::select! {
            reply = replies.recv() => match reply {
                Some(frame) => frame,
                None => return Ok(()),
            },
            size = sizes.recv(), if resizing => match size {
                Some(size) => Frame::Data { stream: RESIZE, fin: false, payload: resize_line(size) },
                None => { resizing = false; continue }
            },
            count = stdin.read(&mut chunk), if reading => {
                // An unreadable stdin ends like an empty one.
                let count = count.unwrap_or(0);
                reading = count > 0;
                Frame::Data { stream: STDIN, fin: !reading, payload: Bytes::copy_from_slice(&chunk[..count]) }
            }
        };
        encoder.encode(&frame, &mut out)?;
    }
}

fn resize_line(size: TerminalSize) -> Bytes {
    Bytes::from(format!("{{\"Width\":{},\"Height\":{}}}\n", size.width, size.height))
}

async fn receive<S: AsyncRead + AsyncWrite, O: AsyncWrite + Unpin, E: AsyncWrite + Unpin>(
    mut read: ReadHalf<S>,
    wanted: Wanted,
    mut stdout: O,
    mut stderr: E,
    replies: mpsc::Sender<Frame>,
) -> Result<ExecEnd, SessionError> {
    let mut decoder = Decoder::default();
    let mut buffer = BytesMut::with_capacity(64 * 1024);
    let mut status = Vec::new();
    let mut open = Open { status: true, stdout: true, stderr: !wanted.tty };
    while open.any() {
        let Some(frame) = decoder.decode(&mut buffer)? else {
            if read.read_buf(&mut buffer).await? == 0 {
                break;
            }
            continue;
        };
        match frame {
            Frame::Data { stream, fin, payload } => {
                match stream {
                    STDOUT => write_out(&mut stdout, &payload).await?,
                    STDERR => write_out(&mut stderr, &payload).await?,
                    ERROR => {
                        let room = MAX_STATUS_BYTES.saturating_sub(status.len());
                        status.extend_from_slice(&payload[..payload.len().min(room)]);
                    }
                    _ => {}
                }
                if fin {
                    open.close(stream);
                }
            }
            Frame::SynReply { stream, fin: true, .. }
            | Frame::Headers { stream, fin: true, .. }
            | Frame::Reset { stream, .. } => open.close(stream),
            // Odd ids are answers to pings of ours, and we send none.
            Frame::Ping { id } if id % 2 == 0 => {
                let _ = replies.send(Frame::Ping { id }).await;
            }
            // The server opens no streams in this protocol.
            Frame::SynStream { stream, .. } => {
                let _ = replies.send(Frame::Reset { stream, status: 3 }).await;
            }
            Frame::GoAway { .. } => break,
            _ => {}
        }
    }
    stdout.flush().await?;
    stderr.flush().await?;
    end_of(&status)
}

/// Which of the peer's streams may still bring something.
struct Open {
    status: bool,
    stdout: bool,
    stderr: bool,
}

impl Open {
    fn any(&self) -> bool {
        self.status || self.stdout || self.stderr
    }

    fn close(&mut self, stream: u32) {
        match stream {
            ERROR => self.status = false,
            STDOUT => self.stdout = false,
            STDERR => self.stderr = false,
            _ => {}
        }
    }
}

async fn write_out<W: AsyncWrite + Unpin>(out: &mut W, payload: &[u8]) -> std::io::Result<()> {
    out.write_all(payload).await?;
    // A terminal wants each piece at once.
    out.flush().await
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    status: String,
    message: String,
    reason: String,
    details: Details,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Details {
    causes: Vec<Cause>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Cause {
    reason: String,
    message: String,
}

/// Reads the status object of the error stream; before v4 it was plain text, empty for success.
fn end_of(bytes: &[u8]) -> Result<ExecEnd, SessionError> {
    if bytes.is_empty() {
        return Err(SessionError::NoStatus);
    }
    let Ok(status) = serde_json::from_slice::<Status>(bytes) else {
        return Ok(ExecEnd::Refused(String::from_utf8_lossy(bytes).trim().to_string()));
    };
    if status.status == "Success" {
        return Ok(ExecEnd::Exited(0));
    }
    if status.reason == "NonZeroExitCode" {
        let code = status.details.causes.iter().find(|cause| cause.reason == "ExitCode");
        if let Some(code) = code.and_then(|cause| cause.message.parse().ok()) {
            return Ok(ExecEnd::Exited(code));
        }
    }
    Ok(ExecEnd::Refused(status.message))
}
