//! Session affinity of a Service, in the one form all back ends take: seconds, or none.

use super::types::{ServiceSpec, SessionAffinity};

/// What the API server fills in (three hours).
pub const DEFAULT_TIMEOUT_SECONDS: u32 = 10_800;
/// The longest the API admits: a day.
pub const MAX_TIMEOUT_SECONDS: u32 = 86_400;

/// How long a client keeps its endpoint, in seconds (1..=86400); `None` without affinity. A value
/// outside the API's range can only come from a manifest and is brought back into it.
pub fn timeout_seconds(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity != SessionAffinity::ClientIP {
        return None;
    }
    let asked = spec.session_affinity_config.and_then(|config| config.client_ip?.timeout_seconds);
    Some(asked.map_or(DEFAULT_TIMEOUT_SECONDS, |seconds| {
        u32::try_from(seconds).unwrap_or(0).clamp(1, MAX_TIMEOUT_SECONDS)
    }))
}

#[cfg(test)]
mod tests {
    use super::super::types::{ClientIpConfig, SessionAffinityConfig};
    use super::*;

    #[test]
    fn affinity_has_the_api_s_default_and_range() {
        let spec = |session_affinity, timeout_seconds: Option<i32>| ServiceSpec {
            session_affinity,
            session_affinity_config: Some(SessionAffinityConfig {
                client_ip: Some(ClientIpConfig { timeout_seconds }),
            }),
            ..ServiceSpec::default()
        };
        let cases = [
            (spec(SessionAffinity::None, Some(60)), None),
            (spec(SessionAffinity::ClientIP, Some(60)), Some(60)),
            (spec(SessionAffinity::ClientIP, None), Some(10_800)),
            (spec(SessionAffinity::ClientIP, Some(0)), Some(1)),
            (spec(SessionAffinity::ClientIP, Some(-5)), Some(1)),
            (spec(SessionAffinity::ClientIP, Some(100_000)), Some(86_400)),
        ];
        for (spec, want) in cases {
            assert_eq!(timeout_seconds(&spec), want, "{spec:?}");
        }
        let bare = ServiceSpec { session_affinity: SessionAffinity::ClientIP, ..ServiceSpec::default() };
        assert_eq!(timeout_seconds(&bare), Some(10_800));
    }
}
