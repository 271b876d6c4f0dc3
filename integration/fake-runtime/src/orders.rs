//! Carries out orders on the fake runtime: from their form to its methods, nothing more.

use std::collections::BTreeMap;
use std::time::Duration;

use longshore_cri::Operation;
use longshore_cri::fake::{self, ExecScript, Exit, FakeRuntime, OnStop, PullScript, Run};
use longshore_integration::fake::{Effect, Exec, Fault, Kill, Life, Order, Pull, PullFailure, When};
use longshore_integration::scenario::form::Span;
use serde_json::{Value, json};
use tonic::Code;

/// The answer; an error says what there is none of.
pub(crate) fn carry_out(fake: &FakeRuntime, order: Order) -> Result<Value, String> {
    match order {
        Order::Script(script) => {
            fake.script(&script.container, script.runs.into_iter().map(run).collect());
        }
        Order::Exec(exec) => fake.script_exec(&exec.container.clone(), exec_script(exec)),
        Order::Pull(pull) => fake.script_pull(&pull.image.clone(), pull_script(&pull)),
        Order::Image(name) => return Ok(json!(fake.add_image(&name))),
        Order::Cost(cost) => match cost.operation {
            Some(name) => fake.set_cost(operation(&name)?, cost.takes.0),
            None => fake.set_cost_of_all(cost.takes.0),
        },
        Order::Fault(order) => fake.add_fault(fault(order)?),
        Order::ClearFaults => fake.clear_faults(),
        Order::BreakNetwork(why) => fake.break_network(why.as_deref()),
        Order::Kill(Kill { container, code }) => {
            let hit = usize::from(fake.kill_id(&container, code)) + fake.kill(&container, code);
            return at_least_one(hit, "running container", &container);
        }
        Order::OomKill(name) => return at_least_one(fake.oom_kill(&name), "running container", &name),
        Order::KillSandboxes(pod) => {
            return at_least_one(fake.kill_sandboxes(&pod), "ready sandbox of a pod", &pod);
        }
        Order::LosePod(pod) => return at_least_one(fake.lose_pod(&pod), "sandbox of a pod", &pod),
        Order::Reboot => fake.reboot(),
        Order::BreakEvents => fake.break_events(),
        Order::Tasks => return Ok(json!(fake.tasks())),
        Order::Counts => {
            let (sandboxes, containers) = fake.counts();
            return Ok(json!({"sandboxes": sandboxes, "containers": containers}));
        }
        Order::Calls => return Ok(json!(calls(fake))),
        Order::Busy => return Ok(json!(u64::try_from(fake.busy().as_nanos()).unwrap_or(u64::MAX))),
        Order::Starts => return Ok(json!(fake.starts())),
    }
    Ok(Value::Null)
}

fn at_least_one(hit: usize, what: &str, name: &str) -> Result<Value, String> {
    if hit == 0 { Err(format!("there is no {what} {name}")) } else { Ok(json!(hit)) }
}

/// By the name CRI gives the call.
fn operation(name: &str) -> Result<Operation, String> {
    let named = Operation::ALL.iter().find(|operation| format!("{operation:?}") == name);
    named.copied().ok_or_else(|| format!("CRI has no call {name}"))
}

fn calls(fake: &FakeRuntime) -> BTreeMap<String, u64> {
    let all = Operation::ALL.iter().map(|operation| (format!("{operation:?}"), fake.calls(*operation)));
    all.filter(|(_, count)| *count > 0).collect()
}

fn span(span: Option<Span>) -> Duration {
    span.map_or(Duration::ZERO, |span| span.0)
}

fn run(life: Life) -> Run {
    let exit = life.exits.map(|code| Exit {
        after: span(life.after),
        code,
        reason: life.reason.unwrap_or_else(|| if code == 0 { "Completed" } else { "Error" }.to_owned()),
    });
    let default = Run::default();
    let on_stop = match (life.ignores_stop, life.stops_after) {
        (true, _) => OnStop::Ignore,
        (false, Some(after)) => OnStop::ExitAfter { after: after.0, code: 143 },
        (false, None) => default.on_stop,
    };
    Run { create_error: life.create_fails, start_error: life.start_fails, exit, on_stop, output: life.prints }
}

fn exec_script(exec: Exec) -> ExecScript {
    ExecScript {
        takes: span(exec.takes),
        exit_code: exec.code,
        stdout: exec.stdout.into_bytes(),
        stderr: Vec::new(),
    }
}

fn pull_script(pull: &Pull) -> PullScript {
    let script = match pull.fails {
        None => PullScript::default(),
        Some(PullFailure::NotFound) => PullScript::not_found(&pull.image),
        Some(PullFailure::Refused) => PullScript::refused(),
        Some(PullFailure::Unreachable(times)) => PullScript::unreachable(times),
    };
    let wants = pull.wants.as_deref().and_then(|wanted| wanted.split_once(':'));
    let wants = wants.map(|(user, password)| (user.to_owned(), password.to_owned()));
    PullScript { takes: span(pull.takes), wants, ..script }
}

fn fault(fault: Fault) -> Result<fake::Fault, String> {
    let operation = fault.operation.as_deref().map(operation).transpose()?;
    let when = match fault.when {
        When::Always => fake::When::Always,
        When::Nth(n) => fake::When::Nth(n),
        When::First(n) => fake::When::First(n),
        When::Percent(percent) => fake::When::Percent(percent),
    };
    let effect = match fault.effect {
        Effect::Fail => fake::Effect::Fail(Code::Unknown, "refused by order".to_owned()),
        Effect::Hang => fake::Effect::Hang,
        Effect::LoseAnswer => fake::Effect::LoseAnswer,
        Effect::HangAfter => fake::Effect::HangAfter,
        Effect::Late(by) => fake::Effect::Late(by.0),
    };
    Ok(fake::Fault { operation, when, effect })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn orders_reach_the_runtime_and_wrong_ones_are_refused() {
        let fake = FakeRuntime::default();
        let order = |text: &str| carry_out(&fake, serde_json::from_str(text).unwrap());
        assert_eq!(order(r#""counts""#), Ok(json!({"sandboxes": 0, "containers": 0})));
        assert_eq!(
            order(r#"{"fault": {"operation": "Version", "when": {"nth": 1}, "effect": "fail"}}"#),
            Ok(Value::Null)
        );
        let runtime = fake.runtime();
        assert!(runtime.info.version().await.is_err());
        runtime.info.version().await.unwrap();
        assert_eq!(order(r#""calls""#), Ok(json!({"Version": 2})));
        for wrong in [
            r#"{"cost": {"operation": "version", "takes": "1s"}}"#,
            r#"{"kill": {"container": "nobody"}}"#,
            r#"{"kill_sandboxes": "nobody"}"#,
        ] {
            assert!(order(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_life_reads_as_it_is_written() {
        let life: Life =
            serde_json::from_str(r#"{"exits": 3, "after": "2s", "ignores_stop": true}"#).unwrap();
        let expected = Run::exits(Duration::from_secs(2), 3).ignores_stop();
        assert_eq!(run(life), expected);
        assert_eq!(run(Life::default()), Run::forever());
    }
}
