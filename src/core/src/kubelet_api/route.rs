//! Paths of the kubelet's API: parsed once into a [`Route`], which names the methods it takes and what its
//! caller must be allowed to do. A request that is no route still needs `nodes/proxy`, so that nobody
//! learns without rights which paths there are.

use super::query::unescape;

/// Longest name in a path, bytes (RFC 1123 subdomain).
const MAX_NAME: usize = 253;
/// Longest path below `/logs/`, bytes.
const MAX_LOG_PATH: usize = 1024;
/// What Go programs have below `/debug/pprof/` beside its index and `cmdline` (net/http/pprof, runtime/pprof).
const PROFILES: [&str; 9] =
    ["allocs", "block", "goroutine", "heap", "mutex", "profile", "symbol", "threadcreate", "trace"];

/// What a path asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Healthz,
    Pods,
    RunningPods,
    Summary,
    Metrics(Metrics),
    ContainerLogs(ContainerTarget),
    Exec(ContainerTarget),
    Attach(ContainerTarget),
    Run(ContainerTarget),
    Checkpoint(ContainerTarget),
    PortForward(PodTarget),
    /// Parts of a path below the node's log folder; none of them is empty, `.` or `..`.
    NodeLogs(Vec<String>),
    Configz,
    Statusz,
    Flagz,
    Pprof(Pprof),
}

/// Which page below `/debug/pprof/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pprof {
    Index,
    /// The daemon's own command line.
    Cmdline,
    /// A profile or what belongs to one, by its name; this daemon makes none.
    Profile(&'static str),
}

/// Which metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metrics {
    /// Of the daemon itself.
    Daemon,
    Cadvisor,
    Resource,
    Probes,
    /// Of the health checks.
    Slis,
}

/// A pod by its name, and by its uid where the caller means one life of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodTarget {
    pub namespace: String,
    pub pod: String,
    pub uid: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerTarget {
    pub pod: PodTarget,
    pub container: String,
}

/// How a method counts for authorisation; other methods exist on no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    Get,
    Create,
    Update,
    Patch,
    Delete,
}

impl Verb {
    pub const ALL: [Self; 5] = [Self::Get, Self::Create, Self::Update, Self::Patch, Self::Delete];

    /// Of an HTTP method.
    pub fn of_method(method: &str) -> Option<Self> {
        match method {
            "GET" => Some(Self::Get),
            "POST" => Some(Self::Create),
            "PUT" => Some(Self::Update),
            "PATCH" => Some(Self::Patch),
            "DELETE" => Some(Self::Delete),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

/// What a caller must be allowed to do on the node's own object: `verb` on any one of `subresources`, asked
/// for in this order (KEP-2862: the fine one first, then `proxy`, which holds them all).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Needed {
    pub verb: Verb,
    pub subresources: &'static [&'static str],
}

impl Route {
    /// Reads a path, escapes and all, without its query; `None` where the API has no such path.
    pub fn parse(path: &str) -> Option<Self> {
        let path = path.strip_prefix('/')?;
        let (head, rest) = path.split_once('/').unwrap_or((path, ""));
        if head == "logs" {
            return log_path(rest).map(Self::NodeLogs);
        }
        let parts = names(rest)?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        Some(match (head, parts.as_slice()) {
            ("healthz", [] | ["ping" | "log" | "syncloop"]) => Self::Healthz,
            ("pods", []) => Self::Pods,
            ("runningpods", []) => Self::RunningPods,
            ("stats", ["summary"]) => Self::Summary,
            ("metrics", []) => Self::Metrics(Metrics::Daemon),
            ("metrics", ["cadvisor"]) => Self::Metrics(Metrics::Cadvisor),
            ("metrics", ["resource"]) => Self::Metrics(Metrics::Resource),
            ("metrics", ["probes"]) => Self::Metrics(Metrics::Probes),
            ("metrics", ["slis"]) => Self::Metrics(Metrics::Slis),
            ("containerLogs", [namespace, pod, container]) => {
                Self::ContainerLogs(container_of(namespace, pod, None, container))
            }
            ("checkpoint", [namespace, pod, container]) => {
                Self::Checkpoint(container_of(namespace, pod, None, container))
            }
            ("exec", parts) => Self::Exec(container(parts)?),
            ("attach", parts) => Self::Attach(container(parts)?),
            ("run", parts) => Self::Run(container(parts)?),
            ("portForward", [namespace, pod]) => Self::PortForward(pod_of(namespace, pod, None)),
            ("portForward", [namespace, pod, uid]) => Self::PortForward(pod_of(namespace, pod, Some(uid))),
            ("configz", []) => Self::Configz,
            ("statusz", []) => Self::Statusz,
            ("flagz", []) => Self::Flagz,
            ("debug", ["pprof"]) => Self::Pprof(Pprof::Index),
            ("debug", ["pprof", "cmdline"]) => Self::Pprof(Pprof::Cmdline),
            ("debug", ["pprof", name]) => {
                Self::Pprof(Pprof::Profile(PROFILES.into_iter().find(|known| known == name)?))
            }
            _ => return None,
        })
    }

    /// Its first part, which is how requests are counted (`kubelet_http_requests_total`).
    pub fn name(&self) -> &'static str {
        match self {
            Self::Healthz => "healthz",
            Self::Pods => "pods",
            Self::RunningPods => "runningpods",
            Self::Summary => "stats/summary",
            Self::Metrics(Metrics::Daemon) => "metrics",
            Self::Metrics(Metrics::Cadvisor) => "metrics/cadvisor",
            Self::Metrics(Metrics::Resource) => "metrics/resource",
            Self::Metrics(Metrics::Probes) => "metrics/probes",
            Self::Metrics(Metrics::Slis) => "metrics/slis",
            Self::ContainerLogs(_) => "containerLogs",
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::Run(_) => "run",
            Self::Checkpoint(_) => "checkpoint",
            Self::PortForward(_) => "portForward",
            Self::NodeLogs(_) => "logs",
            Self::Configz => "configz",
            Self::Statusz => "statusz",
            Self::Flagz => "flagz",
            Self::Pprof(_) => "debug",
        }
    }

    /// Whether an answer may go on for as long as its reader stays.
    pub fn is_long_running(&self) -> bool {
        matches!(self, Self::ContainerLogs(_) | Self::Exec(_) | Self::Attach(_) | Self::PortForward(_))
    }

    /// Verbs this route answers.
    pub fn verbs(&self) -> &'static [Verb] {
        match self {
            Self::Exec(_) | Self::Attach(_) | Self::PortForward(_) | Self::Summary | Self::NodeLogs(_) => {
                &[Verb::Get, Verb::Create]
            }
            Self::Run(_) | Self::Checkpoint(_) => &[Verb::Create],
            _ => &[Verb::Get],
        }
    }

    /// Whether the port without authentication answers it too.
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::Healthz | Self::Pods | Self::Summary | Self::Metrics(_))
    }

    /// Whether it is there only with `enableDebuggingHandlers`.
    pub fn is_debugging(&self) -> bool {
        !self.is_read_only()
    }

    fn subresources(&self) -> &'static [&'static str] {
        match self {
            Self::Healthz => &["healthz", "proxy"],
            Self::Pods | Self::RunningPods => &["pods", "proxy"],
            Self::Summary => &["stats"],
            Self::Metrics(_) => &["metrics"],
            Self::Checkpoint(_) => &["checkpoint"],
            Self::NodeLogs(_) => &["log"],
            Self::Configz => &["configz", "proxy"],
            Self::Statusz => &["statusz"],
            Self::Flagz => &["configz"],
            Self::ContainerLogs(_)
            | Self::Exec(_)
            | Self::Attach(_)
            | Self::Run(_)
            | Self::PortForward(_)
            | Self::Pprof(_) => &["proxy"],
        }
    }

    /// Runs something in a container or opens a way into one.
    fn is_action(&self) -> bool {
        matches!(self, Self::Exec(_) | Self::Attach(_) | Self::Run(_) | Self::PortForward(_))
    }
}

/// What a request needs. A WebSocket opens with GET: who may only read must not run commands by it, so
/// actions need `create` by whatever method they are asked for.
pub fn needed(route: Option<&Route>, verb: Verb) -> Needed {
    match route {
        None => Needed { verb, subresources: &["proxy"] },
        Some(route) => Needed {
            verb: if route.is_action() { Verb::Create } else { verb },
            subresources: route.subresources(),
        },
    }
}

fn container(parts: &[&str]) -> Option<ContainerTarget> {
    match parts {
        [namespace, pod, container] => Some(container_of(namespace, pod, None, container)),
        [namespace, pod, uid, container] => Some(container_of(namespace, pod, Some(uid), container)),
        _ => None,
    }
}

fn container_of(namespace: &str, pod: &str, uid: Option<&str>, container: &str) -> ContainerTarget {
    ContainerTarget { pod: pod_of(namespace, pod, uid), container: container.to_owned() }
}

fn pod_of(namespace: &str, pod: &str, uid: Option<&str>) -> PodTarget {
    PodTarget { namespace: namespace.to_owned(), pod: pod.to_owned(), uid: uid.map(str::to_owned) }
}

/// The names of a path; a slash at its end counts for nothing.
fn names(rest: &str) -> Option<Vec<String>> {
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.is_empty() {
        return Some(Vec::new());
    }
    rest.split('/').map(|part| unescape(part, false).filter(|name| is_name(name))).collect()
}

/// Names of namespaces, pods and containers and uids are made of these, and never of dots alone.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(plain) && !is_dots(name)
}

fn is_dots(part: &str) -> bool {
    part == "." || part == ".."
}

fn log_path(rest: &str) -> Option<Vec<String>> {
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.is_empty() {
        return Some(Vec::new());
    }
    if rest.len() > MAX_LOG_PATH {
        return None;
    }
    rest.split('/').map(|part| unescape(part, false).filter(|part| is_log_part(part))).collect()
}

/// Whether this can be one part of a path of files; escaped slashes would be parts nobody looked at.
pub(super) fn is_log_part(part: &str) -> bool {
    !part.is_empty() && !is_dots(part) && !part.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_one_route_with_its_needs() {
        let fine: &[(&str, &[Verb], &[&str])] = &[
            ("/healthz", &[Verb::Get], &["healthz", "proxy"]),
            ("/healthz/syncloop", &[Verb::Get], &["healthz", "proxy"]),
            ("/pods", &[Verb::Get], &["pods", "proxy"]),
            ("/pods/", &[Verb::Get], &["pods", "proxy"]),
            ("/runningpods/", &[Verb::Get], &["pods", "proxy"]),
            ("/stats/summary", &[Verb::Get, Verb::Create], &["stats"]),
            ("/metrics", &[Verb::Get], &["metrics"]),
            ("/metrics/cadvisor", &[Verb::Get], &["metrics"]),
            ("/metrics/resource", &[Verb::Get], &["metrics"]),
            ("/metrics/probes", &[Verb::Get], &["metrics"]),
            ("/metrics/slis", &[Verb::Get], &["metrics"]),
            ("/containerLogs/ns/pod/c", &[Verb::Get], &["proxy"]),
            ("/checkpoint/ns/pod/c", &[Verb::Create], &["checkpoint"]),
            ("/logs/", &[Verb::Get, Verb::Create], &["log"]),
            ("/logs/pods/a/0.log", &[Verb::Get, Verb::Create], &["log"]),
            ("/configz", &[Verb::Get], &["configz", "proxy"]),
            ("/statusz", &[Verb::Get], &["statusz"]),
            ("/flagz", &[Verb::Get], &["configz"]),
            ("/debug/pprof/", &[Verb::Get], &["proxy"]),
            ("/debug/pprof/cmdline", &[Verb::Get], &["proxy"]),
            ("/debug/pprof/profile", &[Verb::Get], &["proxy"]),
            ("/debug/pprof/heap", &[Verb::Get], &["proxy"]),
        ];
        for (path, verbs, subresources) in fine {
            let route = Route::parse(path).unwrap_or_else(|| panic!("{path} is a route"));
            assert_eq!(route.verbs(), *verbs, "{path}");
            for verb in Verb::ALL {
                assert_eq!(needed(Some(&route), verb), Needed { verb, subresources }, "{path}");
            }
        }
        for path in [
            "/exec/ns/pod/c",
            "/exec/ns/pod/uid/c",
            "/attach/ns/pod/c",
            "/run/ns/pod/c",
            "/portForward/ns/pod",
            "/portForward/ns/pod/uid",
        ] {
            let route = Route::parse(path).unwrap_or_else(|| panic!("{path} is a route"));
            for verb in Verb::ALL {
                let expected = Needed { verb: Verb::Create, subresources: &["proxy"] };
                assert_eq!(needed(Some(&route), verb), expected, "{path} by {}", verb.name());
            }
        }
    }

    #[test]
    fn what_is_no_path_needs_everything_and_is_none() {
        for path in [
            "/",
            "",
            "pods",
            "//pods",
            "/pods/x",
            "/Pods",
            "/exec",
            "/exec/ns/pod",
            "/exec/ns/pod/uid/c/more",
            "/exec/ns/../c",
            "/exec/ns/%2e%2e/c",
            "/exec/ns/a%2fb/c",
            "/exec/ns/a%00/c",
            "/exec/ns//c",
            "/containerLogs/ns/pod/%zz",
            "/containerLogs/ns/pod/uid/c",
            "/metrics/other",
            "/debug",
            "/debug/pprof/other",
            "/debug/pprof/profile/more",
            "/logs/../shadow",
            "/logs/a/%2E%2E/b",
            "/logs/a%2f..%2fb",
            "/logs//a",
            "/logs/a%00b",
        ] {
            assert_eq!(Route::parse(path), None, "{path}");
        }
        let long = format!("/containerLogs/ns/{}/c", "a".repeat(300));
        assert_eq!(Route::parse(&long), None);
        assert_eq!(needed(None, Verb::Get), Needed { verb: Verb::Get, subresources: &["proxy"] });
    }

    #[test]
    fn names_and_uids_come_out_as_they_were_meant() {
        let target = ContainerTarget {
            pod: PodTarget {
                namespace: "kube-system".into(),
                pod: "web-0.a".into(),
                uid: Some("u-1".into()),
            },
            container: "main".into(),
        };
        assert_eq!(Route::parse("/exec/kube-system/web-0%2Ea/u-1/main"), Some(Route::Exec(target)));
        let parts = vec!["pods".to_owned(), "a b".to_owned()];
        assert_eq!(Route::parse("/logs/pods/a%20b/"), Some(Route::NodeLogs(parts)));
    }

    #[test]
    fn the_open_port_has_only_what_changes_and_shows_nothing_secret() {
        for path in [
            "/exec/n/p/c",
            "/containerLogs/n/p/c",
            "/logs/",
            "/configz",
            "/runningpods/",
            "/flagz",
            "/debug/pprof/",
        ] {
            let route = Route::parse(path).unwrap();
            assert!(!route.is_read_only() && route.is_debugging(), "{path}");
        }
    }
}
