//! The node's root file system: Debian trixie with systemd, containerd, runtimes, CNI and a cloud kernel, made by
//! mmdebstrap once per recipe. The native node uses it as a folder, the VM as an ext4 disk.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache;
use crate::process::Run;
use crate::tiers::workspace_root;

const SUITE: &str = "trixie";
const MIRROR: &str = "http://deb.debian.org/debian";
/// Raised where the steps below change without the files or packages changing.
const RECIPE: &str = "1";

const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "containerd",
    "runc",
    "crun",
    "containernetworking-plugins",
    "iptables",
    "nftables",
    "ipvsadm",
    "ipset",
    "conntrack",
    "iproute2",
    "procps",
    "kmod",
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "zstd",
    "openssh-server",
    "curl",
    "iputils-ping",
    "netbase",
    "busybox-static",
];

/// What slows a boot down and serves no test.
const MASKED: &[&str] = &[
    "serial-getty@ttyS0.service",
    "getty@tty1.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-networkd-wait-online.service",
    "systemd-firstboot.service",
    "systemd-pcrphase.service",
    "systemd-binfmt.service",
];

const ENABLED: &[&str] = &["systemd-networkd.service", "ssh.service", "containerd.service"];

/// The root as a folder in the cache; it is shared by nodes and must not be written to.
///
/// # Errors
/// Where mmdebstrap cannot be run or fails (it needs root and Debian's archive).
pub fn folder() -> Result<PathBuf> {
    let files = own_files()?;
    let mut parts: Vec<Vec<u8>> =
        vec![RECIPE.into(), SUITE.into(), PACKAGES.join(",").into(), MASKED.join(",").into()];
    for file in &files {
        parts.push(file.place.clone().into());
        parts.push(file.mode.to_be_bytes().into());
        parts.push(file.bytes.clone());
    }
    cache::entry("root", &cache::key(&parts), |dir| {
        println!("building the node's root from Debian {SUITE} (once; about a minute)");
        bootstrap(dir)?;
        install(dir, &files)?;
        settle(dir)
    })
}

/// A file of `integration/root`.
struct OwnFile {
    place: String,
    mode: u32,
    bytes: Vec<u8>,
}

fn own_files() -> Result<Vec<OwnFile>> {
    let top = workspace_root().join("integration/root");
    let mut found = Vec::new();
    let mut folders = vec![top.clone()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder)?.flatten().map(|e| e.path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let place = path.strip_prefix(&top)?.to_string_lossy().into_owned();
            let mode = if path.metadata()?.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 };
            found.push(OwnFile { place, mode, bytes: fs::read(&path)? });
        }
    }
    found.sort_by(|a, b| a.place.cmp(&b.place));
    Ok(found)
}

/// In a mount namespace of its own, so that nothing stays mounted where it is interrupted.
fn bootstrap(dir: &Path) -> Result<()> {
    let mut run = Run::new("unshare").args([
        "--mount",
        "--",
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        "--mode=root",
    ]);
    run = run.args([
        "--format=directory",
        "--aptopt=Acquire::Languages \"none\"",
        "--aptopt=APT::Install-Recommends \"false\"",
    ]);
    for kind in ["doc", "man", "locale", "info"] {
        run = run.args([format!("--dpkgopt=path-exclude=/usr/share/{kind}/*")]);
    }
    // The initrd is made while the kernel is installed, so its settings have to be there before.
    let initrd = workspace_root().join("integration/root/etc/initramfs-tools");
    run = run.args([
        format!("--essential-hook=mkdir -p \"$1/etc\"; cp -r {} \"$1/etc/\"", initrd.display()),
        format!("--include={}", PACKAGES.join(",")),
    ]);
    run.args([OsStr::new(SUITE), dir.as_os_str(), OsStr::new(MIRROR)])
        .deadline(Duration::from_secs(900))
        .check()
        .map(drop)
}

fn install(dir: &Path, files: &[OwnFile]) -> Result<()> {
    for file in files {
        let path = dir.join(&file.place);
        fs::create_dir_all(path.parent().context("a file has a folder")?)?;
        // A link of the distribution (resolv.conf) is replaced, not followed out of the root.
        if path.is_symlink() {
            fs::remove_file(&path)?;
        }
        fs::write(&path, &file.bytes).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
    }
    for folder in ["opt/longshore", "etc/longshore/manifests", "var/log/harness", "root/.ssh"] {
        fs::create_dir_all(dir.join(folder))?;
    }
    fs::set_permissions(dir.join("root/.ssh"), fs::Permissions::from_mode(0o700))?;
    Ok(())
}

fn settle(dir: &Path) -> Result<()> {
    let systemctl = |verb: &str, units: &[&str]| {
        Run::new("chroot")
            .args([dir.as_os_str(), OsStr::new("systemctl"), OsStr::new(verb)])
            .args(units)
            .check()
    };
    systemctl("mask", MASKED)?;
    systemctl("enable", ENABLED)?;
    Ok(())
}

/// The kernel and initrd of the root.
///
/// # Errors
/// Where the root has none.
pub fn kernel(root: &Path) -> Result<(PathBuf, PathBuf)> {
    let newest = |prefix: &str| {
        let mut found: Vec<PathBuf> = fs::read_dir(root.join("boot"))?
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix)))
            .collect();
        found.sort();
        found.pop().with_context(|| format!("no {prefix}* in the root's /boot"))
    };
    Ok((newest("vmlinuz-")?, newest("initrd.img-")?))
}
