//! Images for containers: is it there, does the policy want it pulled, and pulling each image once
//! however many pods wait for it. Nothing here decides when to try again (the planner does), and
//! collecting images is in `image_gc`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use longshore_core::image::rate::PullRate;
use longshore_core::pod::step::{ImagePresent, PullPolicy, StepError};
use longshore_cri::{CriError, ErrorKind, ImagePull, Images, PullFailure};
use tokio::sync::Semaphore;
use tokio::time::Instant;

type PullResult = Result<ImagePresent, StepError>;
type Pull = Shared<BoxFuture<'static, PullResult>>;
type WeakPull = WeakShared<BoxFuture<'static, PullResult>>;
type Found = Result<Option<ImagePresent>, StepError>;
type WeakLook = WeakShared<BoxFuture<'static, Found>>;

/// Looks up and pulls images.
pub struct ImagePuller {
    images: Arc<dyn Images>,
    /// `None` where the number of pulls at once is not bounded.
    slots: Option<Arc<Semaphore>>,
    /// Pulls under way. Weak: when the last pod that waits gives up, the pull is cancelled.
    under_way: Mutex<HashMap<String, WeakPull>>,
    /// Look-ups under way: a hundred pods of one image that begin together ask once.
    looking: Mutex<HashMap<String, WeakLook>>,
    /// `None` where pulls may begin as often as they like.
    rate: Arc<Mutex<Option<PullRate>>>,
    began: Instant,
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
        }
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

    /// Makes the image present under the policy. Answers with how long others' pulls were waited for.
    ///
    /// # Errors
    /// With the reason the API has for it: `ErrImageNeverPull`, `ErrImagePull`, `InvalidImageName`, ...
    pub async fn ensure(&self, image: &str, policy: PullPolicy) -> (PullResult, Duration) {
        if policy != PullPolicy::Always {
            match self.look_up(image).await {
                Ok(Some(present)) => return (Ok(present), Duration::ZERO),
                Ok(None) if policy == PullPolicy::Never => return (Err(never(image)), Duration::ZERO),
                Ok(None) => {}
                Err(error) => return (Err(error), Duration::ZERO),
            }
        }
        let begin = Instant::now();
        let waited = Arc::new(Mutex::new(Duration::ZERO));
        let result = self.pull(image, begin, waited.clone()).await;
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
    async fn pull(&self, image: &str, begin: Instant, waited: Arc<Mutex<Duration>>) -> PullResult {
        let pull = {
            let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            under_way.retain(|_, pull| pull.upgrade().is_some());
            match under_way.get(image).and_then(WeakShared::upgrade) {
                Some(pull) => pull,
                None if !self.may_begin() => return Err(too_often(image)),
                None => {
                    let pull = self.begin(image.to_owned(), begin, waited);
                    if let Some(weak) = pull.downgrade() {
                        under_way.insert(image.to_owned(), weak);
                    }
                    pull
                }
            }
        };
        let result = pull.await;
        // A finished pull answers those who came while it ran and nobody after: policy Always means
        // the registry is asked again.
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if under_way.get(image).and_then(WeakShared::upgrade).is_none_or(|pull| pull.peek().is_some()) {
            under_way.remove(image);
        }
        result
    }

    fn begin(&self, image: String, begin: Instant, waited: Arc<Mutex<Duration>>) -> Pull {
        let (images, slots) = (self.images.clone(), self.slots.clone());
        let work = async move {
            let _slot = match &slots {
                // The semaphore is never closed.
                Some(slots) => slots.acquire().await.ok(),
                None => None,
            };
            *waited.lock().unwrap_or_else(PoisonError::into_inner) = begin.elapsed();
            tracing::info!(image, "pulling");
            let pull = ImagePull { image: &image, auth: None, sandbox: None };
            let image_ref = images.pull_image(pull).await.map_err(|error| pull_error(&error))?;
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
