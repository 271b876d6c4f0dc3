//! Just enough HTTP/1.1 for test containers: one request per connection, no bodies read. Not for anything else.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// What a client asked for.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: HashMap<String, String>,
    pub headers: Vec<(String, String)>,
    /// The address the connection came from, after whatever translation the node did.
    pub from: IpAddr,
}

/// What goes back.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub body: String,
}

impl Response {
    pub fn ok(body: impl Into<String>) -> Self {
        Self { status: 200, body: body.into() }
    }

    pub fn error(status: u16, body: impl Into<String>) -> Self {
        Self { status, body: body.into() }
    }
}

/// Reads one request.
///
/// # Errors
/// Where the client goes away or does not speak HTTP.
pub fn read_request(stream: &TcpStream) -> io::Result<Request> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let from = stream.peer_addr()?.ip().to_canonical();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no request line"));
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query =
        query.split('&').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned()));
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.collect(),
        headers: Vec::new(),
        from,
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { return Ok(request) };
        request.headers.push((name.to_owned(), value.trim().to_owned()));
    }
}

/// Writes the response and closes.
///
/// # Errors
/// Where the client has gone.
pub fn write_response(mut stream: &TcpStream, response: &Response) -> io::Result<()> {
    let Response { status, body } = response;
    let reason = if *status < 400 { "OK" } else { "Error" };
    write!(
        stream,
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Fetches `http://HOST:PORT/PATH`; gives status and body.
///
/// # Errors
/// Where the address is refused, silent for `timeout`, or answers something else than HTTP.
pub fn get(url: &str, timeout: Duration) -> io::Result<(u16, String)> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{url}: {what}"));
    let rest = url.strip_prefix("http://").ok_or_else(|| invalid("only http:// is spoken"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let target = address.to_socket_addrs()?.next().ok_or_else(|| invalid("no such host"))?;
    let mut stream = TcpStream::connect_timeout(&target, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| invalid("the answer is not HTTP"))?;
    let status =
        head.split_whitespace().nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| invalid("no status"))?;
    Ok((status, body.to_owned()))
}

/// Listens on both address families where the network namespace has both.
///
/// # Errors
/// Where the port is taken.
pub fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_request_is_read_and_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let request = read_request(&stream).unwrap();
            write_response(&stream, &Response::error(503, "no")).unwrap();
            request
        });
        let answer = get(&format!("http://127.0.0.1:{port}/a?b=c&d=e"), Duration::from_secs(5)).unwrap();
        let request = server.join().unwrap();
        assert_eq!(answer, (503, "no".to_owned()));
        assert_eq!((request.path.as_str(), request.query["d"].as_str()), ("/a", "e"));
        assert!(request.headers.iter().any(|(name, _)| name == "Host"));
    }
}
