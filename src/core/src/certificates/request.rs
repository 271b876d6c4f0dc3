//! CertificateSigningRequests (certificates.k8s.io/v1): their name, their object, and what their state
//! means for who waits.

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec, CertificateSigningRequestStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sha2::{Digest, Sha256};

use super::need::differs;
use super::{CertificateFacts, NODES, Wish};

/// The object's name. It follows from the key and the wish, so that who was killed while waiting finds
/// the same request again, and nobody who does not know the key can be there first.
pub fn request_name(wish: &Wish, key_hash: &[u8; 32]) -> String {
    let mut hash = Sha256::new();
    hash.update(key_hash);
    hash.update(wish.purpose.signer());
    hash.update(wish.common_name());
    for name in &wish.dns_names {
        hash.update([0]);
        hash.update(name);
    }
    for ip in &wish.ips {
        hash.update([0]);
        hash.update(ip.to_string());
    }
    let digits: String = hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("node-csr-{digits}")
}

/// The object; `request` is PKCS#10 in PEM.
pub fn request_object(wish: &Wish, name: &str, request: &str) -> CertificateSigningRequest {
    CertificateSigningRequest {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.as_bytes().to_vec()),
            signer_name: wish.purpose.signer().to_owned(),
            usages: Some(wish.purpose.usages().map(str::to_owned).into()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    }
}

/// What has become of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody has approved it.
    Pending,
    /// Approved; the signer has not signed yet.
    Approved,
    /// The certificate and its chain, PEM.
    Issued(Vec<u8>),
    /// Refused for good, by a person or a controller.
    Denied(String),
    /// Approved, and the signer cannot sign it.
    Failed(String),
}

/// Reads a request's state. A denial counts even beside an approval, as for the signers.
pub fn verdict(status: Option<&CertificateSigningRequestStatus>) -> Verdict {
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let of = |kind: &str| {
        let found =
            conditions.iter().find(|condition| condition.type_ == kind && condition.status != "False");
        found.map(|condition| {
            let parts = [&condition.reason, &condition.message];
            let parts: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
            parts.join(": ")
        })
    };
    if let Some(why) = of("Denied") {
        return Verdict::Denied(why);
    }
    if let Some(why) = of("Failed") {
        return Verdict::Failed(why);
    }
    match status.and_then(|status| status.certificate.as_ref()).filter(|pem| !pem.0.is_empty()) {
        // Without an approval nobody may have signed it.
        Some(pem) if of("Approved").is_some() => Verdict::Issued(pem.0.clone()),
        _ if of("Approved").is_some() => Verdict::Approved,
        _ => Verdict::Pending,
    }
}

/// Whether what was issued is what was asked for.
///
/// # Errors
/// What is wrong with it.
pub fn check_issued(
    facts: &CertificateFacts,
    wish: &Wish,
    key_hash: &[u8; 32],
    now: Timestamp,
) -> Result<(), String> {
    if &facts.key_hash != key_hash {
        return Err("it is for another key".into());
    }
    // What lacks something would be renewed at once, for ever.
    if let Some(why) = differs(facts, wish) {
        return Err(why);
    }
    if !facts.organisations.iter().any(|group| group == NODES) {
        return Err(format!("it lacks the organisation {NODES}"));
    }
    if now >= facts.not_after {
        return Err(format!(
            "it expired at {}, before it came: is this node's clock right?",
            facts.not_after
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::certificates::v1::CertificateSigningRequestCondition;

    use super::super::example;
    use super::*;

    #[test]
    fn a_request_says_what_a_kubelets_says() {
        let wish = Wish::client("worker-1");
        let name = request_name(&wish, &[1; 32]);
        let object = serde_json::to_value(request_object(&wish, &name, "PEM")).unwrap();
        let expected = serde_json::json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"name": name},
            "spec": {
                "request": "UEVN",
                "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
                "usages": ["digital signature", "client auth"],
            },
        });
        assert_eq!(object, expected);
        let serving = request_object(&Wish::serving("worker-1", [], []), "x", "PEM");
        assert_eq!(serving.spec.signer_name, "kubernetes.io/kubelet-serving");
        assert_eq!(serving.spec.usages.unwrap(), ["digital signature", "server auth"]);
    }

    #[test]
    fn a_name_follows_from_key_and_wish() {
        let wish = Wish::client("worker-1");
        let name = request_name(&wish, &[1; 32]);
        assert_eq!(name, request_name(&wish, &[1; 32]));
        assert!(name.len() == 41 && name.starts_with("node-csr-"), "{name}");
        let others = [
            request_name(&wish, &[2; 32]),
            request_name(&Wish::client("worker-2"), &[1; 32]),
            request_name(&Wish::serving("worker-1", [], []), &[1; 32]),
            request_name(&Wish::serving("worker-1", ["a".into()], []), &[1; 32]),
        ];
        assert!(!others.contains(&name), "{others:?}");
    }

    #[test]
    fn a_requests_state_is_told() {
        let condition = |kind: &str, status: &str| CertificateSigningRequestCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some("Why".into()),
            message: Some("because".into()),
            ..CertificateSigningRequestCondition::default()
        };
        let status = |kinds: &[&str], pem: &str| CertificateSigningRequestStatus {
            conditions: Some(kinds.iter().map(|kind| condition(kind, "True")).collect()),
            certificate: Some(ByteString(pem.into())),
        };
        let why = || "Why: because".to_owned();
        let cases = [
            (None, Verdict::Pending),
            (Some(status(&[], "")), Verdict::Pending),
            (Some(status(&["Approved"], "")), Verdict::Approved),
            (Some(status(&["Approved"], "PEM")), Verdict::Issued(b"PEM".to_vec())),
            (Some(status(&[], "PEM")), Verdict::Pending),
            (Some(status(&["Denied"], "")), Verdict::Denied(why())),
            (Some(status(&["Approved", "Denied"], "PEM")), Verdict::Denied(why())),
            (Some(status(&["Approved", "Failed"], "")), Verdict::Failed(why())),
        ];
        for (status, expected) in cases {
            assert_eq!(verdict(status.as_ref()), expected, "{status:?}");
        }
    }

    #[test]
    fn what_was_not_asked_for_is_not_taken() {
        let wish = Wish::client("worker-1");
        let good = example("2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z");
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        assert_eq!(check_issued(&good, &wish, &[7; 32], now), Ok(()));
        let spoil = |change: fn(&mut CertificateFacts)| {
            let mut facts = good.clone();
            change(&mut facts);
            check_issued(&facts, &wish, &[7; 32], now).unwrap_err()
        };
        assert!(spoil(|facts| facts.key_hash = [8; 32]).contains("another key"));
        assert!(spoil(|facts| facts.common_name = "system:node:a".into()).contains("system:node:a"));
        assert!(spoil(|facts| facts.organisations.clear()).contains(NODES));
        assert!(spoil(|facts| facts.not_after = facts.not_before).contains("clock"));
    }
}
