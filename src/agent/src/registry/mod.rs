//! What this node itself has for image registries: Docker configuration files and credential provider plugins. Which credential fits an image is
//! decided in `longshore_core::image`; nothing here is logged but paths and counts.

mod files;
mod plugins;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use futures_util::future::join_all;
use longshore_cluster::ApiClient;
use longshore_core::image::provider::PodAccount;
use longshore_core::image::pull_secrets::PullSecrets;
use longshore_core::image::reference::repository;

use crate::config::{CredentialProvider, Settings};
use crate::text::error_chain;
use files::Files;
use plugins::Plugin;

/// Credentials of the node, for pods' images of any namespace.
#[derive(Debug, Default)]
pub struct NodeCredentials {
    files: Files,
    plugins: Vec<Plugin>,
    /// Where tokens of ServiceAccounts come from; `None` while the node runs alone.
    tokens: Option<ApiClient>,
}

impl NodeCredentials {
    /// What this node is set up with.
    pub fn of_node(settings: &Settings) -> Self {
        let files = default_files(&settings.pods.root_dir, std::env::var_os("HOME"));
        Self::new(files, &settings.images.credential_providers)
    }

    /// From the first of these files that is there and can be used, and from plugins.
    pub fn new(files: Vec<PathBuf>, plugins: &[CredentialProvider]) -> Self {
        let plugins = plugins.iter().cloned().map(Plugin::new).collect();
        Self { files: Files::new(files), plugins, tokens: None }
    }

    /// The same with tokens of ServiceAccounts for the plugins that want them.
    #[must_use]
    pub fn with_tokens(self, tokens: Option<ApiClient>) -> Self {
        Self { tokens, ..self }
    }

    /// Whether it matters for an image whose ServiceAccount speaks: such pulls are not shared.
    pub fn asks_for_account(&self, image: &str) -> bool {
        let repository = repository(image);
        self.plugins.iter().any(|plugin| plugin.wants_tokens() && plugin.serves(&repository))
    }

    /// Those to try for an image, in order: the file's, then the plugins'. What gives none although it was asked is
    /// told in the log and with the pull.
    pub async fn for_image(&self, image: &str, account: Option<&PodAccount>) -> PullSecrets {
        let repository = repository(image);
        let speaks = self.tokens.as_ref().zip(account);
        let mut keyring = self.files.keyring().await;
        let serving: Vec<&Plugin> = self.plugins.iter().filter(|plugin| plugin.serves(&repository)).collect();
        let asked = join_all(serving.iter().map(|plugin| plugin.keyring(&repository, speaks.as_ref()))).await;
        let mut problems = Vec::new();
        for (plugin, answer) in serving.into_iter().zip(asked) {
            match answer {
                Ok(found) => keyring.extend(&found),
                Err(error) => {
                    let (name, error) = (plugin.name(), error_chain(&error));
                    tracing::warn!(plugin = name, image, error, "credential provider");
                    problems.push(format!("credential provider {name} {error}"));
                }
            }
        }
        PullSecrets { credentials: keyring.fitting(&repository), problems, account: None }
    }
}

/// Where the kubelet looks for a node's `config.json`: its root folder, the home folder, the root of the disk.
fn default_files(root_dir: &Path, home: Option<OsString>) -> Vec<PathBuf> {
    // Units have no HOME where they do not ask for one.
    let home = PathBuf::from(home.filter(|home| !home.is_empty()).unwrap_or_else(|| "/root".into()));
    [root_dir.to_path_buf(), home.join(".docker"), PathBuf::from("/.docker")]
        .map(|folder| folder.join("config.json"))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_looked_for_where_the_kubelet_does() {
        let paths = |home: Option<&str>| {
            let found = default_files(Path::new("/var/lib/kubelet"), home.map(OsString::from));
            found.into_iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        let rest = ["/root/.docker/config.json", "/.docker/config.json"];
        for home in [None, Some(""), Some("/root")] {
            let found = paths(home);
            assert_eq!(found[0], "/var/lib/kubelet/config.json");
            assert_eq!(found[1..], rest, "{home:?}");
        }
        assert_eq!(paths(Some("/home/a"))[1], "/home/a/.docker/config.json");
    }
}
