//! The kernel-only guest: the node's cloud kernel with a small initramfs (busybox, modules, test binaries), up in
//! seconds even emulated. For tests and benches that need IPVS or cgroup v2; results come over the console.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{Run, wait_until};
use crate::qemu::{self, Accelerator, Machine};
use crate::report::{LibtestOutput, Tally};
use crate::tiers::{TestBinary, build_tests, workspace_root};
use crate::{node, root};

/// Loaded at boot; their dependencies follow. nf_tables is not among them.
const MODULES: &[&str] = &[
    "ip_vs",
    "ip_vs_rr",
    "ip_vs_wrr",
    "ip_vs_lc",
    "ip_vs_wlc",
    "ip_vs_lblc",
    "ip_vs_lblcr",
    "ip_vs_dh",
    "ip_vs_sh",
    "ip_vs_sed",
    "ip_vs_fo",
    "ip_vs_ovf",
    "ip_vs_twos",
    "ip_vs_nq",
    "ip_vs_mh",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "iptable_filter",
    "iptable_nat",
    "iptable_mangle",
    "ip6table_filter",
    "ip6table_nat",
    "ip6table_mangle",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_mark",
    "xt_nat",
    "xt_recent",
    "xt_statistic",
    "xt_tcpudp",
    "xt_sctp",
    "xt_MASQUERADE",
    "ipt_REJECT",
    "ip6t_REJECT",
    "dummy",
    "veth",
    "bridge",
    "sctp",
];

/// Loaded before the tests that need them.
const NF_TABLES: &[&str] = &[
    "nf_tables",
    "nft_nat",
    "nft_masq",
    "nft_ct",
    "nft_chain_nat",
    "nft_numgen",
    "nft_reject",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_fib_inet",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_hash",
];

/// The legacy variant of iptables: one program by many names, and what it loads.
const XTABLES: &str = "/usr/sbin/xtables-legacy-multi";
const XTABLES_NAMES: [&str; 6] = [
    "iptables-legacy",
    "iptables-legacy-save",
    "iptables-legacy-restore",
    "ip6tables-legacy",
    "ip6tables-legacy-save",
    "ip6tables-legacy-restore",
];

/// iproute2, as Debian places it.
const IP: &str = "/usr/sbin/ip";

const UP: &str = "longshore-guest: up";
const END: &str = "longshore-guest: end";

/// First process of the guest. Tests that need systemd run in the node VM (`suite::run_vm`). Each binary's output stands between two marks, its exit code on the second.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /dev/pts /run /var/run; mount -t devpts devpts /dev/pts; mount -t tmpfs run /run
ip link set lo up
echo 1 > /proc/sys/kernel/printk # its messages would cut the tests' lines in two
echo 'longshore-guest: up'
for module in $(cat /modules); do modprobe "$module" || echo "no module $module"; done
export LONGSHORE_TIER=vm LONGSHORE_REQUIRE=vm RUST_BACKTRACE=0 PATH=/sbin:/bin HOME=/root LONGSHORE_SERVICE_CASES=/cases
run() {
  for test; do
    [ -x "$test" ] || continue
    echo "longshore-guest: run ${test##*/}"
    "$test" --test-threads 1 --show-output --skip the_systemd_ 2>&1; echo "longshore-guest: code $?"
  done
}
without=$(ls -d /tests/*without_nf_tables* 2>/dev/null)
loads=$(cat /proc/sys/kernel/modprobe)
echo > /proc/sys/kernel/modprobe # who asks for nf_tables would get it
run $without
echo "$loads" > /proc/sys/kernel/modprobe
for module in $(cat /modules.nf_tables); do modprobe "$module" || echo "no module $module"; done
for test in /tests/*; do
  case "$test" in *without_nf_tables*) ;; *) run "$test" ;; esac
done
if [ -x /bench ]; then
  echo 'longshore-guest: run bench'
  /bench $(cat /bench.arguments) 2>&1; echo "longshore-guest: code $?"
fi
echo 'longshore-guest: end'
sync; poweroff -f
"#;

/// Builds the `vm_*` test binaries, boots the guest with them and counts their results.
///
/// # Errors
/// Where they do not compile or the guest does not come to its end.
pub fn run_tests() -> Result<Tally> {
    let binaries = build_tests("vm")?;
    if binaries.is_empty() {
        return Ok(Tally::default());
    }
    let accelerator = qemu::accelerator()?;
    let logs = node::log_folder("kernel-guest")?;
    let deadline = Duration::from_secs(240) * accelerator.patience().min(4);
    let programs = Programs { tests: &binaries, bench: None };
    let console = boot(accelerator, programs, &logs, END, deadline)?;
    count(&console, &binaries)
}

/// Runs a bench in the guest, and gives what it printed. Emulated everywhere, as kube-proxy was when it was
/// measured: under KVM its figures would not be comparable.
///
/// # Errors
/// Where the guest does not come to its end, or the bench does not.
pub fn run_bench(program: &Path, arguments: &str) -> Result<String> {
    let accelerator = Accelerator::Tcg;
    let logs = node::log_folder("kernel-guest-bench")?;
    let programs = Programs { tests: &[], bench: Some((program, arguments)) };
    let deadline = Duration::from_secs(240) * accelerator.patience().min(4);
    let console = boot(accelerator, programs, &logs, END, deadline)?.replace('\r', "");
    let (_, rest) = console.split_once("longshore-guest: run bench\n").context("the bench did not run")?;
    match rest.split_once("longshore-guest: code ") {
        Some((output, code)) if code.starts_with("0\n") => Ok(output.to_owned()),
        _ => bail!("the bench did not end well:\n{rest}"),
    }
}

/// Whether the guest comes up in time under this accelerator.
///
/// # Errors
/// Where it cannot be built or started.
pub fn boots(accelerator: Accelerator, deadline: Duration) -> Result<bool> {
    let programs = Programs { tests: &[], bench: None };
    Ok(boot(accelerator, programs, &node::log_folder("kvm-probe")?, UP, deadline).is_ok())
}

/// What the guest runs before it ends.
#[derive(Clone, Copy)]
struct Programs<'a> {
    tests: &'a [TestBinary],
    /// With its arguments.
    bench: Option<(&'a Path, &'a str)>,
}

/// Boots and waits for the mark on the console; gives the console's text.
fn boot(
    accelerator: Accelerator,
    programs: Programs<'_>,
    logs: &Path,
    mark: &str,
    deadline: Duration,
) -> Result<String> {
    let root = root::folder()?;
    let initrd = logs.join("initramfs");
    initramfs(&root, programs, &initrd)?;
    let console = logs.join("console.log");
    let machine = Machine {
        accelerator,
        memory_mib: 1024,
        kernel: root::kernel(&root)?.0,
        initrd,
        append: "console=ttyS0 quiet mitigations=off panic=-1 rdinit=/init".into(),
        console: console.clone(),
        extra: vec!["-net".into(), "none".into()],
    };
    let mut qemu = machine.start()?;
    let text = || fs::read(&console).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let marked = wait_until(deadline, Duration::from_millis(50), || {
        if text().contains(mark) {
            return Ok(true);
        }
        if qemu.ended().is_some() {
            return Ok(text().contains(mark));
        }
        bail!("the guest has not said `{mark}`")
    });
    match marked {
        Ok(true) => Ok(text()),
        Ok(false) => {
            bail!("the guest ended early: {}{}", qemu::complaints(&console), node::tail(&console, 20))
        }
        Err(error) => Err(error.context(node::tail(&console, 20))),
    }
}

fn count(console: &str, binaries: &[TestBinary]) -> Result<Tally> {
    let mut tally = Tally::default();
    for binary in binaries {
        let begin = format!("longshore-guest: run {}", binary.name);
        let (_, rest) = console.split_once(&begin).with_context(|| format!("{} did not run", binary.name))?;
        let (output, code) = rest
            .split_once("longshore-guest: code ")
            .with_context(|| format!("{} did not end", binary.name))?;
        let mut results = LibtestOutput::new(&binary.name, false, Instant::now());
        for line in output.lines() {
            if let Some(shown) = results.line(line.trim_end_matches('\r'), Instant::now()) {
                println!("{shown}");
            }
        }
        if !code.starts_with("0\r") && !code.starts_with("0\n") && results.tally.failed.is_empty() {
            results.tally.failed.push(format!(
                "{} ended with {}",
                binary.name,
                code.lines().next().unwrap_or_default()
            ));
        }
        tally.add(results.tally);
    }
    Ok(tally)
}

/// busybox, the modules with what they need, the programs, and `/init`, as a gzipped cpio archive.
fn initramfs(root: &Path, programs: Programs<'_>, out: &Path) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("longshore-guest-").tempdir()?;
    let top = dir.path();
    for folder in ["bin", "sbin", "proc", "sys", "dev", "tmp", "tests", "root", "etc"] {
        fs::create_dir(top.join(folder))?;
    }
    fs::copy(root.join("usr/bin/busybox"), top.join("bin/busybox"))?;
    // The kernel asks for modules by this name.
    std::os::unix::fs::symlink("/bin/busybox", top.join("sbin/modprobe"))?;
    fs::write(top.join("init"), INIT)?;
    fs::set_permissions(top.join("init"), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::write(top.join("modules"), MODULES.join("\n"))?;
    fs::write(top.join("modules.nf_tables"), NF_TABLES.join("\n"))?;
    iptables(top)?;
    // Addresses, routes and pairs of interfaces beyond what busybox knows.
    fs::copy(IP, top.join("sbin/ip")).with_context(|| format!("cannot copy {IP}"))?;
    libraries(Path::new(IP), top)?;
    cases(&workspace_root().join("integration/services"), &top.join("cases"))?;
    for test in programs.tests {
        program(&test.path, &top.join("tests").join(&test.name), top)?;
    }
    if let Some((bench, arguments)) = programs.bench {
        program(bench, &top.join("bench"), top)?;
        fs::write(top.join("bench.arguments"), arguments)?;
    }
    modules(root, top)?;
    let pack =
        format!("cd {} && find . | cpio --quiet -o -H newc | gzip -1 > {}", top.display(), out.display());
    Run::shell(&pack).check().map(drop)
}

/// Copies a program of ours, without its symbols, and what it is linked with.
fn program(from: &Path, to: &Path, top: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Run::new("strip").arg_path(to).check()?;
    libraries(from, top)
}

/// Copies the programs of iptables' legacy variant.
fn iptables(top: &Path) -> Result<()> {
    fs::copy(XTABLES, top.join("sbin/xtables-legacy-multi"))
        .with_context(|| format!("cannot copy {XTABLES}"))?;
    for name in XTABLES_NAMES {
        std::os::unix::fs::symlink("xtables-legacy-multi", top.join("sbin").join(name))?;
    }
    libraries(Path::new(XTABLES), top)?;
    let list = Run::new("ldd").arg_path(Path::new(XTABLES)).check()?;
    let library = list.split_whitespace().find(|word| word.starts_with('/') && word.contains("libxtables"));
    // Its matches and targets lie beside its library.
    let extensions = fs::canonicalize(Path::new(library.context("iptables has a library of its own")?))?
        .with_file_name("xtables");
    let place = top.join(extensions.strip_prefix("/")?);
    fs::create_dir_all(&place)?;
    for entry in fs::read_dir(&extensions).with_context(|| format!("cannot read {}", extensions.display()))? {
        let entry = entry?;
        fs::copy(entry.path(), place.join(entry.file_name()))?;
    }
    Ok(())
}

/// Copies the table of Service cases.
fn cases(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Copies this machine's libraries that a program is linked with, to the same places.
fn libraries(program: &Path, top: &Path) -> Result<()> {
    let list = Run::new("ldd").arg_path(program).check()?;
    for library in list.split_whitespace().filter(|word| word.starts_with('/')) {
        let place = top.join(library.trim_start_matches('/'));
        fs::create_dir_all(place.parent().context("a file has a folder")?)?;
        fs::copy(library, place).with_context(|| format!("cannot copy {library}"))?;
    }
    Ok(())
}

/// Copies the modules and their dependencies, unpacked, as busybox's modprobe reads them.
fn modules(root: &Path, top: &Path) -> Result<()> {
    let release =
        fs::read_dir(root.join("usr/lib/modules"))?.flatten().next().context("the root has no modules")?;
    let place = PathBuf::from("lib/modules").join(release.file_name());
    let dependencies = fs::read_to_string(release.path().join("modules.dep"))?;
    let mut wanted = BTreeSet::new();
    let mut lines = Vec::new();
    let name = |path: &str| {
        path.rsplit('/').next().unwrap_or_default().split('.').next().unwrap_or_default().replace('-', "_")
    };
    for line in dependencies.lines() {
        let Some((module, needs)) = line.split_once(':') else { continue };
        let name = name(module);
        if MODULES.contains(&name.as_str()) || NF_TABLES.contains(&name.as_str()) {
            wanted.insert(module.to_owned());
            wanted.extend(needs.split_whitespace().map(str::to_owned));
        }
    }
    for line in dependencies.lines() {
        if line.split_once(':').is_some_and(|(module, _)| wanted.contains(module)) {
            lines.push(line.replace(".ko.xz", ".ko"));
        }
    }
    for module in &wanted {
        let to = top.join(&place).join(module.trim_end_matches(".xz"));
        fs::create_dir_all(to.parent().context("a file has a folder")?)?;
        let from = release.path().join(module);
        if module.ends_with(".xz") {
            Run::shell(&format!("xz -dc {} > {}", from.display(), to.display())).check()?;
        } else {
            fs::copy(from, to)?;
        }
    }
    fs::write(top.join(&place).join("modules.dep"), lines.join("\n") + "\n")?;
    fs::copy(release.path().join("modules.alias"), top.join(&place).join("modules.alias"))?;
    Ok(())
}
