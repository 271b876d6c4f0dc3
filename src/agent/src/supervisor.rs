//! The daemon and who started it: systemd's notifications and watchdog, signals.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Tells systemd, where it listens; elsewhere this does nothing.
pub fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "sd_notify");
    }
}

/// One line `systemctl status` shows.
pub fn status(text: &str) {
    notify(&[NotifyState::Status(text)]);
}

/// Pings the watchdog at half its time for as long as the async threads run tasks at all: a daemon
/// whose threads hang is restarted by systemd, and a restart never touches a pod.
pub async fn keep_watchdog_fed() {
    let Some(timeout) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval((timeout / 2).max(Duration::from_millis(100)));
    loop {
        ticks.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}

/// Cancels `stop` on SIGTERM or SIGINT; calls `reload` on SIGHUP.
///
/// # Errors
/// Where the signal handlers cannot be set up.
pub fn handle_signals(stop: CancellationToken, reload: impl Fn() + Send + 'static) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => {
                    if let Ok(now) = NotifyState::monotonic_usec_now() {
                        notify(&[NotifyState::Reloading, now]);
                    }
                    reload();
                    notify(&[NotifyState::Ready]);
                }
            }
        }
        tracing::info!("stopping; pods are left running");
        notify(&[NotifyState::Stopping]);
        stop.cancel();
    });
    Ok(())
}
