//! The node's object and lease against the fake server.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::fake::{FakeApi, Fault};
use crate::lease::Lease;

const NODE: &str = "/api/v1/nodes/n1";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";

fn facts() -> NodeFacts {
    NodeFacts { name: "n1".into(), hostname: "n1".into(), ..NodeFacts::default() }
}

fn kept(api: &FakeApi) -> (watch::Sender<Condition>, watch::Receiver<Option<Node>>) {
    let now = watch::Sender::new(Condition { facts: facts(), ..Condition::default() });
    let told = watch::Sender::new(None);
    let reading = told.subscribe();
    let frequencies = Frequencies { update: Duration::from_secs(10), report: Duration::from_secs(300) };
    let keeper = NodeKeeper {
        client: api.client(),
        name: "n1".into(),
        frequencies,
        register: true,
        now: now.subscribe(),
        told,
    };
    tokio::spawn(keeper.run());
    (now, reading)
}

fn ready(api: &FakeApi) -> Value {
    let node = api.object(NODE).unwrap_or_default();
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions
        .into_iter()
        .find(|one| one["type"] == "Ready")
        .map(|one| one["status"].clone())
        .unwrap_or_default()
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_registers_through_faults_and_says_at_once_how_it_is() {
    let api = FakeApi::default();
    api.order("POST", "/api/v1/nodes", 3, Fault::Refuse(503, None));
    let (now, told) = kept(&api);
    pass(20).await;
    assert_eq!(ready(&api), json!("True"));
    assert!(told.borrow().is_some());
    now.send_modify(|now| now.health.not_ready.push("no network".into()));
    pass(1).await;
    assert_eq!(ready(&api), json!("False"));
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_status_is_written_rarely() {
    let api = FakeApi::default();
    let _kept = kept(&api);
    pass(3600).await;
    let written = api.calls("PATCH /api/v1/nodes/n1/status").len();
    // 300 s, give or take a half.
    assert!((8..=25).contains(&written), "{written}");
}

#[tokio::test(start_paused = true)]
async fn what_the_control_plane_thought_meanwhile_is_put_right() {
    let api = FakeApi::default();
    let now = watch::Sender::new(Condition { facts: facts(), ..Condition::default() });
    let told = watch::Sender::new(None);
    let frequencies = Frequencies { update: Duration::from_secs(10), report: Duration::from_secs(300) };
    let keeper = NodeKeeper {
        client: api.client(),
        name: "n1".into(),
        frequencies,
        register: true,
        now: now.subscribe(),
        told: told.clone(),
    };
    tokio::spawn(keeper.run());
    pass(1).await;
    let mut node = api.object(NODE).unwrap();
    for condition in node["status"]["conditions"].as_array_mut().unwrap() {
        condition["status"] = json!("Unknown");
    }
    api.put(NODE, node.clone());
    told.send_replace(Some(serde_json::from_value(node).unwrap()));
    pass(15).await;
    assert_eq!(ready(&api), json!("True"));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_node_is_made_anew() {
    let api = FakeApi::default();
    let (now, told) = kept(&api);
    pass(1).await;
    let first = told.borrow().as_ref().and_then(|node| node.metadata.uid.clone());
    api.remove(NODE);
    now.send_modify(|now| now.health.not_ready.push("x".into()));
    pass(20).await;
    assert_eq!(ready(&api), json!("False"));
    assert_ne!(told.borrow().as_ref().and_then(|node| node.metadata.uid.clone()), first);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_there_is_taken_over() {
    let api = FakeApi::default();
    api.put(NODE, json!({"metadata": {"labels": {"team": "x"}}, "spec": {"unschedulable": true}}));
    let _kept = kept(&api);
    pass(1).await;
    let node = api.object(NODE).unwrap();
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/os"], "linux");
    assert_eq!(
        (&node["metadata"]["labels"]["team"], &node["spec"]["unschedulable"]),
        (&json!("x"), &json!(true))
    );
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_renewed_made_and_made_again() {
    let api = FakeApi::default();
    let owner = watch::Sender::new(Some("u1".to_owned()));
    let lease = Lease { node: "n1".into(), duration_seconds: 40 };
    tokio::spawn(lease.keep(api.client(), owner.subscribe()));
    pass(1).await;
    assert_eq!(api.object(LEASE).unwrap()["metadata"]["ownerReferences"][0]["uid"], "u1");
    api.remove(LEASE);
    api.order("PATCH", LEASE, 2, Fault::Refuse(500, None));
    pass(14).await;
    assert!(api.object(LEASE).is_some());
    pass(100).await;
    let renewals = api.calls("PATCH").len();
    assert!((12..=18).contains(&renewals), "{renewals}");
}
