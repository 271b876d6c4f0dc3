//! Collects images nobody uses: looks at the runtime's images, at who uses them and at their disk, and
//! removes what `longshore_core::image::gc` says. A dry run is the same look without the last step.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use longshore_core::image::gc::{self, GcPolicy, ImageDisk, ImageLedger, ListedImage, Verdict};
use longshore_core::pod::lifecycle::Lifecycle;
use longshore_core::wire::{ImagesView, PodView};
use longshore_cri::{CriError, Images};
use longshore_kernel::disk;
use tokio::sync::watch;

use crate::admin::ImageReads;
use crate::pods::{Clock, PodsView};
use crate::text::error_chain;

/// Between two looks at who uses what; the kubelet looks twice as often.
const LOOK_PERIOD: Duration = Duration::from_secs(60);
/// Looks per collection: every five minutes (kubelet-surface B11).
const LOOKS_PER_COLLECTION: u32 = 5;
/// A disk that hangs is not waited for longer.
const DISK_DEADLINE: Duration = Duration::from_secs(10);

/// Tells how full the file system of a path is. The calls block.
pub trait DiskSpace: Send + Sync + std::fmt::Debug {
    /// # Errors
    /// In words, where the path or its file system cannot be asked.
    fn space(&self, path: &Path) -> Result<ImageDisk, String>;
}

/// The kernel's answer (statvfs(3)).
#[derive(Clone, Copy, Debug)]
pub struct RealDisk;

impl DiskSpace for RealDisk {
    fn space(&self, path: &Path) -> Result<ImageDisk, String> {
        let found = disk::usage(path).map_err(|error| error_chain(&error))?;
        Ok(ImageDisk { total_bytes: found.total, available_bytes: found.available })
    }
}

/// Keeps the images of one runtime.
pub struct ImageCollector {
    pub images: Arc<dyn Images>,
    pub pods: PodsView,
    pub policy: watch::Receiver<GcPolicy>,
    pub disk: Arc<dyn DiskSpace>,
    pub clock: Clock,
    ledger: Mutex<ImageLedger>,
}

impl std::fmt::Debug for ImageCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageCollector").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl ImageCollector {
    pub fn new(
        images: Arc<dyn Images>,
        pods: PodsView,
        policy: watch::Receiver<GcPolicy>,
        disk: Arc<dyn DiskSpace>,
        clock: Clock,
    ) -> Self {
        Self { images, pods, policy, disk, clock, ledger: Mutex::default() }
    }

    /// Looks and collects, for as long as it is polled.
    pub async fn keep(&self) {
        for turn in 1_u32.. {
            tokio::time::sleep(LOOK_PERIOD).await;
            let result = match turn.is_multiple_of(LOOKS_PER_COLLECTION) {
                true => self.collect().await.map(drop),
                false => self.look().await.map(drop),
            };
            if let Err(error) = result {
                tracing::warn!(error = error.one_line(), "images cannot be looked at");
            }
        }
    }

    /// What there is and what a collection would do.
    ///
    /// # Errors
    /// Where the runtime does not list its images.
    pub async fn look(&self) -> Result<ImagesView, CriError> {
        let listing = self.images.list_images().await?;
        for rejected in &listing.rejected {
            tracing::warn!(problem = %rejected, "an image cannot be read; it is left alone");
        }
        let images: Vec<ListedImage> = listing
            .items
            .into_iter()
            .map(|image| ListedImage {
                id: image.id,
                names: [image.tags, image.digests].concat(),
                size_bytes: image.size_bytes,
                pinned: image.pinned,
            })
            .collect();
        let (disk, problem) = match self.space().await {
            Ok(disk) => (Some(disk), None),
            Err(problem) => (None, Some(problem)),
        };
        let users = users(&images, &self.pods.list());
        let (now, policy) = (self.clock.now(), *self.policy.borrow());
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.observe(&images, &users, now);
        let plan = gc::plan(&images, &users, &ledger, disk, (&policy, now));
        Ok(ImagesView { policy, disk, problem, plan })
    }

    /// Removes what the plan says; one that cannot be removed holds up no other. How many went.
    ///
    /// # Errors
    /// Where the runtime does not list its images.
    pub async fn collect(&self) -> Result<usize, CriError> {
        let view = self.look().await?;
        if let Some(problem) = &view.problem {
            tracing::warn!(problem, "the disk of the images cannot be measured; only their age counts");
        }
        let mut removed = 0;
        for judged in &view.plan.images {
            let Verdict::Remove(why) = judged.verdict else { continue };
            let name = judged.image.names.first().unwrap_or(&judged.image.id);
            match self.images.remove_image(&judged.image.id).await {
                Ok(()) => {
                    removed += 1;
                    tracing::info!(image = name, bytes = judged.image.size_bytes, ?why, "image removed");
                }
                Err(error) => tracing::warn!(image = name, error = error.one_line(), "image not removed"),
            }
        }
        let (wanted, freed) = (view.plan.wanted_bytes, view.plan.freed_bytes);
        if freed < wanted {
            tracing::warn!(
                wanted,
                freed,
                "the disk is too full and no other image may go; longshore images tells why"
            );
        }
        Ok(removed)
    }

    /// The file system images are on.
    async fn space(&self) -> Result<ImageDisk, String> {
        let info = self.images.image_fs_info().await.map_err(|error| error.one_line())?;
        let path = info.images.first().map(|usage| usage.path.clone()).filter(|path| !path.is_empty());
        let path = path.ok_or("the runtime does not say where its images are")?;
        let disk = self.disk.clone();
        let asked = tokio::task::spawn_blocking(move || disk.space(Path::new(&path)));
        match tokio::time::timeout(DISK_DEADLINE, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
            Err(_) => Err("the disk of the images gives no answer".to_owned()),
        }
    }
}

#[async_trait]
impl ImageReads for ImageCollector {
    async fn images(&self) -> Result<ImagesView, String> {
        self.look().await.map_err(|error| error.one_line())
    }
}

/// Pods by the images they use: what their containers were made from, ended ones too, and what those
/// that are still to run ask for.
fn users(images: &[ListedImage], pods: &[Arc<PodView>]) -> BTreeMap<String, BTreeSet<String>> {
    let mut users: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for pod in pods {
        let made = pod.observed.containers.iter().map(|container| container.image_ref.as_str());
        let to_run = matches!(pod.lifecycle, Lifecycle::Queued { .. } | Lifecycle::Syncing);
        let spec = pod.pod.spec.as_ref().filter(|_| to_run);
        let asked = spec.into_iter().flat_map(|spec| {
            let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
            containers.filter_map(|container| container.image.as_deref())
        });
        for reference in made.chain(asked).filter(|reference| !reference.is_empty()) {
            for image in images.iter().filter(|image| image.answers_to(reference)) {
                users.entry(image.id.clone()).or_default().insert(pod.key.to_string());
            }
        }
    }
    users
}
