//! The test images: pause, busybox and the web server, as OCI archives that `ctr images import` takes. No registry
//! is needed. The archives' bytes depend on the programs in them alone, so digests are stable.

mod archive;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

pub use archive::{Entry, Image, digest};

use crate::cache;
use crate::process::Run;
use crate::tiers::workspace_root;

pub const PAUSE: &str = "longshore.test/pause:3.10";
pub const BUSYBOX: &str = "longshore.test/busybox:1";
pub const WEB: &str = "longshore.test/web:1";

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds what is missing and gives the folder with the archives, one `NAME.tar` each.
///
/// # Errors
/// Where the programs do not compile or busybox-static is not installed.
pub fn archives() -> Result<PathBuf> {
    let images = [pause()?, busybox()?, web()?];
    let parts = images.iter().map(Image::identity).collect::<Vec<_>>();
    cache::entry("images", &cache::key(&parts), |dir| {
        fs::create_dir(dir)?;
        for image in &images {
            fs::write(dir.join(image.file_name()), image.archive()?)?;
        }
        Ok(())
    })
}

/// Compiles the static programs; gives the folder they are in.
fn programs() -> Result<PathBuf> {
    let root = workspace_root();
    let target_dir = root.join("target/static");
    let remap = format!("-C target-feature=+crt-static --remap-path-prefix={}=/longshore", root.display());
    let status = Command::new("cargo")
        .args([
            "build",
            "-q",
            "--locked",
            "-p",
            "longshore-test-programs",
            "--profile",
            "image",
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTFLAGS", remap)
        .current_dir(&root)
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("the programs of the test images do not compile");
    }
    Ok(target_dir.join(TARGET).join("image"))
}

fn pause() -> Result<Image> {
    let program = fs::read(programs()?.join("pause"))?;
    Ok(Image::new(PAUSE, &["/pause"], vec![Entry::program("pause", program)]))
}

fn web() -> Result<Image> {
    let program = fs::read(programs()?.join("web"))?;
    Ok(Image::new(WEB, &["/web"], vec![Entry::folder("tmp", 0o1777), Entry::program("web", program)]))
}

/// Debian's busybox-static with a link for each of its commands.
fn busybox() -> Result<Image> {
    let path = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
    let path = path.context("busybox-static is not installed: run scripts/install-deps node")?;
    let commands = Run::new(path).args(["--list"]).check()?;
    let mut entries = vec![
        Entry::folder("bin", 0o755),
        Entry::folder("etc", 0o755),
        Entry::folder("root", 0o700),
        Entry::folder("tmp", 0o1777),
        Entry::file("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n"),
        Entry::file(
            "etc/passwd",
            0o644,
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
        ),
        Entry::program("bin/busybox", fs::read(path)?),
    ];
    let mut names: Vec<&str> = commands.lines().filter(|c| *c != "busybox" && !c.contains('/')).collect();
    names.sort_unstable();
    names.dedup();
    entries.extend(names.into_iter().map(|name| Entry::link(&format!("bin/{name}"), "busybox")));
    Ok(Image::new(BUSYBOX, &["sh"], entries).as_command())
}
