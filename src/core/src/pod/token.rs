//! ServiceAccount tokens a pod wants in its volumes, and when one has to be renewed (behaviours 47).

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

/// What the API server gives where nothing is asked for.
const DEFAULT_SECONDS: i64 = 3600;
/// No token is used longer than this without being renewed.
const RENEW_AT_LATEST: SignedDuration = SignedDuration::from_hours(24);

/// One token of a pod: equal ones are asked for once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenSpec {
    /// `None`: the API server's own.
    pub audience: Option<String>,
    pub expiration_seconds: i64,
}

/// All tokens the pod's volumes project.
pub fn wanted(pod: &Pod) -> BTreeSet<TokenSpec> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let sources = volumes.filter_map(|volume| volume.projected.as_ref()?.sources.as_ref()).flatten();
    sources
        .filter_map(|source| source.service_account_token.as_ref())
        .map(|token| spec(token.audience.as_deref(), token.expiration_seconds))
        .collect()
}

/// As a volume's source spells it.
pub fn spec(audience: Option<&str>, expiration_seconds: Option<i64>) -> TokenSpec {
    TokenSpec {
        audience: audience.filter(|audience| !audience.is_empty()).map(str::to_owned),
        expiration_seconds: expiration_seconds.unwrap_or(DEFAULT_SECONDS),
    }
}

/// The ServiceAccount a pod runs as.
pub fn service_account(pod: &Pod) -> &str {
    let name = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    name.filter(|name| !name.is_empty()).unwrap_or("default")
}

/// When a token issued at `issued` that ends at `expires` is renewed: at 80 % of its life, after a day at
/// the latest, up to `jitter` earlier so that all pods do not ask at once.
pub fn renew_at(issued: Timestamp, expires: Timestamp, jitter: Duration) -> Timestamp {
    let life = expires.duration_since(issued);
    let most = SignedDuration::from_millis(i64::try_from(life.as_millis() / 5 * 4).unwrap_or(i64::MAX));
    let jitter = SignedDuration::try_from(jitter).unwrap_or_default();
    let after = most.min(RENEW_AT_LATEST) - jitter.min(most / 2);
    issued.saturating_add(after).unwrap_or(expires)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn equal_tokens_are_wanted_once() {
        let source = |audience: &str, seconds: i64| json!({"serviceAccountToken": {"audience": audience, "expirationSeconds": seconds, "path": "t"}});
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [], "volumes": [
            {"name": "a", "projected": {"sources": [source("", 3607), source("vault", 600)]}},
            {"name": "b", "projected": {"sources": [source("", 3607), {"configMap": {"name": "x"}}]}}]}}))
        .unwrap();
        let all: Vec<_> = wanted(&pod).into_iter().collect();
        assert_eq!(all, [spec(None, Some(3607)), spec(Some("vault"), Some(600))]);
        assert_eq!(service_account(&pod), "default");
    }

    #[test]
    fn renewed_at_four_fifths_or_after_a_day() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        for (life, jitter, expected) in
            [(3600, 0, 2880), (3600, 10, 2870), (864_000, 0, 86_400), (10, 100, 4)]
        {
            let renewed = renew_at(at(0), at(life), Duration::from_secs(jitter));
            assert_eq!(renewed, at(expected), "{life} {jitter}");
        }
    }
}
