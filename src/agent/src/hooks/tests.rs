use std::sync::Mutex;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::probes::exec::Executed;

/// Runs commands by their first word: `ok`, `fail`, `hang`, `gone`.
#[derive(Debug, Default)]
struct FakeExec {
    ran: Mutex<Vec<String>>,
}

#[async_trait]
impl ContainerExec for FakeExec {
    async fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<Executed, ExecError> {
        self.ran.lock().unwrap().push(format!("{id} {}", command.join(" ")));
        match command[0].as_str() {
            "ok" => Ok(Executed::default()),
            "fail" => Ok(Executed { exit_code: 3, output: b"disk\nfull".to_vec() }),
            "hang" => {
                tokio::time::sleep(timeout).await;
                Err(ExecError::Timeout)
            }
            _ => Err(ExecError::Runtime("no such container".into())),
        }
    }
}

fn runner() -> HookRunner {
    HookRunner::new(Arc::new(FakeExec::default()))
}

async fn run(hook: Hook, limit: Duration) -> Result<(), String> {
    runner().run_hook(&"c1".into(), &hook, limit).await.map_err(|error| crate::text::error_chain(&error))
}

fn command(word: &str) -> Hook {
    Hook::Exec { command: vec![word.to_owned()] }
}

#[tokio::test(start_paused = true)]
async fn commands_and_sleeps_are_bounded() {
    let limit = Duration::from_secs(5);
    let cases = [
        (command("ok"), 0, Ok(())),
        (command("fail"), 0, Err("the command exited with code 3: disk full".to_owned())),
        (command("hang"), 5, Err("the hook did not end within 5s".to_owned())),
        (command("gone"), 0, Err("the runtime could not run the command: no such container".to_owned())),
        (Hook::Sleep { duration: Duration::from_secs(2) }, 2, Ok(())),
        (Hook::Sleep { duration: Duration::ZERO }, 0, Ok(())),
        (Hook::Sleep { duration: Duration::from_secs(60) }, 5, Ok(())),
    ];
    for (hook, seconds, expected) in cases {
        let begin = tokio::time::Instant::now();
        assert_eq!(run(hook.clone(), limit).await, expected, "{hook:?}");
        assert_eq!(begin.elapsed().as_secs(), seconds, "{hook:?}");
    }
}

#[tokio::test]
async fn a_socket_hook_connects() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hook = Hook::TcpSocket { host: "127.0.0.1".into(), port };
    assert_eq!(run(hook.clone(), Duration::from_secs(5)).await, Ok(()));
    drop(listener);
    let error = run(hook, Duration::from_secs(5)).await.expect_err("closed");
    assert!(error.starts_with(&format!("connect to 127.0.0.1 port {port}: ")), "{error}");
}

#[tokio::test]
async fn any_status_is_success_and_https_falls_back_to_http_without_credentials() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let mut heads = Vec::new();
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let read = stream.read(&mut head).await.unwrap();
            heads.push(String::from_utf8_lossy(&head[..read]).into_owned());
            stream.write_all(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            stream.shutdown().await.unwrap();
        }
        heads
    });
    let hook = Hook::HttpGet {
        scheme: "HTTPS".into(),
        host: "127.0.0.1".into(),
        port,
        path: "/drain".into(),
        headers: vec![("Authorization".into(), "secret".into()), ("X-Kept".into(), "yes".into())],
    };
    assert_eq!(run(hook, Duration::from_secs(5)).await, Ok(()));
    let heads = server.await.unwrap();
    assert!(heads[1].starts_with("GET /drain HTTP/1.1"), "{heads:?}");
    assert!(heads[1].contains("x-kept: yes") && !heads[1].contains("secret"), "{heads:?}");
    assert!(heads[1].contains("longshore-lifecycle/"), "{heads:?}");
}

#[tokio::test]
async fn a_silent_server_costs_the_limit_and_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hook = Hook::HttpGet {
        scheme: "HTTP".into(),
        host: "127.0.0.1".into(),
        port,
        path: "/".into(),
        headers: vec![],
    };
    let limit = Duration::from_millis(50);
    assert_eq!(run(hook, limit).await, Err("the hook did not end within 50ms".to_owned()));
}
