//! Why a pod or the node is as it is: one sentence, what to do next, and the facts it rests on.
//! Pure over the views the daemon publishes, so that the same words come from the socket, from tests
//! and from a report taken elsewhere.

use jiff::Timestamp;

use crate::pod::desired::EndCause;
use crate::pod::lifecycle::Lifecycle;
use crate::pod::snapshot::{ProbeKind, Waiting};
use crate::pod::step::{StepKey, StepKind};
use crate::wire::{FailedHook, NodeView, PodView, ProbeView, WhyView};

/// A step under way for longer than this is what a pod waits for.
const SLOW_STEP_SECONDS: i64 = 3;

/// Why this pod is in the state it is in.
pub fn why_pod(view: &PodView, now: Timestamp) -> WhyView {
    let (ok, sentence) = sentence(view, now);
    WhyView {
        subject: format!("pod {}", view.key),
        ok,
        next_steps: if ok { Vec::new() } else { next_steps(view) },
        facts: facts(view, now),
        sentence,
    }
}

fn sentence(view: &PodView, now: Timestamp) -> (bool, String) {
    let phase = view.status.phase.as_deref().unwrap_or("Pending");
    match &view.lifecycle {
        Lifecycle::Queued { behind } => {
            return (false, format!("it waits until the earlier life of its name ({behind}) has ended"));
        }
        Lifecycle::Terminating { cause, since, deadline } => {
            let left = deadline.duration_since(now).as_secs().max(0);
            let ago = now.duration_since(*since).as_secs();
            let text = format!(
                "it is ending because {}, for {ago} s now; in {left} s what still runs is killed",
                cause_words(cause)
            );
            return (left > 0, text);
        }
        Lifecycle::Terminated { cause, .. } if view.failures.is_empty() => {
            return (
                true,
                format!(
                    "nothing of it runs any more ({}); its volumes and folders are being released",
                    cause_words(cause)
                ),
            );
        }
        Lifecycle::Released { cause, .. } => {
            let failed = phase == "Failed";
            return (!failed, format!("it has ended ({phase}): {}", cause_words(cause)));
        }
        Lifecycle::Syncing | Lifecycle::Terminated { .. } => {}
    }
    if let Some(waiting) = view.waiting.first() {
        let hook = view.failed_hooks.iter().find(|hook| waiting.container.as_ref() == Some(&hook.container));
        let words = waiting_words(waiting, now);
        return (false, hook.map_or(words.clone(), |hook| format!("{}; {words}", hook_words(hook))));
    }
    if let Some((key, failure)) = view.failures.first() {
        let retry = failure.retry_at.duration_since(now).as_secs();
        let when =
            if retry > 0 { format!("tried again in {retry} s") } else { "being tried again".to_owned() };
        return (
            false,
            format!("it could not {key} ({} times): {}; {when}", failure.attempts, failure.error.message),
        );
    }
    if let Some((key, since)) = slowest(view)
        && now.duration_since(*since).as_secs() >= SLOW_STEP_SECONDS
    {
        return (
            false,
            format!("the step \"{key}\" has been running for {} s", now.duration_since(*since).as_secs()),
        );
    }
    if let Some((key, _)) = slowest(view) {
        return (true, format!("it is being set up: {key}"));
    }
    match not_ready(view) {
        Some(message) if phase == "Running" => {
            let message = failing_probe(view).unwrap_or(message);
            (false, format!("it runs and is not Ready: {message}"))
        }
        _ => (true, format!("it is {phase} as wanted")),
    }
}

fn waiting_words(waiting: &Waiting, now: Timestamp) -> String {
    let of = waiting.container.as_ref().map(|name| format!(" (container {name})")).unwrap_or_default();
    let until = waiting.until.map(|at| at.duration_since(now).as_secs()).filter(|left| *left > 0);
    let until = until.map(|left| format!("; {left} s to go")).unwrap_or_default();
    format!("{}{of}: {}{until}", waiting.reason, waiting.message)
}

fn cause_words(cause: &EndCause) -> String {
    match cause {
        EndCause::Deleted => "its manifest or API object was deleted".into(),
        EndCause::Replaced => "its manifest was edited".into(),
        EndCause::Finished => "its containers finished".into(),
        EndCause::DeadlineExceeded => "activeDeadlineSeconds ran out".into(),
        EndCause::Rejected { reason, message } => format!("the node did not admit it, {reason}: {message}"),
        EndCause::Evicted { message } => format!("the node was under pressure: {message}"),
        EndCause::Preempted { message } => message.clone(),
        EndCause::Orphaned => "no source wants it".into(),
    }
}

fn slowest(view: &PodView) -> Option<&(StepKey, Timestamp)> {
    view.in_flight.iter().min_by_key(|(_, since)| *since)
}

fn not_ready(view: &PodView) -> Option<String> {
    let ready = view.status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready")?;
    (ready.status != "True").then(|| ready.message.clone().or(ready.reason.clone()).unwrap_or_default())
}

/// The first probe that says no, in words.
fn failing_probe(view: &PodView) -> Option<String> {
    view.probes.iter().find(|probe| !probe.result.healthy).map(probe_words)
}

fn hook_words(hook: &FailedHook) -> String {
    format!("the postStart hook of container {} failed: {}", hook.container, hook.message)
}

fn probe_words(probe: &ProbeView) -> String {
    let kind = match probe.kind {
        ProbeKind::Startup => "startup",
        ProbeKind::Liveness => "liveness",
        ProbeKind::Readiness => "readiness",
    };
    let says = if probe.result.healthy { "succeeds" } else { "fails" };
    format!("the {kind} probe of container {} {says}: {}", probe.container, probe.result.message)
}

fn next_steps(view: &PodView) -> Vec<String> {
    let key = &view.key;
    let of_namespace =
        if &*key.namespace == "default" { String::new() } else { format!(" -n {}", key.namespace) };
    let mut steps = Vec::new();
    let crashing = view.waiting.iter().find(|waiting| waiting.reason == "CrashLoopBackOff");
    if let Some(waiting) = crashing {
        let container = waiting.container.as_ref().map(|name| format!(" -c {name}")).unwrap_or_default();
        steps.push(format!("longshore logs {}{of_namespace}{container} --previous", key.name));
    }
    let pulls = view.failures.iter().any(|(step, _)| step.kind == StepKind::PullImage);
    if pulls {
        steps.push("check the image's name, the registry and its credentials; ctr -n k8s.io images ls shows what is here".into());
    }
    steps.push(format!("longshore timeline {}{of_namespace}", key.name));
    steps.push(format!("longshore describe {}{of_namespace}", key.name));
    steps
}

fn facts(view: &PodView, now: Timestamp) -> Vec<String> {
    let mut facts = vec![format!("phase {}", view.status.phase.as_deref().unwrap_or("Pending"))];
    facts.extend(view.waiting.iter().map(|waiting| waiting_words(waiting, now)));
    facts.extend(
        view.in_flight
            .iter()
            .map(|(key, since)| format!("under way: {key}, for {} s", now.duration_since(*since).as_secs())),
    );
    facts.extend(view.failures.iter().map(|(key, failure)| {
        format!("failed {} times: {key}: {}", failure.attempts, failure.error.message)
    }));
    facts.extend(view.failed_hooks.iter().map(hook_words));
    facts.extend(view.probes.iter().map(probe_words));
    for status in view.status.container_statuses.iter().flatten() {
        if status.restart_count > 0 {
            let ended = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
            let last = ended.map_or(String::new(), |ended| {
                let reason = ended.reason.as_deref().unwrap_or("no reason given");
                format!("; the last time it ended with exit code {} ({reason})", ended.exit_code)
            });
            facts.push(format!(
                "container {} was restarted {} times{last}",
                status.name, status.restart_count
            ));
        }
    }
    facts
}

/// Why the node is as it is.
pub fn why_node(view: &NodeView) -> WhyView {
    let mut facts = vec![format!("version {}", view.version)];
    facts.extend(view.sources.iter().cloned());
    if !view.service_mode.is_empty() {
        facts.push(format!("Services by {}: {}", view.service_mode, view.service_mode_reason));
    }
    facts.extend(view.problems.iter().map(|problem| format!("{}: {}", problem.place, problem.message)));
    let answer = |ok, sentence: String, next: &[&str]| WhyView {
        subject: format!("node {}", view.name),
        ok,
        sentence,
        next_steps: next.iter().map(|step| (*step).to_owned()).collect(),
        facts: facts.clone(),
    };
    match (&view.runtime, &view.network) {
        (Err(problem), _) => {
            let text =
                format!("the container runtime does not answer, {problem}; pods that run are not touched");
            answer(
                false,
                text,
                &["systemctl status containerd", "journalctl -u containerd -e", "longshore doctor"],
            )
        }
        (Ok(_), Err(problem)) => {
            let text = format!("the runtime has no pod network: {problem}");
            answer(false, text, &["ls /etc/cni/net.d /opt/cni/bin", "longshore doctor"])
        }
        (Ok(runtime), Ok(())) if view.problems.is_empty() => {
            answer(true, format!("the node works; the runtime is {runtime}"), &[])
        }
        (Ok(_), Ok(())) => {
            let text = format!("the node works, and {} of its inputs have problems", view.problems.len());
            answer(false, text, &["longshore doctor"])
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::{Pod, PodStatus};

    use super::*;
    use crate::ids::{PodKey, PodUid};
    use crate::pod::desired::PodSource;
    use crate::pod::local::StepFailure;
    use crate::pod::observed::ObservedPod;
    use crate::pod::step::StepError;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn view() -> PodView {
        let key = PodKey::new("default", "web");
        let uid = PodUid::from("u");
        let observed = ObservedPod {
            uid: uid.clone(),
            key: key.clone(),
            sandboxes: Vec::new(),
            containers: Vec::new(),
            observed_at: at(0),
        };
        PodView {
            key,
            uid,
            source: PodSource::Api,
            pod: Arc::new(Pod::default()),
            status: Arc::new(PodStatus { phase: Some("Running".into()), ..PodStatus::default() }),
            lifecycle: Lifecycle::Syncing,
            observed: Arc::new(observed),
            waiting: Vec::new(),
            in_flight: Vec::new(),
            failures: Vec::new(),
            probes: Vec::new(),
            failed_hooks: Vec::new(),
        }
    }

    #[test]
    fn the_most_important_reason_is_the_sentence() {
        let step = StepKey { kind: StepKind::CreateSandbox, subject: String::new() };
        let slow = PodView { in_flight: vec![(step.clone(), at(0))], ..view() };
        let failure = StepFailure {
            attempts: 2,
            since: at(0),
            last_at: at(8),
            retry_at: at(14),
            error: StepError { reason: "X".into(), message: "no CNI".into(), retryable: true },
        };
        let failed = PodView { failures: vec![(step, failure)], ..view() };
        let waiting = Waiting {
            reason: "CrashLoopBackOff".into(),
            container: Some("app".into()),
            message: "it keeps exiting with code 1".into(),
            until: Some(at(30)),
        };
        let crashing = PodView { waiting: vec![waiting], ..failed.clone() };
        let cases = [
            (view(), true, "it is Running as wanted"),
            (slow, false, "the step \"create sandbox\" has been running for 10 s"),
            (failed, false, "it could not create sandbox (2 times): no CNI; tried again in 4 s"),
            (
                crashing.clone(),
                false,
                "CrashLoopBackOff (container app): it keeps exiting with code 1; 20 s to go",
            ),
        ];
        for (view, ok, sentence) in cases {
            let why = why_pod(&view, at(10));
            assert_eq!((why.ok, why.sentence.as_str()), (ok, sentence));
        }
        assert_eq!(why_pod(&crashing, at(10)).next_steps[0], "longshore logs web -c app --previous");
    }

    #[test]
    fn a_runtime_that_is_away_is_the_first_thing_said_of_the_node() {
        let node = NodeView {
            name: "n".into(),
            ips: Vec::new(),
            version: "0".into(),
            started_at: at(0),
            runtime: Err("down since 10:00".into()),
            network: Err("no CNI".into()),
            sources: Vec::new(),
            problems: Vec::new(),
            service_mode: String::new(),
            service_mode_reason: String::new(),
        };
        let why = why_node(&node);
        assert!(!why.ok && why.sentence.contains("down since 10:00"), "{}", why.sentence);
        let fine = NodeView { runtime: Ok("containerd 2".into()), network: Ok(()), ..node };
        assert!(why_node(&fine).ok);
    }
}
