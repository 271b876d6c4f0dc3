//! Starting QEMU: which program, which accelerator really works here, and a machine that ends with its owner.
//! What boots in it is the business of `vm` and `guest`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{Owned, Run};
use crate::{cache, guest};

const PROGRAM: &str = "qemu-system-x86_64";

/// How instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    /// Emulation: 10 to 20 times slower, works everywhere.
    Tcg,
}

impl Accelerator {
    /// `Westmere` under emulation: without AVX the guest's programs take half the time.
    fn args(self) -> &'static [&'static str] {
        match self {
            Accelerator::Kvm => &["-accel", "kvm", "-cpu", "host"],
            Accelerator::Tcg => &["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Westmere"],
        }
    }

    /// How much longer things may take than on real hardware.
    pub fn patience(self) -> u32 {
        match self {
            Accelerator::Kvm => 1,
            Accelerator::Tcg => 8,
        }
    }
}

/// KVM where a guest boots under it, else emulation. A device that opens proves nothing (nested machines), so a small
/// guest is booted once per kernel and the answer is kept.
///
/// # Errors
/// Where the probing guest cannot be built.
pub fn accelerator() -> Result<Accelerator> {
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accelerator::Tcg);
    }
    let kernel = fs::read_to_string("/proc/version").unwrap_or_default();
    let path = cache::entry("kvm-probe", &cache::key([kernel]), |path| {
        println!("probing whether a guest boots under KVM (once)");
        let works = guest::boots(Accelerator::Kvm, Duration::from_secs(20))?;
        fs::write(path, if works { "works" } else { "hangs" }).map_err(Into::into)
    })?;
    Ok(if fs::read_to_string(path)? == "works" { Accelerator::Kvm } else { Accelerator::Tcg })
}

/// Why QEMU cannot be used here, if so.
pub fn obstacle() -> Option<String> {
    let version = Run::new(PROGRAM).args(["--version"]).check().ok();
    let Some(version) = version else {
        return Some(format!("{PROGRAM} is not installed (scripts/install-deps vm)"));
    };
    let major = version
        .split("version ")
        .nth(1)
        .and_then(|v| v.split('.').next())
        .and_then(|v| v.parse::<u32>().ok());
    match major {
        Some(8..) => None,
        _ => Some(format!(
            "{} is too old for the guest's kernel; 8 or newer is needed",
            version.lines().next().unwrap_or_default()
        )),
    }
}

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct Machine {
    pub accelerator: Accelerator,
    pub memory_mib: u32,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub append: String,
    /// Where the serial console goes.
    pub console: PathBuf,
    /// Further arguments: drives, network.
    pub extra: Vec<String>,
}

impl Machine {
    /// Starts it. It is killed when the value is dropped, and by the kernel where this process dies.
    ///
    /// # Errors
    /// Where QEMU does not start.
    pub fn start(&self) -> Result<Owned> {
        let memory = self.memory_mib.to_string();
        let errors = fs::File::create(self.console.with_extension("qemu-errors.log"))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", PROGRAM])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
                "-machine",
                "q35",
                "-smp",
                "2",
            ])
            .args(["-m", &memory, "-device", "virtio-rng-pci"])
            .args(self.accelerator.args())
            .arg("-serial")
            .arg(format!("file:{}", self.console.display()))
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initrd)
            .args(["-append", &self.append])
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .context("cannot start setpriv")?;
        Ok(Owned::new("QEMU", child))
    }
}

/// What QEMU itself complained of.
pub fn complaints(console: &Path) -> String {
    fs::read_to_string(console.with_extension("qemu-errors.log")).unwrap_or_default()
}
