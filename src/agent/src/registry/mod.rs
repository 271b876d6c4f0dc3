//! What this node itself has for image registries: Docker configuration files. Which credential fits an image is
//! decided in `longshore_core::image`; nothing here is logged but paths and counts.

mod files;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use longshore_core::image::keyring::Credential;
use longshore_core::image::reference::repository;

use crate::config::Settings;
use files::Files;

/// Credentials of the node, for pods' images of any namespace.
#[derive(Debug, Default)]
pub struct NodeCredentials {
    files: Files,
}

impl NodeCredentials {
    /// What this node is set up with.
    pub fn of_node(settings: &Settings) -> Self {
        Self::from_files(default_files(&settings.pods.root_dir, std::env::var_os("HOME")))
    }

    /// From the first of these files that is there and can be used.
    pub fn from_files(paths: Vec<PathBuf>) -> Self {
        Self { files: Files::new(paths) }
    }

    /// Those to try for an image, in order. What cannot be read is told in the log and left out.
    pub async fn for_image(&self, image: &str) -> Vec<Credential> {
        self.files.keyring().await.fitting(&repository(image))
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
