//! Orders to the fake runtime's program (`integration/fake-runtime`): what containers, pulls and calls do from now on,
//! and what it is asked. Values and a client; the program itself is a package of its own, as it needs the CRI crate.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::scenario::form::Span;
use crate::tiers::build_program;

/// One order, a line of JSON on the control socket; the answer is a line of JSON, see [`Answer`].
/// Operations are named as CRI names its calls, for example `StartContainer`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// What the instances of a container do, one after the other; the last is repeated.
    Script(Script),
    /// What commands in containers of a name give.
    Exec(Exec),
    /// What pulling an image does.
    Pull(Pull),
    /// Puts an image into the store.
    Image(String),
    /// How long calls take.
    Cost(Cost),
    /// Which calls go wrong, and how.
    Fault(Fault),
    /// No call goes wrong any more.
    ClearFaults,
    /// While this has a text, no sandbox gets a network.
    BreakNetwork(Option<String>),
    /// Ends the running containers of a name, or one by its id.
    Kill(Kill),
    /// The kernel kills the running containers of a name for their memory.
    OomKill(String),
    /// The sandbox process of a pod dies.
    KillSandboxes(String),
    /// Everything of a pod is forgotten without a word.
    LosePod(String),
    /// Nothing runs any more, as after a reboot of the node.
    Reboot,
    /// Every open event stream breaks.
    BreakEvents,
    /// Answers the ready sandboxes and running containers: time of start, by id.
    Tasks,
    /// Answers how many sandboxes and containers there are, in any state.
    Counts,
    /// Answers how many calls came in, by operation; those without calls are left out.
    Calls,
    /// Answers how long at least one call was under way so far, nanoseconds.
    Busy,
    /// Answers the names of all containers started so far, in order.
    Starts,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// A container's name, or `namespace/pod/container`, which wins.
    pub container: String,
    pub runs: Vec<Life>,
}

/// One life of a container. The default runs until it is stopped and then ends at once.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Life {
    /// Ends by itself with this code.
    pub exits: Option<i32>,
    /// When it does; at once where it is missing.
    pub after: Option<Span>,
    /// As the runtime says it; by the code where it is missing.
    pub reason: Option<String>,
    /// It cannot be created, with this text.
    pub create_fails: Option<String>,
    /// It cannot be started, with this text.
    pub start_fails: Option<String>,
    /// Only SIGKILL ends it.
    pub ignores_stop: bool,
    /// Time between the stop signal and its end.
    pub stops_after: Option<Span>,
    /// Lines on its standard output.
    pub prints: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    pub container: String,
    #[serde(default)]
    pub code: i32,
    pub takes: Option<Span>,
    #[serde(default)]
    pub stdout: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pull {
    pub image: String,
    pub takes: Option<Span>,
    pub fails: Option<PullFailure>,
    /// `USER:PASSWORD`, without which the registry refuses.
    pub wants: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullFailure {
    NotFound,
    Refused,
    /// For so many pulls.
    Unreachable(u32),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Every operation where it is missing.
    pub operation: Option<String>,
    pub takes: Span,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Any call where it is missing.
    pub operation: Option<String>,
    pub when: When,
    pub effect: Effect,
}

/// Which calls are hit, counted from the order on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    Always,
    Nth(u64),
    First(u64),
    /// So many of a hundred, by the program's seed.
    Percent(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Refused, nothing done.
    Fail,
    /// Nothing done, no answer.
    Hang,
    /// Done, and the answer is an error of the connection.
    LoseAnswer,
    /// Done, and no answer.
    HangAfter,
    /// Done at once, and answered so much later.
    Late(Span),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kill {
    /// A container's name, or its id.
    pub container: String,
    #[serde(default = "sigkill")]
    pub code: i32,
}

fn sigkill() -> i32 {
    137
}

/// The answer to an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Done(Value),
    Refused(String),
}

/// How long the program may take to answer: it only changes values in its memory.
const PATIENCE: Duration = Duration::from_secs(10);

/// Gives an order to the program that listens at `control`.
///
/// # Errors
/// Where nothing listens there, or the order is refused: its operation has no such name, nothing was hit.
pub fn order(control: &Path, order: &Order) -> Result<Value> {
    let said = || format!("order to the fake runtime at {}: {order:?}", control.display());
    let mut stream = UnixStream::connect(control).with_context(said)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{}\n", serde_json::to_string(order)?).as_bytes()).with_context(said)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).with_context(said)?;
    match serde_json::from_str(&line).with_context(said)? {
        Answer::Done(value) => Ok(value),
        Answer::Refused(why) => bail!("{}: {why}", said()),
    }
}

/// Builds the program and gives its path.
///
/// # Errors
/// Where it does not compile.
pub fn binary() -> Result<PathBuf> {
    build_program("fake-runtime")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_read_as_scenarios_write_them() {
        for text in [
            "{script: {container: web, runs: [{exits: 7, after: 2s, prints: [no such database]}, {}]}}",
            "{fault: {operation: StartContainer, when: {nth: 1}, effect: fail}}",
            "{fault: {when: always, effect: hang}}",
            "{pull: {image: a, fails: {unreachable: 2}, takes: 1s}}",
            "{cost: {takes: 10ms}}",
            "{kill: {container: web}}",
            "{fault: {operation: ListContainers, when: always, effect: {late: 2s}}}",
            "break_events",
        ] {
            let read: Order = serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            let line = serde_json::to_string(&read).unwrap();
            assert_eq!(serde_json::from_str::<Order>(&line).unwrap(), read, "{line}");
        }
        assert!(serde_saphyr::from_str::<Order>("{kill: {containr: web}}").is_err());
    }
}
