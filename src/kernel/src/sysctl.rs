//! Kernel parameters below /proc/sys: the `Sysctls` trait, the real one and, with the feature `fake`,
//! one in memory. Values are written only where they differ; which ones are wanted is the caller's
//! business. The calls read and write memory of the kernel, not a disk, and so do not block.

use std::fs;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;

/// Why a kernel parameter could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SysctlError {
    /// The name is not one below /proc/sys.
    #[error("sysctl {0:?} is not a name such as net/ipv4/ip_forward")]
    BadName(String),
    /// The kernel has no such parameter; often its module is not loaded.
    #[error("sysctl {0} does not exist (its kernel module may not be loaded)")]
    Missing(String),
    /// Reading failed.
    #[error("sysctl {name}: read")]
    Read {
        /// The parameter.
        name: String,
        /// The cause.
        #[source]
        source: Errno,
    },
    /// Writing failed.
    #[error("sysctl {name}: set to {value:?}")]
    Write {
        /// The parameter.
        name: String,
        /// What should have been written.
        value: String,
        /// The cause.
        #[source]
        source: Errno,
    },
}

impl SysctlError {
    /// Whether the same call may well succeed a moment later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, SysctlError::Read { source, .. } | SysctlError::Write { source, .. }
            if matches!(source, Errno::EAGAIN | Errno::EINTR | Errno::EBUSY | Errno::ENOMEM))
    }
}

/// Kernel parameters. Names have slashes: `net/ipv4/conf/eth0.5/forwarding` needs them.
pub trait Sysctls: Send + Sync {
    /// The value, without the final newline.
    fn read(&self, name: &str) -> Result<String, SysctlError>;

    /// Set the value.
    fn write(&self, name: &str, value: &str) -> Result<(), SysctlError>;

    /// Set the value where it differs; whether it was written. Runs of blanks compare equal.
    fn ensure(&self, name: &str, value: &str) -> Result<bool, SysctlError> {
        if self.read(name)?.split_whitespace().eq(value.split_whitespace()) {
            return Ok(false);
        }
        self.write(name, value).map(|()| true)
    }
}

/// The parameters of the calling thread's namespaces.
#[derive(Debug, Clone)]
pub struct RealSysctls {
    root: PathBuf,
}

impl Default for RealSysctls {
    fn default() -> Self {
        RealSysctls::new("/proc/sys")
    }
}

impl RealSysctls {
    /// Parameters below a folder other than /proc/sys.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        RealSysctls { root: root.into() }
    }

    fn path(&self, name: &str) -> Result<PathBuf, SysctlError> {
        check_name(name)?;
        Ok(self.root.join(name))
    }
}

fn check_name(name: &str) -> Result<(), SysctlError> {
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if plain && !name.is_empty() { Ok(()) } else { Err(SysctlError::BadName(name.to_owned())) }
}

fn errno(err: &std::io::Error) -> Errno {
    Errno::from_raw(err.raw_os_error().unwrap_or(0))
}

impl Sysctls for RealSysctls {
    fn read(&self, name: &str) -> Result<String, SysctlError> {
        match fs::read_to_string(self.path(name)?) {
            Ok(value) => Ok(value.trim_end_matches('\n').to_owned()),
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
                Err(SysctlError::Missing(name.to_owned()))
            }
            Err(err) => Err(SysctlError::Read { name: name.to_owned(), source: errno(&err) }),
        }
    }

    fn write(&self, name: &str, value: &str) -> Result<(), SysctlError> {
        let path = self.path(name)?;
        let outcome = fs::OpenOptions::new().write(true).open(path).and_then(|mut file| {
            // One write: the kernel takes every write as a whole value.
            std::io::Write::write_all(&mut file, value.as_bytes())
        });
        match outcome {
            Ok(()) => Ok(()),
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
                Err(SysctlError::Missing(name.to_owned()))
            }
            Err(err) => {
                let (name, value) = (name.to_owned(), value.to_owned());
                Err(SysctlError::Write { name, value, source: errno(&err) })
            }
        }
    }
}

/// Kernel parameters in memory. Only those that were set up exist.
#[cfg(any(test, feature = "fake"))]
#[derive(Debug, Default)]
pub struct FakeSysctls {
    /// Scripted faults; texts are `sysctl net/ipv4/ip_forward: read` and `...: set to "1"`.
    pub faults: crate::fake::Faults,
    values: std::sync::Mutex<std::collections::BTreeMap<String, String>>,
}

#[cfg(any(test, feature = "fake"))]
impl FakeSysctls {
    /// Parameters with their values.
    pub fn new(values: &[(&str, &str)]) -> Self {
        let fake = FakeSysctls::default();
        for (name, value) in values {
            fake.lock().insert((*name).to_owned(), (*value).to_owned());
        }
        fake
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, std::collections::BTreeMap<String, String>> {
        self.values.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(any(test, feature = "fake"))]
impl Sysctls for FakeSysctls {
    fn read(&self, name: &str) -> Result<String, SysctlError> {
        check_name(name)?;
        let fault = self.faults.check(&format!("sysctl {name}: read"));
        fault.map_err(|source| SysctlError::Read { name: name.to_owned(), source })?;
        self.lock().get(name).cloned().ok_or_else(|| SysctlError::Missing(name.to_owned()))
    }

    fn write(&self, name: &str, value: &str) -> Result<(), SysctlError> {
        check_name(name)?;
        let fault = self.faults.check(&format!("sysctl {name}: set to {value:?}"));
        fault.map_err(|source| SysctlError::Write {
            name: name.to_owned(),
            value: value.to_owned(),
            source,
        })?;
        let mut values = self.lock();
        *values.get_mut(name).ok_or_else(|| SysctlError::Missing(name.to_owned()))? = value.to_owned();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_written_only_where_it_differs() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("net/ipv4")).unwrap();
        fs::write(dir.path().join("net/ipv4/ip_forward"), "0\n").unwrap();
        fs::write(dir.path().join("net/ipv4/ip_local_port_range"), "1024\t65535\n").unwrap();
        let sysctls = RealSysctls::new(dir.path());
        assert_eq!(sysctls.ensure("net/ipv4/ip_forward", "1"), Ok(true));
        assert_eq!(sysctls.ensure("net/ipv4/ip_forward", "1"), Ok(false));
        assert_eq!(sysctls.ensure("net/ipv4/ip_local_port_range", "1024 65535"), Ok(false));
        let err = sysctls.ensure("net/ipv4/vs/conntrack", "1").unwrap_err();
        assert_eq!(
            err.to_string(),
            "sysctl net/ipv4/vs/conntrack does not exist (its kernel module may not be loaded)"
        );
    }

    #[test]
    fn a_name_cannot_leave_its_folder() {
        let sysctls = RealSysctls::default();
        for name in ["../version", "/etc/passwd", "", "net/../../version"] {
            assert_eq!(sysctls.write(name, "1"), Err(SysctlError::BadName(name.to_owned())), "{name}");
        }
    }

    #[test]
    fn the_real_kernel_answers() {
        let release = RealSysctls::default().read("kernel/osrelease").unwrap();
        assert!(!release.is_empty() && !release.ends_with('\n'));
    }

    #[test]
    fn the_fake_refuses_what_is_not_there() {
        let sysctls = FakeSysctls::new(&[("vm/panic_on_oom", "1")]);
        assert_eq!(sysctls.ensure("vm/panic_on_oom", "0"), Ok(true));
        assert_eq!(sysctls.read("vm/panic_on_oom").as_deref(), Ok("0"));
        assert!(matches!(sysctls.ensure("vm/none", "0"), Err(SysctlError::Missing(_))));
        sysctls.faults.script("panic_on_oom: set", Errno::EACCES, 1);
        let err = sysctls.ensure("vm/panic_on_oom", "1").unwrap_err();
        assert_eq!(err.to_string(), "sysctl vm/panic_on_oom: set to \"1\"");
    }
}
