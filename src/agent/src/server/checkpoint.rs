//! `/checkpoint`: has the runtime write a container's state to a file of the node (KEP-2008).

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use longshore_core::kubelet_api::query::Query;
use longshore_core::kubelet_api::route::ContainerTarget;
use longshore_cri::{ContainerUpkeep, ErrorKind};
use serde_json::json;

use super::body::{self, Answer};
use super::pods::find;
use crate::pods::{Clock, PodsView};

/// Writes checkpoints.
pub(super) struct Checkpoints {
    pub(super) pods: PodsView,
    pub(super) upkeep: Arc<dyn ContainerUpkeep>,
    pub(super) clock: Clock,
    /// Where they go.
    pub(super) folder: PathBuf,
}

impl Checkpoints {
    pub(super) async fn make(&self, target: &ContainerTarget, query: &str) -> Answer {
        let asked = Query::parse(query).and_then(|query| match query.get("timeout") {
            None | Some("") => Ok(None),
            Some(text) => match text.parse::<u32>() {
                Ok(seconds) => Ok(Some(Duration::from_secs(seconds.into())).filter(|_| seconds > 0)),
                Err(_) => Err(format!("timeout is {text:?}, not a number of seconds")),
            },
        });
        let within = match asked {
            Ok(within) => within,
            Err(why) => return body::text(StatusCode::BAD_REQUEST, format!("{why}\n")),
        };
        let Some(view) = find(&self.pods, &target.pod) else {
            return body::text(StatusCode::NOT_FOUND, format!("pod \"{}\" does not exist\n", target.pod.pod));
        };
        let mut instances = view.observed.containers.iter();
        let running = instances.find(|one| one.name.as_str() == target.container && one.is_running());
        let Some(container) = running else {
            let message = format!("container \"{}\" does not run\n", target.container);
            return body::text(StatusCode::NOT_FOUND, message);
        };
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        if let Err(error) = made {
            let message = format!("cannot make folder {}: {error}\n", self.folder.display());
            return body::text(StatusCode::INTERNAL_SERVER_ERROR, message);
        }
        let (namespace, pod, name) = (&view.key.namespace, &view.key.name, &target.container);
        let at = self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ");
        let path = self.folder.join(format!("checkpoint-{pod}_{namespace}-{name}-{at}.tar"));
        let location = path.display().to_string();
        match self.upkeep.checkpoint(&container.id, &location, within).await {
            Ok(()) => body::json(json!({"items": [location]}).to_string().into_bytes()),
            Err(error) => {
                let status = match error.kind {
                    ErrorKind::Unimplemented => StatusCode::NOT_FOUND,
                    _ => StatusCode::INTERNAL_SERVER_ERROR,
                };
                body::text(status, format!("{}\n", error.one_line()))
            }
        }
    }
}
