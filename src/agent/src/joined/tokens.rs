//! ServiceAccount tokens of the pods' volumes: asked for when a pod comes, renewed before they end, kept
//! while the API server is away (behaviours 47). When to renew is decided in core.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use longshore_cluster::backoff::{Backoff, between};
use longshore_cluster::{ApiClient, token};
use longshore_core::ids::{PodKey, PodUid};
use longshore_core::pod::token::{TokenSpec, renew_at, service_account, wanted};
use tokio::task::JoinHandle;

use crate::sources::ObjectStore;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const JITTER: Duration = Duration::from_secs(10);

/// Keeps tokens. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Tokens {
    client: ApiClient,
    store: ObjectStore,
    kept: Arc<Mutex<HashMap<PodUid, Kept>>>,
}

#[derive(Debug, Default)]
struct Kept(Vec<JoinHandle<()>>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Whose token, and for what.
#[derive(Clone)]
struct Wish {
    pod: PodKey,
    uid: PodUid,
    account: String,
    spec: TokenSpec,
}

impl Tokens {
    pub fn new(client: ApiClient, store: ObjectStore) -> Self {
        Self { client, store, kept: Arc::default() }
    }

    /// Keeps the tokens of a pod. Volumes of a pod never change.
    pub fn want(&self, key: &PodKey, uid: &PodUid, pod: &Pod) {
        let specs = wanted(pod);
        let mut kept = self.lock();
        if specs.is_empty() || kept.contains_key(uid) {
            return;
        }
        let account = service_account(pod);
        let tasks = specs.into_iter().map(|spec| {
            let wish = Wish { pod: key.clone(), uid: uid.clone(), account: account.to_owned(), spec };
            tokio::spawn(keep(self.client.clone(), self.store.clone(), wish))
        });
        kept.insert(uid.clone(), Kept(tasks.collect()));
    }

    /// The pod is gone.
    pub fn release(&self, uid: &PodUid) {
        self.lock().remove(uid);
        self.store.forget_tokens(uid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PodUid, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn keep(client: ApiClient, store: ObjectStore, wish: Wish) {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        let asked = Timestamp::now();
        let issued = token::request(&client, &wish.pod, &wish.uid, &wish.account, &wish.spec).await;
        let pause = match issued {
            Ok(issued) => {
                backoff.reset();
                store.set_token(&wish.uid, wish.spec.clone(), issued.token.into());
                let at = renew_at(asked, issued.expires_at, between(Duration::ZERO, JITTER));
                Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default().max(FIRST_PAUSE)
            }
            Err(error) => {
                let pause = backoff.pause();
                if backoff.tries() == 3 {
                    tracing::warn!(pod = %wish.pod, account = wish.account, "token: {}", error.one_line());
                }
                error.retry_after().unwrap_or_default().max(pause)
            }
        };
        tokio::time::sleep(pause).await;
    }
}
