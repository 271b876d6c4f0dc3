//! Keeps one certificate of the node: asks core what is needed, gets it, waits. A failure is told once per
//! try and tried again, later each time; pods are never touched by it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use longshore_cluster::{ApiClient, Kubeconfig, TlsTransport};
use longshore_core::certificates::{Need, Purpose, Wish, need, retry_after};
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
    wish: watch::Receiver<Wish>,
    ways: Ways,
    /// Ask for the next before this one ends.
    rotate: bool,
    clock: Clock,
    state: watch::Sender<CertificateState>,
    serve: Option<Arc<dyn Serve>>,
    failures: u32,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("store", &self.store).field("ways", &self.ways).finish_non_exhaustive()
    }
}

impl Keeper {
    pub fn new(
        store: CertificateStore,
        wish: watch::Receiver<Wish>,
        ways: Ways,
        rotate: bool,
        clock: Clock,
    ) -> Self {
        let state = CertificateState {
            purpose: wish.borrow().purpose,
            path: store.current_path(),
            facts: store.current(),
            problem: None,
        };
        let state = watch::Sender::new(state);
        Self { store, wish, ways, rotate, clock, state, serve: None, failures: 0 }
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
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = changed(&mut self.wish) => {}
            }
        }
    }

    /// One look, and what it calls for; gives how long to wait before the next.
    async fn once(&mut self) -> Duration {
        let current = self.store.current();
        let wish = self.wish.borrow_and_update().clone();
        self.tell(|state| state.facts = current.clone());
        let (why, usable) = match need(current.as_ref(), &wish, self.clock.now()) {
            Need::Rest { until } => {
                self.failures = 0;
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
        tracing::info!(path = %self.store.current_path().display(), why, "a new {} is wanted", wish.purpose);
        match self.get(&wish, usable).await {
            Ok(()) => {
                self.failures = 0;
                let now = self.store.current();
                self.tell(|state| (state.facts, state.problem) = (now, None));
                BETWEEN_TWO
            }
            Err(error) => {
                self.failures += 1;
                let pause = retry_after(self.failures);
                let problem = error_chain(&error);
                tracing::warn!(problem, tries = self.failures, next_in = ?pause, "no new {}", wish.purpose);
                self.tell(|state| state.problem = Some(problem));
                pause
            }
        }
    }

    /// Gets a certificate; `usable`: the one there is still speaks for the node.
    async fn get(&self, wish: &Wish, usable: bool) -> Result<(), CertificateError> {
        let own = usable || wish.purpose == Purpose::Serving;
        let mut got = match own {
            true => ask(&self.ways.own, wish, &self.store, self.clock).await,
            false => ask(&self.bootstrap(wish)?, wish, &self.store, self.clock).await,
        };
        // A certificate can end in the API server's eyes before it ends in ours: another authority.
        if own && self.ways.bootstrap.is_some() && got.as_ref().is_err_and(CertificateError::is_refused) {
            tracing::warn!(
                "the node's own credentials are refused; asking with those of the bootstrap kubeconfig"
            );
            got = ask(&self.bootstrap(wish)?, wish, &self.store, self.clock).await;
        }
        let facts = got?;
        tracing::info!(
            path = %self.store.current_path().display(),
            until = %facts.not_after,
            "a new {} is in force", wish.purpose
        );
        self.ensure_kubeconfig();
        self.hand_over();
        Ok(())
    }

    fn bootstrap(&self, wish: &Wish) -> Result<ApiClient, CertificateError> {
        let path = self.ways.bootstrap.as_deref().filter(|path| path.exists());
        let path = path.ok_or(CertificateError::NoWay { purpose: wish.purpose })?;
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

/// Waits for another wish; for ever where nobody can have another.
async fn changed(wish: &mut watch::Receiver<Wish>) {
    if wish.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
