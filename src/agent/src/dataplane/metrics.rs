//! What the dataplane counts, under kube-proxy's names where dashboards expect them
//! (`pkg/proxy/metrics/metrics.go`), and the text Prometheus scrapes. Nothing is decided by a figure.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use jiff::Timestamp;
use longshore_core::ruleset::diff::{Change, Op};
use longshore_core::ruleset::ipt::Table;
use longshore_core::ruleset::object::{ObjectKey, ObjectValue};
use longshore_core::service::Family as IpFamily;
use longshore_core::service::view::DataplaneView;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::metrics::classic;

type Seconds = Gauge<f64, AtomicU64>;
type Count = Gauge<i64, AtomicI64>;
type Durations = Family<OfFamily, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFamily {
    ip_family: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPolicy {
    ip_family: &'static str,
    traffic_policy: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTable {
    ip_family: &'static str,
    table: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCode {
    code: u16,
}

/// 1 ms doubling 14 times.
const SYNC_BUCKETS: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384,
];

/// 0.25 and 0.5 s, each second of the first minute, 5 s of the second, then half minutes to five.
fn programming_buckets() -> impl Iterator<Item = f64> {
    let whole = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    [0.25, 0.5].into_iter().chain(whole.map(f64::from))
}

fn sync_histogram() -> Histogram {
    Histogram::new(SYNC_BUCKETS)
}

fn programming_histogram() -> Histogram {
    Histogram::new(programming_buckets())
}

/// Figures only the dataplane's task knows, asked for at a scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Service ports with internal policy Local, endpoints, and none of them here: IPv4, IPv6.
    pub no_local_internal: [u32; 2],
    /// The same for the external policy.
    pub no_local_external: [u32; 2],
    /// Rules of ours that iptables holds; `None` in other modes.
    pub iptables: Option<TableRules>,
}

/// Rules by family (IPv4, IPv6) and table (filter, nat).
pub type TableRules = [[u64; 2]; 2];

/// The tables in the order of [`TableRules`]; that of the hint holds no rule.
const TABLES: [Table; 2] = [Table::Filter, Table::Nat];

/// Count the rules of a chain, or of a jump into it, to its table.
pub(super) fn count_rules(rules: &mut TableRules, key: &ObjectKey, value: &ObjectValue) {
    let (id, count) = match (key, value) {
        (ObjectKey::Chain(id), ObjectValue::Rules(list)) => (id, list.len()),
        (ObjectKey::Hook(hook), _) => (&hook.to, 1),
        _ => return,
    };
    if let Some(table) = TABLES.iter().position(|table| *table == id.table) {
        rules[usize::from(id.ipv6)][table] += count as u64;
    }
}

/// What the programs of iptables mode were given in a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IptablesRound {
    /// Rules written.
    pub rules: TableRules,
    /// Objects refused: IPv4, IPv6.
    pub refused: [u64; 2],
}

impl IptablesRound {
    /// An operation came back.
    pub fn note(&mut self, op: &Op, taken: bool) {
        if let (Change::Add(value) | Change::Set(value), true) = (&op.change, taken) {
            count_rules(&mut self.rules, &op.key, value);
        }
        self.refused[usize::from(op.claim.is_ipv6())] += u64::from(!taken);
    }
}

/// One round that wrote or tried to.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    pub took: Duration,
    /// Everything was looked at, not only what changed.
    pub full: bool,
    /// Operations the kernel refused.
    pub refusals: u64,
    /// What iptables mode did.
    pub iptables: Option<IptablesRound>,
}

/// The dataplane's metrics; cheap to clone.
#[derive(Clone, Debug)]
pub struct ProxyMetrics {
    families: Vec<&'static str>,
    sync: Durations,
    full: Durations,
    partial: Durations,
    programming: Durations,
    last_sync: Family<OfFamily, Seconds>,
    last_queued: Family<OfFamily, Seconds>,
    endpoint_changes: Family<OfFamily, Counter>,
    endpoint_changes_pending: Family<OfFamily, Count>,
    service_changes: Family<OfFamily, Counter>,
    service_changes_pending: Family<OfFamily, Count>,
    nftables_failures: Family<OfFamily, Counter>,
    iptables_rules: Family<OfTable, Count>,
    iptables_last: Family<OfTable, Count>,
    iptables_failures: Family<OfFamily, Counter>,
    iptables_partial_failures: Family<OfFamily, Counter>,
    no_local: Family<OfPolicy, Count>,
    healthz: Family<OfCode, Counter>,
    livez: Family<OfCode, Counter>,
    flows_deleted: Family<OfFamily, Counter>,
    flows_took: Durations,
}

impl ProxyMetrics {
    /// For a node that serves these families.
    pub fn new(families: &[IpFamily]) -> Self {
        let name = |family: &IpFamily| match family {
            IpFamily::V4 => "IPv4",
            IpFamily::V6 => "IPv6",
        };
        let durations = || Durations::new_with_constructor(sync_histogram);
        ProxyMetrics {
            families: families.iter().map(name).collect(),
            sync: durations(),
            full: durations(),
            partial: durations(),
            programming: Durations::new_with_constructor(programming_histogram),
            last_sync: Family::default(),
            last_queued: Family::default(),
            endpoint_changes: Family::default(),
            endpoint_changes_pending: Family::default(),
            service_changes: Family::default(),
            service_changes_pending: Family::default(),
            nftables_failures: Family::default(),
            iptables_rules: Family::default(),
            iptables_last: Family::default(),
            iptables_failures: Family::default(),
            iptables_partial_failures: Family::default(),
            no_local: Family::default(),
            healthz: Family::default(),
            livez: Family::default(),
            flows_deleted: Family::default(),
            flows_took: durations(),
        }
    }

    fn labels(&self) -> impl Iterator<Item = OfFamily> + '_ {
        // Both families are written in one round: what it took is true of each.
        self.families.iter().map(|ip_family| OfFamily { ip_family })
    }

    /// A Service changed.
    pub fn service_queued(&self, now: Timestamp) {
        for of in self.labels() {
            self.service_changes.get_or_create(&of).inc();
            self.service_changes_pending.get_or_create(&of).inc();
            self.last_queued.get_or_create(&of).set(seconds(now));
        }
    }

    /// An EndpointSlice changed.
    pub fn endpoints_queued(&self, now: Timestamp) {
        for of in self.labels() {
            self.endpoint_changes.get_or_create(&of).inc();
            self.endpoint_changes_pending.get_or_create(&of).inc();
            self.last_queued.get_or_create(&of).set(seconds(now));
        }
    }

    /// A round took all that waited.
    pub fn taken(&self) {
        for of in self.labels() {
            self.service_changes_pending.get_or_create(&of).set(0);
            self.endpoint_changes_pending.get_or_create(&of).set(0);
        }
    }

    /// A round ended; `nftables` is the mode.
    pub fn synced(&self, round: Round, nftables: bool, now: Timestamp) {
        let took = round.took.as_secs_f64();
        let kind = if round.full { &self.full } else { &self.partial };
        for of in self.labels() {
            self.sync.get_or_create(&of).observe(took);
            kind.get_or_create(&of).observe(took);
            self.last_sync.get_or_create(&of).set(seconds(now));
            let failures = self.nftables_failures.get_or_create(&of);
            if nftables {
                failures.inc_by(round.refusals);
            }
        }
        if let Some(iptables) = round.iptables {
            self.iptables_synced(&iptables, round.full);
        }
    }

    fn iptables_synced(&self, round: &IptablesRound, full: bool) {
        self.set_rules(&self.iptables_last, &round.rules);
        for (of, refused) in self.labels().zip(round.refused) {
            // Both are there from the first round on, so that an alert sees the first failure.
            let (whole, partial) = (
                self.iptables_failures.get_or_create(&of),
                self.iptables_partial_failures.get_or_create(&of),
            );
            if full {
                whole.inc_by(refused)
            } else {
                partial.inc_by(refused)
            };
        }
    }

    fn set_rules(&self, family: &Family<OfTable, Count>, rules: &TableRules) {
        for (ip_family, of_family) in self.families.iter().zip(rules) {
            for (table, count) in TABLES.iter().zip(of_family) {
                let of = OfTable { ip_family, table: table.name() };
                family.get_or_create(&of).set(i64::try_from(*count).unwrap_or(i64::MAX));
            }
        }
    }

    /// A change of endpoints is in the kernel, this long after what made it.
    pub fn programmed(&self, took: Duration) {
        for of in self.labels() {
            self.programming.get_or_create(&of).observe(took.as_secs_f64());
        }
    }

    /// Flows of the connection tracker were compared with what is wanted.
    pub fn flows_compared(&self, deleted: u64, took: Duration) {
        for of in self.labels() {
            self.flows_deleted.get_or_create(&of).inc_by(deleted);
            self.flows_took.get_or_create(&of).observe(took.as_secs_f64());
        }
    }

    pub fn healthz_answered(&self, code: u16) {
        self.healthz.get_or_create(&OfCode { code }).inc();
    }

    pub fn livez_answered(&self, code: u16) {
        self.livez.get_or_create(&OfCode { code }).inc();
    }

    /// Everything in Prometheus' text form 0.0.4.
    pub fn render(&self, view: &DataplaneView, figures: Figures) -> String {
        for (index, ip_family) in self.families.iter().enumerate() {
            let ports = [
                ("internal", figures.no_local_internal[index.min(1)]),
                ("external", figures.no_local_external[index.min(1)]),
            ];
            for (traffic_policy, count) in ports {
                self.no_local.get_or_create(&OfPolicy { ip_family, traffic_policy }).set(i64::from(count));
            }
        }
        if let Some(rules) = &figures.iptables {
            self.set_rules(&self.iptables_rules, rules);
        }
        let mut registry = Registry::default();
        self.register(&mut registry);
        register_own(&mut registry, view);
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = text::encode(&mut out, &registry);
        classic(&out)
    }

    fn register(&self, registry: &mut Registry) {
        let mut add = |name: &str, help: &str, metric: &dyn Fn(&mut Registry, &str, &str)| {
            metric(registry, &format!("kubeproxy_{name}"), help);
        };
        macro_rules! metrics {
            ($($name:literal $field:ident $help:literal;)*) => {
                $(add($name, $help, &|registry, name, help| registry.register(name, help, self.$field.clone()));)*
            };
        }
        metrics! {
            "sync_proxy_rules_duration_seconds" sync "Time a round of writing rules took";
            "sync_full_proxy_rules_duration_seconds" full "Time a round over everything took";
            "sync_partial_proxy_rules_duration_seconds" partial "Time a round over what changed took";
            "network_programming_duration_seconds" programming "Time from a change of endpoints to its rules";
            "sync_proxy_rules_last_timestamp_seconds" last_sync "When rules were last written";
            "sync_proxy_rules_last_queued_timestamp_seconds" last_queued "When a change last asked for rules";
            "sync_proxy_rules_endpoint_changes" endpoint_changes "Changes of endpoints";
            "sync_proxy_rules_endpoint_changes_pending" endpoint_changes_pending "Changes of endpoints that wait";
            "sync_proxy_rules_service_changes" service_changes "Changes of Services";
            "sync_proxy_rules_service_changes_pending" service_changes_pending "Changes of Services that wait";
            "sync_proxy_rules_nftables_sync_failures" nftables_failures "Operations nf_tables refused";
            "sync_proxy_rules_iptables_total" iptables_rules "Rules in iptables";
            "sync_proxy_rules_iptables_last" iptables_last "Rules the last round wrote to iptables";
            "sync_proxy_rules_iptables_restore_failures" iptables_failures "Chains iptables refused in rounds over everything";
            "sync_proxy_rules_iptables_partial_restore_failures" iptables_partial_failures "Chains iptables refused in rounds over what changed";
            "sync_proxy_rules_no_local_endpoints_total" no_local "Service ports with policy Local and no endpoint here";
            "proxy_healthz" healthz "Answers of /healthz";
            "proxy_livez" livez "Answers of /livez";
            "conntrack_reconciler_deleted_entries" flows_deleted "Flows of the connection tracker deleted";
            "conntrack_reconciler_sync_duration_seconds" flows_took "Time a comparison of flows took";
        }
    }
}

/// What kube-proxy has no name for.
fn register_own(registry: &mut Registry, view: &DataplaneView) {
    let counters = view.counters;
    let counts = [
        ("longshore_dataplane_writes", "Operations the kernel acknowledged", counters.writes),
        ("longshore_dataplane_refusals", "Operations the kernel refused", counters.refusals),
        ("longshore_dataplane_audits", "Comparisons with the kernel", counters.audits),
        ("longshore_dataplane_drift", "Objects a comparison found different", counters.drift),
    ];
    for (name, help, value) in counts {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    }
    let gauges = [
        ("longshore_dataplane_services", "Services known", view.services),
        ("longshore_dataplane_objects", "Kernel objects acknowledged", view.objects),
        ("longshore_dataplane_failures", "Frontends the kernel refuses", view.failures.len()),
        ("longshore_dataplane_draining", "Real servers that wait for their last connection", view.draining),
    ];
    for (name, help, value) in gauges {
        let gauge: Count = Gauge::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    }
}

fn seconds(at: Timestamp) -> f64 {
    at.as_microsecond() as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_kube_proxy_s_scrapers_expect() {
        let metrics = ProxyMetrics::new(&IpFamily::ALL);
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        metrics.service_queued(now);
        metrics.endpoints_queued(now);
        let round = Round { took: Duration::from_millis(3), full: true, refusals: 2, iptables: None };
        metrics.synced(round, true, now);
        let iptables = IptablesRound { rules: [[3, 40], [2, 1]], refused: [0, 5] };
        metrics.synced(Round { iptables: Some(iptables), refusals: 5, full: false, ..round }, false, now);
        metrics.programmed(Duration::from_millis(300));
        metrics.flows_compared(4, Duration::from_millis(1));
        metrics.healthz_answered(503);
        let figures = Figures {
            no_local_internal: [0, 1],
            no_local_external: [2, 0],
            iptables: Some([[7, 900], [6, 20]]),
        };
        let text = metrics.render(&DataplaneView::default(), figures);
        for line in [
            "# TYPE kubeproxy_sync_proxy_rules_duration_seconds histogram",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\",ip_family=\"IPv6\"} 2",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.5\",ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1800000000.0",
            "# TYPE kubeproxy_sync_proxy_rules_service_changes_total counter",
            "kubeproxy_sync_proxy_rules_service_changes_total{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv6\"} 2",
            "# TYPE kubeproxy_sync_proxy_rules_iptables_total gauge",
            "kubeproxy_sync_proxy_rules_iptables_total{ip_family=\"IPv4\",table=\"nat\"} 900",
            "kubeproxy_sync_proxy_rules_iptables_last{ip_family=\"IPv6\",table=\"filter\"} 2",
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family=\"IPv6\"} 0",
            "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total{ip_family=\"IPv4\"} 0",
            "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total{ip_family=\"IPv6\"} 5",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"} 2",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 4",
            "longshore_dataplane_drift_total 0",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        assert!(!text.contains("EOF") && !text.contains("_total_total"), "{text}");
        metrics.taken();
        let text = metrics.render(&DataplaneView::default(), figures);
        assert!(text.contains("endpoint_changes_pending{ip_family=\"IPv4\"} 0"), "{text}");
    }

    #[test]
    fn buckets_grow() {
        let buckets: Vec<f64> = programming_buckets().collect();
        assert!(buckets.windows(2).all(|pair| pair[0] < pair[1]), "{buckets:?}");
        assert_eq!((buckets.len(), buckets.last()), (80, Some(&300.0)));
    }
}
