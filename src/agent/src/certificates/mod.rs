//! The node's certificates on disk and how new ones are got: keys, signing requests, rotation, the first
//! certificate by a bootstrap credential. What is wanted and when is decided in `core::certificates`.

mod ask;
mod keeper;
mod keys;
mod kubeconfig;
mod store;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use longshore_cluster::kubeconfig::Login;
use longshore_cluster::{ApiClient, ApiError, Kubeconfig, KubeconfigError};
use longshore_core::certificates::{CertificateFacts, Purpose, Standing, Wish, standing};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::JoinSettings;
use crate::pods::Clock;
pub use keeper::{Keeper, Serve, Ways};
pub use keys::Key;
pub use kubeconfig::{node_kubeconfig, render};
pub use store::{CertificateStore, write_whole};

/// What keeps a certificate from being got, read or kept.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot {what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot make a {what}")]
    Make {
        what: &'static str,
        #[source]
        source: rcgen::Error,
    },
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    #[error(
        "neither kubeconfig {} nor bootstrap kubeconfig {} is there: give one of them, or run `longshore join`",
        kubeconfig.display(),
        bootstrap.display()
    )]
    NoCredentials { kubeconfig: PathBuf, bootstrap: PathBuf },
    #[error(
        "nothing is left to ask for a {purpose} with, since no --bootstrap-kubeconfig is given: \
         `kubeadm token create --print-join-command` on the control plane prints what, \
         with `longshore` for `kubeadm` and with --force, makes this node join again"
    )]
    NoBootstrap { purpose: Purpose },
    #[error(
        "nothing is left to ask for a {purpose} with, since the bootstrap kubeconfig {} is not there: \
         `kubeadm token create --print-join-command` on the control plane prints what, \
         with `longshore` for `kubeadm` and with --force, makes this node join again",
        path.display()
    )]
    NoBootstrapFile { purpose: Purpose, path: PathBuf },
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("request {name} for a {purpose} was denied ({why}); the next is sent later")]
    Denied { purpose: Purpose, name: String, why: String },
    #[error("request {name} for a {purpose} was approved and could not be signed ({why})")]
    Failed { purpose: Purpose, name: String, why: String },
    #[error("request {name} was answered with a certificate that is not taken: {why}")]
    Unwanted { name: String, why: String },
    #[error("request {name} was deleted before it was answered")]
    Vanished { name: String },
    #[error("request {name} for a {purpose} still waits for approval: kubectl certificate approve {name}")]
    Unapproved { purpose: Purpose, name: String },
    #[error(
        "request {name} for a {purpose} is approved and nobody signs it: does the controller manager run with --cluster-signing-cert-file?"
    )]
    Unsigned { purpose: Purpose, name: String },
}

impl CertificateError {
    /// The credentials that asked are not taken by the API server any more.
    fn is_refused(&self) -> bool {
        matches!(self, Self::Api(error) if matches!(error.code(), Some(401 | 403)))
    }
}

/// One certificate as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateState {
    pub purpose: Purpose,
    /// The file people look for.
    pub path: PathBuf,
    pub facts: Option<CertificateFacts>,
    /// The request that somebody has to approve and sign.
    pub waits: Option<String>,
    /// Why the last try to get another failed.
    pub problem: Option<String>,
}

impl CertificateState {
    pub fn standing(&self, now: Timestamp) -> Standing {
        standing(self.facts.as_ref(), now)
    }

    /// One line for `why node` and the log.
    pub fn line(&self, now: Timestamp) -> String {
        let how = self.standing(now).sentence(now).to_string();
        let waits = self.waits.iter().map(|name| {
            format!("; request {name} waits to be approved and signed: kubectl certificate approve {name}")
        });
        // While the next try waits, the failure of the one before is no news.
        let problem =
            self.problem.iter().filter(|_| self.waits.is_none()).map(|problem| format!("; {problem}"));
        let more: String = waits.chain(problem).collect();
        format!("{} {}: {how}{more}", self.purpose, self.path.display())
    }
}

/// The certificates this daemon keeps, for who shows them.
#[derive(Clone, Debug, Default)]
pub struct Certificates {
    pub client: Option<watch::Receiver<CertificateState>>,
    pub serving: Option<watch::Receiver<CertificateState>>,
}

impl Certificates {
    /// Starts what keeps the client certificate, where the settings ask for it. Everything ends with `stop`.
    ///
    /// # Errors
    /// Where a kubeconfig is not one.
    pub fn start(
        join: &JoinSettings,
        node: &str,
        own: &ApiClient,
        clock: Clock,
        stop: &CancellationToken,
    ) -> Result<Self, CertificateError> {
        let settings = &join.certificates;
        if !settings.rotate && settings.bootstrap.is_none() {
            return Ok(Self::default());
        }
        // A token is somebody else's to renew.
        if matches!(Kubeconfig::read(&join.kubeconfig), Ok(Kubeconfig { login: Login::Token(_), .. })) {
            return Ok(Self::default());
        }
        let store = CertificateStore::new(&settings.folder, Purpose::Client);
        let ways = Ways {
            own: own.apart(),
            bootstrap: settings.bootstrap.clone(),
            kubeconfig: Some(join.kubeconfig.clone()),
        };
        let keeper = Keeper::new(store, Wish::client(node), ways, settings.rotate, clock);
        let state = keeper.state();
        tokio::spawn(stop.clone().run_until_cancelled_owned(keeper.keep()));
        Ok(Self { client: Some(state), serving: None })
    }

    /// Starts what keeps the serving certificate; `serve` gets each new one.
    pub fn keep_serving(
        &mut self,
        join: &JoinSettings,
        wish: Wish,
        (own, serve): (&ApiClient, std::sync::Arc<dyn Serve>),
        clock: Clock,
        stop: &CancellationToken,
    ) {
        let store = CertificateStore::new(&join.certificates.folder, Purpose::Serving);
        let ways = Ways { own: own.apart(), bootstrap: None, kubeconfig: None };
        let keeper = Keeper::new(store, wish, ways, true, clock).serving(serve);
        self.serving = Some(keeper.state());
        tokio::spawn(stop.clone().run_until_cancelled_owned(keeper.keep()));
    }

    /// Answers once there is a client certificate that has not expired; at once where none is kept.
    pub async fn usable(&self, clock: Clock) {
        let Some(client) = &self.client else { return };
        let works = |state: &CertificateState| {
            matches!(state.standing(clock.now()), Standing::Valid { .. } | Standing::NotYetValid { .. })
        };
        // The sender lives as long as the daemon.
        let _ = client.clone().wait_for(works).await;
    }

    /// One line per certificate.
    pub fn lines(&self, now: Timestamp) -> Vec<String> {
        [&self.client, &self.serving].into_iter().flatten().map(|state| state.borrow().line(now)).collect()
    }

    /// What has to be seen to: file and sentence.
    pub fn problems(&self, now: Timestamp) -> Vec<(PathBuf, String)> {
        let bad = |state: &CertificateState| {
            let standing = state.standing(now);
            let well = matches!(standing, Standing::Valid { overdue: false, .. });
            (!well).then(|| (state.path.clone(), state.line(now)))
        };
        [&self.client, &self.serving].into_iter().flatten().filter_map(|state| bad(&state.borrow())).collect()
    }
}

/// Reads a file that must not be huge.
fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let limit = longshore_core::certificates::x509::MAX_BYTES as u64;
    if std::fs::metadata(path)?.len() > limit {
        return Err(std::io::Error::other(format!("it is larger than {limit} bytes")));
    }
    std::fs::read(path)
}
