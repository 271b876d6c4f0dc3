use std::net::SocketAddr;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// A server on loopback that answers each connection with `answer(request head)`, and the heads it saw.
async fn server(
    answer: impl Fn(&str) -> String + Send + Sync + 'static,
) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (seen, answer) = (seen.clone(), answer.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).await.is_ok() {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                seen.lock().unwrap().push(head.clone());
                let _ = stream.write_all(answer(&head).as_bytes()).await;
            });
        }
    });
    (address, heads)
}

async fn probe_path(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Outcome {
    let headers: Vec<(String, String)> =
        headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let host = address.ip().to_string();
    let request = HttpRequest { scheme: "HTTP", host: &host, port: address.port(), path, headers: &headers };
    HttpClient::for_probes().probe(&request).await
}

#[tokio::test]
async fn statuses_are_judged() {
    let (address, _) = server(|head| {
        let status = head.split(['/', ' ']).nth(2).unwrap();
        format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nok")
    })
    .await;
    for (status, healthy) in
        [(200, true), (204, true), (302, true), (399, true), (400, false), (404, false), (503, false)]
    {
        let outcome = probe_path(address, &format!("/{status}"), &[]).await;
        let expected = format!("HTTP {status}");
        let expected = if healthy { Outcome::Success(expected) } else { Outcome::Failure(expected) };
        assert_eq!(outcome, expected);
    }
}

#[tokio::test]
async fn the_request_is_what_servers_expect_of_a_probe() {
    let (address, heads) = server(|_| "HTTP/1.1 200 OK\r\n\r\n".to_owned()).await;
    type Words<'a> = &'a [&'a str];
    type Headers<'a> = &'a [(&'a str, &'a str)];
    let cases: [(&str, Headers<'_>, Words<'_>, Words<'_>); 4] = [
        (
            "healthz?full=1#x",
            &[],
            &[
                "GET /healthz?full=1 HTTP/1.1",
                &format!("host: {address}"),
                "user-agent: longshore-probe/",
                "accept: */*",
                "connection: close",
            ],
            &["accept-encoding", "authorization"],
        ),
        ("/", &[("Host", "web.example")], &["host: web.example"], &["host: 127"]),
        (
            "/",
            &[("X-A", "1"), ("X-A", "2"), ("User-Agent", "mine")],
            &["x-a: 1", "x-a: 2", "user-agent: mine"],
            &["longshore"],
        ),
        ("/", &[("Accept", ""), ("User-Agent", "")], &[], &["accept", "user-agent"]),
    ];
    for (path, headers, present, absent) in cases {
        assert_eq!(probe_path(address, path, headers).await, Outcome::Success("HTTP 200".into()));
        let head = heads.lock().unwrap().pop().unwrap();
        let lower = head.to_lowercase();
        for text in present {
            assert!(lower.contains(&text.to_lowercase()), "{text:?} is not in {head:?}");
        }
        for text in absent {
            assert!(!lower.contains(text), "{text:?} is in {head:?}");
        }
    }
}

#[tokio::test]
async fn redirects_are_followed_within_the_host_only() {
    let (address, heads) = server(|head| {
        let place = match head.split(' ').nth(1).unwrap() {
            "/start" => "next?q=1",
            "/next?q=1" => "/end",
            "/away" => "http://elsewhere.invalid/",
            "/loop" => "/loop",
            _ => return "HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n".to_owned(),
        };
        format!("HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n")
    })
    .await;
    assert_eq!(probe_path(address, "/start", &[]).await, Outcome::Failure("HTTP 404".into()));
    assert!(heads.lock().unwrap()[2].starts_with("GET /end "), "{heads:?}");
    let outcome = probe_path(address, "/away", &[]).await;
    assert_eq!(
        outcome,
        Outcome::Success("HTTP 302, a redirect to elsewhere.invalid that is not followed".into())
    );
    assert_eq!(
        probe_path(address, "/loop", &[]).await,
        Outcome::Failure("stopped after 10 redirects".into())
    );
}

#[tokio::test]
async fn large_and_endless_bodies_are_read_to_ten_kib() {
    let (address, _) = server(|head| match head.contains("/cut") {
        true => format!("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(50_000)),
        false => format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(1_000_000)),
    })
    .await;
    for path in ["/cut", "/whole"] {
        let request =
            HttpRequest { scheme: "http", host: "127.0.0.1", port: address.port(), path, headers: &[] };
        let answer = HttpClient::for_probes().get(&request).await.unwrap();
        assert_eq!(answer.body.len(), MAX_BODY);
    }
}

#[tokio::test]
async fn what_is_no_answer_is_a_failure_and_what_is_no_request_an_error() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let Outcome::Failure(message) = probe_path(free, "/", &[]).await else { panic!("refused is a failure") };
    assert!(message.contains("Connection refused"), "{message}");
    let (address, _) = server(|_| "nonsense\r\n\r\n".to_owned()).await;
    assert!(matches!(probe_path(address, "/", &[]).await, Outcome::Failure(_)));
    let (address, _) = server(|_| String::new()).await;
    assert!(matches!(probe_path(address, "/", &[]).await, Outcome::Failure(_)));
    assert!(matches!(probe_path(address, "/", &[("bad name", "x")]).await, Outcome::Error(_)));
    assert!(matches!(probe_path(address, "/a b", &[]).await, Outcome::Error(_)));
}

/// A self-signed certificate for a name nobody asks for, and its key. Of no use to anybody else.
const CERTIFICATE: &str = "\
    MIIBijCCATGgAwIBAgIUPh2hcz0218NKOLH7Nen8SNudaAkwCgYIKoZIzj0EAwIwGjEYMBYGA1UEAwwPZXhwaXJlZC5pbnZh\
    bGlkMCAXDTI2MTEyMTEzNTcyNVoYDzIxMjYxMDI4MTM1NzI1WjAaMRgwFgYDVQQDDA9leHBpcmVkLmludmFsaWQwWTATBgcq\
    hkjOPQIBBggqhkjOPQMBBwNCAASOt4zqufiDReot1R1dNKSrx7hS92iTJMyk6wt6iPyt6KMBOymvOx22bAjug+MzNhURI3+k\
    GxCOtXe/FX/GWUFYo1MwUTAdBgNVHQ4EFgQU745LfFYLYqT9QwbqvXH77Vri3MMwHwYDVR0jBBgwFoAU745LfFYLYqT9Qwbq\
    vXH77Vri3MMwDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNHADBEAiAZoFZs0P7VzVDZgAaTVcmQEHtPGh+HnyzPUuSb\
    LVjeFgIgCvhgGrsSppS8yZfbop9q60sl5NxPbkWLezVEp61JuQs=\
";
const KEY: &str = "\
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgDU9BbWXNWeg5EmjbvnEr8NGX1lTHc2JD+4qh/AdKg96hRANC\
    AASOt4zqufiDReot1R1dNKSrx7hS92iTJMyk6wt6iPyt6KMBOymvOx22bAjug+MzNhURI3+kGxCOtXe/FX/GWUFY\
";

/// Base64 without a dependency: only these two constants are ever read.
fn decode(text: &str) -> Vec<u8> {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for digit in text.bytes().filter_map(|byte| alphabet.iter().position(|letter| *letter == byte)) {
        bits = bits << 6 | digit as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

fn tls_server(protocol: &[u8]) -> tokio_rustls::TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(decode(KEY));
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![decode(CERTIFICATE).into()], key.into())
        .unwrap();
    config.alpn_protocols = vec![protocol.to_vec()];
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn https_takes_any_certificate_over_both_versions_of_http() {
    use hyper::service::service_fn;
    for protocol in ["h2", "http/1.1"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = tls_server(protocol.as_bytes());
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let stream = TokioIo::new(acceptor.accept(stream).await.unwrap());
            let service = service_fn(|request: Request<Incoming>| async move {
                let named = request
                    .uri()
                    .host()
                    .map(str::to_owned)
                    .or_else(|| Some(request.headers().get(HOST)?.to_str().ok()?.to_owned()));
                let status = if named.as_deref() == Some("web.example") { 200 } else { 421 };
                Response::builder().status(status).body(Empty::<Bytes>::new())
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(stream, service).await;
        });
        let headers = [("Host".to_owned(), "web.example".to_owned())];
        let request = HttpRequest { scheme: "HTTPS", host: "127.0.0.1", port, path: "/", headers: &headers };
        let outcome = HttpClient::for_probes().probe(&request).await;
        assert_eq!(outcome, Outcome::Success("HTTP 200".into()), "{protocol}");
    }
}

#[tokio::test]
async fn a_plain_server_behind_https_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut greeting = [0; 16];
        stream.read_exact(&mut greeting).await.unwrap();
        stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await.unwrap();
    });
    let request = HttpRequest { scheme: "HTTPS", host: "127.0.0.1", port, path: "/", headers: &[] };
    let error = HttpClient::for_probes().get(&request).await.expect_err("no TLS there");
    assert!(error.speaks_no_tls(), "{error:?}");
}

#[tokio::test]
async fn giving_up_closes_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let request = HttpRequest { scheme: "HTTP", host: "127.0.0.1", port, path: "/", headers: &[] };
    let client = HttpClient::for_probes();
    let (answer, accepted) = tokio::join!(
        tokio::time::timeout(std::time::Duration::from_millis(50), client.get(&request)),
        listener.accept(),
    );
    assert!(answer.is_err(), "the server is silent");
    let (mut stream, _) = accepted.unwrap();
    let mut request = Vec::new();
    // Ends only when the other side has closed.
    stream.read_to_end(&mut request).await.unwrap();
    assert!(request.starts_with(b"GET / "));
}

#[test]
fn locations_are_resolved() {
    let base = Target { tls: false, host: "10.0.0.1".into(), port: 8080, path: "/a/b?q=1".into() };
    let cases = [
        ("/x", Some("http 10.0.0.1 8080 /x")),
        ("x?y", Some("http 10.0.0.1 8080 /a/x?y")),
        ("https://10.0.0.1/x", Some("https 10.0.0.1 443 /x")),
        ("http://[::1]:81", Some("http ::1 81 /")),
        ("//other/z", Some("http other 80 /z")),
        ("ftp://10.0.0.1/", None),
        ("http://", None),
    ];
    for (location, expected) in cases {
        let resolved = base.resolve(location).map(|target| {
            format!(
                "{} {} {} {}",
                if target.tls { "https" } else { "http" },
                target.host,
                target.port,
                target.path
            )
        });
        assert_eq!(resolved.as_deref(), expected, "{location}");
    }
}
