//! The node's kubeconfig: read where it is there, made of the bootstrap kubeconfig where not, and written
//! once there is a certificate it can name.

use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use longshore_cluster::kubeconfig::{Login, Source};
use longshore_cluster::{Kubeconfig, KubeconfigError};
use longshore_core::certificates::{Purpose, read_certificate};

use super::store::write_private;
use super::{CertificateError, CertificateStore, read_bounded};
use crate::config::JoinSettings;

/// The server and credentials the node runs with. Where it rotates its certificate these are the link to
/// the newest, which may not be there yet.
///
/// # Errors
/// A file that is not a kubeconfig, or none at all.
pub fn node_kubeconfig(join: &JoinSettings) -> Result<Kubeconfig, CertificateError> {
    let settings = &join.certificates;
    let store = CertificateStore::new(&settings.folder, Purpose::Client);
    let kept = match (Kubeconfig::read(&join.kubeconfig), &settings.bootstrap) {
        (Ok(config), _) => Some(config),
        (Err(KubeconfigError::Read { source, .. }), Some(_)) if source.kind() == io::ErrorKind::NotFound => {
            None
        }
        (Err(error), _) => return Err(error.into()),
    };
    if !settings.rotate && settings.bootstrap.is_none() {
        return kept.ok_or_else(|| neither(join, &join.kubeconfig));
    }
    let mut config = match (kept, &settings.bootstrap) {
        (Some(config), _) => {
            let Login::Certificate { certificate, key } = &config.login else {
                // A token is somebody else's to renew.
                return Ok(config);
            };
            seed(&store, certificate, key)?;
            config
        }
        (None, Some(bootstrap)) => match Kubeconfig::read(bootstrap) {
            Err(KubeconfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(neither(join, bootstrap));
            }
            config => config?,
        },
        (None, None) => return Err(neither(join, &join.kubeconfig)),
    };
    config.login = current(&store);
    Ok(config)
}

fn neither(join: &JoinSettings, bootstrap: &Path) -> CertificateError {
    CertificateError::NoCredentials { kubeconfig: join.kubeconfig.clone(), bootstrap: bootstrap.to_owned() }
}

fn current(store: &CertificateStore) -> Login {
    let file = Source::File(store.current_path());
    Login::Certificate { certificate: file.clone(), key: file }
}

/// A kubeconfig with a certificate of its own gives the first one to rotate from, as for the kubelet.
fn seed(store: &CertificateStore, certificate: &Source, key: &Source) -> Result<(), CertificateError> {
    if *certificate == Source::File(store.current_path()) {
        return Ok(());
    }
    let read = |source: &Source| match source {
        Source::Inline(bytes) => Some(bytes.clone()),
        Source::File(path) => read_bounded(path).ok(),
    };
    let (Some(certificate), Some(key)) = (read(certificate), read(key)) else { return Ok(()) };
    let Ok(facts) = read_certificate(&certificate) else { return Ok(()) };
    // The one that lasts longer counts: ours after a rotation, the file's where somebody renewed it by hand.
    if store.current().is_some_and(|current| current.not_after >= facts.not_after) {
        return Ok(());
    }
    store.save(&certificate, &String::from_utf8_lossy(&key), facts.not_before.max(Timestamp::UNIX_EPOCH))
}

/// Writes the kubeconfig that names the current certificate, unless the file names it already.
///
/// # Errors
/// Where the bootstrap kubeconfig cannot be read or the file not be written.
pub(super) fn ensure_kubeconfig(
    path: &Path,
    bootstrap: Option<&Path>,
    store: &CertificateStore,
) -> Result<(), CertificateError> {
    let login = current(store);
    let mut config = match (Kubeconfig::read(path), bootstrap) {
        (Ok(config), _) if config.login == login => return Ok(()),
        // Who wrote a certificate into the file still finds it there; the link is what is used.
        (Ok(_), None) => return Ok(()),
        // The server and its authority are what somebody put there, and what this daemon started with.
        (Ok(config), Some(_)) => config,
        (Err(KubeconfigError::Read { source, .. }), Some(bootstrap))
            if source.kind() == io::ErrorKind::NotFound =>
        {
            Kubeconfig::read(bootstrap)?
        }
        (Err(error), _) => return Err(error.into()),
    };
    config.login = login;
    write_private(path, render(&config).as_bytes())?;
    tracing::info!(path = %path.display(), "wrote the kubeconfig of the node");
    Ok(())
}

/// A kubeconfig's text.
pub fn render(config: &Kubeconfig) -> String {
    // JSON's strings are YAML's too.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let source = |name: &str, source: &Source| match source {
        Source::Inline(bytes) => format!("    {name}-data: {}\n", STANDARD.encode(bytes)),
        Source::File(path) => format!("    {name}: {}\n", quoted(&path.display().to_string())),
    };
    let server = quoted(&format!("https://{}{}", config.authority_text(), config.base));
    let mut text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: default-context\n\
         contexts:\n- name: default-context\n  context:\n    cluster: default-cluster\n    namespace: default\n    user: default-auth\n\
         clusters:\n- name: default-cluster\n  cluster:\n    server: {server}\n"
    );
    if let Some(name) = &config.tls_server_name {
        text.push_str(&format!("    tls-server-name: {}\n", quoted(name)));
    }
    text.push_str(&source("certificate-authority", &config.authority));
    text.push_str("users:\n- name: default-auth\n  user:\n");
    text.push_str(&match &config.login {
        Login::Certificate { certificate, key } => {
            source("client-certificate", certificate) + &source("client-key", key)
        }
        Login::Token(Source::Inline(token)) => {
            format!("    token: {}\n", quoted(&String::from_utf8_lossy(token)))
        }
        Login::Token(Source::File(path)) => {
            format!("    tokenFile: {}\n", quoted(&path.display().to_string()))
        }
    });
    text
}
