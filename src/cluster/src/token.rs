//! ServiceAccount tokens by TokenRequest: bound to a pod, for one audience, for a time.

use jiff::Timestamp;
use longshore_core::ids::{PodKey, PodUid};
use longshore_core::pod::token::TokenSpec;
use serde::Deserialize;
use serde_json::json;

use crate::client::ApiClient;
use crate::error::ApiError;
use crate::path::Path;

/// A token and when it ends.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuedToken {
    pub token: String,
    pub expires_at: Timestamp,
}

impl std::fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuedToken").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Answer {
    status: AnswerStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnswerStatus {
    token: String,
    expiration_timestamp: Timestamp,
}

/// Asks for a token that ends with the pod.
///
/// # Errors
/// As any call; a ServiceAccount that is missing is a 404.
pub async fn request(
    client: &ApiClient,
    pod: &PodKey,
    uid: &PodUid,
    service_account: &str,
    spec: &TokenSpec,
) -> Result<IssuedToken, ApiError> {
    let audiences: Vec<&str> =
        spec.audience.as_deref().filter(|audience| !audience.is_empty()).into_iter().collect();
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": audiences,
            "expirationSeconds": spec.expiration_seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": &*pod.name, "uid": uid.as_str()},
        },
    });
    let path = Path::core_in(&pod.namespace, "serviceaccounts").then(service_account).then("token");
    let answer: Answer = client.create(&path, &body).await?;
    Ok(IssuedToken { token: answer.status.token, expires_at: answer.status.expiration_timestamp })
}
