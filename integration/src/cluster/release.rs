//! Which release of Kubernetes the control plane is built from: the one our Go module requires, or another that
//! CONTROL_PLANE_VERSION names, whose module is made of that release's own go.mod.

use std::env;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process::Run;

pub const VARIABLE: &str = "CONTROL_PLANE_VERSION";

/// A release, for example 1.36.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    minor: u32,
    patch: u32,
}

/// What integration/control-plane/go.mod requires.
pub const OWN: Release = Release { minor: 36, patch: 3 };

impl Release {
    /// The one that is asked for.
    ///
    /// # Errors
    /// Where the variable's value is no release.
    pub fn asked() -> Result<Self> {
        match env::var(VARIABLE) {
            Ok(text) => Self::parse(&text)
                .with_context(|| format!("{VARIABLE} is {text:?}; a release like {OWN} is expected")),
            Err(_) => Ok(OWN),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (minor, patch) = text.strip_prefix("1.")?.split_once('.')?;
        Some(Self { minor: minor.parse().ok()?, patch: patch.parse().ok()? })
    }

    /// What the release build of Kubernetes tells the linker; without it the programs say they are version 0.
    pub fn linker_flags(self) -> String {
        let package = "k8s.io/component-base/version";
        format!(
            "-X {package}.gitVersion=v{self} -X {package}.gitMajor=1 -X {package}.gitMinor={}",
            self.minor
        )
    }

    /// Writes the module of the same program with this release to an empty folder. go.sum comes with the build, after
    /// the public checksums.
    ///
    /// # Errors
    /// Where Go cannot get the release's go.mod.
    pub fn write_module(self, go: &str, main: &[u8], dir: &Path) -> Result<()> {
        let told = Run::new(go)
            .args(["mod", "download", "-json", &format!("k8s.io/kubernetes@v{self}")])
            .env("GOWORK", "off")
            .deadline(super::assets::DOWNLOAD)
            .check()?;
        let told: Value = serde_json::from_str(&told)?;
        let upstream = told["GoMod"].as_str().context("Go does not say where the release's go.mod is")?;
        let upstream = fs::read_to_string(upstream).with_context(|| format!("cannot read {upstream}"))?;
        fs::write(dir.join("go.mod"), self.go_mod(&upstream))?;
        Ok(fs::write(dir.join("main.go"), main)?)
    }

    /// The release's own requirements, its staging modules as they were published, and the release itself.
    fn go_mod(self, upstream: &str) -> String {
        let published = format!("v0.{}.{}", self.minor, self.patch);
        let lines = upstream.lines().map(|line| match line.split_once("=> ./staging/src/") {
            Some((head, module)) => format!("{head}=> {module} {published}\n"),
            None if line.starts_with("module ") => "module longshore.invalid/control-plane\n".to_owned(),
            None => format!("{line}\n"),
        });
        lines.chain([format!("\nrequire k8s.io/kubernetes v{self}\n")]).collect()
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1.{}.{}", self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_and_written() {
        assert_eq!(Release::parse("1.34.4").unwrap().to_string(), "1.34.4");
        for wrong in ["", "1.34", "v1.34.4", "2.1.0", "1.34.4.1", "1.38.0-beta.0"] {
            assert_eq!(Release::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_module_has_the_releases_own_requirements() {
        let upstream = "module k8s.io/kubernetes\n\ngo 1.24.0\n\nrequire (\n\tgithub.com/spf13/cobra v1.9.1\n\
                        \tk8s.io/api v0.0.0\n)\n\nreplace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n)\n";
        let expected = "module longshore.invalid/control-plane\n\ngo 1.24.0\n\nrequire (\n\tgithub.com/spf13/cobra v1.9.1\n\
                        \tk8s.io/api v0.0.0\n)\n\nreplace (\n\tk8s.io/api => k8s.io/api v0.34.4\n)\n\n\
                        require k8s.io/kubernetes v1.34.4\n";
        assert_eq!(Release { minor: 34, patch: 4 }.go_mod(upstream), expected);
    }
}
