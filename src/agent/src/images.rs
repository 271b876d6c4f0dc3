//! Images for containers: is it there, does the policy want it pulled, and pulling each image once
//! however many pods wait for it. Nothing here decides when to try again (the planner does), and
//! collecting images is in `image_gc`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use longshore_core::image::keyring::{Credential, joined};
use longshore_core::image::provider::PodAccount;
use longshore_core::image::pull_secrets::PullSecrets;
use longshore_core::image::rate::PullRate;
use longshore_core::pod::step::{ImagePresent, PullPolicy, StepError};
use longshore_cri::{CriError, ErrorKind, ImagePull, Images, PullFailure, RegistryAuth};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::registry::NodeCredentials;

type PullResult = Result<ImagePresent, StepError>;
type Pull = Shared<BoxFuture<'static, PullResult>>;
type WeakPull = WeakShared<BoxFuture<'static, PullResult>>;
type Found = Result<Option<ImagePresent>, StepError>;
type WeakLook = WeakShared<BoxFuture<'static, Found>>;

/// Pulls of one image are one only where the same credentials would open the registry: a pod with none must not
/// be served by another's. Where a plugin asks for it, the ServiceAccount is one, by namespace and name.
type PullKey = (String, Vec<Credential>, Option<(String, String)>);

/// Looks up and pulls images.
pub struct ImagePuller {
    images: Arc<dyn Images>,
    /// `None` where the number of pulls at once is not bounded.
    slots: Option<Arc<Semaphore>>,
    /// Pulls under way. Weak: when the last pod that waits gives up, the pull is cancelled.
    under_way: Mutex<HashMap<PullKey, WeakPull>>,
    /// Look-ups under way: a hundred pods of one image that begin together ask once.
    looking: Mutex<HashMap<String, WeakLook>>,
    /// `None` where pulls may begin as often as they like.
    rate: Arc<Mutex<Option<PullRate>>>,
    began: Instant,
    /// What the node itself has for registries.
    node: Arc<NodeCredentials>,
}

impl std::fmt::Debug for ImagePuller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImagePuller").field("slots", &self.slots).finish_non_exhaustive()
    }
}

impl ImagePuller {
    /// `at_once` pulls at a time; 1 is the kubelet's default, `None` is no bound.
    pub fn new(images: Arc<dyn Images>, at_once: Option<usize>) -> Self {
        let slots = at_once.map(|slots| Arc::new(Semaphore::new(slots.max(1))));
        Self {
            images,
            slots,
            under_way: Mutex::default(),
            looking: Mutex::default(),
            rate: Arc::default(),
            began: Instant::now(),
            node: Arc::default(),
        }
    }

    /// The same with credentials of the node, tried after those of pods.
    #[must_use]
    pub fn with_credentials(self, node: NodeCredentials) -> Self {
        Self { node: Arc::new(node), ..self }
    }

    /// The same with a bound of pulls per second. Whoever holds the clone of `rate` may change it.
    #[must_use]
    pub fn with_rate(self, rate: Arc<Mutex<Option<PullRate>>>) -> Self {
        Self { rate, ..self }
    }

    fn may_begin(&self) -> bool {
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        rate.as_mut().is_none_or(|rate| rate.take(self.began.elapsed()))
    }

    /// Makes the image present under the policy, with the pod's credentials tried in turn and the node's after
    /// them. `pulls` is called where that takes a pull. Answers with how long others' pulls were waited for.
    ///
    /// # Errors
    /// With the reason the API has for it: `ErrImageNeverPull`, `ErrImagePull`, `InvalidImageName`, ...
    pub async fn ensure(
        &self,
        image: &str,
        policy: PullPolicy,
        secrets: &PullSecrets,
        pulls: impl FnOnce() + Send,
    ) -> (PullResult, Duration) {
        if policy != PullPolicy::Always {
            match self.look_up(image).await {
                Ok(Some(present)) => return (Ok(present), Duration::ZERO),
                Ok(None) if policy == PullPolicy::Never => return (Err(never(image)), Duration::ZERO),
                Ok(None) => {}
                Err(error) => return (Err(error), Duration::ZERO),
            }
        }
        pulls();
        let begin = Instant::now();
        let waited = Arc::new(Mutex::new(Duration::ZERO));
        let account = secrets.account.as_ref().filter(|_| self.node.asks_for_account(image));
        let speaks = account.map(|account| (account.pod.namespace.to_string(), account.name.clone()));
        let key = (image.to_owned(), secrets.credentials.clone(), speaks);
        let result = self.pull(key, account, begin, waited.clone()).await;
        let waited = *waited.lock().unwrap_or_else(PoisonError::into_inner);
        (result, waited)
    }

    /// Joins the look-up of this image that is under way, or begins one.
    async fn look_up(&self, image: &str) -> Found {
        let look = {
            let mut looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
            // One that has its answer is of the past.
            looking.retain(|_, look| look.upgrade().is_some_and(|look| look.peek().is_none()));
            match looking.get(image).and_then(WeakShared::upgrade) {
                Some(look) => look,
                None => {
                    let (images, name) = (self.images.clone(), image.to_owned());
                    let look = async move {
                        let found = images.image_status(&name).await;
                        found.map_err(|error| step_error("ImageInspectError", &error))
                    };
                    let look = look.boxed().shared();
                    if let Some(weak) = look.downgrade() {
                        looking.insert(image.to_owned(), weak);
                    }
                    look
                }
            }
        };
        look.await
    }

    /// Joins the pull of this image that is under way, or begins one.
    async fn pull(
        &self,
        key: PullKey,
        account: Option<&PodAccount>,
        begin: Instant,
        waited: Arc<Mutex<Duration>>,
    ) -> PullResult {
        let pull = {
            let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            under_way.retain(|_, pull| pull.upgrade().is_some());
            match under_way.get(&key).and_then(WeakShared::upgrade) {
                Some(pull) => pull,
                None if !self.may_begin() => return Err(too_often(&key.0)),
                None => {
                    let pull = self.begin(key.clone(), account.cloned(), begin, waited);
                    if let Some(weak) = pull.downgrade() {
                        under_way.insert(key.clone(), weak);
                    }
                    pull
                }
            }
        };
        let result = pull.await;
        // A finished pull answers those who came while it ran and nobody after: policy Always means
        // the registry is asked again.
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if under_way.get(&key).and_then(WeakShared::upgrade).is_none_or(|pull| pull.peek().is_some()) {
            under_way.remove(&key);
        }
        result
    }

    fn begin(
        &self,
        key: PullKey,
        account: Option<PodAccount>,
        begin: Instant,
        waited: Arc<Mutex<Duration>>,
    ) -> Pull {
        let (images, slots, node) = (self.images.clone(), self.slots.clone(), self.node.clone());
        let (image, of_pod, _) = key;
        let work = async move {
            let _slot = match &slots {
                // The semaphore is never closed.
                Some(slots) => slots.acquire().await.ok(),
                None => None,
            };
            *waited.lock().unwrap_or_else(PoisonError::into_inner) = begin.elapsed();
            let of_node = node.for_image(&image, account.as_ref()).await;
            let credentials = joined([of_pod, of_node.credentials.clone()]);
            tracing::info!(image, credentials = credentials.len(), "pulling");
            let pulled = pull_in_turn(&*images, &image, &credentials).await;
            let image_ref = pulled.map_err(|error| of_node.explain(pull_error(&error)))?;
            let found = images.image_status(&image_ref).await;
            let found = found.map_err(|error| step_error("ImageInspectError", &error))?;
            found.ok_or_else(|| StepError {
                reason: "ErrImagePull".into(),
                message: format!("image {image} was pulled as {image_ref} and is gone again; is something else collecting images?"),
                retryable: true,
            })
        };
        work.boxed().shared()
    }
}

/// Tries one credential after the other, or none where there are none; gives the first that opens the registry.
async fn pull_in_turn(
    images: &dyn Images,
    image: &str,
    credentials: &[Credential],
) -> Result<String, CriError> {
    let Some((last, others)) = credentials.split_last() else {
        return images.pull_image(ImagePull { image, auth: None, sandbox: None }).await;
    };
    for credential in others {
        match pull_with(images, image, credential).await {
            Err(error) if may_open_with_another(&error) => {
                tracing::info!(image, error = error.one_line(), "trying the next credential");
            }
            ended => return ended,
        }
    }
    pull_with(images, image, last).await
}

async fn pull_with(images: &dyn Images, image: &str, credential: &Credential) -> Result<String, CriError> {
    let auth = RegistryAuth {
        username: credential.username.clone(),
        password: credential.password.clone(),
        ..RegistryAuth::default()
    };
    images.pull_image(ImagePull { image, auth: Some(&auth), sandbox: None }).await
}

/// Registries hide what a client may not see, and some limit each client for itself; a wrong name or a full disk
/// stays what it is.
fn may_open_with_another(error: &CriError) -> bool {
    match error.kind {
        ErrorKind::ImagePull(failure) => matches!(
            failure,
            PullFailure::Refused
                | PullFailure::NotFound
                | PullFailure::RegistryUnavailable
                | PullFailure::Other
        ),
        _ => false,
    }
}

fn never(image: &str) -> StepError {
    StepError {
        reason: "ErrImageNeverPull".into(),
        message: format!(
            "image {image} is not on the node and its pull policy is Never: import it, or change the policy"
        ),
        retryable: true,
    }
}

fn too_often(image: &str) -> StepError {
    StepError {
        reason: "ErrImagePull".into(),
        message: format!(
            "image {image} is not pulled now: pulls come faster than registryPullQPS and registryBurst allow"
        ),
        retryable: true,
    }
}

fn pull_error(error: &CriError) -> StepError {
    let reason = match error.kind {
        ErrorKind::ImagePull(PullFailure::InvalidName) => "InvalidImageName",
        ErrorKind::ImagePull(PullFailure::RegistryUnavailable) => "RegistryUnavailable",
        ErrorKind::ImagePull(PullFailure::SignatureInvalid) => "SignatureValidationFailed",
        _ => "ErrImagePull",
    };
    step_error(reason, error)
}

fn step_error(reason: &str, error: &CriError) -> StepError {
    StepError { reason: reason.into(), message: error.one_line(), retryable: error.is_retryable() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_cri::Operation;
    use longshore_cri::fake::{FakeRuntime, PullScript};

    fn credential(user: &str, password: &str) -> Credential {
        Credential { username: user.to_owned(), password: password.to_owned() }
    }

    fn secrets(credentials: &[Credential]) -> PullSecrets {
        PullSecrets { credentials: credentials.to_vec(), ..PullSecrets::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_are_tried_in_turn_and_only_where_another_may_help() {
        let fake = FakeRuntime::default();
        fake.script_pull("r.io/private:1", PullScript::wants("b", "2"));
        let wrong = PullScript { wants: None, ..PullScript::unreachable(1) };
        fake.script_pull("r.io/away:1", wrong);
        let puller = ImagePuller::new(fake.runtime().images, None);
        let of_pod = [credential("a", "1"), credential("b", "2"), credential("c", "3")];
        for (image, credentials, opens, pulls) in [
            ("r.io/private:1", &of_pod[..], true, 2),
            ("r.io/private:1", &of_pod[..1], false, 1),
            ("r.io/private:1", &[], false, 1),
            ("r.io/away:1", &of_pod[..], true, 2),
        ] {
            let before = fake.calls(Operation::PullImage);
            let mut told = 0;
            let (result, _) =
                puller.ensure(image, PullPolicy::Always, &secrets(credentials), || told += 1).await;
            assert_eq!(told, 1, "{image}");
            assert_eq!(result.is_ok(), opens, "{image}: {result:?}");
            assert_eq!(fake.calls(Operation::PullImage) - before, pulls, "{image}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_without_credentials_is_not_served_by_anothers_pull() {
        let fake = FakeRuntime::default();
        let script = PullScript { takes: Duration::from_secs(5), ..PullScript::wants("b", "2") };
        fake.script_pull("r.io/private:1", script);
        let puller = ImagePuller::new(fake.runtime().images, None);
        let (with, without) = (secrets(&[credential("b", "2")]), PullSecrets::default());
        let ((opened, _), (same, _), (refused, _)) = tokio::join!(
            puller.ensure("r.io/private:1", PullPolicy::Always, &with, || ()),
            puller.ensure("r.io/private:1", PullPolicy::Always, &with, || ()),
            puller.ensure("r.io/private:1", PullPolicy::Always, &without, || ()),
        );
        assert!(opened.is_ok() && same.is_ok(), "{opened:?} {same:?}");
        assert_eq!(refused.unwrap_err().reason, "ErrImagePull");
        assert_eq!(fake.calls(Operation::PullImage), 2, "equal ones share a pull");
    }
}
