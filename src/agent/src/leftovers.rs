//! What an agent that was killed left on the node: looked for once at start, after every source was
//! heard, and handed to workers that remove it step by step. What counts as left over is decided in
//! `longshore_core::pod::leftover`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use longshore_core::pod::leftover::{Leftover, leftovers};

use crate::journal::Journal;
use crate::pods::Pods;
use crate::text::error_chain;
use crate::volumes::{VolumeError, Volumes};

/// Between tries to read a disk that does not let itself be read.
const PAUSE: Duration = Duration::from_secs(10);

/// Where remains are looked for, and who removes them.
#[derive(Clone, Debug)]
pub struct Leftovers {
    pub pods: Pods,
    pub journal: Arc<Journal>,
    pub volumes: Volumes,
}

impl Leftovers {
    /// Hands over everything there is. Ends once the disk could be read.
    pub async fn clean_up(self) {
        loop {
            match self.find().await {
                Ok(found) => {
                    found.into_iter().for_each(|(left, volumes)| self.pods.clean_up(&left, volumes));
                    return;
                }
                Err(error) => {
                    tracing::error!(error = error_chain(&error), "looking for what an earlier agent left");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn find(&self) -> Result<Vec<(Leftover, BTreeSet<String>)>, VolumeError> {
        let (noted, known, volumes) = (self.journal.leftovers(), self.pods.known(), self.volumes.clone());
        let look = move || {
            let mut found = Vec::new();
            for left in leftovers(&noted, &volumes.pods_on_disk()?, &known) {
                let of_pod = volumes.volumes_on_disk(&left.uid)?;
                found.push((left, of_pod));
            }
            Ok(found)
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(found) => found,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}
