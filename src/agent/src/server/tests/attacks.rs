//! Callers that mean harm or have lost their way: what they cost is bounded, and others are answered.

use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::*;

/// Resident memory of this process, bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// One connection with many requests whose answers are read as far as the test does it.
async fn many(server: &TestServer) -> hyper::client::conn::http2::SendRequest<Empty<Bytes>> {
    let stream = server.connect_as(Some(server.authority.client("admin", false)), "h2").await;
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    // What is told here waits at the server, not in this process' client.
    builder.initial_stream_window_size(16 << 10).initial_connection_window_size(4 << 20);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn get(path: &str) -> http::Request<Empty<Bytes>> {
    http::Request::builder().uri(format!("https://node{path}")).body(Empty::new()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_followers_as_many_as_there_are_places_follow_and_the_others_are_told_so() {
    const PLACES: usize = 200;
    let server = TestServer::with_log_places("http://127.0.0.1:9/", false, PLACES).await;
    // 4 MiB, of which nobody reads more than the beginning.
    let line = format!("2026-01-01T00:00:00.000000000Z stdout F {}\n", "x".repeat(980));
    std::fs::write(server.log(), line.repeat(4096)).unwrap();
    let before = resident();
    let mut following: Vec<http::Response<Incoming>> = Vec::new();
    let mut refused = 0;
    for _ in 0..5 {
        let connection = many(&server).await;
        let asked = (0..200)
            .map(|_| connection.clone().send_request(get("/containerLogs/default/web/c?follow=true")));
        for answer in futures_util::future::join_all(asked).await {
            let answer = answer.unwrap();
            if answer.status() == 200 {
                following.push(answer);
                continue;
            }
            assert_eq!(
                (answer.status().as_u16(), &answer.headers()["retry-after"]),
                (429, &"1".parse().unwrap())
            );
            let text = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(text, "too many logs at once; try again\n");
            refused += 1;
        }
        assert_eq!(server.admin("GET", "/pods").await.0, 200, "others are answered");
    }
    assert_eq!((following.len(), refused), (PLACES, 1000 - PLACES));
    // Whoever reads the whole file for each of them has 800 MiB now.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let each = resident().saturating_sub(before) / PLACES;
    assert!(each < 512 << 10, "{each} bytes for each follower");
    // One that reads on gets everything, and the places come back.
    let mut body = following.swap_remove(0).into_body();
    let mut read = 0;
    while read < 4096 * 981 {
        read += body.frame().await.unwrap().unwrap().into_data().map_or(0, |data| data.len());
    }
    drop((body, following));
    for _ in 0..200 {
        if server.admin("GET", "/containerLogs/default/web/c?tailLines=1").await.0 == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no place came back");
}

#[tokio::test]
async fn followers_are_bounded_and_give_their_places_back() {
    let server = TestServer::start().await;
    server.write_log(0..20_000);
    let request = "GET /containerLogs/default/web/c?follow=1 HTTP/1.1\r\nHost: node\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..3 {
        // They read the beginning and then nothing more.
        let mut stream = server.connect(Some(server.authority.client("admin", false))).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        held.push(stream);
    }
    assert_eq!(server.admin("GET", "/containerLogs/default/web/c").await.0, 429);
    assert_eq!(server.admin("GET", "/pods").await.0, 200, "others are answered");
    held.clear();
    for _ in 0..100 {
        if server.admin("GET", "/containerLogs/default/web/c?tailLines=1").await.0 == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the places of readers that left are not given back");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_comes_byte_by_byte_is_not_waited_for() {
    let server = TestServer::start().await;
    let mut stream = server.connect(None).await;
    let began = tokio::time::Instant::now();
    for byte in "GET /pods HTTP/1.1\r\nHost: node\r\nX-Slow: ".bytes().chain(std::iter::repeat(b'a')) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if stream.write_all(&[byte]).await.is_err() || stream.flush().await.is_err() {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "it is still taken");
    }
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    let answer = String::from_utf8_lossy(&rest);
    assert!(answer.is_empty() || answer.contains(" 408 "), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_http2_without_a_request_ends() {
    let server = TestServer::start().await;
    let stream = server.connect_as(None, "h2").await;
    let began = tokio::time::Instant::now();
    let opened = hyper::client::conn::http2::handshake::<_, _, Empty<Bytes>>(
        TokioExecutor::new(),
        TokioIo::new(stream),
    );
    // The sender is kept: it is not we who end the connection.
    let (_sender, connection) = opened.await.unwrap();
    let _ = connection.await;
    let took = began.elapsed();
    assert!((Duration::from_secs(30)..Duration::from_secs(180)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn what_comes_right_behind_an_upgrade_is_the_streams_and_never_a_request() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
    let (url, _) = streaming(switch).await;
    let server = TestServer::with(&url, false).await;
    let mut stream = server.connect(Some(server.authority.client("admin", false))).await;
    let smuggled = "GET /pods HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";
    let request = format!("POST /exec/default/web/c?command=sh&output=1 HTTP/1.1\r\n{UPGRADE}\r\n{smuggled}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 0];
    while !answer.ends_with(smuggled.as_bytes()) {
        let byte = stream.read_u8().await;
        answer.push(byte.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&answer))));
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 ") && !answer.contains("PodList"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}

#[tokio::test]
async fn heads_that_two_servers_could_read_differently_end_the_connection() {
    let server = TestServer::start().await;
    let hidden = "GET /pods HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";
    let length = hidden.len();
    for crooked in [
        format!("Content-Length: 0\r\nContent-Length: {length}\r\n\r\n"),
        format!("Content-Length: 0, {length}\r\n\r\n"),
        "Content-Length: +0\r\n\r\n".to_owned(),
        "Content-Length : 0\r\n\r\n".to_owned(),
        "Content-Length: 0\r\nTransfer-Encoding : chunked\r\n\r\n".to_owned(),
        "Transfer-Encoding: gzip\r\n\r\n".to_owned(),
        "Transfer-Encoding: \x0bchunked\r\n\r\n".to_owned(),
        "X: a\r\n Content-Length: 7\r\n\r\n".to_owned(),
        "X: a\rContent-Length: 7\r\n\r\n".to_owned(),
        "X\0: a\r\n\r\n".to_owned(),
    ] {
        let request = format!("GET /configz HTTP/1.1\r\nHost: node\r\n{crooked}{hidden}");
        let answer = server.exchange(Some(server.authority.client("admin", false)), &request).await;
        assert!(!answer.contains("PodList"), "{crooked:?}: {answer}");
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(["400", "413", "501", ""].contains(&status), "{crooked:?}: {answer}");
    }
}
