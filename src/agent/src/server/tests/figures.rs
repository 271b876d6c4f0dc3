//! Metrics, statistics and what else tells of the daemon and its pods in numbers.

use longshore_core::certificates::{CertificateFacts, Purpose, x509};
use tokio::sync::watch;

use super::*;
use crate::certificates::CertificateState;

#[tokio::test]
async fn metrics_and_statistics_have_their_forms() {
    let server = TestServer::start().await;
    let (status, text) = server.admin("GET", "/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "kubelet_node_name{node=\"node\"} 1",
        "kubelet_http_requests_total{long_running=\"false\",method=\"GET\",path=\"metrics\",server_type=\"readwrite\"} 1",
    ] {
        assert!(text.lines().any(|known| known == line), "{line} in\n{text}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit(' ').next().unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
    let (status, text) = server.admin("GET", "/stats/summary").await;
    let summary: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &summary["node"]["nodeName"]), (200, &json!("node")));
    assert_eq!(summary["pods"][0]["containers"][0]["name"], "c");
    assert_eq!(server.admin("GET", "/stats/summary?only_cpu_and_memory=%zz").await.0, 400);
    let (_, text) = server.admin("GET", "/metrics/resource").await;
    assert!(text.contains("\nnode_memory_working_set_bytes "), "{text}");
    let (_, text) = server.admin("GET", "/pods").await;
    let pods: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(pods["items"][0]["status"]["containerStatuses"][0]["name"], "c");
    let (_, text) = server.admin("GET", "/configz").await;
    assert_eq!(text, "{\"kubeletconfig\":{\"port\":10250}}");
}

/// A client certificate that lasts for almost two hours.
pub(super) fn client_state() -> watch::Receiver<CertificateState> {
    let facts = x509::read_certificate(Authority::new().pem.as_bytes()).unwrap();
    let not_after = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(7199);
    let state = CertificateState {
        purpose: Purpose::Client,
        path: "client.pem".into(),
        facts: Some(CertificateFacts { not_after, ..facts }),
        waits: None,
        problem: None,
    };
    watch::channel(state).1
}

#[tokio::test]
async fn metrics_say_how_long_certificates_last() {
    let server = TestServer::start().await;
    let (_, text) = server.admin("GET", "/metrics").await;
    let seconds = |which: &str| -> i64 {
        let start = format!("kubelet_certificate_manager_{which}_ttl_seconds ");
        text.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap()
    };
    assert!((7000..7200).contains(&seconds("client")), "{}", seconds("client"));
    let shown = server.shown.current().unwrap();
    let ends = x509::read_der(&shown.cert[0]).unwrap().not_after;
    let left = ends.duration_since(jiff::Timestamp::now()).as_secs();
    assert!((seconds("server") - left).abs() < 100, "{} and {left}", seconds("server"));
}
