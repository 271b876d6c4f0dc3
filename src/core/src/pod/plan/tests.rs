use serde_json::json;

use super::*;
use crate::pod::fixture::Fixture;

fn names(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(|step| step.key().to_string()).collect()
}

#[test]
fn a_new_pod_begins_with_folders_cgroup_and_image() {
    let fixture = Fixture::new(json!({"metadata": {"name": "web", "namespace": "default"},
        "spec": {"containers": [{"name": "web", "image": "w:1"}]}}));
    let made = plan(&fixture.snapshot());
    assert_eq!(names(&made), ["prepare pod folders", "set up pod cgroup", "pull image for web"]);
}
