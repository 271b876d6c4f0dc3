//! `longshore cgroups`: what a pod's cgroups hold beside what they may, read from cgroup files.

use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use longshore_core::ids::PodUid;
use longshore_core::pod::observed::ObservedContainer;
use longshore_core::pod::snapshot::{CgroupDriver, CgroupSettings};
use longshore_core::resources::cgroup_names;
use longshore_core::resources::qos::{QosClass, qos_class};
use longshore_kernel::cgroup::{CgroupStat, Cgroups, DEFAULT_ROOT, FsCgroups};
use serde::Serialize;

use crate::error::CliError;
use crate::images::size;
use crate::output::{Format, Paint, Rows, Screen, mood, print, structured};
use crate::pods::{Node, NodePod};
use crate::target::PodName;

/// One cgroup with its values and limits; `None` where there is no limit or no controller.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// `pod`, or the container's name.
    pub of: String,
    pub path: String,
    pub cpu_usage_millis: Option<u64>,
    pub cpu_throttled_millis: Option<u64>,
    pub cpu_weight: Option<u64>,
    /// As `cpu.max` has it, in thousandths of a core.
    pub cpu_max_millis: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub memory_max_bytes: Option<u64>,
    pub swap_bytes: Option<u64>,
    pub processes: Option<u64>,
    pub processes_max: Option<u64>,
    pub oom_kills: Option<u64>,
    /// Share of the last ten seconds in which some task waited for memory, percent.
    pub memory_pressure: Option<f64>,
}

/// Shows the cgroups of one pod.
pub async fn run(node: &Node, screen: &Screen, name: &PodName, root: &str) -> Result<(), CliError> {
    let pod = node.pod(name).await?;
    let groups = FsCgroups::open(DEFAULT_ROOT).map_err(|error| CliError::from_chain("cgroups", &error))?;
    let spec = pod.view.as_ref().map(|view| &*view.pod);
    let mut found = None;
    for path in candidates(spec, &pod.observed.uid, root) {
        if groups.exists(&path).await.unwrap_or(false) {
            found = Some(path);
            break;
        }
    }
    let path = found.ok_or_else(|| {
        CliError::new(format!("pod {} has no cgroup below {DEFAULT_ROOT}", pod.key()))
            .hint("it has ended, or the agent runs with cgroupsPerQOS: false")
    })?;
    let mut lines = vec![read(&groups, "pod", &path).await?];
    for child in groups.children(&path).await.unwrap_or_default() {
        let of = container_of(&pod, &child).map_or_else(|| child.clone(), |found| found.name.to_string());
        lines.push(read(&groups, &of, &format!("{path}/{child}")).await?);
    }
    if structured(screen, &lines)? {
        return Ok(());
    }
    print(&table(&lines, screen))
}

/// Where the pod's cgroup may be: the class by its spec first, for both drivers.
fn candidates(pod: Option<&Pod>, uid: &PodUid, root: &str) -> Vec<String> {
    let classes = match pod {
        Some(pod) => vec![qos_class(pod)],
        None => vec![QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort],
    };
    let drivers = [CgroupDriver::Systemd, CgroupDriver::Cgroupfs];
    let settings = |driver| CgroupSettings {
        per_qos: true,
        driver,
        root: root.to_owned(),
        cpu_cfs_quota: true,
        cpu_cfs_period_us: 100_000,
        pod_pids_limit: None,
        single_process_oom_kill: false,
        limited_swap: false,
    };
    let of_driver = |driver| {
        let settings = settings(driver);
        let paths = classes.iter().map(|class| cgroup_names::pod(&settings, *class, uid));
        paths.collect::<Vec<_>>()
    };
    drivers.into_iter().flat_map(of_driver).collect()
}

/// The container a runtime's cgroup is named after: `cri-containerd-<id>.scope`, `crio-<id>.scope`, `<id>`.
fn container_of<'a>(pod: &'a NodePod, child: &str) -> Option<&'a ObservedContainer> {
    pod.observed.containers.iter().find(|container| child.contains(container.id.as_str()))
}

async fn read(groups: &FsCgroups, of: &str, path: &str) -> Result<Group, CliError> {
    let stat = groups.stat(path).await.map_err(|error| CliError::from_chain("cgroups", &error))?;
    let file = |name: &str| {
        let path = Path::new(DEFAULT_ROOT).join(path.trim_start_matches('/')).join(name);
        std::fs::read_to_string(path).ok()
    };
    Ok(group(of, path, stat.unwrap_or_default(), file("cpu.max"), file("cpu.weight")))
}

fn group(of: &str, path: &str, stat: CgroupStat, max: Option<String>, weight: Option<String>) -> Group {
    let cpu_max = max.and_then(|text| {
        let mut words = text.split_whitespace().map(|word| word.parse::<u64>().ok());
        let (quota, period) = (words.next()??, words.next()??);
        (quota * 1000).checked_div(period)
    });
    Group {
        of: of.to_owned(),
        path: path.to_owned(),
        cpu_usage_millis: stat.cpu.map(|cpu| cpu.usage / 1000),
        cpu_throttled_millis: stat.cpu.map(|cpu| cpu.throttled / 1000),
        cpu_weight: weight.and_then(|text| text.trim().parse().ok()),
        cpu_max_millis: cpu_max,
        memory_bytes: stat.memory.map(|memory| memory.current),
        memory_max_bytes: stat.memory.and_then(|memory| memory.max),
        swap_bytes: stat.memory.and_then(|memory| memory.swap),
        processes: stat.pids.map(|pids| pids.current),
        processes_max: stat.pids.and_then(|pids| pids.max),
        oom_kills: stat.memory.map(|memory| memory.events.oom_kill),
        memory_pressure: stat.memory_pressure.map(|pressure| pressure.some.avg10),
    }
}

fn table(groups: &[Group], screen: &Screen) -> String {
    let wide = screen.format == Format::Wide;
    let mut headings =
        vec!["CGROUP", "CPU TIME", "THROTTLED", "WEIGHT", "CPU MAX", "MEMORY", "MAX", "PIDS", "OOM KILLS"];
    if wide {
        headings.extend(["SWAP", "PRESSURE", "PATH"]);
    }
    let mut rows = Rows::new(&headings);
    let or_none = |value: Option<String>| value.unwrap_or_default();
    let limit = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
    let seconds = |millis: u64| format!("{}.{:03} s", millis / 1000, millis % 1000);
    for group in groups {
        let pids = group.processes.map(|current| match group.processes_max {
            Some(max) => format!("{current}/{max}"),
            None => current.to_string(),
        });
        let mut row = vec![
            group.of.clone(),
            or_none(group.cpu_usage_millis.map(seconds)),
            or_none(group.cpu_throttled_millis.map(seconds)),
            or_none(group.cpu_weight.map(|weight| weight.to_string())),
            limit(group.cpu_max_millis.map(|millis| format!("{millis}m"))),
            or_none(group.memory_bytes.map(size)),
            limit(group.memory_max_bytes.map(size)),
            or_none(pids),
            or_none(group.oom_kills.map(|kills| kills.to_string())),
        ];
        if wide {
            row.push(or_none(group.swap_bytes.map(size)));
            row.push(or_none(group.memory_pressure.map(|share| format!("{share:.1} %"))));
            row.push(group.path.clone());
        }
        rows.push(row);
    }
    rows.render(screen, |index, word| match (index, word) {
        (_, "none") => Paint::Dim,
        _ => mood(index, word),
    })
}

#[cfg(test)]
mod tests {
    use longshore_kernel::cgroup::stat::{CpuStat, MemoryEvents, MemoryStat, PidsStat};

    use super::*;

    #[test]
    fn values_stand_beside_their_limits() {
        let memory = MemoryStat {
            current: 20 << 20,
            max: Some(64 << 20),
            events: MemoryEvents { oom_kill: 2, ..MemoryEvents::default() },
            ..MemoryStat::default()
        };
        let stat = CgroupStat {
            memory: Some(memory),
            cpu: Some(CpuStat { usage: 1_500_000, throttled: 20_000, ..CpuStat::default() }),
            pids: Some(PidsStat { current: 3, max: Some(100) }),
            ..CgroupStat::default()
        };
        let text = |text: &str| Some(text.to_owned());
        let limited = group("web", "/k/web", stat, text("50000 100000\n"), text("20\n"));
        let free = group("pod", "/k", CgroupStat::default(), text("max 100000\n"), text("1\n"));
        let screen = Screen { format: Format::Table, colour: false, width: None };
        assert_eq!(
            table(&[free, limited], &screen),
            "CGROUP  CPU TIME  THROTTLED  WEIGHT  CPU MAX  MEMORY    MAX       PIDS   OOM KILLS\n\
             pod     -         -          1       none     -         none      -      -\n\
             web     1.500 s   0.020 s    20      500m     20.0 MiB  64.0 MiB  3/100  2\n"
        );
    }

    #[test]
    fn a_pod_is_looked_for_where_either_driver_puts_it() {
        let uid = PodUid::from("a-b");
        let all = candidates(None, &uid, "");
        assert_eq!(all.len(), 6);
        assert!(all.contains(&"/kubepods/burstable/poda-b".to_owned()), "{all:?}");
        let of_spec = candidates(Some(&Pod::default()), &uid, "");
        assert_eq!(of_spec[1], "/kubepods/besteffort/poda-b");
    }
}
