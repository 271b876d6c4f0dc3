//! RuntimeClasses of the control plane: one watch that keeps each class's handler and nothing else.

use std::collections::BTreeMap;

use longshore_cluster::{ApiClient, News, Selector, Watch, path::Path};
use serde::Deserialize;

use crate::node::Node;

/// The one field of a RuntimeClass that a node needs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct RuntimeClass {
    handler: String,
}

/// Runs until the daemon ends.
pub(super) async fn follow(client: ApiClient, node: Node) {
    let mut classes = Classes::default();
    let watch = Watch::new(client, Selector::all(Path::group("node.k8s.io", "v1", "runtimeclasses")));
    watch.run(move |news| classes.take(news, &node)).await;
}

#[derive(Debug, Default)]
struct Classes(BTreeMap<String, String>);

impl Classes {
    fn take(&mut self, news: News<RuntimeClass>, node: &Node) {
        match news {
            News::All(all) => {
                self.0 = all.into_iter().map(|(key, class)| (key.name.to_string(), class.handler)).collect();
            }
            News::Set(key, class) => drop(self.0.insert(key.name.to_string(), class.handler)),
            News::Gone(key, _) => drop(self.0.remove(&*key.name)),
            News::Unreadable(key, problem) => {
                tracing::error!(class = %key.name, problem, "a RuntimeClass cannot be read and is left out");
                self.0.remove(&*key.name);
            }
        }
        node.set_runtime_classes(self.0.clone());
    }
}
