//! Keeps one certificate of the node: asks core what is needed, gets it, waits. A failure is told once per
//! try and tried again, later each time; pods are never touched by it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use longshore_cluster::backoff::Backoff;
use longshore_cluster::{ApiClient, Kubeconfig, TlsTransport};
use longshore_core::certificates::{CertificateFacts, Need, Purpose, Wish, need};
use tokio::sync::watch;

use super::ask::ask;
use super::kubeconfig::ensure_kubeconfig;
use super::{CertificateError, CertificateState, CertificateStore};
use crate::pods::Clock;
use crate::text::error_chain;

/// Files and the clock are looked at this often: an operator may replace the one and set the other.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// A signer that sets the beginning of a short life back (five minutes for Kubernetes' own) must not be asked
/// in a tight loop.
const BETWEEN_TWO: Duration = Duration::from_secs(3);

/// Pauses after failures; every node of a cluster may have lost the same signer in the same instant.
const FIRST_PAUSE: Duration = Duration::from_secs(4);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Who serves with the node's serving certificate.
pub trait Serve: Send + Sync {
    /// A file with a certificate and its key, PEM, in force from now on.
    fn serve(&self, pair: &Path);
}

/// With what a certificate can be asked for.
#[derive(Clone, Debug)]
pub struct Ways {
    /// The node's own credentials.
    pub own: ApiClient,
    /// Credentials that may only ask; read anew at each try.
    pub bootstrap: Option<PathBuf>,
    /// Where the node's kubeconfig is to be, for a client certificate.
    pub kubeconfig: Option<PathBuf>,
}

/// Keeps one certificate.
pub struct Keeper {
    store: CertificateStore,
    wish: Wish,
    ways: Ways,
    /// Ask for the next before this one ends.
    rotate: bool,
    clock: Clock,
    state: watch::Sender<CertificateState>,
    serve: Option<Arc<dyn Serve>>,
    backoff: Backoff,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("store", &self.store).field("ways", &self.ways).finish_non_exhaustive()
    }
}

impl Keeper {
    pub fn new(store: CertificateStore, wish: Wish, ways: Ways, rotate: bool, clock: Clock) -> Self {
        let state = CertificateState {
            purpose: wish.purpose,
            path: store.current_path(),
            facts: store.current(),
            waits: None,
            problem: None,
        };
        let state = watch::Sender::new(state);
        let backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        Self { store, wish, ways, rotate, clock, state, serve: None, backoff }
    }

    /// Hands every certificate to a server, beginning with the one there is.
    #[must_use]
    pub fn serving(mut self, serve: Arc<dyn Serve>) -> Self {
        self.serve = Some(serve);
        self
    }

    /// The certificate as it is, and as it changes.
    pub fn state(&self) -> watch::Receiver<CertificateState> {
        self.state.subscribe()
    }

    /// Keeps it until dropped.
    pub async fn keep(mut self) {
        self.hand_over();
        loop {
            let pause = self.once().await;
            tokio::time::sleep(pause).await;
        }
    }

    /// One look, and what it calls for; gives how long to wait before the next.
    async fn once(&mut self) -> Duration {
        let current = self.store.current();
        self.tell(|state| state.facts = current.clone());
        let (why, usable) = match need(current.as_ref(), &self.wish, self.clock.now()) {
            Need::Rest { until } => {
                self.backoff.reset();
                self.tell(|state| state.problem = None);
                self.ensure_kubeconfig();
                return self.clock.until(until).min(LOOK_EVERY);
            }
            Need::Renew { .. } if !self.rotate => {
                self.ensure_kubeconfig();
                return LOOK_EVERY;
            }
            Need::Renew { why } => (why, true),
            Need::Obtain { why } => (why, false),
        };
        let purpose = self.wish.purpose;
        tracing::info!(path = %self.store.current_path().display(), why, "a new {purpose} is wanted");
        let got = self.get(usable).await;
        self.tell(|state| state.waits = None);
        match got {
            Ok(()) => {
                self.backoff.reset();
                let now = self.store.current();
                self.tell(|state| (state.facts, state.problem) = (now, None));
                BETWEEN_TWO
            }
            Err(error) => {
                let pause = self.backoff.pause();
                let problem = error_chain(&error);
                tracing::warn!(
                    tries = self.backoff.tries(),
                    "no new {purpose}: {problem}; the next try is in {} s",
                    pause.as_secs().max(1)
                );
                self.tell(|state| state.problem = Some(problem));
                pause
            }
        }
    }

    /// Gets a certificate; `usable`: the one there is still speaks for the node.
    async fn get(&self, usable: bool) -> Result<(), CertificateError> {
        let own = usable || self.wish.purpose == Purpose::Serving;
        let mut got = match own {
            true => self.ask(&self.ways.own).await,
            false => self.ask(&self.bootstrap()?).await,
        };
        // A certificate can end in the API server's eyes before it ends in ours: another authority.
        if let (Err(error), Some(bootstrap)) = (&got, &self.ways.bootstrap)
            && own
            && error.is_refused()
        {
            tracing::warn!(
                "the API server refuses the node's own certificate {} ({}); asking with the bootstrap kubeconfig {}",
                self.store.current_path().display(),
                error_chain(error),
                bootstrap.display()
            );
            got = self.ask(&self.bootstrap()?).await;
        }
        let facts = got?;
        tracing::info!(
            path = %self.store.current_path().display(),
            until = %facts.not_after,
            "a new {} is in force", self.wish.purpose
        );
        self.ensure_kubeconfig();
        self.hand_over();
        Ok(())
    }

    /// Asks and waits for the answer; who approves reads meanwhile which request it is.
    async fn ask(&self, client: &ApiClient) -> Result<CertificateFacts, CertificateError> {
        let waits = |name: &str| {
            self.tell(|state| state.waits = Some(name.to_owned()));
        };
        ask(client, &self.wish, &self.store, self.clock, &waits).await
    }

    fn bootstrap(&self) -> Result<ApiClient, CertificateError> {
        let purpose = self.wish.purpose;
        let path = self.ways.bootstrap.as_deref().ok_or(CertificateError::NoBootstrap { purpose })?;
        if !path.exists() {
            return Err(CertificateError::NoBootstrapFile { purpose, path: path.to_owned() });
        }
        Ok(ApiClient::new(Arc::new(TlsTransport::new(Kubeconfig::read(path)?))))
    }

    fn ensure_kubeconfig(&self) {
        let Some(path) = &self.ways.kubeconfig else { return };
        let bootstrap = self.ways.bootstrap.as_deref().filter(|path| path.exists());
        if let Err(error) = ensure_kubeconfig(path, bootstrap, &self.store) {
            tracing::warn!(path = %path.display(), error = error_chain(&error), "the node's kubeconfig is not written");
        }
    }

    fn hand_over(&self) {
        if let Some(serve) = self.serve.as_ref().filter(|_| self.store.current().is_some()) {
            serve.serve(&self.store.current_path());
        }
    }

    fn tell(&self, change: impl FnOnce(&mut CertificateState)) {
        self.state.send_if_modified(|state| {
            let before = state.clone();
            change(state);
            *state != before
        });
    }
}
