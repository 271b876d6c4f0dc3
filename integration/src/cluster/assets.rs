//! The programs of the control plane, and the kubelet and kube-proxy beside them: our Go module built once into the
//! cache, with another release of Kubernetes where one is asked for, or a folder of ready ones that
//! CONTROL_PLANE_ASSETS names.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::release::{self, Release};
use crate::cache;
use crate::process::Run;
use crate::tiers::{on_path, workspace_root};

/// The control plane's, each by its own name.
const PROGRAMS: [&str; 5] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"];
/// The peers'. A folder of ready programs need not have them.
pub const PEERS: [&str; 2] = ["kubelet", "kube-proxy"];
const VARIABLE: &str = "CONTROL_PLANE_ASSETS";
/// Where Go's own archive is unpacked to.
const GO_PLACE: &str = "/usr/local/go/bin/go";
/// The oldest Go that builds them, as go.mod says.
const GO: (u32, u32) = (1, 26);
/// For getting a release's module, and for building it with all that it requires.
pub(super) const DOWNLOAD: Duration = Duration::from_secs(600);
const BUILD: Duration = Duration::from_secs(3600);

/// Why there is no real kubelet to play with, where the control plane is there.
pub fn peers_obstacle() -> Option<String> {
    let folder = env::var_os(VARIABLE).map(PathBuf::from)?;
    let missing = PEERS.iter().find(|program| !folder.join(program).exists())?;
    Some(format!("{VARIABLE}: {} has no {missing}", folder.display()))
}

fn module() -> PathBuf {
    workspace_root().join("integration/control-plane")
}

/// Why they cannot be had on this machine, if so.
pub fn obstacle() -> Option<String> {
    if env::var_os(VARIABLE).is_some() {
        return folder().err().map(|error| format!("{error:#}"));
    }
    if !has_go() {
        let (major, minor) = GO;
        return Some(format!(
            "Go {major}.{minor} is not installed (https://go.dev/dl), and {VARIABLE} names no folder of ready programs"
        ));
    }
    match go_version() {
        Ok(version) if version < GO => {
            Some(format!("Go is {}.{}; {}.{} is needed", version.0, version.1, GO.0, GO.1))
        }
        Ok(_) => Release::asked().err().map(|error| format!("{error:#}")),
        Err(error) => Some(format!("{error:#}")),
    }
}

/// Whether there is a Go toolchain at all.
pub fn has_go() -> bool {
    on_path("go") || Path::new(GO_PLACE).exists()
}

fn go() -> &'static str {
    if on_path("go") { "go" } else { GO_PLACE }
}

/// Of `go version go1.26.8 linux/amd64`.
fn go_version() -> Result<(u32, u32)> {
    let text = Run::new(go()).args(["version"]).check()?;
    parse_version(&text).with_context(|| format!("`go version` printed {text}"))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let version = text.split_whitespace().find_map(|word| word.strip_prefix("go1."))?;
    let minor = version.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((1, minor.parse().ok()?))
}

/// The folder with the programs, built first where needed.
///
/// # Errors
/// Where they cannot be built, or the named folder lacks one.
pub fn folder() -> Result<PathBuf> {
    if let Some(folder) = env::var_os(VARIABLE).map(PathBuf::from) {
        let missing = PROGRAMS.iter().find(|program| !folder.join(program).exists());
        if let Some(missing) = missing {
            bail!("{VARIABLE}: {} has no {missing}", folder.display());
        }
        return Ok(folder);
    }
    let release = Release::asked()?;
    if release == release::OWN {
        return own();
    }
    let main = module().join("main.go");
    let main = fs::read(&main).with_context(|| format!("cannot read {}", main.display()))?;
    let key = cache::key([main.as_slice(), release.linker_flags().as_bytes()]);
    cache::entry(&format!("control-plane-{release}"), &key, |dir| {
        let module = tempfile::Builder::new().prefix("longshore-control-plane-").tempdir()?;
        release.write_module(go(), &main, module.path())?;
        build(release, module.path(), dir)
    })
}

/// The programs of our module as it is.
fn own() -> Result<PathBuf> {
    let module = module();
    let files = ["go.mod", "go.sum", "main.go"].map(|name| fs::read(module.join(name)));
    let mut parts = vec![release::OWN.linker_flags().into_bytes()];
    for file in files {
        parts.push(file.with_context(|| format!("cannot read {}", module.display()))?);
    }
    cache::entry("control-plane", &cache::key(&parts), |dir| build(release::OWN, &module, dir))
}

/// Builds a module into a new folder, with a name for each of the programs.
fn build(release: Release, module: &Path, dir: &Path) -> Result<()> {
    println!("building the control plane {release} with Go (once; some minutes on two cores)");
    fs::create_dir_all(dir)?;
    let program = dir.join("control-plane");
    // A module without go.sum gets one.
    let sums = if release == release::OWN { "-mod=readonly" } else { "-mod=mod" };
    // Others on this machine go first.
    Run::new("nice")
        .args(["-n", "10", go(), "build", "-C"])
        .arg_path(module)
        .args([sums, "-trimpath", "-buildvcs=false"])
        .args([&format!("-ldflags=-s -w {}", release.linker_flags()), "-o"])
        .arg_path(&program)
        .args(["."])
        .env("CGO_ENABLED", "0")
        .deadline(BUILD)
        .check()?;
    for name in PROGRAMS.into_iter().chain(PEERS) {
        // Links would be followed by the bind mount of kubectl: a hard link has a name of its own.
        if fs::hard_link(&program, dir.join(name)).is_err() {
            symlink("control-plane", dir.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_say_the_release_they_are_built_from() {
        let module = fs::read_to_string(module().join("go.mod")).unwrap();
        assert!(module.contains(&format!("k8s.io/kubernetes v{}\n", release::OWN)), "{}", release::OWN);
    }

    #[test]
    fn versions_of_go_are_read() {
        for (text, expected) in [
            ("go version go1.26.8 linux/amd64", Some((1, 26))),
            ("go version go1.19 linux/amd64", Some((1, 19))),
            ("go version go1.27rc1 linux/arm64", Some((1, 27))),
            ("gccgo", None),
        ] {
            assert_eq!(parse_version(text), expected, "{text}");
        }
    }
}
