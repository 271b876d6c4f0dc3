//! Questions about callers of the node's own API: whose token is this (TokenReview), and may they do that
//! (SubjectAccessReview). Nothing is kept here; for how long an answer counts is the asker's business.

use std::collections::BTreeMap;

use longshore_core::kubelet_api::access::User;
use serde::Deserialize;
use serde_json::json;

use crate::client::ApiClient;
use crate::error::ApiError;
use crate::path::Path;

#[derive(Deserialize)]
struct Answer<T> {
    #[serde(default)]
    status: T,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenStatus {
    authenticated: bool,
    user: Told,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Told {
    username: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AccessStatus {
    allowed: bool,
}

/// Whose token it is; `None` where it is nobody's.
///
/// # Errors
/// As any call.
pub async fn token(client: &ApiClient, token: &str) -> Result<Option<User>, ApiError> {
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token},
    });
    let path = Path::group("authentication.k8s.io", "v1", "tokenreviews");
    let Answer { status }: Answer<TokenStatus> = client.create(&path, &body).await?;
    let Told { username, uid, groups, extra } = status.user;
    let known = status.authenticated && !username.is_empty();
    Ok(known.then_some(User { name: username, uid, groups, extra }))
}

/// Whether a user may do `verb` on a subresource of a node.
///
/// # Errors
/// As any call.
pub async fn node_access(
    client: &ApiClient,
    user: &User,
    node: &str,
    verb: &str,
    subresource: &str,
) -> Result<bool, ApiError> {
    let body = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": user.name,
            "uid": user.uid,
            "groups": user.groups,
            "extra": user.extra,
            "resourceAttributes": {
                "verb": verb,
                "version": "v1",
                "resource": "nodes",
                "subresource": subresource,
                "name": node,
            },
        },
    });
    let path = Path::group("authorization.k8s.io", "v1", "subjectaccessreviews");
    let Answer { status }: Answer<AccessStatus> = client.create(&path, &body).await?;
    Ok(status.allowed)
}
