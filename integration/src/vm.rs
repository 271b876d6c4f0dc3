//! The node VM: the trixie root on an ext4 disk in QEMU, with systemd, cgroup v2 limits, IPVS and OOM. Slow where it
//! is emulated, so suites boot it once. Programs in it run over one multiplexed ssh connection on loopback.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use longshore_test_programs::http;
use tempfile::TempDir;

use crate::node::{self, CONFIG, Kind, MANIFESTS, Node, PROXY_CONFIG, Service, sh};
use crate::process::{Output, Owned, Run, wait_until};
use crate::qemu::{self, Accelerator, Machine};
use crate::tiers::workspace_root;
use crate::{cache, native, root};

/// The guest's address in QEMU's user network.
pub const ADDRESS: &str = "10.0.2.15";
/// The one NodePort that is forwarded to this machine.
pub const NODE_PORT: u16 = 30080;

/// What a new VM gets.
#[derive(Debug, Clone)]
pub struct Options {
    /// The log folder is named after it.
    pub name: String,
    /// The daemon's binary on this machine, where one is to be run.
    pub binary: Option<PathBuf>,
    /// The daemon's configuration file.
    pub config: String,
    /// `systemd` or `cgroupfs`: the runtime's cgroup driver.
    pub cgroup_driver: CgroupDriver,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    #[default]
    Systemd,
    Cgroupfs,
}

/// A running node VM. Dropping it ends its QEMU.
#[derive(Debug)]
pub struct NodeVm {
    // Dropped in this order: the connection, the machine, its files.
    _connection: Owned,
    _qemu: Owned,
    ssh: Vec<String>,
    accelerator: Accelerator,
    node_port: u16,
    logs: PathBuf,
    _scratch: TempDir,
}

impl NodeVm {
    /// Boots it and waits for containerd; the daemon is installed but not started.
    ///
    /// # Errors
    /// Where the disk cannot be built or the guest does not come up; the console's end is in the message.
    pub fn start(options: &Options) -> Result<Self> {
        let root = root::folder()?;
        let key = ssh_key()?;
        let disk = disk(&root, &key)?;
        let accelerator = qemu::accelerator()?;
        let logs = node::log_folder(&options.name)?;
        let scratch = tempfile::Builder::new().prefix("longshore-vm-").tempdir()?;
        let payload = scratch.path().join("payload.img");
        payload_disk(options, scratch.path(), &payload)?;
        let [ssh_port, node_port] = [free_port()?, free_port()?];
        let (kernel, initrd) = root::kernel(&root)?;
        let console = logs.join("console.log");
        // `restrict`: the guest reaches nothing beyond itself; only the two forwarded ports lead in.
        let forwards = format!(
            "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{ssh_port}-:22,hostfwd=tcp:127.0.0.1:{node_port}-:{NODE_PORT}"
        );
        let drive = |path: &Path, rest: &str| {
            ["-drive".to_owned(), format!("file={},if=virtio,format=raw,{rest}", path.display())]
        };
        let mut extra = Vec::from(drive(&disk, "cache=unsafe,snapshot=on"));
        extra.extend(drive(&payload, "readonly=on"));
        extra.extend(["-netdev", &forwards, "-device", "virtio-net-pci,netdev=net"].map(str::to_owned));
        let machine = Machine {
            accelerator,
            memory_mib: 3072,
            kernel,
            initrd,
            append: "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 mitigations=off nowatchdog".into(),
            console: console.clone(),
            extra,
        };
        let mut qemu = machine.start()?;
        let ssh = ssh_arguments(&key, ssh_port, &scratch.path().join("ssh"));
        let connection = connect(&ssh, &mut qemu, accelerator).with_context(|| {
            format!(
                "the node VM does not come up; its console:\n{}{}",
                qemu::complaints(&console),
                node::tail(&console, 20)
            )
        })?;
        let vm = Self {
            _connection: connection,
            _qemu: qemu,
            ssh,
            accelerator,
            node_port,
            logs,
            _scratch: scratch,
        };
        vm.prepare(options)?;
        Ok(vm)
    }

    /// The ssh command line for a person's shell.
    pub fn shell_command(&self) -> Command {
        let mut command = Command::new("ssh");
        command.args(&self.ssh).arg("-t").arg("root@127.0.0.1");
        command
    }

    /// How much longer things may take than on real hardware.
    pub fn patience(&self) -> u32 {
        self.accelerator.patience()
    }

    /// Where NodePort 30080 answers on this machine.
    pub fn node_port(&self) -> u16 {
        self.node_port
    }

    /// Gives containerd the configuration for a cgroup driver and restarts it. No pod may be there.
    ///
    /// # Errors
    /// Where containerd does not come up with it.
    pub fn use_cgroup_driver(&self, driver: CgroupDriver) -> Result<()> {
        let file = match driver {
            CgroupDriver::Systemd => "systemd.toml",
            CgroupDriver::Cgroupfs => "cgroupfs.toml",
        };
        let line = format!(
            "cd /etc/containerd; [ -e systemd.toml ] || cp config.toml systemd.toml
             cp {file} config.toml; systemctl restart containerd"
        );
        sh(self, &line)?;
        self.wait_for_containerd()
    }

    fn wait_for_containerd(&self) -> Result<()> {
        wait_until(Duration::from_secs(120), Duration::from_millis(200), || {
            sh(self, "ctr --connect-timeout 1s version").map(drop)
        })
        .context("containerd does not come up in the VM")
    }

    fn prepare(&self, options: &Options) -> Result<()> {
        if options.cgroup_driver == CgroupDriver::Systemd {
            self.wait_for_containerd()?;
        } else {
            self.use_cgroup_driver(options.cgroup_driver)?;
        }
        if options.binary.is_some() {
            sh(self, INSTALL)?;
            node::put(self, CONFIG, options.config.as_bytes())?;
            // The one place with IPVS in its kernel shows that mode; the others show nftables.
            node::put(self, PROXY_CONFIG, include_bytes!("../../packaging/proxy.yaml"))?;
            sh(
                self,
                &format!(
                    "sed -i 's/^mode: auto$/mode: ipvs/' {PROXY_CONFIG} && grep -qx 'mode: ipvs' {PROXY_CONFIG}"
                ),
            )?;
        }
        sh(self, &format!("mkdir -p {MANIFESTS}")).map(drop)
    }
}

/// What the package does on a real machine.
const INSTALL: &str = "
ln -sf /opt/longshore/longshore /usr/bin/longshore
cp /opt/longshore/longshore.service /etc/systemd/system/
cp /opt/longshore/modules-load.conf /etc/modules-load.d/longshore.conf
cp /opt/longshore/sysctl.conf /etc/sysctl.d/90-longshore.conf
systemctl daemon-reload
systemctl restart systemd-modules-load systemd-sysctl
";

impl Node for NodeVm {
    fn kind(&self) -> Kind {
        Kind::Vm
    }

    fn address(&self) -> &'static str {
        ADDRESS
    }

    fn logs(&self) -> &Path {
        &self.logs
    }

    fn run(&self, script: &str, stdin: &[u8], deadline: Duration) -> Result<Output> {
        let quoted = format!("exec sh -ec '{}'", script.replace('\'', r"'\''"));
        Run::new("ssh")
            .args(&self.ssh)
            .args(["root@127.0.0.1", &quoted])
            .stdin(stdin)
            .deadline(deadline)
            .output()
    }

    fn start(&mut self, service: Service) -> Result<()> {
        let name = service.name();
        let output = self.run(
            &format!("systemctl reset-failed {name} 2>/dev/null || true; systemctl start {name}"),
            &[],
            Duration::from_secs(120),
        )?;
        if !output.success() {
            bail!("{name} does not come up: {}; its log:\n{}", output.text(), self.log(service, 15));
        }
        Ok(())
    }

    fn stop(&mut self, service: Service, signal: &str) -> Result<()> {
        let name = service.name();
        if signal != "TERM" {
            sh(self, &format!("systemctl kill --kill-whom=main --signal={signal} {name}"))?;
        }
        sh(self, &format!("systemctl stop {name}")).map(drop)
    }

    fn get_from_outside(&self, port: u16, path: &str) -> Result<(u16, String)> {
        if port != NODE_PORT {
            bail!("only NodePort {NODE_PORT} of the VM is forwarded, not {port}");
        }
        let url = format!("http://127.0.0.1:{}{path}", self.node_port);
        Ok(http::get(&url, Duration::from_secs(10))?)
    }

    fn log(&self, service: Service, lines: usize) -> String {
        sh(self, &format!("journalctl --no-pager -o cat -n {lines} -u {}", service.name()))
            .unwrap_or_else(|e| format!("{e:#}"))
    }

    fn runs(&self, service: Service) -> bool {
        sh(self, &format!("systemctl is-active {}", service.name())).is_ok()
    }
}

/// One connection for the VM's life: setting up each call's own would cost a second of emulated cryptography.
fn connect(ssh: &[String], qemu: &mut Owned, accelerator: Accelerator) -> Result<Owned> {
    let attempt_deadline = Duration::from_secs(10);
    wait_until(Duration::from_secs(30) * accelerator.patience(), Duration::from_millis(300), || {
        if let Some(code) = qemu.ended() {
            bail!("QEMU ended with {code}");
        }
        let child = Command::new("ssh")
            .args(ssh)
            .args(["-M", "-N", "root@127.0.0.1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start ssh")?;
        let mut master = Owned::new("ssh", child);
        wait_until(attempt_deadline, Duration::from_millis(100), || {
            if master.ended().is_some() {
                return Ok(false);
            }
            Run::new("ssh").args(ssh).args(["-O", "check", "root@127.0.0.1"]).check().map(|_| true)
        })?
        .then_some(master)
        .context("the guest does not answer ssh yet")
    })
}

fn ssh_arguments(key: &Path, port: u16, control: &Path) -> Vec<String> {
    let mut args: Vec<String> = ["-F", "none", "-q", "-i"].map(str::to_owned).into();
    args.push(key.display().to_string());
    args.extend(["-p".to_owned(), port.to_string(), "-S".to_owned(), control.display().to_string()]);
    for option in [
        "BatchMode=yes",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "ConnectTimeout=5",
        "IdentitiesOnly=yes",
    ] {
        args.extend(["-o".to_owned(), option.to_owned()]);
    }
    args
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A key for throwaway nodes only; it opens nothing else.
fn ssh_key() -> Result<PathBuf> {
    let dir = cache::entry("ssh", &cache::key(["1"]), |dir| {
        fs::create_dir(dir)?;
        let file = dir.join("id_ed25519").display().to_string();
        Run::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "longshore test node", "-f", &file])
            .check()
            .map(drop)
    })?;
    Ok(dir.join("id_ed25519"))
}

/// The node's disk: the root with the unpacked images and the key. Guests write to a snapshot of it.
fn disk(root: &Path, key: &Path) -> Result<PathBuf> {
    let store = native::image_store()?;
    let public = fs::read(key.with_extension("pub"))?;
    let parts =
        [root.to_string_lossy().as_bytes().to_vec(), store.to_string_lossy().as_bytes().to_vec(), public];
    cache::entry("disk", &cache::key(parts), |path| {
        println!("making the node's disk");
        let script = format!(
            "t=$(mktemp -d); mount -t tmpfs tmpfs $t; mkdir $t/upper $t/work $t/root
             mount -t overlay overlay -o lowerdir={root},upperdir=$t/upper,workdir=$t/work $t/root
             mkdir -p $t/root/var/lib/containerd
             cp -a {store}/. $t/root/var/lib/containerd/
             install -m 600 {key}.pub $t/root/root/.ssh/authorized_keys
             mke2fs -q -t ext4 -L node -O ^has_journal -m 0 -E lazy_itable_init=1 -d $t/root {path} 4G
             umount $t/root $t; rmdir $t",
            root = root.display(),
            store = store.display(),
            key = key.display(),
            path = path.display(),
        );
        Run::new("unshare")
            .args(["--mount", "sh", "-ec", &script])
            .deadline(Duration::from_secs(300))
            .check()
            .map(drop)
    })
}

/// A small disk with what is under test: the binary, the unit, settings.
fn payload_disk(options: &Options, scratch: &Path, image: &Path) -> Result<()> {
    let dir = scratch.join("payload");
    fs::create_dir(&dir)?;
    let packaging = workspace_root().join("packaging");
    for (from, to) in [
        ("longshore.service", "longshore.service"),
        ("modules-load.d/longshore.conf", "modules-load.conf"),
        ("sysctl.d/90-longshore.conf", "sysctl.conf"),
    ] {
        fs::copy(packaging.join(from), dir.join(to)).with_context(|| format!("packaging/{from}"))?;
    }
    if let Some(binary) = &options.binary {
        let to = dir.join("longshore").display().to_string();
        Run::new("strip").args(["--strip-debug", "-o", &to, &binary.display().to_string()]).check()?;
    }
    let size: u64 = fs::read_dir(&dir)?.flatten().filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum();
    let mib = (size >> 20) * 5 / 4 + 16;
    Run::new("mke2fs")
        .args(["-q", "-t", "ext4", "-L", "longshore", "-O", "^has_journal", "-m", "0", "-d"])
        .args([dir.as_os_str(), image.as_os_str(), std::ffi::OsStr::new(&format!("{mib}M"))])
        .check()
        .map(drop)
}
