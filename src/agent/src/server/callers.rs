//! Who calls and what they may do: client certificates, tokens the API server knows, and its word about
//! rights, each kept for the configured time. An answer that could not be had lets nobody in.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderMap, header};
use longshore_cluster::{ApiClient, ApiError, review};
use longshore_core::kubelet_api::access::User;
use longshore_core::kubelet_api::cache::TtlCache;
use longshore_core::kubelet_api::route::{Needed, Verb};
use rustls::pki_types::UnixTime;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::listener::Peer;
use super::seldom::Seldom;
use super::tls::ClientAuthority;
use crate::config::{CallerRules, RightsRules};

/// Verdicts kept of each kind.
const KEPT: usize = 4096;
/// Questions to the API server at the same time; strangers with made-up tokens must not fill it.
const ASKED_AT_ONCE: usize = 16;
/// A question has to be answered within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Longer tokens are refused unasked, bytes.
const MAX_TOKEN: usize = 16 << 10;

/// What the API server is asked.
#[async_trait]
pub trait Reviews: Send + Sync {
    /// Whose token it is.
    async fn token(&self, token: &str) -> Result<Option<User>, ApiError>;
    /// Whether the user may do that on the node's object.
    async fn access(
        &self,
        user: &User,
        node: &str,
        verb: Verb,
        subresource: &'static str,
    ) -> Result<bool, ApiError>;
}

#[async_trait]
impl Reviews for ApiClient {
    async fn token(&self, token: &str) -> Result<Option<User>, ApiError> {
        review::token(self, token).await
    }

    async fn access(
        &self,
        user: &User,
        node: &str,
        verb: Verb,
        subresource: &'static str,
    ) -> Result<bool, ApiError> {
        review::node_access(self, user, node, verb.name(), subresource).await
    }
}

/// SHA-256 of a token: the tokens themselves are not kept.
type Digest = [u8; 32];
/// What was asked of whom.
type Question = (User, Verb, &'static str);

/// Judges callers.
pub(super) struct Callers {
    rules: CallerRules,
    rights: RightsRules,
    node: String,
    authority: Arc<ClientAuthority>,
    /// `None` where there is no API server to ask.
    reviews: Option<Arc<dyn Reviews>>,
    tokens: Mutex<TtlCache<Digest, Option<User>>>,
    verdicts: Mutex<TtlCache<Question, bool>>,
    asking: Semaphore,
    /// Lines about what the API server did not answer.
    unanswered: Seldom,
    /// From here time is counted.
    origin: Instant,
}

/// The API server could not be asked.
#[derive(Debug)]
pub(super) struct NoAnswer(pub(super) String);

impl Callers {
    pub(super) fn new(
        rules: CallerRules,
        rights: RightsRules,
        node: String,
        authority: Arc<ClientAuthority>,
        reviews: Option<Arc<dyn Reviews>>,
    ) -> Self {
        Self {
            rules,
            rights,
            node,
            authority,
            reviews,
            tokens: Mutex::new(TtlCache::new(KEPT)),
            verdicts: Mutex::new(TtlCache::new(KEPT)),
            asking: Semaphore::new(ASKED_AT_ONCE),
            unanswered: Seldom::default(),
            origin: Instant::now(),
        }
    }

    /// The caller; `None` where it is nobody: it showed nothing, or nothing that counts.
    pub(super) async fn who(&self, peer: &Peer, headers: &HeaderMap) -> Option<User> {
        let mut refused = false;
        if !peer.chain.is_empty() && self.rules.client_ca.is_some() {
            match self.authority.user(&peer.chain, UnixTime::now()) {
                Ok(user) => return Some(user.authenticated()),
                Err(why) => {
                    tracing::debug!(why, peer = %peer.addr, "a client certificate does not count");
                    refused = true;
                }
            }
        }
        if let Some(token) = bearer(headers) {
            match self.owner(peer, token).await {
                Some(user) => return Some(user.authenticated()),
                None => refused = true,
            }
        }
        // Who showed something that does not count is not let in as nobody.
        (self.rules.anonymous && !refused).then(User::anonymous)
    }

    async fn owner(&self, peer: &Peer, token: &str) -> Option<User> {
        let ttl = self.rules.token_ttl?;
        let reviews = self.reviews.as_ref()?;
        if token.is_empty() || token.len() > MAX_TOKEN {
            return None;
        }
        let digest = sha256(token);
        if let Some(known) = lock(&self.tokens).get(&digest, self.now()) {
            return known;
        }
        match self.ask(reviews.token(token)).await {
            Ok(user) => {
                lock(&self.tokens).put(digest, user.clone(), self.now(), ttl);
                user
            }
            Err(NoAnswer(why)) => {
                if let Some(more) = self.unanswered.line() {
                    tracing::warn!(
                        "the API server does not say whose token {} shows, who is refused with 401: {why}{more}",
                        peer.addr
                    );
                }
                None
            }
        }
    }

    /// Whether the user may do what the request needs.
    ///
    /// # Errors
    /// Where the API server did not say, which is told in the log too.
    pub(super) async fn may(&self, peer: &Peer, user: &User, needed: &Needed) -> Result<bool, NoAnswer> {
        let answer = self.judged(user, needed).await;
        if let Err(NoAnswer(why)) = &answer
            && let Some(more) = self.unanswered.line()
        {
            tracing::warn!(
                "the API server does not say whether {} may {} {} of this node, whose request from {} is \
                 answered with 500: {why}{more}",
                user.name,
                needed.verb.name(),
                needed.subresources.join(" or "),
                peer.addr
            );
        }
        answer
    }

    async fn judged(&self, user: &User, needed: &Needed) -> Result<bool, NoAnswer> {
        let RightsRules::Webhook { allowed_ttl, denied_ttl } = self.rights else { return Ok(true) };
        let Some(reviews) = &self.reviews else {
            return Err(NoAnswer("there is no API server to ask".to_owned()));
        };
        for subresource in needed.subresources.iter().copied() {
            let question = (user.clone(), needed.verb, subresource);
            let known = lock(&self.verdicts).get(&question, self.now());
            let allowed = match known {
                Some(allowed) => allowed,
                None => {
                    let asked = reviews.access(user, &self.node, needed.verb, subresource);
                    let allowed = self.ask(asked).await?;
                    let ttl = if allowed { allowed_ttl } else { denied_ttl };
                    lock(&self.verdicts).put(question, allowed, self.now(), ttl);
                    allowed
                }
            };
            if allowed {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn ask<T>(&self, question: impl Future<Output = Result<T, ApiError>>) -> Result<T, NoAnswer> {
        let asked = async {
            // The semaphore is never closed.
            let _place = self.asking.acquire().await;
            question.await
        };
        match tokio::time::timeout(ANSWER_WITHIN, asked).await {
            Ok(answer) => answer.map_err(|error| NoAnswer(error.one_line())),
            Err(_) => Err(NoAnswer(format!("no answer within {} s", ANSWER_WITHIN.as_secs()))),
        }
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }
}

/// The token of `Authorization: Bearer TOKEN`; of two such headers neither counts, which is told as a token
/// that is nobody's.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let value = all.next()?;
    if all.next().is_some() {
        return Some("");
    }
    let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn sha256(token: &str) -> Digest {
    use sha2::Digest as _;
    sha2::Sha256::digest(token.as_bytes()).into()
}

fn lock<T>(cache: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every writer replaces whole values: a panic leaves nothing half done.
    cache.lock().unwrap_or_else(PoisonError::into_inner)
}
