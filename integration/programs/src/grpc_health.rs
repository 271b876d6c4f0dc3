//! grpc.health.v1.Health/Check, answered without a gRPC library: HTTP/2 framing (RFC 9113) with literal header fields
//! (RFC 7541, 6.2.2). Every request on the connection gets the same answer; that is all a probe needs.

use std::io::{self, Read, Write};
use std::net::TcpStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// Serves one connection until the client closes it. `serving` is asked at each request.
///
/// # Errors
/// Where the client breaks off or does not speak HTTP/2.
pub fn serve(mut stream: TcpStream, serving: impl Fn() -> bool) -> io::Result<()> {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface)?;
    if preface != PREFACE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not HTTP/2"));
    }
    write_frame(&mut stream, SETTINGS, 0, 0, &[])?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let [a, b, c, kind, flags, s0, s1, s2, s3] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload)?;
        let id = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
        match kind {
            SETTINGS if flags & ACK == 0 => write_frame(&mut stream, SETTINGS, ACK, 0, &[])?,
            PING if flags & ACK == 0 => write_frame(&mut stream, PING, ACK, 0, &payload)?,
            GOAWAY => return Ok(()),
            DATA | HEADERS if flags & END_STREAM != 0 => answer(&mut stream, id, serving())?,
            _ => {}
        }
    }
}

/// Headers, the message `HealthCheckResponse { status }`, and trailers with grpc-status 0.
fn answer(stream: &mut TcpStream, id: u32, serving: bool) -> io::Result<()> {
    let mut headers = vec![0x88]; // `:status: 200` of the static table
    literal(&mut headers, "content-type", "application/grpc");
    write_frame(stream, HEADERS, END_HEADERS, id, &headers)?;
    let status = if serving { 1 } else { 2 };
    write_frame(stream, DATA, 0, id, &[0, 0, 0, 0, 2, 0x08, status])?;
    let mut trailers = Vec::new();
    literal(&mut trailers, "grpc-status", "0");
    write_frame(stream, HEADERS, END_HEADERS | END_STREAM, id, &trailers)
}

/// A literal header field without indexing; names and values are shorter than 127 bytes.
fn literal(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        block.push(text.len() as u8);
        block.extend_from_slice(text.as_bytes());
    }
}

fn write_frame(stream: &mut TcpStream, kind: u8, flags: u8, id: u32, payload: &[u8]) -> io::Result<()> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&id.to_be_bytes());
    frame.extend_from_slice(payload);
    stream.write_all(&frame)
}
