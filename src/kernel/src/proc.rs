//! Facts about the machine and its processes from /proc, /sys and /etc. A fake is a folder with such
//! files. Reads are bounded; what a kernel does not offer is `None`, never 0.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::cgroup::stat::{Pressure, parse_pressure};

/// No file read here is longer; /proc/cpuinfo is not among them.
const MAX_FILE: u64 = 1 << 20;

/// Why a fact could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProcError {
    /// The file could not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Errno,
    },
    /// The file does not hold what it should.
    #[error("{}: no {what} in it", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
}

impl ProcError {
    /// Whether the same call may well succeed a moment later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, ProcError::Read { source, .. }
            if matches!(source, Errno::EINTR | Errno::EAGAIN | Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM))
    }
}

/// Memory of the machine, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemInfo {
    /// All of it.
    pub total: u64,
    /// What can be had without swapping, as the kernel estimates.
    pub available: u64,
    /// Swap space.
    pub swap_total: u64,
    /// Free swap space.
    pub swap_free: u64,
}

/// One area of swap in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwapArea {
    /// The device or file.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
}

/// What pressure is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PressureOf {
    /// CPU time.
    Cpu,
    /// Memory.
    Memory,
    /// Disks.
    Io,
}

/// The files of a machine, below a root that is `/` for the real one.
#[derive(Debug, Clone)]
pub struct Proc {
    root: PathBuf,
}

impl Default for Proc {
    fn default() -> Self {
        Proc::new("/")
    }
}

impl Proc {
    /// The files below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Proc { root: root.into() }
    }

    /// Memory and swap.
    pub fn meminfo(&self) -> Result<MemInfo, ProcError> {
        let (path, text) = self.read("proc/meminfo")?;
        let bytes = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            let kib: Option<u64> = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
            kib.map(|kib| kib.saturating_mul(1024))
        };
        let total = bytes("MemTotal").ok_or(ProcError::Missing { path, what: "MemTotal" })?;
        Ok(MemInfo {
            total,
            available: bytes("MemAvailable").unwrap_or_default(),
            swap_total: bytes("SwapTotal").unwrap_or_default(),
            swap_free: bytes("SwapFree").unwrap_or_default(),
        })
    }

    /// The swap areas in use; empty when swap is off.
    pub fn swaps(&self) -> Result<Vec<SwapArea>, ProcError> {
        let text = match self.read("proc/swaps") {
            Ok((_, text)) => text,
            // A kernel without swap support.
            Err(ProcError::Read { source: Errno::ENOENT, .. }) => return Ok(vec![]),
            Err(err) => return Err(err),
        };
        let area = |line: &str| {
            let mut words = line.split_whitespace();
            let path = words.next()?.to_owned();
            let kib: u64 = words.nth(1)?.parse().ok()?;
            Some(SwapArea { path, size: kib.saturating_mul(1024) })
        };
        Ok(text.lines().skip(1).filter_map(area).collect())
    }

    /// Identity of this boot of the kernel.
    pub fn boot_id(&self) -> Result<String, ProcError> {
        self.line("proc/sys/kernel/random/boot_id")
    }

    /// Identity of this installation (`machine-id(5)`), or the mainboard's where there is none.
    pub fn machine_id(&self) -> Result<String, ProcError> {
        match self.line("etc/machine-id") {
            Ok(id) => Ok(id),
            Err(err) => self.line("sys/class/dmi/id/product_uuid").map_err(|_| err),
        }
    }

    /// The mainboard's identity, as cloud providers set it; `None` where the machine has none.
    pub fn system_uuid(&self) -> Option<String> {
        self.line("sys/class/dmi/id/product_uuid").ok()
    }

    /// The kernel's version, such as `6.12.1-amd64`.
    pub fn kernel_release(&self) -> Result<String, ProcError> {
        self.line("proc/sys/kernel/osrelease")
    }

    /// How many processors are on line.
    pub fn cpu_count(&self) -> Result<u32, ProcError> {
        let (path, text) = self.read("sys/devices/system/cpu/online")?;
        count_of_ranges(text.trim())
            .filter(|count| *count > 0)
            .ok_or(ProcError::Missing { path, what: "list of processors" })
    }

    /// Pressure on the whole machine; `None` on a kernel without pressure stall information, or booted
    /// with `psi=0`.
    pub fn pressure(&self, of: PressureOf) -> Option<Pressure> {
        let name = match of {
            PressureOf::Cpu => "cpu",
            PressureOf::Memory => "memory",
            PressureOf::Io => "io",
        };
        let (_, text) = self.read(&format!("proc/pressure/{name}")).ok()?;
        parse_pressure(&text)
    }

    /// The arguments a process was started with; `None` when it is gone, empty for a kernel thread.
    pub fn cmdline(&self, pid: u32) -> Result<Option<Vec<String>>, ProcError> {
        let arguments = |text: String| text.split_terminator('\0').map(str::to_owned).collect();
        match self.read(&format!("proc/{pid}/cmdline")) {
            Ok((_, text)) => Ok(Some(arguments(text))),
            Err(ProcError::Read { source: Errno::ENOENT | Errno::ESRCH, .. }) => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// The cgroup of a process in the version 2 hierarchy; `None` when it is gone or not in it.
    pub fn cgroup_of(&self, pid: u32) -> Option<String> {
        let (_, text) = self.read(&format!("proc/{pid}/cgroup")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
    }

    /// File systems the kernel knows, such as `overlay`.
    pub fn filesystems(&self) -> Result<Vec<String>, ProcError> {
        let (_, text) = self.read("proc/filesystems")?;
        Ok(text.lines().filter_map(|line| line.split_whitespace().last()).map(str::to_owned).collect())
    }

    fn line(&self, file: &str) -> Result<String, ProcError> {
        let (path, text) = self.read(file)?;
        match text.trim() {
            "" => Err(ProcError::Missing { path, what: "line" }),
            line => Ok(line.to_owned()),
        }
    }

    fn read(&self, file: &str) -> Result<(PathBuf, String), ProcError> {
        let path = self.root.join(file);
        match read_bounded(&path) {
            Ok(text) => Ok((path, text)),
            Err(err) => {
                let source = Errno::from_raw(err.raw_os_error().unwrap_or(0));
                Err(ProcError::Read { path, source })
            }
        }
    }
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `0-3,8` is 5.
fn count_of_ranges(text: &str) -> Option<u32> {
    text.split(',').try_fold(0u32, |count, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Proc) {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let files = Proc::new(dir.path());
        (dir, files)
    }

    #[test]
    fn facts_are_read_from_the_kernels_text() {
        let (_dir, files) = machine(&[
            (
                "proc/meminfo",
                "MemTotal:       16384 kB\nMemFree: 1 kB\nMemAvailable:    8192 kB\nSwapTotal: 0 kB\n",
            ),
            ("proc/swaps", "Filename Type Size Used Priority\n/dev/zram0 partition 4 0 100\n"),
            ("sys/devices/system/cpu/online", "0-3,8\n"),
            ("etc/machine-id", "0123abcd\n"),
            ("proc/42/cmdline", "sleep\0infinity\0"),
            ("proc/42/cgroup", "1:name=x:/y\n0::/kubepods/podx\n"),
            ("proc/pressure/cpu", "some avg10=2.00 avg60=0.00 avg300=0.00 total=9\n"),
            ("proc/filesystems", "nodev\ttmpfs\n\text4\n"),
        ]);
        let memory = files.meminfo().unwrap();
        assert_eq!((memory.total, memory.available, memory.swap_total), (16 << 20, 8 << 20, 0));
        assert_eq!(files.swaps(), Ok(vec![SwapArea { path: "/dev/zram0".into(), size: 4096 }]));
        assert_eq!(files.cpu_count(), Ok(5));
        assert_eq!(files.machine_id().as_deref(), Ok("0123abcd"));
        assert_eq!(files.cmdline(42), Ok(Some(vec!["sleep".into(), "infinity".into()])));
        assert_eq!(files.cmdline(43), Ok(None));
        assert_eq!(files.cgroup_of(42).as_deref(), Some("/kubepods/podx"));
        assert_eq!(files.pressure(PressureOf::Cpu).unwrap().some.avg10, 2.0);
        assert_eq!(files.pressure(PressureOf::Io), None);
        assert_eq!(files.filesystems(), Ok(vec!["tmpfs".into(), "ext4".into()]));
    }

    #[test]
    fn what_is_missing_is_named() {
        let (dir, files) =
            machine(&[("proc/meminfo", "nothing\n"), ("sys/devices/system/cpu/online", "3-1\n")]);
        let file = |name: &str| dir.path().join(name).display().to_string();
        let missing = files.meminfo().unwrap_err().to_string();
        assert_eq!(missing, format!("{}: no MemTotal in it", file("proc/meminfo")));
        assert!(files.cpu_count().is_err());
        assert_eq!(files.machine_id().unwrap_err().to_string(), format!("read {}", file("etc/machine-id")));
    }

    #[test]
    fn this_machine_answers() {
        let files = Proc::default();
        assert!(files.meminfo().unwrap().total > 1 << 20);
        assert!(files.cpu_count().unwrap() >= 1);
        assert_eq!(files.boot_id().unwrap().len(), 36);
        assert!(!files.cmdline(std::process::id()).unwrap().unwrap().is_empty());
    }
}
