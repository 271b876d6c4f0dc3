//! The doctor's judgements: facts in, findings out. Pure, so that each is a line of a table test.

use std::collections::BTreeSet;

use super::facts::{AgentFact, Facts, Space};
use super::{Finding, Level, certificates};

/// All checks in the order they are shown: what stops everything first.
pub fn all(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![user(facts), capabilities(facts)];
    findings.extend(agent(facts));
    findings.extend(runtime(facts));
    findings.push(cgroups(facts));
    findings.push(ipvs(facts));
    findings.push(overlay(facts));
    findings.extend(sysctls(facts));
    findings.push(conntrack(facts));
    findings.push(swap(facts));
    findings.extend(facts.spaces.iter().map(space));
    findings.push(rivals(facts));
    findings.extend(facts.certificates.iter().map(|fact| certificates::finding(fact, facts.now)));
    findings
}

fn user(facts: &Facts) -> Finding {
    if facts.root {
        return Finding::ok("user", format!("root, kernel {}", facts.kernel));
    }
    Finding::bad(
        Level::Warn,
        "user",
        "not root",
        "some checks cannot see the node, and no command can ask the agent",
        "sudo longshore doctor",
    )
}

fn capabilities(facts: &Facts) -> Finding {
    match &facts.missing_capabilities {
        Ok((needed, wished)) if needed.is_empty() && wished.is_empty() => {
            Finding::ok("capabilities", "all the agent needs")
        }
        Ok((needed, wished)) if needed.is_empty() => Finding::bad(
            Level::Warn,
            "capabilities",
            format!("missing {}", wished.join(", ")),
            "the agent cannot raise its own limits nor protect itself from the OOM killer",
            "add it to CapabilityBoundingSet and AmbientCapabilities of the unit, or run on the host itself",
        ),
        Ok((needed, _)) => Finding::bad(
            if facts.root { Level::Fail } else { Level::Warn },
            "capabilities",
            format!("missing {}", needed.join(", ")),
            "mounts, cgroups and Service rules cannot be made with what is left",
            "run on the host itself, or with --privileged; remove CapabilityBoundingSet from the unit",
        ),
        Err(error) => Finding::bad(
            Level::Warn,
            "capabilities",
            error.as_str(),
            "what the agent may do is not known",
            "mount /proc",
        ),
    }
}

fn agent(facts: &Facts) -> Vec<Finding> {
    let socket = facts.socket.display();
    vec![match &facts.agent {
        AgentFact::Answers => Finding::ok("agent", format!("answers on {socket}")),
        AgentFact::Down => Finding::bad(
            Level::Warn,
            "agent",
            format!("nobody answers on {socket}"),
            "running containers go on, but nothing is started, probed or repaired",
            "systemctl start longshore; journalctl -u longshore says why it ended",
        ),
        AgentFact::Denied => Finding::bad(
            Level::Warn,
            "agent",
            format!("{socket} is root's"),
            "it could not be asked",
            "sudo longshore doctor",
        ),
        AgentFact::Broken(error) => Finding::bad(
            Level::Fail,
            "agent",
            error.as_str(),
            "the agent runs and does not answer",
            "journalctl -u longshore; systemctl restart longshore leaves all containers running",
        ),
    }]
}

fn runtime(facts: &Facts) -> Vec<Finding> {
    let runtime = match &facts.runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            return vec![Finding::bad(
                Level::Fail,
                "runtime",
                error.as_str(),
                "no pod can be started or stopped",
                format!(
                    "systemctl start containerd, or name the socket with --runtime-endpoint (now {})",
                    facts.runtime_endpoint
                ),
            )];
        }
    };
    let mut findings =
        vec![Finding::ok("runtime", format!("{} on {}", runtime.version, facts.runtime_endpoint))];
    for (kind, met, message) in &runtime.conditions {
        findings.push(match (kind.as_str(), met) {
            ("RuntimeReady", true) => continue,
            ("NetworkReady", true) => Finding::ok("pod network", "ready"),
            ("RuntimeReady", false) => Finding::bad(
                Level::Fail,
                "runtime state",
                format!("not ready: {message}"),
                "the runtime answers but cannot run containers",
                "journalctl -u containerd",
            ),
            ("NetworkReady", false) => Finding::bad(
                Level::Fail,
                "pod network",
                format!("not ready: {message}"),
                "only pods with hostNetwork can start",
                "put a CNI configuration into /etc/cni/net.d and its plugins into /opt/cni/bin",
            ),
            // Others are the runtime's own and differ by version.
            (other, false) if !message.is_empty() => Finding::bad(
                Level::Warn,
                "runtime state",
                format!("{other}: {message}"),
                "a notice of the runtime",
                "",
            ),
            _ => continue,
        });
    }
    findings
}

fn cgroups(facts: &Facts) -> Finding {
    let Some(controllers) = &facts.controllers else {
        return Finding::bad(
            Level::Fail,
            "cgroups",
            "cgroup v2 is not mounted on /sys/fs/cgroup",
            "requests and limits have no effect; version 1 is not supported",
            "boot with systemd.unified_cgroup_hierarchy=1, or set cgroupsPerQOS: false to run without limits",
        );
    };
    let missing = |wanted: &[&str]| -> Vec<String> {
        wanted.iter().filter(|name| !controllers.contains(**name)).map(|name| (*name).to_string()).collect()
    };
    let needed = missing(&["cpu", "memory", "pids"]);
    if !needed.is_empty() {
        return Finding::bad(
            Level::Fail,
            "cgroups",
            format!("v2 without {}", needed.join(", ")),
            "limits of that kind have no effect",
            "enable them at boot (cgroup_enable=memory) or mount no version 1 hierarchy beside it",
        );
    }
    let wished = missing(&["cpuset", "io", "hugetlb"]);
    if wished.is_empty() {
        return Finding::ok("cgroups", format!("v2 with {}", list(controllers)));
    }
    Finding::bad(
        Level::Warn,
        "cgroups",
        format!("v2 without {}", wished.join(", ")),
        "pods that ask for these get no limit of that kind",
        "use a kernel built with them",
    )
}

fn list(words: &BTreeSet<String>) -> String {
    words.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
}

fn ipvs(facts: &Facts) -> Finding {
    let wanted = ["ip_vs", "ip_vs_rr", "nf_conntrack"];
    let missing: Vec<&str> = wanted.iter().copied().filter(|name| !facts.modules.contains(*name)).collect();
    if missing.is_empty() {
        return Finding::ok("ipvs", "in the kernel with its default scheduler rr");
    }
    Finding::bad(
        Level::Warn,
        "ipvs",
        format!("not loaded: {}", missing.join(", ")),
        "the agent loads them when it starts; where it cannot, nf_tables serves the Services",
        format!(
            "modprobe -a {}; printf '%s\\n' {} > /etc/modules-load.d/longshore.conf",
            missing.join(" "),
            missing.join(" ")
        ),
    )
}

fn overlay(facts: &Facts) -> Finding {
    if facts.file_systems.contains("overlay") || facts.modules.contains("overlay") {
        return Finding::ok("overlay", "the file system images are stacked with is there");
    }
    Finding::bad(
        Level::Warn,
        "overlay",
        "not loaded",
        "containerd's default snapshotter cannot unpack images",
        "modprobe overlay",
    )
}

/// Value wanted, whether more is fine, how bad it is otherwise, and what it means.
struct SysctlRule {
    name: &'static str,
    wanted: i64,
    at_least: bool,
    level: Level,
    means: &'static str,
}

const RULES: &[SysctlRule] = &[
    SysctlRule {
        name: "net.ipv4.ip_forward",
        wanted: 1,
        at_least: true,
        level: Level::Fail,
        means: "packets of pods do not leave the node, and Services do not reach pods",
    },
    SysctlRule {
        name: "net.bridge.bridge-nf-call-iptables",
        wanted: 1,
        at_least: true,
        level: Level::Warn,
        means: "pods on a bridge do not reach Services whose pod is on the same bridge",
    },
    SysctlRule {
        name: "net.ipv4.vs.conntrack",
        wanted: 1,
        at_least: true,
        level: Level::Warn,
        means: "replies of pods on other nodes cannot be translated back in IPVS mode",
    },
    SysctlRule {
        name: "vm.overcommit_memory",
        wanted: 1,
        at_least: false,
        level: Level::Warn,
        means: "memory can be refused to programs before any limit is reached",
    },
    SysctlRule {
        name: "vm.panic_on_oom",
        wanted: 0,
        at_least: false,
        level: Level::Warn,
        means: "one container out of memory stops the whole node",
    },
    SysctlRule {
        name: "kernel.panic",
        wanted: 10,
        at_least: true,
        level: Level::Warn,
        means: "a node that panicked stays down",
    },
    SysctlRule {
        name: "kernel.panic_on_oops",
        wanted: 1,
        at_least: false,
        level: Level::Warn,
        means: "a damaged kernel goes on running pods",
    },
    SysctlRule {
        name: "kernel.keys.root_maxkeys",
        wanted: 1_000_000,
        at_least: true,
        level: Level::Warn,
        means: "some thousand containers use up root's keys, and no more start",
    },
    SysctlRule {
        name: "fs.inotify.max_user_instances",
        wanted: 512,
        at_least: true,
        level: Level::Warn,
        means: "programs in many pods run out of file watches together",
    },
];

fn sysctls(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut good = 0;
    for rule in RULES {
        // Absent with its module; the module's own check speaks of that.
        let Some(value) = facts.sysctls.get(rule.name) else { continue };
        let met = value
            .parse::<i64>()
            .is_ok_and(|value| value == rule.wanted || rule.at_least && value > rule.wanted);
        if met {
            good += 1;
            continue;
        }
        let (name, wanted) = (rule.name, rule.wanted);
        findings.push(Finding::bad(
            rule.level,
            "sysctl",
            format!("{name} is {value}, wanted {wanted}"),
            rule.means,
            format!("sysctl -w {name}={wanted}; echo '{name} = {wanted}' >> /etc/sysctl.d/90-longshore.conf"),
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("sysctl", format!("{good} kernel parameters are as wanted")));
    }
    findings
}

fn conntrack(facts: &Facts) -> Finding {
    let number = |name: &str| facts.sysctls.get(name).and_then(|value| value.parse::<u64>().ok());
    let (Some(count), Some(max)) =
        (number("net.netfilter.nf_conntrack_count"), number("net.netfilter.nf_conntrack_max"))
    else {
        return Finding::bad(
            Level::Warn,
            "conntrack",
            "the table cannot be read",
            "Services need connection tracking",
            "modprobe nf_conntrack",
        );
    };
    let says = format!("{count} of {max} connections");
    let percent = (count * 100).checked_div(max).unwrap_or(0);
    let level = match percent {
        0..70 => return Finding::ok("conntrack", says),
        70..90 => Level::Warn,
        _ => Level::Fail,
    };
    Finding::bad(
        level,
        "conntrack",
        says,
        "when it is full, new connections to and from pods are dropped",
        format!("sysctl -w net.netfilter.nf_conntrack_max={}", max.saturating_mul(2)),
    )
}

fn swap(facts: &Facts) -> Finding {
    if facts.swaps.is_empty() {
        return Finding::ok("swap", "off");
    }
    Finding::bad(
        Level::Warn,
        "swap",
        format!("on: {}", facts.swaps.join(", ")),
        "pods become slow before they reach their memory limit; failSwapOn: true refuses to start with it",
        "swapoff -a, and take the line out of /etc/fstab",
    )
}

fn space(space: &Space) -> Finding {
    let percent = |free: u64, all: u64| (free.saturating_mul(100)).checked_div(all).unwrap_or(100);
    let (bytes, inodes) = (percent(space.bytes_free, space.bytes), percent(space.inodes_free, space.inodes));
    let path = space.path.display();
    let free = space.bytes_free >> 20;
    let says = format!("{path}: {free} MiB ({bytes} %) and {inodes} % of inodes free");
    let level = match bytes.min(inodes) {
        15.. => return Finding::ok("disk", says),
        5..15 => Level::Warn,
        _ => Level::Fail,
    };
    Finding::bad(
        level,
        "disk",
        says,
        "volumes and images cannot be written when it is full",
        "crictl rmi --prune removes unused images; du -xh --max-depth=2 shows what is large",
    )
}

fn rivals(facts: &Facts) -> Finding {
    if facts.rivals.is_empty() {
        return Finding::ok("other agents", "no kubelet and no kube-proxy runs beside longshore");
    }
    let names = list(&facts.rivals);
    Finding::bad(
        Level::Fail,
        "other agents",
        format!("{names} runs on this node"),
        "two agents kill each other's pods and rewrite each other's rules",
        format!("systemctl disable --now {names}, or give longshore the other half with --roles"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::facts::RuntimeFacts;
    use super::*;

    fn set(words: &[&str]) -> BTreeSet<String> {
        words.iter().map(|word| (*word).to_string()).collect()
    }

    fn healthy() -> Facts {
        let sysctls = [
            ("net.ipv4.ip_forward", "1"),
            ("net.bridge.bridge-nf-call-iptables", "1"),
            ("net.ipv4.vs.conntrack", "1"),
            ("vm.overcommit_memory", "1"),
            ("vm.panic_on_oom", "0"),
            ("kernel.panic", "30"),
            ("kernel.panic_on_oops", "1"),
            ("kernel.keys.root_maxkeys", "1000000"),
            ("fs.inotify.max_user_instances", "8192"),
            ("net.netfilter.nf_conntrack_count", "10"),
            ("net.netfilter.nf_conntrack_max", "100"),
        ];
        Facts {
            root: true,
            kernel: "6.12".into(),
            missing_capabilities: Ok((vec![], vec![])),
            controllers: Some(set(&["cpu", "cpuset", "hugetlb", "io", "memory", "pids"])),
            modules: set(&["ip_vs", "ip_vs_rr", "nf_conntrack", "br_netfilter"]),
            file_systems: set(&["overlay"]),
            sysctls: sysctls
                .iter()
                .map(|(name, value)| ((*name).to_string(), (*value).to_string()))
                .collect(),
            swaps: vec![],
            spaces: vec![Space {
                path: "/var/lib/kubelet".into(),
                bytes_free: 50 << 20,
                bytes: 100 << 20,
                inodes_free: 9,
                inodes: 10,
            }],
            runtime_endpoint: "unix:///run/containerd/containerd.sock".into(),
            runtime: Ok(RuntimeFacts {
                version: "containerd 2.1 (CRI v1)".into(),
                conditions: vec![
                    ("RuntimeReady".into(), true, String::new()),
                    ("NetworkReady".into(), true, String::new()),
                ],
            }),
            socket: "/run/longshore/longshore.sock".into(),
            agent: AgentFact::Answers,
            rivals: BTreeSet::new(),
            certificates: Vec::new(),
            now: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_healthy_node_is_all_ok_and_has_nothing_to_mend() {
        let findings = all(&healthy());
        assert!(findings.len() >= 11);
        for finding in findings {
            assert_eq!(finding.level, Level::Ok, "{finding:?}");
            assert!(finding.means.is_empty() && finding.mend.is_empty());
        }
    }

    type Break = fn(&mut Facts);
    /// Name, the fault, its level, what the line says, what mends it.
    type Fault = (&'static str, Break, Level, &'static str, &'static str);

    fn check(faults: &[Fault]) {
        for (name, break_it, level, says, mend) in faults {
            let mut facts = healthy();
            break_it(&mut facts);
            let bad: Vec<Finding> =
                all(&facts).into_iter().filter(|finding| finding.level != Level::Ok).collect();
            assert_eq!(bad.len(), 1, "{name}: {bad:?}");
            assert_eq!(bad[0].level, *level, "{name}");
            assert!(bad[0].says.contains(says), "{name}: {}", bad[0].says);
            assert!(bad[0].mend.contains(mend), "{name}: {}", bad[0].mend);
            assert!(!bad[0].means.is_empty(), "{name}");
        }
    }

    #[test]
    fn faults_of_programs_are_named_with_their_meaning_and_their_mend() {
        check(&[
            ("no root", |f| f.root = false, Level::Warn, "not root", "sudo"),
            (
                "caps",
                |f| f.missing_capabilities = Ok((vec!["CAP_NET_ADMIN".into()], vec![])),
                Level::Fail,
                "CAP_NET_ADMIN",
                "CapabilityBoundingSet",
            ),
            (
                "agent down",
                |f| f.agent = AgentFact::Down,
                Level::Warn,
                "nobody answers",
                "systemctl start longshore",
            ),
            (
                "agent hangs",
                |f| f.agent = AgentFact::Broken("silent".into()),
                Level::Fail,
                "silent",
                "restart longshore",
            ),
            (
                "no runtime",
                |f| f.runtime = Err("connection refused".into()),
                Level::Fail,
                "connection refused",
                "start containerd",
            ),
            (
                "no cni",
                |f| {
                    f.runtime.as_mut().unwrap().conditions[1] =
                        ("NetworkReady".into(), false, "cni not initialized".into())
                },
                Level::Fail,
                "cni not initialized",
                "/etc/cni/net.d",
            ),
            (
                "runtime not ready",
                |f| f.runtime.as_mut().unwrap().conditions[0].1 = false,
                Level::Fail,
                "not ready",
                "journalctl",
            ),
        ]);
    }

    #[test]
    fn faults_of_the_kernel_and_the_disk_are_named_too() {
        check(&[
            ("cgroup v1", |f| f.controllers = None, Level::Fail, "not mounted", "unified_cgroup_hierarchy"),
            (
                "no memory",
                |f| f.controllers = Some(set(&["cpu", "pids"])),
                Level::Fail,
                "without memory",
                "cgroup_enable",
            ),
            (
                "no hugetlb",
                |f| {
                    f.controllers.as_mut().unwrap().remove("hugetlb");
                },
                Level::Warn,
                "without hugetlb",
                "kernel",
            ),
            (
                "no ipvs",
                |f| {
                    f.modules.remove("ip_vs_rr");
                },
                Level::Warn,
                "ip_vs_rr",
                "modprobe -a ip_vs_rr",
            ),
            ("no overlay", |f| f.file_systems.clear(), Level::Warn, "not loaded", "modprobe overlay"),
            (
                "no forwarding",
                |f| {
                    f.sysctls.insert("net.ipv4.ip_forward".into(), "0".into());
                },
                Level::Fail,
                "net.ipv4.ip_forward is 0, wanted 1",
                "sysctl -w net.ipv4.ip_forward=1",
            ),
            (
                "panic on oom",
                |f| {
                    f.sysctls.insert("vm.panic_on_oom".into(), "2".into());
                },
                Level::Warn,
                "is 2, wanted 0",
                "=0",
            ),
            (
                "conntrack full",
                |f| {
                    f.sysctls.insert("net.netfilter.nf_conntrack_count".into(), "95".into());
                },
                Level::Fail,
                "95 of 100",
                "nf_conntrack_max=200",
            ),
            ("swap", |f| f.swaps = vec!["/dev/sda2".into()], Level::Warn, "/dev/sda2", "swapoff -a"),
            ("disk", |f| f.spaces[0].inodes_free = 0, Level::Fail, "0 % of inodes", "prune"),
            (
                "kubelet",
                |f| f.rivals = set(&["kubelet"]),
                Level::Fail,
                "kubelet runs",
                "disable --now kubelet",
            ),
        ]);
    }
}
