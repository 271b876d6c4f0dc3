//! What a cluster tells a node that knows only a token: `cluster-info` in `kube-public`, believed after its
//! signature, its authority's key and the server itself were checked; then the kubelet's configuration.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use longshore_cluster::{ApiClient, Path};
use longshore_core::bootstrap::{Endpoint, Token, Trust, check_header, detached};
use ring::hmac;
use serde::Deserialize;

use super::{Doors, JoinError};

/// A cluster that was found and believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The server's address as the cluster itself tells it.
    pub server: Endpoint,
    /// Path before `/api`, mostly empty.
    pub base: String,
    /// PEM.
    pub authority: String,
}

#[derive(Debug, Deserialize)]
struct ConfigMap {
    #[serde(default)]
    data: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Info {
    clusters: Vec<InfoCluster>,
}

#[derive(Debug, Deserialize)]
struct InfoCluster {
    cluster: InfoServer,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct InfoServer {
    server: String,
    #[serde(default)]
    certificate_authority_data: String,
}

/// Finds the cluster.
pub(super) async fn cluster(
    doors: &dyn Doors,
    server: &Endpoint,
    token: &Token,
    trust: &Trust,
) -> Result<Found, JoinError> {
    let client = doors.anybody(server)?;
    let name = client.server().to_owned();
    let unread = |what, source| JoinError::Ask { what, server: name.clone(), source: Box::new(source) };
    let told = info(&client).await.map_err(|source| unread("cluster-info", source))?;
    let unsigned = || JoinError::Unsigned { server: name.clone(), id: token.id().to_owned() };
    let text = told
        .data
        .get("kubeconfig")
        .ok_or_else(|| JoinError::Info { server: name.clone(), message: "has no kubeconfig".into() })?;
    let jws = told.data.get(&format!("jws-kubeconfig-{}", token.id())).ok_or_else(unsigned)?;
    verify(text, jws, token).map_err(|message| JoinError::Forged { server: name.clone(), message })?;
    let found = read(text).map_err(|message| JoinError::Info { server: name.clone(), message })?;
    trust
        .check(found.authority.as_bytes())
        .map_err(|message| JoinError::Authority { server: name.clone(), message })?;
    // Until here anybody in between could have passed on the real cluster's words.
    let checked = doors.checked(server, found.authority.as_bytes())?;
    let again = info(&checked).await.map_err(|source| match source.is_untrusted() {
        true => JoinError::Impostor { server: name.clone(), source: Box::new(source) },
        false => unread("cluster-info once more, over the checked connection,", source),
    })?;
    if again.data.get("kubeconfig") != Some(text) {
        return Err(JoinError::Changed { server: name });
    }
    Ok(found)
}

async fn info(client: &ApiClient) -> Result<ConfigMap, longshore_cluster::ApiError> {
    client.get(&Path::core_in("kube-public", "configmaps").then("cluster-info")).await
}

/// Whether a text was signed with the token (HMAC-SHA-256 over header and payload).
fn verify(text: &str, jws: &str, token: &Token) -> Result<(), String> {
    let parts = detached(jws)?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| "is not base64".to_owned());
    check_header(&decode(parts.header)?, token)?;
    let signed = format!("{}.{}", parts.header, URL_SAFE_NO_PAD.encode(text));
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.secret().as_bytes());
    hmac::verify(&key, signed.as_bytes(), &decode(parts.signature)?)
        .map_err(|_| "is not made with this token's secret".to_owned())
}

fn read(text: &str) -> Result<Found, String> {
    let info: Info =
        serde_saphyr::from_str(text).map_err(|_| "its kubeconfig is not understood".to_owned())?;
    let cluster = info.clusters.into_iter().next().ok_or("its kubeconfig names no cluster")?.cluster;
    let uri: http::Uri = cluster.server.parse().map_err(|_| not_https(&cluster.server))?;
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    if uri.scheme_str() != Some("https") || host.is_empty() {
        return Err(not_https(&cluster.server));
    }
    let packed: String = cluster.certificate_authority_data.chars().filter(|c| !c.is_whitespace()).collect();
    let authority = STANDARD.decode(packed).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let none = "its kubeconfig has no certificate-authority-data that can be read";
    let authority = authority.filter(|text| !text.is_empty()).ok_or(none)?;
    Ok(Found {
        server: Endpoint { host: host.to_owned(), port: uri.port_u16().unwrap_or(443) },
        base: uri.path().trim_end_matches('/').to_owned(),
        authority,
    })
}

fn not_https(server: &str) -> String {
    format!("its kubeconfig names the server {server:?}, which is not https://HOST:PORT")
}

/// The cluster's KubeletConfiguration, or why it cannot be had; a token that is refused ends the join.
pub(super) async fn kubelet_config(
    client: &ApiClient,
    token: &Token,
) -> Result<Result<String, String>, JoinError> {
    let path = Path::core_in("kube-system", "configmaps").then("kubelet-config");
    match client.get::<ConfigMap>(&path).await {
        Ok(mut told) => Ok(told.data.remove("kubelet").ok_or_else(|| "it has no `kubelet`".into())),
        Err(error) if error.code() == Some(401) => Err(JoinError::Expired { id: token.id().to_owned() }),
        Err(error) if matches!(error.code(), Some(403 | 404)) => Ok(Err(error.one_line())),
        Err(source) => {
            let (what, server) = ("kubelet-config", client.server().to_owned());
            Err(JoinError::Ask { what, server, source: Box::new(source) })
        }
    }
}
