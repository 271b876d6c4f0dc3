//! `longshore top`: what pods and the node use now. Two readings of the runtime's counters a moment
//! apart give the CPU; nothing needs a metrics server, and the daemon may be down.

use std::collections::BTreeMap;
use std::time::Duration;

use longshore_core::ids::{ContainerId, PodUid};
use longshore_cri::containers::ContainerUsage;
use longshore_cri::{ContainerFilter, ContainerUpkeep};
use serde::Serialize;

use crate::error::CliError;
use crate::images::size;
use crate::output::{Rows, Screen, mood, print, structured};
use crate::pods::{Node, NodePod};

/// Between the two readings.
const SPAN: Duration = Duration::from_secs(1);

/// One line of `top pod`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodUsage {
    pub namespace: String,
    pub pod: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Thousandths of a core; `None` where the runtime does not tell, or not yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    /// Working set, bytes; `None` where the runtime does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// `top node`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeUsage {
    pub cpu_millis: u64,
    pub cpus: u64,
    /// In use and not to be had back at once, bytes.
    pub memory_bytes: u64,
    pub memory_total_bytes: u64,
}

/// Shows the pods, or their containers.
pub async fn pods(
    node: &Node,
    screen: &Screen,
    namespace: Option<&str>,
    containers: bool,
) -> Result<(), CliError> {
    let pods = node.pods().await?;
    let cri = node.cri()?;
    let all = ContainerFilter::default();
    let before = cri.container_stats(&all).await?;
    tokio::time::sleep(SPAN).await;
    let after = cri.container_stats(&all).await?;
    let mut usage = usage(&pods, &before.items, &after.items, containers);
    usage.retain(|line| namespace.is_none_or(|namespace| namespace == line.namespace));
    if structured(screen, &usage)? {
        return Ok(());
    }
    if usage.is_empty() {
        eprintln!("nothing runs");
        return Ok(());
    }
    print(&table(&usage, screen, containers))
}

/// Shows the node.
pub async fn whole_node(screen: &Screen) -> Result<(), CliError> {
    let before = cpu_times(&read("/proc/stat")?);
    tokio::time::sleep(SPAN).await;
    let after = cpu_times(&read("/proc/stat")?);
    let usage = node_usage(before, after, &read("/proc/meminfo")?);
    if structured(screen, &usage)? {
        return Ok(());
    }
    print(&node_table(&usage, screen))
}

fn read(path: &str) -> Result<String, CliError> {
    std::fs::read_to_string(path).map_err(|error| CliError::new(format!("cannot read {path}: {error}")))
}

/// The most used first.
fn usage(
    pods: &[NodePod],
    before: &[ContainerUsage],
    after: &[ContainerUsage],
    containers: bool,
) -> Vec<PodUsage> {
    let earlier: BTreeMap<&ContainerId, &ContainerUsage> =
        before.iter().map(|usage| (&usage.id, usage)).collect();
    let mut lines: BTreeMap<(PodUid, Option<String>), PodUsage> = BTreeMap::new();
    for now in after {
        let Some(pod) = pods.iter().find(|pod| Some(&pod.observed.uid) == now.pod.as_ref()) else { continue };
        let container = containers.then(|| now.name.to_string());
        let line = lines.entry((pod.observed.uid.clone(), container.clone())).or_insert_with(|| PodUsage {
            namespace: pod.key().namespace.to_string(),
            pod: pod.key().name.to_string(),
            container,
            cpu_millis: Some(0),
            memory_bytes: Some(0),
        });
        // What is not known of one of them is not known of the whole.
        let add = |sum: Option<u64>, part: Option<u64>| Some(sum?.saturating_add(part?));
        line.cpu_millis = add(line.cpu_millis, earlier.get(&now.id).and_then(|before| millis(before, now)));
        line.memory_bytes = add(line.memory_bytes, now.memory_working_set);
    }
    let mut lines: Vec<PodUsage> = lines.into_values().collect();
    lines.sort_by(|a, b| {
        let names = |line: &PodUsage| (line.namespace.clone(), line.pod.clone(), line.container.clone());
        (b.cpu_millis, b.memory_bytes)
            .cmp(&(a.cpu_millis, a.memory_bytes))
            .then_with(|| names(a).cmp(&names(b)))
    });
    lines
}

/// Thousandths of a core between two readings, by the times at which the runtime took them.
fn millis(before: &ContainerUsage, after: &ContainerUsage) -> Option<u64> {
    let (from, to) = (before.cpu_nanoseconds?, after.cpu_nanoseconds?);
    let span = match (before.at, after.at) {
        (Some(from), Some(to)) => u64::try_from(to.duration_since(from).as_nanos()).unwrap_or(0),
        _ => u64::try_from(SPAN.as_nanos()).unwrap_or(0),
    };
    // A counter that went back is another life of the container; a reading that was not taken anew tells nothing.
    to.checked_sub(from)?.saturating_mul(1000).checked_div(span)
}

fn unknown() -> String {
    "-".to_owned()
}

fn table(lines: &[PodUsage], screen: &Screen, containers: bool) -> String {
    let mut headings = vec!["NAMESPACE", "POD", "CPU", "MEMORY"];
    if containers {
        headings.insert(2, "CONTAINER");
    }
    let mut rows = Rows::new(&headings);
    for line in lines {
        let mut row = vec![
            line.namespace.clone(),
            line.pod.clone(),
            line.cpu_millis.map_or_else(unknown, |millis| format!("{millis}m")),
            line.memory_bytes.map_or_else(unknown, size),
        ];
        if containers {
            row.insert(2, line.container.clone().unwrap_or_default());
        }
        rows.push(row);
    }
    rows.render(screen, mood)
}

/// Busy and whole time of all CPUs since boot, in ticks (proc(5)), and how many they are.
fn cpu_times(stat: &str) -> (u64, u64, u64) {
    let numbers: Vec<u64> = stat
        .lines()
        .find_map(|line| line.strip_prefix("cpu "))
        .into_iter()
        .flat_map(|rest| rest.split_whitespace().map(|word| word.parse().unwrap_or(0)))
        .collect();
    // user nice system idle iowait irq softirq steal; guest time is in user already.
    let whole: u64 = numbers.iter().take(8).sum();
    let idle: u64 = numbers.iter().skip(3).take(2).sum();
    let is_cpu = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    (whole.saturating_sub(idle), whole, stat.lines().filter(is_cpu).count() as u64)
}

fn node_usage(before: (u64, u64, u64), after: (u64, u64, u64), meminfo: &str) -> NodeUsage {
    let value = |name: &str| {
        let rest = meminfo.lines().find_map(|line| line.strip_prefix(name));
        rest.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    let (busy, whole) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    let total = value("MemTotal:");
    NodeUsage {
        cpu_millis: (busy * after.2 * 1000).checked_div(whole).unwrap_or(0),
        cpus: after.2,
        memory_bytes: total.saturating_sub(value("MemAvailable:")),
        memory_total_bytes: total,
    }
}

fn node_table(usage: &NodeUsage, screen: &Screen) -> String {
    let percent = |part: u64, whole: u64| format!("{} %", (part * 100).checked_div(whole).unwrap_or(0));
    let mut rows = Rows::new(&["RESOURCE", "USED", "OF", "SHARE"]);
    let (cpu, cpus) = (usage.cpu_millis, usage.cpus * 1000);
    rows.push(vec!["cpu".into(), format!("{cpu}m"), format!("{cpus}m"), percent(cpu, cpus)]);
    let (used, total) = (usage.memory_bytes, usage.memory_total_bytes);
    rows.push(vec!["memory".into(), size(used), size(total), percent(used, total)]);
    rows.render(screen, mood)
}

#[cfg(test)]
mod tests {
    use longshore_core::ids::PodKey;
    use longshore_core::pod::observed::ObservedPod;

    use super::*;
    use crate::output::Format;

    fn screen() -> Screen {
        Screen { format: Format::Table, colour: false, width: Some(80) }
    }

    fn pod(name: &str) -> NodePod {
        let observed = ObservedPod {
            uid: PodUid::from(name),
            key: PodKey::new("default", name),
            sandboxes: Vec::new(),
            containers: Vec::new(),
            observed_at: jiff::Timestamp::UNIX_EPOCH,
        };
        NodePod { observed, view: None }
    }

    fn used(pod: &str, container: &str, millis: i64, cpu_ms: u64, mib: u64) -> ContainerUsage {
        ContainerUsage {
            id: ContainerId::from(format!("{pod}-{container}")),
            pod: Some(PodUid::from(pod)),
            name: container.into(),
            at: Some(jiff::Timestamp::from_millisecond(millis).unwrap()),
            cpu_nanoseconds: Some(cpu_ms * 1_000_000),
            memory_working_set: Some(mib << 20),
            memory_usage: None,
            memory_rss: None,
            page_faults: None,
            major_page_faults: None,
            swap_usage: None,
            layer_bytes: None,
            layer_inodes: None,
        }
    }

    #[test]
    fn pods_and_containers_have_their_shares() {
        let pods = [pod("web"), pod("db")];
        let before = [used("web", "a", 0, 1000, 1), used("web", "b", 0, 500, 1), used("db", "main", 0, 0, 1)];
        let after = [
            used("web", "a", 2000, 1500, 10),
            used("web", "b", 2000, 500, 20),
            used("db", "main", 2000, 3000, 300),
            // Started between the two, and one of somebody else's.
            used("web", "new", 2000, 900, 5),
            used("foreign", "x", 2000, 900, 5),
        ];
        assert_eq!(
            table(&usage(&pods, &before, &after, false), &screen(), false),
            "NAMESPACE  POD  CPU    MEMORY\n\
             default    db   1500m  300.0 MiB\n\
             default    web  -      35.0 MiB\n"
        );
        assert_eq!(
            table(&usage(&pods, &before, &after, true), &screen(), true),
            "NAMESPACE  POD  CONTAINER  CPU    MEMORY\n\
             default    db   main       1500m  300.0 MiB\n\
             default    web  a          250m   10.0 MiB\n\
             default    web  b          0m     20.0 MiB\n\
             default    web  new        -      5.0 MiB\n"
        );
        let silent = ContainerUsage { memory_working_set: None, ..used("db", "main", 2000, 3000, 0) };
        assert_eq!(
            table(&usage(&pods, &before, &[silent], false), &screen(), false),
            "NAMESPACE  POD  CPU    MEMORY\n\
             default    db   1500m  -\n"
        );
    }

    #[test]
    fn the_node_is_read_from_proc() {
        let before = cpu_times("cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1\ncpu1 1\n");
        let after = cpu_times("cpu  150 0 150 900 0 0 0 0 0 0\ncpu0 1\ncpu1 1\nintr 1\n");
        let usage = node_usage(before, after, "MemTotal: 2048 kB\nMemAvailable: 1024 kB\n");
        assert_eq!(
            node_table(&usage, &screen()),
            "RESOURCE  USED     OF       SHARE\n\
             cpu       1000m    2000m    50 %\n\
             memory    1.0 MiB  2.0 MiB  50 %\n"
        );
    }
}
