//! Frames by property, and a session against a small server that speaks as the runtimes' do.

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

use super::frame::{Decoder, Encoder, Frame, FrameError, MAX_FRAME_BYTES};
use super::headers::dictionary;
use super::session::{ExecEnd, LocalEnds, SessionError, TerminalSize, Wanted, run};

#[test]
fn the_dictionary_is_the_protocols() {
    assert_eq!(dictionary().len(), 1423);
    let (mut a, mut b) = (1u32, 0u32);
    for byte in dictionary() {
        a = (a + u32::from(*byte)) % 65521;
        b = (b + a) % 65521;
    }
    // The DICTID every SPDY/3 peer sends.
    assert_eq!(b << 16 | a, 0xe3c6_a7c2);
}

fn headers() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec(("[a-z-]{0,20}", ".{0,40}"), 0..12)
}

fn frames() -> impl Strategy<Value = Frame> {
    let stream = 0u32..0x7fff_ffff;
    prop_oneof![
        (stream.clone(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..2000))
            .prop_map(|(stream, fin, data)| Frame::Data { stream, fin, payload: Bytes::from(data) }),
        (stream.clone(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| Frame::SynStream {
            stream,
            fin,
            headers
        }),
        (stream.clone(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| Frame::SynReply {
            stream,
            fin,
            headers
        }),
        (stream.clone(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| Frame::Headers {
            stream,
            fin,
            headers
        }),
        (stream.clone(), any::<u32>()).prop_map(|(stream, status)| Frame::Reset { stream, status }),
        any::<u32>().prop_map(|id| Frame::Ping { id }),
        (stream, any::<u32>()).prop_map(|(last_stream, status)| Frame::GoAway { last_stream, status }),
    ]
}

fn decode_in_pieces(bytes: &[u8], piece: usize) -> Result<Vec<Frame>, FrameError> {
    let mut decoder = Decoder::default();
    let mut buffer = BytesMut::new();
    let mut seen = Vec::new();
    for chunk in bytes.chunks(piece.max(1)) {
        buffer.extend_from_slice(chunk);
        while let Some(frame) = decoder.decode(&mut buffer)? {
            seen.push(frame);
        }
    }
    Ok(seen)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn what_is_encoded_is_decoded_in_any_pieces(sent in prop::collection::vec(frames(), 0..8), piece in 1usize..300) {
        let mut encoder = Encoder::default();
        let mut wire = BytesMut::new();
        for frame in &sent {
            encoder.encode(frame, &mut wire).unwrap();
        }
        prop_assert_eq!(decode_in_pieces(&wire, piece).unwrap(), sent);
    }

    #[test]
    fn any_bytes_give_frames_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..4000), piece in 1usize..200) {
        let _ = decode_in_pieces(&bytes, piece);
    }

    #[test]
    fn damaged_frames_give_frames_or_an_error(
        sent in prop::collection::vec(frames(), 1..5), at in any::<prop::sample::Index>(), bit in 0u8..8,
    ) {
        let mut encoder = Encoder::default();
        let mut wire = BytesMut::new();
        for frame in &sent {
            encoder.encode(frame, &mut wire).unwrap();
        }
        let at = at.index(wire.len());
        wire[at] ^= 1 << bit;
        let _ = decode_in_pieces(&wire, 64);
    }
}

#[test]
fn frames_that_would_cost_memory_are_refused_before_they_arrive() {
    let mut head = BytesMut::new();
    head.put_u32(5);
    head.put_u32(0x00ff_ffff);
    assert_eq!(Decoder::default().decode(&mut head), Err(FrameError::TooLong(0xff_ffff)));

    // A zlib bomb: 4 MiB of zeros deflate to 4 KiB.
    let mut compress = flate2::Compress::new(flate2::Compression::best(), true);
    compress.set_dictionary(dictionary()).unwrap();
    let mut block = Vec::with_capacity(MAX_FRAME_BYTES);
    compress.compress_vec(&vec![0; 4 << 20], &mut block, flate2::FlushCompress::Sync).unwrap();
    let mut wire = BytesMut::new();
    wire.put_u32(0x8003_0002);
    wire.put_u32(4 + block.len() as u32);
    wire.put_u32(1);
    wire.put_slice(&block);
    assert_eq!(Decoder::default().decode(&mut wire), Err(FrameError::Headers("inflate to more than 64 KiB")));
}

/// What the small server does once all streams are open.
enum Act {
    /// Sends all of stdin back on stdout, and ends at its end.
    Echo { exit: i32 },
    /// Writes to both outputs and ends.
    Say { out: &'static str, err: &'static str, status: &'static str },
    /// Waits for a size and prints it.
    PrintSize,
    /// Cuts the connection.
    Vanish,
}

struct Server {
    io: DuplexStream,
    decoder: Decoder,
    encoder: Encoder,
    buffer: BytesMut,
    /// Stream id by its type.
    streams: std::collections::BTreeMap<String, u32>,
}

impl Server {
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            if self.io.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn send(&mut self, frame: Frame) {
        let mut out = BytesMut::new();
        self.encoder.encode(&frame, &mut out).unwrap();
        let _ = self.io.write_all(&out).await;
    }

    async fn data(&mut self, kind: &str, fin: bool, bytes: &[u8]) {
        let stream = self.streams[kind];
        self.send(Frame::Data { stream, fin, payload: Bytes::copy_from_slice(bytes) }).await;
    }

    async fn finish(&mut self, status: &str) {
        for kind in ["stdout", "stderr"] {
            if self.streams.contains_key(kind) {
                self.data(kind, true, b"").await;
            }
        }
        self.data("error", false, status.as_bytes()).await;
        let stream = self.streams["error"];
        // The runtimes' servers end the last stream by a reset.
        self.send(Frame::Reset { stream, status: 5 }).await;
    }
}

fn exit_status(code: i32) -> String {
    if code == 0 {
        return r#"{"metadata":{},"status":"Success"}"#.into();
    }
    format!(
        r#"{{"metadata":{{}},"status":"Failure","message":"command terminated with non-zero exit code",
        "reason":"NonZeroExitCode","details":{{"causes":[{{"reason":"ExitCode","message":"{code}"}}]}}}}"#
    )
}

async fn serve(io: DuplexStream, wanted: Wanted, act: Act) {
    let mut server = Server {
        io,
        decoder: Decoder::default(),
        encoder: Encoder::default(),
        buffer: BytesMut::new(),
        streams: Default::default(),
    };
    let expected = 3 + usize::from(wanted.stdin);
    while server.streams.len() < expected {
        let Some(Frame::SynStream { stream, headers, .. }) = server.next().await else { panic!("no stream") };
        assert_eq!(headers.len(), 1);
        server.streams.insert(headers[0].1.clone(), stream);
        server.send(Frame::SynReply { stream, fin: false, headers: Vec::new() }).await;
    }
    server.send(Frame::Ping { id: 2 }).await;
    match act {
        Act::Echo { exit } => echo(&mut server, exit).await,
        Act::Say { out, err, status } => {
            server.data("stdout", false, out.as_bytes()).await;
            server.data("stderr", false, err.as_bytes()).await;
            server.finish(status).await;
        }
        Act::PrintSize => {
            while let Some(frame) = server.next().await {
                if let Frame::Data { payload, .. } = frame {
                    server.data("stdout", false, &payload).await;
                    break;
                }
            }
            server.finish(&exit_status(0)).await;
        }
        Act::Vanish => {}
    }
}

async fn echo(server: &mut Server, exit: i32) {
    let mut ponged = false;
    while let Some(frame) = server.next().await {
        match frame {
            Frame::Ping { id } => ponged = id == 2,
            Frame::Data { stream, fin, payload } => {
                assert_eq!(stream, server.streams["stdin"]);
                server.data("stdout", false, &payload).await;
                if fin {
                    break;
                }
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    assert!(ponged, "the client has to answer pings");
    server.finish(&exit_status(exit)).await;
}

async fn session(
    wanted: Wanted,
    stdin: &[u8],
    act: Act,
) -> (Result<ExecEnd, SessionError>, Vec<u8>, Vec<u8>) {
    let (client, server) = tokio::io::duplex(4096);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (size, sizes) = mpsc::channel(1);
    size.send(TerminalSize { width: 120, height: 40 }).await.unwrap();
    let local = LocalEnds { stdin, stdout: &mut out, stderr: &mut err, sizes };
    let (end, ()) = tokio::join!(run(client, wanted, local), serve(server, wanted, act));
    (end, out, err)
}

#[tokio::test]
async fn three_mebibytes_of_stdin_come_back_with_their_end_and_the_exit_code() {
    let input: Vec<u8> = (0..3 << 20).map(|n: u32| (n / 7) as u8).collect();
    let (end, out, _) = session(Wanted { stdin: true, tty: false }, &input, Act::Echo { exit: 7 }).await;
    assert_eq!(end.unwrap(), ExecEnd::Exited(7));
    assert!(out == input, "{} of {} bytes", out.len(), input.len());
}

#[tokio::test]
async fn the_ends_of_a_command_are_told_apart() {
    let say = |status| Act::Say { out: "o", err: "e", status };
    let cases = [
        (r#"{"status":"Success"}"#, Ok(ExecEnd::Exited(0))),
        (
            r#"{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"137"}]}}"#,
            Ok(ExecEnd::Exited(137)),
        ),
        (
            r#"{"status":"Failure","reason":"InternalError","message":"exec: \"sh\": not found"}"#,
            Ok(ExecEnd::Refused("exec: \"sh\": not found".into())),
        ),
        ("container is not running", Ok(ExecEnd::Refused("container is not running".into()))),
        ("", Err("without saying how the command ended")),
    ];
    for (status, expected) in cases {
        let (end, out, err) = session(Wanted { stdin: false, tty: false }, b"", say(status)).await;
        assert_eq!((out.as_slice(), err.as_slice()), (&b"o"[..], &b"e"[..]), "{status}");
        match (end, expected) {
            (Ok(end), Ok(expected)) => assert_eq!(end, expected, "{status}"),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (end, expected) => panic!("{status}: {end:?}, expected {expected:?}"),
        }
    }
}

#[tokio::test]
async fn a_terminal_sends_its_size_and_takes_no_stderr() {
    let (end, out, _) = session(Wanted { stdin: false, tty: true }, b"", Act::PrintSize).await;
    assert_eq!(end.unwrap(), ExecEnd::Exited(0));
    assert_eq!(String::from_utf8(out).unwrap(), "{\"Width\":120,\"Height\":40}\n");
}

#[tokio::test]
async fn a_cut_connection_is_an_error_not_a_success() {
    let (end, ..) = session(Wanted { stdin: true, tty: false }, b"abc", Act::Vanish).await;
    assert!(matches!(end, Err(SessionError::NoStatus | SessionError::Io(_))), "{end:?}");
}
