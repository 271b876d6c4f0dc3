//! The resolv.conf of a pod by dnsPolicy and dnsConfig, within the limits of resolvers
//! (behaviours 41, pkg/kubelet/network/dns/dns.go).

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig};

use crate::pod::containers::{is_host_network, spec};
use crate::pod::snapshot::DnsSettings;
use crate::pod::spec::DnsConfig;

/// glibc reads no more name servers.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_TEXT: usize = 2048;

/// `None` leaves the runtime to copy the node's file: there is nothing to say.
pub fn dns_config(pod: &Pod, settings: &DnsSettings) -> Option<DnsConfig> {
    let spec = spec(pod);
    let mut config = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => DnsConfig { servers: Vec::new(), searches: Vec::new(), options: Vec::new() },
        "Default" => host_config(settings),
        "ClusterFirst" if is_host_network(pod) => host_config(settings),
        _ if settings.cluster_dns.is_empty() => host_config(settings),
        _ => cluster_config(settings, pod.metadata.namespace.as_deref().unwrap_or("default")),
    };
    if let Some(own) = &spec.dns_config {
        merge(&mut config, own);
    }
    bound(&mut config);
    let empty = config.servers.is_empty() && config.searches.is_empty() && config.options.is_empty();
    (!empty).then_some(config)
}

fn host_config(settings: &DnsSettings) -> DnsConfig {
    DnsConfig {
        servers: settings.host_servers.clone(),
        searches: host_searches(settings).collect(),
        options: settings.host_options.clone(),
    }
}

/// A search for "." alone says nothing and breaks some resolvers.
fn host_searches(settings: &DnsSettings) -> impl Iterator<Item = String> + '_ {
    settings.host_searches.iter().filter(|search| *search != ".").cloned()
}

fn cluster_config(settings: &DnsSettings, namespace: &str) -> DnsConfig {
    let domain = &settings.cluster_domain;
    let mut searches = Vec::new();
    if !domain.is_empty() {
        searches.extend([format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()]);
    }
    searches.extend(host_searches(settings));
    DnsConfig {
        servers: settings.cluster_dns.iter().map(ToString::to_string).collect(),
        searches,
        options: vec!["ndots:5".to_owned()],
    }
}

fn merge(config: &mut DnsConfig, own: &PodDNSConfig) {
    config.servers.extend(own.nameservers.iter().flatten().cloned());
    config.searches.extend(own.searches.iter().flatten().cloned());
    for option in own.options.iter().flatten() {
        let name = option.name.clone().unwrap_or_default();
        config.options.retain(|known| option_name(known) != name);
        config.options.push(match option.value.as_deref().filter(|value| !value.is_empty()) {
            Some(value) => format!("{name}:{value}"),
            None => name,
        });
    }
}

fn option_name(option: &str) -> &str {
    option.split_once(':').map_or(option, |(name, _)| name)
}

fn bound(config: &mut DnsConfig) {
    remove_duplicates(&mut config.servers);
    remove_duplicates(&mut config.searches);
    config.servers.truncate(MAX_SERVERS);
    config.searches.truncate(MAX_SEARCHES);
    while config.searches.iter().map(|search| search.len() + 1).sum::<usize>() > MAX_SEARCH_TEXT {
        config.searches.pop();
    }
}

fn remove_duplicates(list: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    list.retain(|entry| seen.insert(entry.clone()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::{node, pod};
    use serde_json::json;

    #[test]
    fn follows_policy_and_config() {
        let cluster = ["default.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.org"];
        let cases = [
            (json!({}), vec!["10.96.0.10"], cluster.to_vec(), vec!["ndots:5"]),
            (json!({"dnsPolicy": "Default"}), vec!["192.0.2.53"], vec!["example.org"], vec!["timeout:2"]),
            (json!({"hostNetwork": true}), vec!["192.0.2.53"], vec!["example.org"], vec!["timeout:2"]),
            (
                json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
                vec!["10.96.0.10"],
                cluster.to_vec(),
                vec!["ndots:5"],
            ),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a", "a"],
                "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                vec!["1.1.1.1"],
                vec!["a"],
                vec!["ndots:2", "edns0"],
            ),
            (
                json!({"dnsConfig": {"nameservers": ["1.1.1.1", "2.2.2.2", "3.3.3.3"], "options": [{"name": "ndots", "value": "1"}]}}),
                vec!["10.96.0.10", "1.1.1.1", "2.2.2.2"],
                cluster.to_vec(),
                vec!["ndots:1"],
            ),
        ];
        for (spec, servers, searches, options) in cases {
            let given = pod(json!({"metadata": {"name": "w"}, "spec": spec}));
            let made = dns_config(&given, &node().dns).unwrap();
            assert_eq!(made.servers, servers, "{spec}");
            assert_eq!(made.searches, searches, "{spec}");
            assert_eq!(made.options, options, "{spec}");
        }
    }

    #[test]
    fn bounds_searches_and_falls_back_to_the_node() {
        let searches: Vec<String> = (0..40).map(|n| format!("{}{n}", "x".repeat(100))).collect();
        let given = pod(json!({"spec": {"dnsPolicy": "Default", "dnsConfig": {"searches": searches}}}));
        let made = dns_config(&given, &node().dns).unwrap();
        assert!(made.searches.len() <= 32 && made.searches.join(" ").len() <= 2048);
        let nothing = DnsSettings::default();
        assert_eq!(dns_config(&pod(json!({"spec": {}})), &nothing), None);
    }
}
