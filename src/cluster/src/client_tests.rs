//! The client against the fake server: connections, faults, times.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tokio::time::Instant;

use super::*;
use crate::fake::{FakeApi, Fault};
use crate::transport::Opened;

const NODE: &str = "/api/v1/nodes/a";

fn api() -> FakeApi {
    let api = FakeApi::default();
    api.put(NODE, json!({"spec": {}}));
    api
}

async fn get(client: &ApiClient) -> Result<Value, ApiError> {
    client.get(&Path::node("a")).await
}

#[tokio::test(start_paused = true)]
async fn calls_share_a_connection_and_a_broken_one_is_replaced() {
    let api = api();
    let client = api.client();
    for _ in 0..3 {
        assert_eq!(get(&client).await.unwrap()["metadata"]["name"], "a");
    }
    assert_eq!(api.opened(), 1);
    api.break_connections();
    assert!(get(&client).await.is_ok());
    assert_eq!(api.opened(), 2);
    let reachable = client.reachable();
    api.set_down(true);
    assert!(matches!(get(&client).await, Err(ApiError::Connect { .. } | ApiError::Broken { .. })));
    assert!(matches!(*reachable.borrow(), Reachable::No { .. }));
    api.set_down(false);
    assert!(get(&client).await.is_ok());
    assert_eq!(*reachable.borrow(), Reachable::Yes);
}

#[tokio::test(start_paused = true)]
async fn the_servers_own_flow_control_is_obeyed() {
    let api = api();
    let client = api.client();
    api.order("GET", NODE, 2, Fault::Refuse(429, Some(3)));
    let begun = Instant::now();
    assert!(get(&client).await.is_ok());
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(6) && took < Duration::from_secs(7), "{took:?}");
    api.order("GET", NODE, u32::MAX, Fault::Refuse(429, Some(1)));
    assert_eq!(get(&client).await.unwrap_err().code(), Some(429));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_answered_or_not_understood_ends() {
    let api = api();
    let client = api.client();
    api.order("GET", NODE, 1, Fault::Hang);
    let begun = Instant::now();
    assert!(matches!(get(&client).await, Err(ApiError::Timeout { .. })));
    assert_eq!(begun.elapsed().as_secs(), CALL_WITHIN.as_secs());
    api.order("GET", NODE, 1, Fault::Garbage);
    assert!(matches!(get(&client).await, Err(ApiError::Decode { .. })));
    api.order("GET", NODE, 1, Fault::Refuse(500, None));
    assert_eq!(get(&client).await.unwrap_err().code(), Some(500));
    assert!(get(&client).await.is_ok());
}

/// A peer that takes bytes and says nothing, as behind a cable that was cut.
#[derive(Debug, Default)]
struct Silent(Mutex<Vec<DuplexStream>>);

#[async_trait]
impl Transport for Silent {
    async fn open(&self) -> Result<Opened, ApiError> {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        self.0.lock().unwrap().push(theirs);
        Ok(Opened { stream: Box::new(ours), generation: 0, bearer: None })
    }

    fn generation(&self) -> u64 {
        0
    }

    fn authority(&self) -> &str {
        "silent.test:6443"
    }

    fn base(&self) -> &str {
        ""
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_connection_is_noticed_within_ten_seconds() {
    let client = ApiClient::new(Arc::new(Silent::default()));
    let begun = Instant::now();
    let error = get(&client).await.unwrap_err();
    assert!(matches!(error, ApiError::Broken { .. }), "{}", error.one_line());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
