//! Host names of a pod (behaviours 41, pkg/kubelet/kubelet_pods.go).

use k8s_openapi::api::core::v1::Pod;

use crate::pod::containers::{is_host_network, spec};
use crate::pod::refs::RefError;

/// What `hostname` may hold (Linux HOST_NAME_MAX is 64; names are DNS labels).
const MAX_LABEL: usize = 63;
const MAX_HOSTNAME: usize = 64;

/// The short name and the domain, which is empty without a subdomain.
pub fn host_and_domain(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let spec = spec(pod);
    if let Some(name) = given(&spec.hostname_override) {
        return (name, String::new());
    }
    let name = given(&spec.hostname).or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let domain = given(&spec.subdomain)
        .map(|subdomain| format!("{subdomain}.{namespace}.svc.{cluster_domain}"))
        .unwrap_or_default();
    (truncated(&name), domain)
}

/// What the sandbox is told: empty for host network, the whole name with setHostnameAsFQDN.
pub fn sandbox_hostname(pod: &Pod, cluster_domain: &str) -> Result<String, RefError> {
    if is_host_network(pod) {
        return Ok(String::new());
    }
    let (host, domain) = host_and_domain(pod, cluster_domain);
    if spec(pod).set_hostname_as_fqdn != Some(true) || domain.is_empty() {
        return Ok(host);
    }
    let full = format!("{host}.{domain}");
    if full.len() > MAX_HOSTNAME {
        return Err(RefError::Invalid {
            user: "the host name".to_owned(),
            problem: format!(
                "{full} has {} characters, more than the {MAX_HOSTNAME} a host name may have; \
                 shorten it or remove setHostnameAsFQDN",
                full.len()
            ),
        });
    }
    Ok(full)
}

fn given(text: &Option<String>) -> Option<String> {
    text.clone().filter(|text| !text.is_empty())
}

/// Cut to a label that does not end in a separator.
fn truncated(name: &str) -> String {
    let cut: String = name.chars().take(MAX_LABEL).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixture::pod;
    use serde_json::json;

    #[test]
    fn names_follow_the_spec() {
        let long = format!("{}-tail", "a".repeat(62));
        let cases = [
            (json!({}), "web", Ok("web")),
            (json!({"hostname": "h"}), "web", Ok("h")),
            (json!({"hostNetwork": true}), "web", Ok("")),
            (
                json!({"subdomain": "s", "setHostnameAsFQDN": true}),
                "web",
                Ok("web.s.default.svc.cluster.local"),
            ),
            (json!({"subdomain": "s"}), "web", Ok("web")),
            (json!({"setHostnameAsFQDN": true}), "web", Ok("web")),
            (json!({}), long.as_str(), Ok(&long[..62])),
            (json!({"subdomain": "x".repeat(50), "setHostnameAsFQDN": true}), "web", Err(())),
        ];
        for (spec, name, expected) in cases {
            let given = pod(json!({"metadata": {"name": name}, "spec": spec}));
            let made = sandbox_hostname(&given, "cluster.local");
            assert_eq!(made.as_deref().map_err(|_| ()), expected, "{spec}");
        }
    }
}
