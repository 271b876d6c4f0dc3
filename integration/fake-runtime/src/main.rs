//! The fake container runtime as a program: CRI on one unix socket, orders on another (`longshore_integration::fake`).
//! For the real daemon's binary in scenarios and benches; what the runtime does is in `longshore_cri::fake`.

mod orders;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result};
use clap::Parser;
use longshore_cri::fake::{FakeCriServer, FakeOptions, FakeRuntime};
use longshore_integration::fake::{Answer, Order};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

/// A container runtime that runs nothing and keeps state as a real one does.
#[derive(Debug, Parser)]
struct Cli {
    /// Where CRI is served.
    #[arg(long)]
    socket: PathBuf,
    /// Where orders are taken: one of them in JSON per line.
    #[arg(long)]
    control: PathBuf,
    /// The runtime serves no event stream, as older ones.
    #[arg(long)]
    no_events: bool,
    /// Images that nobody ordered cannot be pulled.
    #[arg(long)]
    no_unknown_images: bool,
    /// Of the random faults.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    // One thread: what is measured beside it has the other processors for itself.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let local = tokio::task::LocalSet::new();
        local.run_until(serve(cli)).await
    })
}

async fn serve(cli: Cli) -> Result<()> {
    let fake = FakeRuntime::new(FakeOptions {
        events: !cli.no_events,
        write_logs: true,
        pull_unknown: !cli.no_unknown_images,
        seed: cli.seed,
        starts_at: jiff::Timestamp::now(),
        ..FakeOptions::default()
    });
    let mut ends = signal(SignalKind::terminate())?;
    // SIGUSR1 and SIGUSR2 are the runtime's daemon stopped and back: its containers live on in between.
    let mut down = signal(SignalKind::user_defined1())?;
    let mut up = signal(SignalKind::user_defined2())?;
    let mut server = Some(listen(&fake, &cli.socket).await?);
    let orders = control(&cli.control)?;
    let taker = tokio::task::spawn_local(take_orders(orders, Rc::new(fake.clone())));
    loop {
        tokio::select! {
            _ = ends.recv() => break,
            _ = down.recv() => if let Some(server) = server.take() { server.stop().await },
            _ = up.recv() => if server.is_none() { server = Some(listen(&fake, &cli.socket).await?) },
        }
    }
    taker.abort();
    Ok(())
}

async fn listen(fake: &FakeRuntime, socket: &Path) -> Result<FakeCriServer> {
    FakeCriServer::serve(fake.clone(), socket)
        .await
        .with_context(|| format!("listen at {}", socket.display()))
}

fn control(path: &Path) -> Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("clear the way for {}", path.display()));
        }
        _ => {}
    }
    UnixListener::bind(path).with_context(|| format!("listen at {}", path.display()))
}

async fn take_orders(listener: UnixListener, fake: Rc<FakeRuntime>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::task::spawn_local(answer_all(stream, fake.clone()))),
            Err(error) => eprintln!("the control socket: {error}"),
        }
    }
}

async fn answer_all(stream: UnixStream, fake: Rc<FakeRuntime>) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let answer = match serde_json::from_str::<Order>(&line) {
            Ok(order) => orders::carry_out(&fake, order).map_or_else(Answer::Refused, Answer::Done),
            Err(error) => Answer::Refused(format!("this is no order: {error}")),
        };
        let text = serde_json::to_string(&answer).expect("an answer is plain data");
        if write.write_all(format!("{text}\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_integration::fake;

    #[test]
    fn the_program_takes_orders_over_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            let listener = control(&path).unwrap();
            tokio::task::spawn_local(take_orders(listener, Rc::new(FakeRuntime::default())));
            let asked = tokio::task::spawn_blocking(move || {
                let counts = fake::order(&path, &Order::Counts).unwrap();
                let refused = fake::order(&path, &Order::LosePod("nobody".into())).unwrap_err();
                (counts, refused.to_string())
            });
            let (counts, refused) = asked.await.unwrap();
            assert_eq!(counts, serde_json::json!({"sandboxes": 0, "containers": 0}));
            assert!(refused.contains("nobody"), "{refused}");
        });
    }
}
