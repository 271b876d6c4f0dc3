//! The form of a scenario file: YAML with a name, the nodes it runs on and steps. Pure: text in, values out; every
//! mistake is named with its step, so that a misspelt check cannot pass by being ignored.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::fake::Order;
use crate::node::{Kind, Service};
use crate::vm::CgroupDriver;

/// How long a step may take where it says nothing, on hardware; emulated nodes get a multiple.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// One scenario.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: String,
    /// The kinds of node it runs on.
    pub nodes: Vec<Kind>,
    /// Lines added to the node's configuration.
    pub config: String,
    /// Whether the daemon is started before the first step.
    pub daemon: bool,
    /// The runtime's cgroup driver; only VM nodes have one.
    pub cgroup_driver: CgroupDriver,
    /// Orders to the fake runtime before the daemon starts; other nodes have no use for them.
    pub fake: Vec<Order>,
    pub steps: Vec<Step>,
}

impl Scenario {
    /// Whether the real kubelet or kube-proxy plays a part.
    pub fn needs_peers(&self) -> bool {
        let is_peer =
            |step: &Step| matches!(&step.action, Action::Start(Start::Service(service)) if service.is_peer());
        self.steps.iter().any(is_peer)
    }

    /// The time it lets pass whatever happens.
    pub fn waits(&self) -> Duration {
        let waits = self.steps.iter().map(|step| match &step.action {
            Action::Wait(span) => span.0,
            _ => Duration::ZERO,
        });
        waits.sum()
    }
}

/// One step: what is done or expected, and by when.
#[derive(Debug, Clone)]
pub struct Step {
    /// For people; the action's own words where absent.
    pub say: String,
    pub deadline: Duration,
    /// Whether a shell line is tried again until it is as expected; only where the file says `within`.
    pub again: bool,
    /// Whether the demo prints what the step saw.
    pub show: bool,
    /// The kinds of node the step is for; all where empty.
    pub only: Vec<Kind>,
    pub action: Action,
}

/// What a step does. Expectations are asked again until they hold or the deadline is over.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Writes a manifest file.
    Apply(Manifest),
    /// Removes a manifest file.
    Remove(String),
    /// A pod has this state.
    Pod(PodState),
    /// A pod is not there any more.
    Gone(String),
    /// A shell line in the node.
    Run(Line),
    /// What `longshore why` says.
    Why(Said),
    /// What a container has printed.
    Logs(Logged),
    /// A program in a container.
    Exec(Executed),
    /// HTTP requests.
    Get(Request),
    /// Kills a container's process, as a crash does.
    Kill(Target),
    Stop(Stop),
    Start(Start),
    /// Notes the ids of all containers under a name.
    Remember(String),
    /// The containers noted under the name still run.
    Unchanged(Unchanged),
    /// Lets time pass, to show that something does not happen.
    Wait(Span),
    /// An order to the fake runtime.
    Fake(Order),
    /// What the fake runtime answers to a question among the orders, as JSON.
    Asked(Asked),
    /// Pods created, edited and removed by lot, as many actions and as many pods at most as are given.
    Churn(Churn),
}

#[derive(Debug, Clone, Deserialize)]
pub struct Asked {
    pub of: Order,
    #[serde(flatten)]
    pub text: Text,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Churn {
    pub seed: u64,
    pub pods: usize,
    pub actions: usize,
    /// The image of the pods.
    pub image: String,
    /// Between two actions, at most.
    pub pause: Span,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub file: String,
    pub text: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PodState {
    pub name: String,
    /// The column of `longshore ps`, for example `Running` or `CrashLoopBackOff`.
    pub status: Option<String>,
    /// The column, for example `1/2`.
    pub ready: Option<String>,
    /// `2` or `>=2`.
    pub restarts: Option<String>,
    pub phase: Option<String>,
    /// Condition type to status.
    pub conditions: BTreeMap<String, String>,
    /// JSON pointer into the Pod to value.
    pub fields: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Line {
    pub script: String,
    #[serde(default)]
    pub code: i32,
    #[serde(flatten)]
    pub text: Text,
}

/// Expectations of a text.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Text {
    pub contains: Vec<String>,
    pub lacks: Vec<String>,
    /// The trimmed text is exactly this.
    pub equals: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Said {
    /// `pod/web` or `node`.
    pub of: String,
    #[serde(flatten)]
    pub text: Text,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Logged {
    pub pod: String,
    pub container: Option<String>,
    #[serde(default)]
    pub previous: bool,
    #[serde(flatten)]
    pub text: Text,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Executed {
    pub pod: String,
    pub container: Option<String>,
    pub command: Vec<String>,
    #[serde(default)]
    pub code: i32,
    #[serde(flatten)]
    pub text: Text,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// `node`, `outside`, or a pod's name (one of the web image).
    pub from: String,
    /// `{ip:POD}` and `{node}` are replaced; from outside only the port and path count.
    pub url: String,
    #[serde(default = "once")]
    pub times: usize,
    /// At least so many different answers among them.
    #[serde(default = "once")]
    pub distinct: usize,
    #[serde(default)]
    pub contains: Vec<String>,
    /// Nothing answers.
    #[serde(default)]
    pub fails: bool,
}

fn yes() -> bool {
    true
}

fn once() -> usize {
    1
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    pub pod: String,
    pub container: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    pub service: Service,
    #[serde(default = "term")]
    pub signal: String,
}

fn term() -> String {
    "TERM".to_owned()
}

/// `containerd`, or `{service: agent, flags: --config FILE}`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "a service, or {service: agent, flags: ...}")]
pub enum Start {
    Service(Service),
    With(StartWith),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartWith {
    pub service: AgentOnly,
    /// All of the daemon's flags, instead of the node's own.
    pub flags: String,
}

/// The only service whose flags a scenario gives.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentOnly {
    Agent,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unchanged {
    pub since: String,
    /// Pods that may have changed.
    #[serde(default)]
    pub except: Vec<String>,
}

/// `500ms`, `20s` or `2m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let number: u64 =
            digits.parse().map_err(|_| D::Error::custom(format!("`{text}` is not a time like 20s")))?;
        match &text[digits.len()..] {
            "ms" => Ok(Span(Duration::from_millis(number))),
            "s" => Ok(Span(Duration::from_secs(number))),
            "m" => Ok(Span(Duration::from_secs(number * 60))),
            unit => Err(D::Error::custom(format!("`{unit}` is not ms, s or m"))),
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{}ms", self.0.as_millis()))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    nodes: Vec<Kind>,
    #[serde(default)]
    config: String,
    #[serde(default = "yes")]
    daemon: bool,
    #[serde(default)]
    cgroup_driver: CgroupDriver,
    #[serde(default)]
    fake: Vec<Order>,
    steps: Vec<BTreeMap<String, Value>>,
}

/// Reads a scenario.
///
/// # Errors
/// Names the step and what is wrong with it.
pub fn parse(text: &str) -> Result<Scenario> {
    let file: File = serde_saphyr::from_str(text)?;
    if file.nodes.is_empty() || file.steps.is_empty() {
        bail!("a scenario needs nodes and steps");
    }
    let numbered = file.steps.into_iter().enumerate();
    let steps = numbered.map(|(n, step)| read_step(step).with_context(|| format!("step {}", n + 1)));
    Ok(Scenario {
        name: file.name,
        nodes: file.nodes,
        config: file.config,
        daemon: file.daemon,
        cgroup_driver: file.cgroup_driver,
        fake: file.fake,
        steps: steps.collect::<Result<_>>()?,
    })
}

fn read_step(mut step: BTreeMap<String, Value>) -> Result<Step> {
    let say = step.remove("say").map(serde_json::from_value::<String>).transpose()?;
    let show = step.remove("show").map(serde_json::from_value).transpose()?.unwrap_or(false);
    let within = step.remove("within").map(serde_json::from_value::<Span>).transpose()?;
    let only = step.remove("only").map(serde_json::from_value).transpose()?.unwrap_or_default();
    let mut rest = step.into_iter();
    let (Some((key, value)), None) = (rest.next(), rest.next()) else {
        bail!("a step is one action with `say`, `show`, `only` and `within` beside it");
    };
    check_keys(&key, &value)?;
    let say = say.unwrap_or_else(|| summary(&key, &value));
    let action = serde_json::from_value(Value::Object([(key, value)].into_iter().collect()))?;
    Ok(Step {
        say,
        deadline: within.map_or(DEFAULT_DEADLINE, |span| span.0),
        again: within.is_some(),
        show,
        only,
        action,
    })
}

/// Fields beside a flattened `Text` cannot be checked by serde.
fn check_keys(action: &str, value: &Value) -> Result<()> {
    let own: &[&str] = match action {
        "run" => &["script", "code"],
        "why" => &["of"],
        "logs" => &["pod", "container", "previous"],
        "exec" => &["pod", "container", "command", "code"],
        "asked" => &["of"],
        _ => return Ok(()),
    };
    for key in value.as_object().into_iter().flat_map(|map| map.keys()) {
        if !own.contains(&key.as_str()) && !["contains", "lacks", "equals"].contains(&key.as_str()) {
            bail!("`{action}` has no `{key}`");
        }
    }
    Ok(())
}

/// The action in one line, shortened.
fn summary(key: &str, value: &Value) -> String {
    let field = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let telling = match key {
        "apply" => field("file"),
        "run" => field("script"),
        "why" => field("of"),
        "get" => field("url").zip(field("from")).map(|(url, from)| format!("{url} from {from}")),
        _ => value.as_str().map(str::to_owned),
    };
    let text = telling.unwrap_or_else(|| value.to_string());
    let mut line: String = text.chars().map(|c| if c == '\n' { ' ' } else { c }).take(100).collect();
    if line.len() < text.len() {
        line.push('…');
    }
    format!("{key} {line}")
}

impl Text {
    /// # Errors
    /// Says which expectation does not hold, and the text.
    pub fn check(&self, text: &str) -> Result<()> {
        if let Some(missing) = self.contains.iter().find(|part| !text.contains(*part)) {
            bail!("`{missing}` is missing in: {}", text.trim_end());
        }
        if let Some(surplus) = self.lacks.iter().find(|part| text.contains(*part)) {
            bail!("`{surplus}` should not be in: {}", text.trim_end());
        }
        if let Some(equals) = self.equals.as_ref().filter(|equals| equals.trim() != text.trim()) {
            bail!("expected `{}`, got: {}", equals.trim(), text.trim());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(steps: &str) -> String {
        format!("{:#}", parse(&format!("name: x\nnodes: [native]\nsteps:\n{steps}")).unwrap_err())
    }

    #[test]
    fn a_whole_scenario_is_read() {
        let text = "
name: a pod answers
nodes: [native, vm]
steps:
  - apply:
      file: web.yaml
      text: |
        kind: Pod
  - pod: {name: web, ready: 1/1, restarts: '>=1', fields: {/status/phase: Running}}
    within: 5s
  - stop: {service: agent, signal: KILL}
  - start: agent
  - start: {service: agent, flags: --standalone}
  - run: {script: 'true', lacks: [never]}
    say: nothing is said
    show: true
  - wait: 500ms
";
        let scenario = parse(text).unwrap();
        assert_eq!(scenario.nodes, [Kind::Native, Kind::Vm]);
        assert_eq!((scenario.steps.len(), scenario.waits()), (7, Duration::from_millis(500)));
        assert_eq!(scenario.steps[1].deadline, Duration::from_secs(5));
        assert_eq!(scenario.steps[0].say, "apply web.yaml");
        assert!(scenario.steps[5].show && !scenario.needs_peers());
        assert!(
            matches!(&scenario.steps[6].action, Action::Wait(Span(d)) if *d == Duration::from_millis(500))
        );
    }

    #[test]
    fn a_scenario_tells_whether_it_needs_the_kubelet() {
        let read = |steps: &str| parse(&format!("name: x\nnodes: [cluster]\nsteps:\n{steps}")).unwrap();
        assert!(read("  - wait: 1s\n  - start: kubelet").needs_peers());
        assert!(read("  - start: kubeproxy").needs_peers());
        assert!(!read("  - start: agent\n  - start: etcd").needs_peers());
    }

    #[test]
    fn mistakes_are_named_with_their_step() {
        for (steps, expected) in [
            ("  - pood: {name: web}", "step 1"),
            ("  - pod: {name: web, redy: 1/1}", "redy"),
            ("  - run: {script: x, contain: [a]}", "no `contain`"),
            ("  - wait: 5 parsecs", "parsecs"),
            ("  - start: {service: kubelet, flags: --v=2}", "a service, or"),
            ("  - wait: 1s\n    wihtin: 1s", "one action"),
        ] {
            let error = error_of(steps);
            assert!(error.contains(expected), "{steps}: {error}");
        }
    }

    #[test]
    fn texts_are_compared() {
        let text = Text { contains: vec!["a".into()], lacks: vec!["z".into()], equals: Some("a b".into()) };
        assert!(text.check(" a b\n").is_ok());
        for wrong in ["b", "a z", "a b c"] {
            assert!(text.check(wrong).is_err(), "{wrong}");
        }
    }
}
