//! `/metrics` and `/metrics/slis`: what the pod workers count, and the daemon's own process, under the names
//! dashboards and alerts of the kubelet look for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use http::Method;
use jiff::Timestamp;
use longshore_core::certificates::x509;
use longshore_core::kubelet_api::exposition::{Exposition, Kind, seconds};
use longshore_core::kubelet_api::route::{Route, Verb};

use super::tls::ServingCertificate;
use crate::certificates::Certificates;
use crate::metrics::PodMetrics;
use crate::pods::{Clock, PodsView};

/// Nanoseconds of the unit CPU time is told in (USER_HZ is 100 on every architecture we know).
const TICK: u64 = 10_000_000;

/// What the daemon's own metrics are made of.
pub(super) struct DaemonMetrics {
    pub(super) node: String,
    pub(super) pods: PodsView,
    pub(super) counted: PodMetrics,
    pub(super) started: Timestamp,
    pub(super) requests: Requests,
    pub(super) clock: Clock,
    /// Those the daemon keeps itself.
    pub(super) certificates: Certificates,
    /// The one the server shows, whoever made it.
    pub(super) shown: Arc<ServingCertificate>,
}

/// Requests by what they asked for.
#[derive(Debug, Default)]
pub(super) struct Requests(Mutex<BTreeMap<Asked, u64>>);

/// Method, path, server, and whether the answer may go on for long.
type Asked = (&'static str, &'static str, &'static str, bool);

impl Requests {
    /// `route` is `None` for paths that are none; what strangers make up is not kept.
    pub(super) fn count(&self, method: &Method, route: Option<&Route>, server: &'static str) {
        let method = match Verb::of_method(method.as_str()) {
            Some(Verb::Get) => "GET",
            Some(Verb::Create) => "POST",
            Some(Verb::Update) => "PUT",
            Some(Verb::Patch) => "PATCH",
            Some(Verb::Delete) => "DELETE",
            None => "other",
        };
        let asked =
            (method, route.map_or("other", Route::name), server, route.is_some_and(Route::is_long_running));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(asked).or_default() += 1;
    }

    fn show(&self, text: &mut Exposition) {
        text.family("kubelet_http_requests_total", Kind::Counter, "Requests to this node's API");
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for ((method, path, server, long), count) in counts.iter() {
            let long = if *long { "true" } else { "false" };
            let labels =
                [("long_running", long), ("method", *method), ("path", *path), ("server_type", *server)];
            text.sample(&labels, count, None);
        }
    }
}

impl DaemonMetrics {
    pub(super) fn text(&self) -> String {
        let mut text = Exposition::default();
        text.family("kubernetes_build_info", Kind::Gauge, "What this is and whose API it speaks");
        let version = concat!("longshore/", env!("CARGO_PKG_VERSION"));
        text.sample(&[("major", "1"), ("minor", "36"), ("git_version", version)], 1, None);
        process(&mut text);
        self.requests.show(&mut text);
        self.certificates(&mut text);
        self.counted.render(&self.pods, &self.node, self.started) + &text.finish()
    }
}

impl DaemonMetrics {
    /// How long certificates last, below 0 where they have ended (pkg/kubelet/certificate/kubelet.go). The kubelet
    /// tells of a serving certificate only where it rotates it; here the one in use counts.
    fn certificates(&self, text: &mut Exposition) {
        let client = self.certificates.client.as_ref();
        let client = client.and_then(|state| Some(state.borrow().facts.as_ref()?.not_after));
        let serving = self.shown.current();
        let serving = serving.and_then(|pair| Some(x509::read_der(pair.cert.first()?).ok()?.not_after));
        for (name, ends, help) in [
            (
                "kubelet_certificate_manager_client_ttl_seconds",
                client,
                "Seconds until the client certificate ends",
            ),
            (
                "kubelet_certificate_manager_server_ttl_seconds",
                serving,
                "Seconds until the serving certificate ends",
            ),
        ] {
            if let Some(ends) = ends {
                text.family(name, Kind::Gauge, help);
                text.sample(&[], ends.duration_since(self.clock.now()).as_secs(), None);
            }
        }
    }
}

/// Of the daemon's own process (proc_pid_stat(5)).
fn process(text: &mut Exposition) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program is in parentheses and may hold anything; after it come fields 3 and on.
    let fields: Vec<u64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().map(|word| word.parse().unwrap_or(0)).collect())
        .unwrap_or_default();
    let field = |number: usize| fields.get(number - 3).copied();
    if let (Some(user), Some(system)) = (field(14), field(15)) {
        text.family("process_cpu_seconds_total", Kind::Counter, "CPU time of the daemon");
        text.sample(&[], seconds((user + system) * TICK), None);
    }
    if let Some(pages) = field(24) {
        text.family("process_resident_memory_bytes", Kind::Gauge, "Memory of the daemon");
        text.sample(&[], pages * rustix::param::page_size() as u64, None);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        text.family("process_open_fds", Kind::Gauge, "Open files of the daemon");
        text.sample(&[], open.count(), None);
    }
}

/// The checks of `/healthz`, which are well as long as they answer.
pub(super) fn slis() -> String {
    let mut text = Exposition::default();
    text.family("kubernetes_healthcheck", Kind::Gauge, "1 where a check of /healthz is well");
    for name in ["log", "ping", "syncloop"] {
        text.sample(&[("name", name), ("type", "healthz")], 1, None);
    }
    text.finish()
}
