//! Kernel modules: whether one is there, and loading it. Loading goes through the `modprobe` program by
//! its absolute path, without a shell: it knows aliases, options and blacklists of the distribution,
//! which `finit_module` alone does not.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use async_trait::async_trait;
use nix::errno::Errno;

/// What is known of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ModuleState {
    /// It is loaded.
    Loaded,
    /// It is part of the kernel.
    Builtin,
    /// It is not there; it may be loadable.
    Absent,
}

impl ModuleState {
    /// Whether the kernel has it now.
    pub fn is_present(self) -> bool {
        self != ModuleState::Absent
    }
}

/// Why a module could not be looked at or loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    /// Not a module's name.
    #[error("{0:?} is not the name of a kernel module")]
    BadName(String),
    /// There is no program to load modules with.
    #[error("kernel module {0}: no modprobe program is installed (package kmod)")]
    NoLoader(String),
    /// The program failed.
    #[error("kernel module {name}: modprobe says: {said}")]
    Load {
        /// The module.
        name: String,
        /// The program's own words, cut to 500 bytes.
        said: String,
    },
    /// The program could not be run.
    #[error("kernel module {name}: run modprobe")]
    Run {
        /// The module.
        name: String,
        /// The cause.
        #[source]
        source: Errno,
    },
}

impl ModuleError {
    /// Whether the same call may well succeed a moment later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, ModuleError::Run { .. })
    }
}

/// The kernel's modules.
#[async_trait]
pub trait Modules: Send + Sync {
    /// Whether a module is there.
    fn state(&self, name: &str) -> Result<ModuleState, ModuleError>;

    /// Load a module and what it depends on. A success when it is there already.
    async fn load(&self, name: &str) -> Result<(), ModuleError>;

    /// Load a module unless it is there; whether it had to be loaded.
    async fn ensure(&self, name: &str) -> Result<bool, ModuleError> {
        if self.state(name)?.is_present() {
            return Ok(false);
        }
        self.load(name).await.map(|()| true)
    }
}

/// Where distributions have it.
const LOADERS: [&str; 3] = ["/usr/sbin/modprobe", "/sbin/modprobe", "/usr/bin/modprobe"];

/// Modules of the running kernel.
#[derive(Debug, Clone)]
pub struct RealModules {
    sys: PathBuf,
    builtin: PathBuf,
}

impl Default for RealModules {
    fn default() -> Self {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        RealModules::new(
            "/sys/module",
            Path::new("/lib/modules").join(release.trim()).join("modules.builtin"),
        )
    }
}

impl RealModules {
    /// Modules as a folder like /sys/module and a list like `modules.builtin` show them.
    pub fn new(sys: impl Into<PathBuf>, builtin: impl Into<PathBuf>) -> Self {
        RealModules { sys: sys.into(), builtin: builtin.into() }
    }
}

/// The kernel takes `-` for `_` in module names.
fn canonical(name: &str) -> Result<String, ModuleError> {
    let plain =
        !name.is_empty() && name.chars().all(|char| char.is_ascii_alphanumeric() || "-_".contains(char));
    if plain && !name.starts_with('-') {
        Ok(name.replace('-', "_"))
    } else {
        Err(ModuleError::BadName(name.to_owned()))
    }
}

#[async_trait]
impl Modules for RealModules {
    fn state(&self, name: &str) -> Result<ModuleState, ModuleError> {
        let name = canonical(name)?;
        let folder = self.sys.join(&name);
        if folder.join("initstate").exists() {
            return Ok(ModuleState::Loaded);
        }
        // Built-in modules have a folder only when they have parameters; the list has them all, as
        // `kernel/net/netfilter/nf_conntrack.ko`.
        let listed = std::fs::read_to_string(&self.builtin).is_ok_and(|list| {
            list.lines()
                .filter_map(|line| Path::new(line).file_stem()?.to_str())
                .any(|known| known.replace('-', "_") == name)
        });
        Ok(if listed || folder.exists() { ModuleState::Builtin } else { ModuleState::Absent })
    }

    async fn load(&self, name: &str) -> Result<(), ModuleError> {
        let name = canonical(name)?;
        let loader = LOADERS.iter().find(|path| Path::new(path).exists());
        let loader = loader.ok_or_else(|| ModuleError::NoLoader(name.clone()))?;
        let module = name.clone();
        let run = move || Command::new(loader).args(["--", &module]).env_clear().output();
        let output =
            tokio::task::spawn_blocking(run).await.unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        match output {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
                Err(ModuleError::Load { name, said })
            }
            Err(err) => {
                let source = Errno::from_raw(err.raw_os_error().unwrap_or(0));
                Err(ModuleError::Run { name, source })
            }
        }
    }
}

/// Modules in memory.
#[cfg(any(test, feature = "fake"))]
#[derive(Debug, Default)]
pub struct FakeModules {
    /// Scripted faults; the text is `kernel module ip_vs: load`.
    pub faults: crate::fake::Faults,
    inner: std::sync::Mutex<FakeInner>,
}

#[cfg(any(test, feature = "fake"))]
#[derive(Debug, Default)]
struct FakeInner {
    present: std::collections::BTreeMap<String, ModuleState>,
    loadable: std::collections::BTreeSet<String>,
}

#[cfg(any(test, feature = "fake"))]
impl FakeModules {
    /// A kernel that has some modules and could load others.
    pub fn new(present: &[(&str, ModuleState)], loadable: &[&str]) -> Self {
        let inner = FakeInner {
            present: present.iter().map(|(name, state)| ((*name).to_owned(), *state)).collect(),
            loadable: loadable.iter().map(|name| (*name).to_owned()).collect(),
        };
        FakeModules { faults: Default::default(), inner: std::sync::Mutex::new(inner) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, FakeInner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(any(test, feature = "fake"))]
#[async_trait]
impl Modules for FakeModules {
    fn state(&self, name: &str) -> Result<ModuleState, ModuleError> {
        let name = canonical(name)?;
        Ok(self.lock().present.get(&name).copied().unwrap_or(ModuleState::Absent))
    }

    async fn load(&self, name: &str) -> Result<(), ModuleError> {
        let name = canonical(name)?;
        let fault = self.faults.check(&format!("kernel module {name}: load"));
        fault.map_err(|source| ModuleError::Run { name: name.clone(), source })?;
        let mut inner = self.lock();
        if inner.present.contains_key(&name) {
            return Ok(());
        }
        if !inner.loadable.contains(&name) {
            let said = format!("FATAL: Module {name} not found");
            return Err(ModuleError::Load { name, said });
        }
        inner.present.insert(name, ModuleState::Loaded);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaded_builtin_and_absent_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let builtin = dir.path().join("modules.builtin");
        std::fs::write(&builtin, "kernel/net/ipv6/ipv6.ko\nkernel/drivers/nf-log.ko\n").unwrap();
        std::fs::create_dir_all(dir.path().join("ip_vs")).unwrap();
        std::fs::write(dir.path().join("ip_vs/initstate"), "live\n").unwrap();
        std::fs::create_dir_all(dir.path().join("tcp_cubic")).unwrap();
        let modules = RealModules::new(dir.path(), builtin);
        let cases = [
            ("ip_vs", ModuleState::Loaded),
            ("ip-vs", ModuleState::Loaded),
            ("ipv6", ModuleState::Builtin),
            ("nf_log", ModuleState::Builtin),
            ("tcp_cubic", ModuleState::Builtin),
            ("ip_vs_rr", ModuleState::Absent),
        ];
        for (name, state) in cases {
            assert_eq!(modules.state(name), Ok(state), "{name}");
        }
        for name in ["", "../x", "a b", "--remove"] {
            assert!(modules.state(name).is_err(), "{name}");
        }
    }

    #[tokio::test]
    async fn the_fake_loads_what_is_loadable() {
        let modules = FakeModules::new(&[("nf_tables", ModuleState::Builtin)], &["ip_vs"]);
        assert_eq!(modules.ensure("nf_tables").await, Ok(false));
        assert_eq!(modules.ensure("ip_vs").await, Ok(true));
        assert_eq!(modules.state("ip_vs"), Ok(ModuleState::Loaded));
        let err = modules.ensure("ip_vs_mh").await.unwrap_err();
        assert_eq!(
            err.to_string(),
            "kernel module ip_vs_mh: modprobe says: FATAL: Module ip_vs_mh not found"
        );
    }
}
