//! Images: the trait the agent works with and its CRI implementation.

use std::fmt;

use async_trait::async_trait;
use jiff::Timestamp;
use longshore_core::pod::spec::SandboxSpec;
use longshore_core::pod::step::ImagePresent;

use crate::api::v1;
use crate::client::CriClient;
use crate::convert::{self, Listing};
use crate::counters::Operation;
use crate::error::CriError;

/// The runtime's image store.
#[async_trait]
pub trait Images: Send + Sync {
    /// `None` where the image is not on the node.
    async fn image_status(&self, image: &str) -> Result<Option<ImagePresent>, CriError>;
    /// Pulls and gives what to create containers from. No deadline: dropping the future cancels it.
    async fn pull_image(&self, pull: ImagePull<'_>) -> Result<String, CriError>;
    async fn list_images(&self) -> Result<Listing<StoredImage>, CriError>;
    /// An image that is gone counts as removed.
    async fn remove_image(&self, image: &str) -> Result<(), CriError>;
    async fn image_fs_info(&self) -> Result<ImageFsInfo, CriError>;
}

/// One pull.
#[derive(Clone, Copy, Debug)]
pub struct ImagePull<'a> {
    /// As the pod's author wrote it.
    pub image: &'a str,
    pub auth: Option<&'a RegistryAuth>,
    /// The pod it is for; runtimes that pull inside a virtual machine need it.
    pub sandbox: Option<&'a SandboxSpec>,
}

/// Credentials for one registry. `Debug` never prints the secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RegistryAuth {
    pub username: String,
    pub password: String,
    /// Base64 of `user:password`, as in a Docker config file.
    pub auth: String,
    pub server_address: String,
    pub identity_token: String,
    pub registry_token: String,
}

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegistryAuth({:?} at {:?})", self.username, self.server_address)
    }
}

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// Digest of its config.
    pub id: String,
    /// Names with a tag.
    pub tags: Vec<String>,
    /// Names with a digest.
    pub digests: Vec<String>,
    pub size_bytes: u64,
    /// Must not be collected.
    pub pinned: bool,
}

/// Use of the file systems images and containers live on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageFsInfo {
    pub images: Vec<FsUsage>,
    /// Writable layers; empty or the same file system in most set-ups.
    pub containers: Vec<FsUsage>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsUsage {
    /// A path on the file system, not always its mount point.
    pub path: String,
    /// `None` where the runtime does not tell.
    pub at: Option<Timestamp>,
    pub used_bytes: Option<u64>,
    pub used_inodes: Option<u64>,
}

fn image_spec(image: &str) -> v1::ImageSpec {
    v1::ImageSpec { image: image.to_owned(), user_specified_image: image.to_owned(), ..Default::default() }
}

#[async_trait]
impl Images for CriClient {
    async fn image_status(&self, image: &str) -> Result<Option<ImagePresent>, CriError> {
        let call = self.call(Operation::ImageStatus, image);
        let request = v1::ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
        let answer =
            self.run_image(&call, request, |mut c, r| async move { c.image_status(r).await }).await?;
        let present = answer.image.as_ref().map(|found| convert::image_present(image, found));
        present.transpose().map_err(|error| call.bad_answer(error))
    }

    async fn pull_image(&self, pull: ImagePull<'_>) -> Result<String, CriError> {
        let call = self.call(Operation::PullImage, pull.image).deadline(None);
        let request = v1::PullImageRequest {
            image: Some(image_spec(pull.image)),
            auth: pull.auth.map(convert::auth_config),
            sandbox_config: pull.sandbox.map(convert::sandbox_config),
        };
        let answer = self.run_image(&call, request, |mut c, r| async move { c.pull_image(r).await }).await?;
        call.present("image_ref", Some(answer.image_ref).filter(|text| !text.is_empty()))
    }

    async fn list_images(&self) -> Result<Listing<StoredImage>, CriError> {
        let call = self.call_itself(Operation::ListImages);
        let request = v1::ListImagesRequest::default();
        let answer = self.run_image(&call, request, |mut c, r| async move { c.list_images(r).await }).await?;
        Ok(Listing::collect(answer.images.iter().map(convert::stored_image)))
    }

    async fn remove_image(&self, image: &str) -> Result<(), CriError> {
        let call = self.call(Operation::RemoveImage, image);
        let request = v1::RemoveImageRequest { image: Some(image_spec(image)) };
        crate::client::gone_is_done(
            self.run_image(&call, request, |mut c, r| async move { c.remove_image(r).await }).await,
        )
    }

    async fn image_fs_info(&self) -> Result<ImageFsInfo, CriError> {
        let call = self.call_itself(Operation::ImageFsInfo);
        let request = v1::ImageFsInfoRequest::default();
        let answer =
            self.run_image(&call, request, |mut c, r| async move { c.image_fs_info(r).await }).await?;
        Ok(convert::image_fs_info(&answer))
    }
}
