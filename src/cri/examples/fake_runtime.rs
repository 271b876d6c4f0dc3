//! The fake runtime as a program, so that a real daemon can be measured on it: `fake_runtime SOCKET [IMAGE]...
//! [CALL=MILLISECONDS]...` serves it until standard input ends. For each line there it prints what was called so far.

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use longshore_cri::Operation;
use longshore_cri::fake::{FakeCriServer, FakeOptions, FakeRuntime};

const USAGE: &str = "usage: fake_runtime SOCKET [IMAGE]... [CALL=MILLISECONDS]...";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served =
        runtime.map_err(|error| error.to_string()).and_then(|runtime| runtime.block_on(serve(&args)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(args: &[String]) -> Result<(), String> {
    let (socket, rest) = args.split_first().ok_or(USAGE)?;
    let fake = FakeRuntime::new(FakeOptions { starts_at: jiff::Timestamp::now(), ..FakeOptions::default() });
    for word in rest {
        match word.split_once('=') {
            Some((call, millis)) => {
                let operation = Operation::ALL.iter().find(|operation| operation.name() == call);
                let operation = operation.ok_or_else(|| format!("there is no call {call}; {USAGE}"))?;
                let millis = millis.parse().map_err(|error| format!("{word}: {error}"))?;
                fake.set_cost(*operation, Duration::from_millis(millis));
            }
            None => drop(fake.add_image(word)),
        }
    }
    let server = FakeCriServer::serve(fake.clone(), Path::new(socket)).await;
    let server = server.map_err(|error| format!("{socket}: {error}"))?;
    // Standard input blocks, so it is read beside.
    let answering = tokio::task::spawn_blocking(move || answer(&fake));
    let answered = answering.await.map_err(|error| error.to_string())?;
    server.stop().await;
    answered.map_err(|error| error.to_string())
}

fn answer(fake: &FakeRuntime) -> std::io::Result<()> {
    for line in std::io::stdin().lock().lines() {
        line?;
        let calls: u64 = fake.counters().snapshot().iter().map(|count| count.calls).sum();
        let mut out = std::io::stdout().lock();
        writeln!(out, "{{\"busy_ns\": {}, \"calls\": {calls}}}", fake.busy().as_nanos())?;
        out.flush()?;
    }
    Ok(())
}
