//! From the workers' published views to the API server's statuses: every change is told, and a pod that
//! left nothing behind takes its object with it.

use std::collections::HashMap;
use std::sync::Arc;

use longshore_cluster::pod_status::PodStatuses;
use longshore_core::ids::PodUid;
use longshore_core::pod::desired::PodSource;
use longshore_core::wire::PodView;

use super::mirrors::Mirrors;
use super::recorder::EventRecorder;
use crate::pods::PodsView;

/// Who is told.
#[derive(Debug)]
pub(super) struct Telling {
    pub statuses: PodStatuses,
    pub mirrors: Mirrors,
    pub recorder: EventRecorder,
}

impl Telling {
    /// Tells for ever; ends by being dropped.
    pub(super) async fn run(self, view: PodsView) {
        let mut departures = view.departures();
        let mut changes = view.changes();
        let mut mirrors_came = self.mirrors.came();
        let mut told = Told { to: self, views: HashMap::new() };
        let mut seen = 0;
        loop {
            tokio::select! {
                // First what is there, then what left: the last word of a pod is said last.
                biased;
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let (pods, now) = view.published_since(seen);
                    seen = now;
                    pods.iter().for_each(|pod| told.tell(pod));
                }
                // A mirror that is made later than its pod came up is told what it missed.
                Ok(()) = mirrors_came.changed() => view.list().iter().for_each(|pod| told.tell(pod)),
                gone = departures.recv() => {
                    let Some(gone) = gone else { return };
                    told.views.remove(&gone.uid);
                    if gone.source == PodSource::Api {
                        told.to.statuses.finish(&gone.uid, (*gone.status).clone());
                    }
                }
            }
        }
    }
}

/// What was told of which pod.
struct Told {
    to: Telling,
    /// By the uid of the object in the API.
    views: HashMap<PodUid, Arc<PodView>>,
}

impl Told {
    fn tell(&mut self, pod: &Arc<PodView>) {
        let object = match pod.source {
            PodSource::Api => Some(pod.uid.clone()),
            PodSource::File { .. } => self.to.mirrors.uid_of(&pod.key),
            PodSource::Runtime => None,
        };
        let Some(object) = object else { return };
        let before = self.views.get(&object);
        if before.is_some_and(|before| Arc::ptr_eq(before, pod)) {
            return;
        }
        self.to.recorder.views(before.map(|before| &**before), pod);
        if before.is_none_or(|before| before.status != pod.status) {
            self.to.statuses.tell(&object, pod.status.clone());
        }
        self.views.insert(object, pod.clone());
    }
}
