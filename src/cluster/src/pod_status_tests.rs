//! The status writer against the fake server.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::fake::{FakeApi, Fault};

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/d/pods/{name}")
}

fn status(phase: &str, message: &str, ready: bool) -> Arc<PodStatus> {
    let ready = if ready { "True" } else { "False" };
    let status =
        json!({"phase": phase, "message": message, "conditions": [{"type": "Ready", "status": ready}]});
    Arc::new(serde_json::from_value(status).unwrap())
}

/// A server with one pod, and a writer that knows it.
struct World {
    api: FakeApi,
    statuses: PodStatuses,
}

impl World {
    fn new(names: &[&str]) -> Self {
        let api = FakeApi::default();
        let statuses = PodStatuses::new(api.client());
        let world = Self { api, statuses };
        for name in names {
            let foreign = json!([{"type": "example.com/gate", "status": "True"}]);
            world.api.put(
                &path(name),
                json!({"metadata": {"uid": name}, "spec": {"nodeName": "n"}, "status": {"phase": "Pending", "conditions": foreign}}),
            );
            world.hear(name);
        }
        tokio::spawn(world.statuses.clone().run());
        world
    }

    /// The watch tells what the server has.
    fn hear(&self, name: &str) {
        let pod = serde_json::from_value(self.api.object(&path(name)).unwrap()).unwrap();
        self.statuses.server(&name.into(), Arc::new(pod));
    }

    fn seen(&self, name: &str) -> Value {
        self.api.object(&path(name)).map(|pod| pod["status"].clone()).unwrap_or_default()
    }

    async fn settle(&self) {
        for _ in 0..2000 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if self.statuses.pending() == 0 {
                return;
            }
        }
        panic!("never done: {:?}", self.api.calls("PATCH"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_newest_status_wins_and_others_conditions_stay() {
    let world = World::new(&["a"]);
    for n in 0..50 {
        world.statuses.tell(&"a".into(), status("Running", &n.to_string(), n == 49));
    }
    world.settle().await;
    let seen = world.seen("a");
    assert_eq!((&seen["phase"], &seen["message"]), (&json!("Running"), &json!("49")));
    assert_eq!(seen["conditions"].as_array().unwrap().len(), 2, "{seen}");
    assert!(world.api.calls("PATCH").len() <= 2, "{:?}", world.api.calls("PATCH"));
    // Neither our own echo nor the same again is written.
    world.hear("a");
    world.statuses.tell(&"a".into(), status("Running", "49", true));
    world.settle().await;
    assert!(world.api.calls("PATCH").len() <= 2);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_starts_is_told_of_once_and_one_that_takes_its_time_twice() {
    for (pause, writes) in [(HOLD / 3, 1), (HOLD * 2, 2)] {
        let world = World::new(&["a"]);
        world.statuses.tell(&"a".into(), status("Pending", "being created", false));
        tokio::time::sleep(pause).await;
        // The second does not make the first wait longer.
        let begun = Instant::now();
        world.statuses.tell(&"a".into(), status("Running", "", true));
        world.settle().await;
        assert!(begun.elapsed() < HOLD, "{:?}", begun.elapsed());
        assert_eq!(world.seen("a")["phase"], "Running");
        assert_eq!(world.api.calls("PATCH").len(), writes, "{:?}", world.api.calls("PATCH"));
    }
    // Many in a row are told of while they come.
    let world = World::new(&["a"]);
    for n in 0..20 {
        world.statuses.tell(&"a".into(), status("Pending", &n.to_string(), false));
        tokio::time::sleep(HOLD / 3).await;
    }
    assert!(world.api.calls("PATCH").len() >= 4, "{:?}", world.api.calls("PATCH"));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_drops_fields_it_does_not_know_is_not_told_them_again_and_again() {
    let world = World::new(&["a"]);
    world.api.forget_fields(&["observedGeneration", "podIPs"]);
    let told = |message: &str| {
        let status = json!({"phase": "Running", "message": message, "observedGeneration": 2,
            "podIPs": [{"ip": "10.0.0.1"}],
            "conditions": [{"type": "Ready", "status": "True", "observedGeneration": 2}]});
        Arc::new(serde_json::from_value(status).unwrap())
    };
    for (writes, message) in [(1, "one"), (2, "two")] {
        for _ in 0..5 {
            world.statuses.tell(&"a".into(), told(message));
            world.settle().await;
            world.hear("a");
            world.settle().await;
        }
        let seen = world.seen("a");
        assert_eq!((&seen["message"], seen.get("observedGeneration")), (&json!(message), None));
        assert_eq!(world.api.calls("PATCH").len(), writes, "{:?}", world.api.calls("PATCH"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_said_before_the_server_told_of_the_pod_is_not_lost() {
    let world = World::new(&[]);
    world.statuses.tell(&"late".into(), status("Running", "early", true));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(world.api.calls("PATCH").is_empty());
    world.api.put(&path("late"), json!({"metadata": {"uid": "late"}, "status": {"phase": "Pending"}}));
    world.hear("late");
    world.settle().await;
    assert_eq!(world.seen("late")["message"], "early");
    // One the server never tells of leaves nothing behind.
    world.statuses.tell(&"never".into(), status("Running", "", true));
    world.statuses.finish(&"never".into(), (*status("Running", "", true)).clone());
    assert!(!world.statuses.lock().by_uid.contains_key(&"never".into()));
}

#[tokio::test(start_paused = true)]
async fn urgent_ones_go_first() {
    let names: Vec<String> = (0..60).map(|n| format!("p{n:02}")).collect();
    let world = World::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for name in &names {
        world.statuses.tell(&name.as_str().into(), status("Running", "", false));
    }
    world.settle().await;
    // All at once: nothing runs between these calls.
    for name in &names {
        world.statuses.tell(&name.as_str().into(), status("Running", "for people", false));
    }
    world.statuses.tell(&"p59".into(), status("Running", "", true));
    world.settle().await;
    let order = world.api.calls("PATCH").split_off(60);
    let place = order.iter().position(|call| call.contains("p59")).unwrap();
    assert!(place < AT_ONCE, "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_left_nothing_behind_takes_its_object_with_it() {
    let world = World::new(&["a"]);
    let mut asked = world.api.object(&path("a")).unwrap();
    asked["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    world.api.put(&path("a"), asked);
    world.hear("a");
    world.api.order("PATCH", &path("a"), 2, Fault::Refuse(500, None));
    world.api.order("DELETE", &path("a"), 2, Fault::Break);
    world.statuses.finish(&"a".into(), (*status("Running", "", false)).clone());
    world.settle().await;
    assert!(world.api.object(&path("a")).is_none());
}

#[tokio::test(start_paused = true)]
async fn another_pod_of_the_same_name_is_left_alone() {
    let world = World::new(&["a"]);
    let mut asked = world.api.object(&path("a")).unwrap();
    asked["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    world.api.put(&path("a"), asked);
    world.hear("a");
    world.api.remove(&path("a"));
    world.api.put(&path("a"), json!({"metadata": {"uid": "another"}, "status": {"phase": "Pending"}}));
    world.statuses.finish(&"a".into(), (*status("Succeeded", "", false)).clone());
    world.settle().await;
    assert_eq!(world.seen("a"), json!({"phase": "Pending"}));
}

#[tokio::test(start_paused = true)]
async fn a_tenth_of_all_writes_failing_ends_with_every_status_written() {
    let names: Vec<String> = (0..40).map(|n| format!("p{n:02}")).collect();
    let world = World::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for (n, name) in names.iter().enumerate() {
        let fault = match n % 5 {
            0 => Fault::Refuse(500, None),
            1 => Fault::Refuse(429, Some(2)),
            2 => Fault::Break,
            3 => Fault::BreakAfter,
            _ => continue,
        };
        world.api.order("PATCH", &path(name), 2, fault);
    }
    for phase in ["Running", "Succeeded"] {
        for name in &names {
            world.statuses.tell(&name.as_str().into(), status(phase, name, false));
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    world.settle().await;
    for name in &names {
        assert_eq!(world.seen(name)["phase"], "Succeeded", "{name}");
    }
}
