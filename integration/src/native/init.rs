//! The native node's first process, in namespaces of its own: it builds the node's mounts and network, says so, and
//! then only reaps. Its end, also by the harness's end (standard input closes), ends everything in the node.

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::wait::waitpid;
use serde::{Deserialize, Serialize};

use super::{ADDRESS, OUTSIDE};

/// What the harness tells the first process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// The shared root from the cache; it is only read.
    pub root: PathBuf,
    /// An empty folder to build the node's root on.
    pub scratch: PathBuf,
    /// (on this machine, in the node) folders and files bound into the node.
    pub binds: Vec<(PathBuf, PathBuf)>,
}

/// What the first process answers when the node stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ready {
    /// The descriptor of the outside network namespace in this process.
    pub outside: i32,
}

/// Builds the node and stays until everything in it has ended.
///
/// # Errors
/// The step that failed; nothing outlives this process.
pub fn run(plan: &Path) -> Result<()> {
    if std::process::id() != 1 {
        bail!("node-init is for the first process of a process namespace only");
    }
    let plan: Plan = serde_json::from_slice(&fs::read(plan)?)?;
    thread::spawn(end_with_the_harness);
    nix::unistd::sethostname("node")?;
    mounts(&plan)?;
    let outside = network()?;
    println!("{}", serde_json::to_string(&Ready { outside: outside.as_raw_fd() })?);
    loop {
        match waitpid(None, None) {
            Err(Errno::ECHILD) => thread::park_timeout(std::time::Duration::from_millis(200)),
            Err(Errno::EINTR) | Ok(_) => {}
            Err(error) => return Err(error).context("cannot wait for children"),
        }
    }
}

fn end_with_the_harness() {
    let mut rest = Vec::new();
    // An error of standard input means its other end has gone, too.
    let _ = std::io::stdin().read_to_end(&mut rest);
    std::process::exit(0);
}

const NOTHING: Option<&str> = None;

fn filesystem(kind: &str, at: &Path, options: &str) -> Result<()> {
    fs::create_dir_all(at)?;
    mount(Some(kind), at, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("cannot mount {kind} ({options}) on {}", at.display()))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, NOTHING, MsFlags::MS_BIND, NOTHING)
        .with_context(|| format!("cannot bind {} to {}", from.display(), to.display()))
}

fn read_only(at: &Path) -> Result<()> {
    mount(NOTHING, at, NOTHING, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, NOTHING)
        .with_context(|| format!("cannot make {} read-only", at.display()))
}

fn mounts(plan: &Plan) -> Result<()> {
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)
        .context("cannot make mounts private")?;
    filesystem("tmpfs", &plan.scratch, "mode=755")?;
    let [upper, work, root] = ["upper", "work", "root"].map(|name| plan.scratch.join(name));
    for dir in [&upper, &work, &root] {
        fs::create_dir(dir)?;
    }
    let layers =
        format!("lowerdir={},upperdir={},workdir={}", plan.root.display(), upper.display(), work.display());
    filesystem("overlay", &root, &layers)?;
    devices(&root)?;
    for (at, options) in [
        ("run", "mode=755"),
        ("tmp", "mode=1777"),
        ("var/lib/containerd", "mode=711"),
        ("var/log", "mode=755"),
    ] {
        filesystem("tmpfs", &root.join(at), options)?;
    }
    proc_and_sys(&root)?;
    for (from, to) in &plan.binds {
        let to = root.join(to.strip_prefix("/").unwrap_or(to));
        if from.is_dir() {
            fs::create_dir_all(&to)?;
        } else {
            fs::create_dir_all(to.parent().context("a file has a folder")?)?;
            fs::write(&to, "")?;
        }
        bind(from, &to)?;
    }
    enter(&root)
}

/// Makes `root` the root of the mount namespace, and shared as systemd does, so that mounts of containers travel.
fn enter(root: &Path) -> Result<()> {
    std::env::set_current_dir(root)?;
    nix::unistd::pivot_root(".", ".").context("cannot change the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot leave the old root")?;
    std::env::set_current_dir("/")?;
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_SHARED, NOTHING)
        .context("cannot share the root")
}

/// Devices of the node's own: nothing of the machine's can be opened by mistake.
fn devices(root: &Path) -> Result<()> {
    let dev = root.join("dev");
    filesystem("tmpfs", &dev, "mode=755")?;
    let numbers =
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    for (name, major, minor) in numbers {
        let path = dev.join(name);
        mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    }
    filesystem("devpts", &dev.join("pts"), "newinstance,ptmxmode=0666,mode=0620,gid=5")?;
    filesystem("tmpfs", &dev.join("shm"), "mode=1777")?;
    filesystem("mqueue", &dev.join("mqueue"), "")?;
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        std::os::unix::fs::symlink(target, dev.join(name))?;
    }
    Ok(())
}

/// Settings outside the network namespace belong to the whole machine: they can be read, not written.
fn proc_and_sys(root: &Path) -> Result<()> {
    let [proc, sys] = ["proc", "sys"].map(|name| root.join(name));
    filesystem("proc", &proc, "")?;
    let aside = root.join("run/net-settings");
    fs::create_dir(&aside)?;
    bind(&proc.join("sys/net"), &aside)?;
    bind(&proc.join("sys"), &proc.join("sys"))?;
    read_only(&proc.join("sys"))?;
    mount(Some(&aside), &proc.join("sys/net"), NOTHING, MsFlags::MS_MOVE, NOTHING)
        .context("cannot keep the network's settings")?;
    fs::remove_dir(&aside)?;
    // A new instance shows this network namespace. Read-only per mount, as containers mount the same instance.
    filesystem("sysfs", &sys, "")?;
    read_only(&sys)?;
    filesystem_at("cgroup2", &sys.join("fs/cgroup"))
}

/// As `filesystem`, on a folder that is there and cannot be made.
fn filesystem_at(kind: &str, at: &Path) -> Result<()> {
    mount(Some(kind), at, Some(kind), MsFlags::empty(), NOTHING)
        .with_context(|| format!("cannot mount {kind}"))
}

/// Two network namespaces: outside with a bridge, and the node's with a cable to it. Gives the outside one.
fn network() -> Result<fs::File> {
    let outside = fs::File::open("/proc/self/ns/net")?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let node = fs::File::open("/proc/self/ns/net")?;
    setns(&outside, CloneFlags::CLONE_NEWNET)?;
    let inner = format!("/proc/1/fd/{}", node.as_raw_fd());
    for line in [
        "link set lo up".to_owned(),
        "link add br0 type bridge".to_owned(),
        format!("addr add {OUTSIDE}/24 dev br0"),
        "link set br0 up".to_owned(),
        "link add node type veth peer name eth0".to_owned(),
        "link set node master br0 up".to_owned(),
        format!("link set eth0 netns {inner}"),
    ] {
        ip(&line)?;
    }
    setns(&node, CloneFlags::CLONE_NEWNET)?;
    for line in ["link set lo up", "link set eth0 up"] {
        ip(line)?;
    }
    ip(&format!("addr add {ADDRESS}/24 dev eth0"))?;
    ip(&format!("route add default via {OUTSIDE}"))?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot switch forwarding on")?;
    // Files opened by the standard library close at exec; this one is only looked up by its number.
    Ok(outside)
}

fn ip(line: &str) -> Result<()> {
    let output =
        Command::new("/usr/sbin/ip").args(line.split_whitespace()).output().context("cannot start ip")?;
    if !output.status.success() {
        bail!("ip {line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
