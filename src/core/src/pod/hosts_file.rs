//! Content of the `/etc/hosts` a pod's containers see (pkg/kubelet/kubelet_pods.go).

use std::fmt::Write as _;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use crate::pod::containers::{is_host_network, spec};
use crate::pod::hostname::host_and_domain;

const HEADER: &str = "# Kubernetes-managed hosts file.\n";
const LOOPBACK: &str = "127.0.0.1\tlocalhost\n\
     ::1\tlocalhost ip6-localhost ip6-loopback\n\
     fe00::0\tip6-localnet\n\
     fe00::0\tip6-mcastprefix\n\
     fe00::1\tip6-allnodes\n\
     fe00::2\tip6-allrouters\n";

/// The file's content; for host-network pods what follows the node's own file.
pub fn content(pod: &Pod, pod_ips: &[IpAddr], cluster_domain: &str) -> String {
    let mut text = String::new();
    if !is_host_network(pod) {
        text.push_str(HEADER);
        text.push_str(LOOPBACK);
        let (host, domain) = host_and_domain(pod, cluster_domain);
        for ip in pod_ips {
            // Writing to a String cannot fail.
            let _ = if domain.is_empty() {
                writeln!(text, "{ip}\t{host}")
            } else {
                writeln!(text, "{ip}\t{host}.{domain}\t{host}")
            };
        }
    }
    let aliases = spec(pod).host_aliases.clone().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let _ = writeln!(text, "{}\t{}", alias.ip, alias.hostnames.unwrap_or_default().join("\t"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::pod;
    use serde_json::json;

    #[test]
    fn lists_addresses_and_aliases() {
        let ips = ["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        let own = pod(json!({"metadata": {"name": "web"}, "spec": {"subdomain": "sub",
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}}));
        let made = content(&own, &ips, "cluster.local");
        assert!(made.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"), "{made}");
        assert!(
            made.contains("10.0.0.5\tweb.sub.default.svc.cluster.local\tweb\nfd00::5\tweb.sub"),
            "{made}"
        );
        assert!(made.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"), "{made}");
        let host = pod(json!({"metadata": {"name": "web"}, "spec": {"hostNetwork": true}}));
        assert_eq!(content(&host, &ips, "cluster.local"), "");
    }
}
