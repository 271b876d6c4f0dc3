//! The servers as a client sees them, over loopback, with a dataplane on the kernel's fakes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use longshore_core::ids::ObjectKey;
use longshore_kernel::conntrack::FakeConntrack;
use longshore_kernel::nft::FakeNft;
use nix::errno::Errno;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{checks, servers};
use crate::config::ProxyServers;
use crate::dataplane::{
    Change, DataplaneConfig, DataplaneHandle, Kernel, ModeRequest, OpenKernel, TrackedFlows, dataplane,
};
use crate::pods::Clock;

struct Proxy {
    handle: DataplaneHandle,
    nft: Arc<FakeNft>,
    stop: CancellationToken,
}

impl Proxy {
    fn start() -> Self {
        let node = IpAddr::from([127, 0, 0, 1]);
        let nft = Arc::new(FakeNft::new());
        let kernel = Kernel {
            flows: Some(Arc::new(TrackedFlows(FakeConntrack::new(&[])))),
            ..Kernel::fake(nft.clone(), IpAddr::from([192, 168, 0, 1]))
        };
        let config = DataplaneConfig {
            node_port_addresses: Some(longshore_core::ruleset::node::NodePortAddresses::All),
            ..DataplaneConfig::new(ModeRequest::Nftables, "n1", vec![node])
        };
        let stop = CancellationToken::new();
        let clock = Clock::following_tokio(Timestamp::from_second(1_800_000_000).unwrap());
        let open = OpenKernel::new(move || Ok(kernel.clone()));
        let (handle, task) = dataplane(config, open, clock, stop.clone());
        tokio::spawn(task);
        tokio::spawn(checks::run(handle.clone(), stop.clone()));
        Proxy { handle, nft, stop }
    }

    async fn servers(&self) -> (SocketAddr, SocketAddr) {
        let (healthz, metrics) = (free_port().await, free_port().await);
        let settings = ProxyServers {
            healthz: Some(healthz),
            metrics: Some(metrics),
            hard_fail: true,
            configz: json!({"mode": "nftables"}),
        };
        servers::start(&settings, &self.handle, &self.stop).await.unwrap();
        (healthz, metrics)
    }

    async fn settle(&self) {
        self.handle.synced().wait_for(|done| *done).await.unwrap();
        // The task has answered: everything told before was taken.
        self.handle.list().await.unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Status, head and body of a GET.
async fn get(addr: SocketAddr, path: &str) -> std::io::Result<(u16, String, String)> {
    let mut stream = TcpStream::connect(addr).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let (head, body) = text.split_once("\r\n\r\n").expect("an HTTP answer");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    Ok((status, head.to_ascii_lowercase(), body.to_owned()))
}

fn balanced(name: &str, number: u8, port: u16) -> Change {
    let value = json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {"type": "LoadBalancer",
        "clusterIP": format!("10.96.0.{number}"), "externalTrafficPolicy": "Local", "healthCheckNodePort": port,
        "ports": [{"name": "p", "port": 80, "nodePort": 30000 + u32::from(number)}]}});
    Change::Service(Box::new(serde_json::from_value(value).unwrap()))
}

fn endpoints(service: &str, list: Value) -> Change {
    let value = json!({"metadata": {"name": format!("{service}-1"), "namespace": "ns",
        "labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4", "endpoints": list,
        "ports": [{"name": "p", "port": 8080}]});
    Change::Slice(Box::new(serde_json::from_value(value).unwrap()))
}

/// Until the port is answered, or no longer.
async fn answered(addr: SocketAddr, wanted: bool) -> Option<(u16, String, String)> {
    for _ in 0..500 {
        let answer = get(addr, "/").await.ok();
        if answer.is_some() == wanted {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{addr} is {}answered", if wanted { "not " } else { "still " });
}

/// Until the answer has this status.
async fn answers_with(addr: SocketAddr, status: u16) -> (u16, String, String) {
    for _ in 0..500 {
        if let Ok(answer) = get(addr, "/").await
            && answer.0 == status
        {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{addr} never answered {status}");
}

#[tokio::test]
async fn a_load_balancer_hears_where_endpoints_are() {
    let proxy = Proxy::start();
    let port = free_port().await;
    let here = json!([{"addresses": ["10.244.1.1"], "nodeName": "n1"}, {"addresses": ["10.244.2.1"], "nodeName": "n2"}]);
    proxy.handle.tell(balanced("web", 1, port.port()));
    proxy.handle.tell(endpoints("web", here));
    proxy.handle.tell(Change::SourcesSynced);
    let (status, head, body) = answered(port, true).await.unwrap();
    assert_eq!(status, 200);
    assert!(head.contains("x-load-balancing-endpoint-weight: 1"), "{head}");
    assert!(head.contains("content-type: application/json") && head.contains("nosniff"), "{head}");
    let want = json!({"service": {"namespace": "ns", "name": "web"}, "localEndpoints": 1, "serviceProxyHealthy": true});
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), want);
    // It ends: it still gets packets, and no longer counts.
    let ending = json!([{"addresses": ["10.244.1.1"], "nodeName": "n1",
        "conditions": {"ready": false, "serving": true, "terminating": true}}]);
    proxy.handle.tell(endpoints("web", ending));
    let (_, head, _) = answers_with(port, 503).await;
    assert!(head.contains("x-load-balancing-endpoint-weight: 0"), "{head}");
    proxy.handle.tell(Change::ServiceGone(ObjectKey::new("ns", "web")));
    answered(port, false).await;
}

#[tokio::test]
async fn a_taken_port_is_named_and_taken_over_when_it_is_free() {
    let proxy = Proxy::start();
    let other = TcpListener::bind("[::]:0").await.unwrap();
    let port = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), other.local_addr().unwrap().port());
    proxy.handle.tell(balanced("web", 1, port.port()));
    proxy.handle.tell(Change::SourcesSynced);
    proxy.settle().await;
    let mut problem = Vec::new();
    for _ in 0..500 {
        problem = proxy.handle.view().warnings.clone();
        if !problem.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(problem[0].starts_with("Service ns/web: healthCheckNodePort"), "{problem:?}");
    drop(other);
    proxy.handle.tell(balanced("other", 2, free_port().await.port()));
    let mut answer = None;
    for _ in 0..100 {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(11)).await;
        tokio::time::resume();
        tokio::time::sleep(Duration::from_millis(20)).await;
        answer = get(port, "/").await.ok();
        if answer.is_some() {
            break;
        }
    }
    assert_eq!(answer.expect("the port is answered again").0, 503, "no endpoint here");
    assert_eq!(proxy.handle.view().warnings, [] as [&str; 0]);
}

#[tokio::test]
async fn healthz_says_when_rules_are_late_or_the_node_goes() {
    let proxy = Proxy::start();
    let (healthz, _) = proxy.servers().await;
    proxy.handle.tell(balanced("web", 1, 0));
    proxy.handle.tell(Change::SourcesSynced);
    proxy.settle().await;
    let (status, head, body) = get(healthz, "/healthz").await.unwrap();
    assert_eq!(status, 200, "{body}");
    assert!(head.contains("application/json") && body.contains(r#""nodeEligible":true"#), "{head} {body}");
    proxy.handle.health().set_node_eligible(false);
    assert_eq!(get(healthz, "/healthz").await.unwrap().0, 503);
    let (status, _, body) = get(healthz, "/livez").await.unwrap();
    assert!(status == 200 && !body.contains("nodeEligible"), "{status} {body}");
    proxy.handle.health().set_node_eligible(true);
    // Every batch is refused from now on: late after twice the sync period.
    proxy.nft.faults.every(1, Errno::ENOMEM);
    proxy.handle.tell(balanced("late", 2, 0));
    proxy.settle().await;
    assert_eq!(get(healthz, "/healthz").await.unwrap().0, 200);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    assert_eq!(get(healthz, "/livez").await.unwrap().0, 503);
    proxy.nft.faults.clear();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    for _ in 0..500 {
        if get(healthz, "/livez").await.unwrap().0 == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("still late: {:?}", proxy.handle.view());
}

#[tokio::test]
async fn the_metrics_server_has_kube_proxy_s_paths() {
    let proxy = Proxy::start();
    let (healthz, metrics) = proxy.servers().await;
    proxy.handle.tell(balanced("web", 1, 0));
    proxy.handle.tell(endpoints("web", json!([{"addresses": ["10.244.2.1"], "nodeName": "n2"}])));
    proxy.handle.tell(Change::SourcesSynced);
    proxy.settle().await;
    get(healthz, "/healthz").await.unwrap();
    assert_eq!(get(metrics, "/proxyMode").await.unwrap().2, "nftables");
    assert_eq!(get(metrics, "/healthz").await.unwrap().2, "ok");
    let configz = r#"{"kubeproxy.config.k8s.io":{"mode":"nftables"}}"#;
    assert_eq!(get(metrics, "/configz").await.unwrap().2, configz);
    let (status, head, body) = get(metrics, "/metrics").await.unwrap();
    assert!(status == 200 && head.contains("text/plain; version=0.0.4"), "{head}");
    for line in [
        "kubeproxy_sync_proxy_rules_service_changes_total{ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"} 1",
        "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
    ] {
        assert!(body.lines().any(|found| found == line), "no {line} in\n{body}");
    }
    assert_eq!(get(metrics, "/secret").await.unwrap().0, 404);
}

#[tokio::test]
async fn an_address_that_is_taken_ends_the_start_only_where_that_is_wanted() {
    let proxy = Proxy::start();
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = other.local_addr().unwrap();
    let settings =
        |hard_fail| ProxyServers { healthz: Some(taken), metrics: None, hard_fail, configz: Value::Null };
    let error = servers::start(&settings(true), &proxy.handle, &proxy.stop).await.unwrap_err();
    assert_eq!(error.to_string(), format!("healthzBindAddress: listen on {taken}"));
    servers::start(&settings(false), &proxy.handle, &proxy.stop).await.unwrap();
    for _ in 0..500 {
        if !proxy.handle.view().warnings.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(proxy.handle.view().warnings[0].starts_with("healthzBindAddress: cannot listen"));
}
