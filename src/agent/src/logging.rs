//! Where log lines go: the journal when the daemon runs under systemd, else stderr as text or JSON.
//! What is logged is decided where it happens.

use std::os::unix::fs::MetadataExt;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::config::{LogFormat, LoggingSettings};

/// Sets the program's log up, once. `RUST_LOG` overrides the level for people who know what they want.
pub fn init(settings: &LoggingSettings) {
    let level = match settings.verbosity {
        0..=1 => "info",
        2..=4 => "info,longshore_agent=debug,longshore_cri=debug,longshore_kernel=debug,longshore_core=debug",
        _ => "info,longshore_agent=trace,longshore_cri=trace,longshore_kernel=trace,longshore_core=trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let result = Registry::default().with(sink(settings.format)).with(filter).try_init();
    if result.is_err() {
        // A test or an embedding program set one up before; its choice stands.
        tracing::debug!("logging was set up before");
    }
}

fn sink(format: LogFormat) -> Box<dyn Layer<Registry> + Send + Sync> {
    if stderr_is_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        return journal.boxed();
    }
    let stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Json => stderr.json().boxed(),
        LogFormat::Text => {
            let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
            stderr.with_ansi(colours).boxed()
        }
    }
}

/// systemd names the journal's socket by device and inode (systemd.exec(5), `$JOURNAL_STREAM`).
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(metadata) = std::fs::metadata("/proc/self/fd/2") else { return false };
    stream == format!("{}:{}", metadata.dev(), metadata.ino())
}
