//! Carries out one scenario on a node, step by step, with a deadline each. It acts through `Node` alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::form::{Action, Churn, Executed, Logged, Request, Scenario, Start, Step, Text, Unchanged};
use super::state;
use crate::cluster;
use crate::fake::{self, Order};
use crate::node::{self, Kind, MANIFESTS, Node, sh};
use crate::process::wait_until;

/// Plays scenarios on one node.
pub struct Player<'a> {
    node: &'a mut dyn Node,
    /// Deadlines are multiplied by this; emulated nodes are slow.
    patience: u32,
    /// Container id to process id, by the name they were noted under.
    remembered: BTreeMap<String, BTreeMap<String, String>>,
    /// Called with a line of progress.
    tell: &'a mut dyn FnMut(&str),
}

impl std::fmt::Debug for Player<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Player").field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl<'a> Player<'a> {
    pub fn new(node: &'a mut dyn Node, patience: u32, tell: &'a mut dyn FnMut(&str)) -> Self {
        Self { node, patience, remembered: BTreeMap::new(), tell }
    }

    /// Plays all steps; the first that fails ends it.
    ///
    /// # Errors
    /// Names the step and what was seen instead.
    pub fn play(&mut self, scenario: &Scenario) -> Result<()> {
        let count = scenario.steps.len();
        let kind = self.node.kind();
        let is_for = |step: &Step| step.only.is_empty() || step.only.contains(&kind);
        for (n, step) in scenario.steps.iter().enumerate().filter(|(_, step)| is_for(step)) {
            let start = Instant::now();
            let result = self.step(step);
            let mark = if result.is_ok() { "ok" } else { "FAILED" };
            (self.tell)(&format!(
                "{:>2}/{count} {mark:<6} {:>6.2} s  {}",
                n + 1,
                start.elapsed().as_secs_f32(),
                step.say
            ));
            let seen = result.with_context(|| format!("step {} ({})", n + 1, step.say))?;
            if step.show {
                seen.trim_end().lines().for_each(|line| (self.tell)(&format!("      {line}")));
            }
        }
        Ok(())
    }

    /// What the step saw, for showing.
    fn step(&mut self, step: &Step) -> Result<String> {
        let deadline = step.deadline * self.patience;
        match &step.action {
            Action::Apply(manifest) if self.node.kind() == Kind::Cluster => {
                let path = format!("{}/{}", cluster::APPLIED, manifest.file);
                node::put(self.node, &path, manifest.text.as_bytes())?;
                self.apply_to_api(&path)
            }
            Action::Remove(file) if self.node.kind() == Kind::Cluster => {
                cluster::kubectl(self.node, &format!("delete --wait=false -f '{}/{file}'", cluster::APPLIED))
            }
            Action::Apply(manifest) => {
                let path = format!("{MANIFESTS}/{}", manifest.file);
                node::put(self.node, &path, manifest.text.as_bytes()).map(|()| manifest.text.clone())
            }
            Action::Remove(file) => sh(self.node, &format!("rm '{MANIFESTS}/{file}'")),
            Action::Stop(stop) => self.node.stop(stop.service, &stop.signal).map(|()| String::new()),
            Action::Start(Start::Service(service)) => self.node.start(*service).map(|()| String::new()),
            Action::Start(Start::With(with)) => {
                self.node.start_agent_with(&with.flags).map(|()| String::new())
            }
            Action::Kill(target) => self.kill(&target.pod, &target.container),
            Action::Remember(name) => {
                let tasks = state::tasks(self.node)?;
                let count = tasks.len();
                self.remembered.insert(name.clone(), tasks);
                Ok(format!("{count} containers and sandboxes"))
            }
            Action::Wait(span) => {
                std::thread::sleep(span.0);
                Ok(String::new())
            }
            Action::Fake(order) => self.node.order(order).map(|answer| answer.to_string()),
            Action::Churn(churn) => self.churn(churn),
            // What is done twice may do something else the second time.
            once @ Action::Run(_) if !step.again => self.expect(once, deadline),
            expectation => {
                let pause = Duration::from_millis(if self.patience > 1 { 500 } else { 100 });
                wait_until(deadline, pause, || self.expect(expectation, deadline))
            }
        }
    }

    /// The API lets nobody edit a pod that runs: who changes its manifest deletes it and creates it anew, as this does,
    /// where a folder of manifests has the daemon do it.
    fn apply_to_api(&self, path: &str) -> Result<String> {
        let applied = cluster::kubectl(self.node, &format!("apply -f '{path}'"));
        match &applied {
            Err(error) if format!("{error:#}").contains("pod updates may not change fields") => {
                cluster::kubectl(self.node, &format!("delete -f '{path}'"))?;
                cluster::kubectl(self.node, &format!("apply -f '{path}'"))
            }
            _ => applied,
        }
    }

    fn expect(&self, expectation: &Action, deadline: Duration) -> Result<String> {
        match expectation {
            Action::Pod(expected) => state::check_pod(self.node, expected),
            Action::Gone(name) => match state::pods(self.node)?.iter().find(|p| p.name == *name) {
                Some(pod) => bail!("it is still there: {} {}", pod.ready, pod.status),
                None => Ok(format!("{name} is gone")),
            },
            Action::Run(line) => {
                let output = self.node.run(&self.fill_in(&line.script)?, &[], deadline)?;
                expect_code(output.code, line.code, &output.text())?;
                self.filled(&line.text)?.check(&output.text()).map(|()| output.text())
            }
            Action::Why(said) => {
                let output = self.node.run(&format!("longshore why {}", said.of), &[], deadline)?;
                self.filled(&said.text)?.check(&output.text()).map(|()| output.text())
            }
            Action::Logs(logged) => self.logs(logged, deadline),
            Action::Exec(executed) => self.exec(executed, deadline),
            Action::Get(request) => self.get(request, deadline),
            Action::Unchanged(unchanged) => self.unchanged(unchanged),
            Action::Asked(asked) => {
                let answer = self.node.order(&asked.of)?.to_string();
                asked.text.check(&answer).map(|()| answer)
            }
            other => bail!("{other:?} is not an expectation"),
        }
    }

    /// Replaces `{node}` and `{ip:POD}`.
    fn fill_in(&self, text: &str) -> Result<String> {
        let mut text = text.replace("{node}", self.node.address());
        while let Some((before, rest)) = text.split_once("{ip:") {
            let (name, after) = rest.split_once('}').context("`{ip:` without its end")?;
            let pod = state::pod(self.node, name)?;
            let ip = pod.ip.with_context(|| format!("{name} has no address yet"))?;
            text = format!("{before}{ip}{after}");
        }
        Ok(text)
    }

    fn filled(&self, text: &Text) -> Result<Text> {
        let all = |texts: &[String]| texts.iter().map(|t| self.fill_in(t)).collect::<Result<Vec<_>>>();
        let equals = text.equals.as_deref().map(|t| self.fill_in(t)).transpose()?;
        Ok(Text { contains: all(&text.contains)?, lacks: all(&text.lacks)?, equals })
    }

    fn logs(&self, logged: &Logged, deadline: Duration) -> Result<String> {
        let container = logged.container.as_ref().map_or(String::new(), |c| format!(" -c {c}"));
        let previous = if logged.previous { " --previous" } else { "" };
        let output =
            self.node.run(&format!("longshore logs {}{container}{previous}", logged.pod), &[], deadline)?;
        expect_code(output.code, 0, &output.text())?;
        self.filled(&logged.text)?.check(&output.stdout).map(|()| output.stdout)
    }

    fn exec(&self, executed: &Executed, deadline: Duration) -> Result<String> {
        let container = executed.container.as_ref().map_or(String::new(), |c| format!(" -c {c}"));
        let words: Vec<String> =
            executed.command.iter().map(|w| format!("'{}'", w.replace('\'', r"'\''"))).collect();
        let line = format!("longshore exec{container} {} -- {}", executed.pod, words.join(" "));
        let output = self.node.run(&self.fill_in(&line)?, &[], deadline)?;
        expect_code(output.code, executed.code, &output.text())?;
        self.filled(&executed.text)?.check(&output.stdout).map(|()| output.stdout)
    }

    fn get(&self, request: &Request, deadline: Duration) -> Result<String> {
        let url = self.fill_in(&request.url)?;
        let mut answers = Vec::new();
        for _ in 0..request.times {
            match (self.get_once(&request.from, &url, deadline), request.fails) {
                (Ok(answer), true) => bail!("{url} answers: {answer}"),
                (Err(_), true) => {}
                (answer, false) => answers.push(answer?),
            }
        }
        for part in &request.contains {
            if let Some(answer) = answers.iter().find(|a| !a.contains(part)) {
                bail!("`{part}` is missing in the answer: {answer}");
            }
        }
        let distinct: BTreeSet<&String> = answers.iter().collect();
        if !request.fails && distinct.len() < request.distinct {
            bail!("{} requests had only {} different answers: {distinct:?}", request.times, distinct.len());
        }
        Ok(answers.concat())
    }

    fn get_once(&self, from: &str, url: &str, deadline: Duration) -> Result<String> {
        match from {
            "outside" => {
                let rest = url.strip_prefix("http://").context("only http:// is spoken")?;
                let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
                let port =
                    host.rsplit(':').next().and_then(|p| p.parse().ok()).context("a port is needed")?;
                let (status, body) = self.node.get_from_outside(port, &format!("/{path}"))?;
                if status != 200 {
                    bail!("{url} answered {status}: {body}");
                }
                Ok(body)
            }
            "node" => self.get_by(&format!("curl -sS -f -m {} '{url}'", 3 * self.patience), deadline),
            pod => self.get_by(&format!("longshore exec {pod} -- /web get '{url}'"), deadline),
        }
    }

    fn get_by(&self, line: &str, deadline: Duration) -> Result<String> {
        let output = self.node.run(line, &[], deadline)?;
        expect_code(output.code, 0, &output.text())?;
        Ok(output.stdout)
    }

    fn kill(&self, pod: &str, container: &str) -> Result<String> {
        let all = state::containers(self.node)?;
        let running = all
            .iter()
            .find(|c| c.pod == pod && c.container == container && c.state.eq_ignore_ascii_case("running"));
        let id = &running.with_context(|| format!("{pod} has no running container {container}: {all:?}"))?.id;
        let id = id.trim_start_matches("containerd://");
        if self.node.kind() == Kind::Fake {
            let order = Order::Kill(fake::Kill { container: id.to_owned(), code: 137 });
            return self.node.order(&order).map(|answer| answer.to_string());
        }
        sh(self.node, &format!("ctr -n k8s.io tasks kill -s SIGKILL {id}"))
    }

    /// Creates, edits and removes pods by lot, and removes the rest at the end.
    fn churn(&self, churn: &Churn) -> Result<String> {
        let mut lots = Lots(churn.seed);
        let mut there = BTreeSet::new();
        let mut counts = [0_usize; 3];
        for action in 0..churn.actions {
            let pod = lots.below(churn.pods);
            let path = format!("{MANIFESTS}/churn-{pod}.yaml");
            // Of the pods that are there a third of the lots removes, the rest edits.
            if there.contains(&pod) && lots.below(3) == 0 {
                sh(self.node, &format!("rm '{path}'"))?;
                there.remove(&pod);
                counts[2] += 1;
            } else {
                node::put(self.node, &path, churned_pod(pod, action, &churn.image).as_bytes())?;
                counts[usize::from(!there.insert(pod))] += 1;
            }
            std::thread::sleep(churn.pause.0.mul_f64(lots.below(100) as f64 / 100.0));
        }
        sh(self.node, &format!("rm -f {MANIFESTS}/churn-*.yaml"))?;
        let [created, edited, removed] = counts;
        Ok(format!("{created} created, {edited} edited, {removed} removed, then {} left", there.len()))
    }

    fn unchanged(&self, unchanged: &Unchanged) -> Result<String> {
        let before = self
            .remembered
            .get(&unchanged.since)
            .with_context(|| format!("nothing was remembered as {}", unchanged.since))?;
        let now = state::tasks(self.node)?;
        let excepted: BTreeSet<String> = if unchanged.except.is_empty() {
            BTreeSet::new()
        } else {
            let all = state::containers(self.node)?;
            let of_pods = all.into_iter().filter(|c| unchanged.except.contains(&c.pod));
            of_pods.map(|c| c.id.trim_start_matches("containerd://").to_owned()).collect()
        };
        let mut same = 0;
        for (id, process) in before.iter().filter(|(id, _)| !excepted.contains(*id)) {
            match now.get(id) {
                Some(now) if now == process => same += 1,
                Some(now) => bail!("container {id} had process {process} and has {now}"),
                None => bail!("container {id} does not run any more"),
            }
        }
        Ok(format!("{same} containers and sandboxes are the same processes"))
    }
}

/// A pod whose content tells which action wrote it; every kind of thing that can be left behind is in it.
fn churned_pod(pod: usize, action: usize, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: churn-{pod}}}\nspec:\n  \
         terminationGracePeriodSeconds: {grace}\n  \
         volumes: [{{name: disk, emptyDir: {{}}}}, {{name: memory, emptyDir: {{medium: Memory}}}}]\n  \
         containers:\n  - name: c\n    image: {image}\n    \
         env: [{{name: ACTION, value: '{action}'}}]\n    \
         volumeMounts: [{{name: disk, mountPath: /disk}}, {{name: memory, mountPath: /memory}}]\n",
        grace = action % 2,
    )
}

/// Numbers by lot, the same for the same seed on every machine (SplitMix64).
struct Lots(u64);

impl Lots {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }
}

fn expect_code(seen: i32, expected: i32, text: &str) -> Result<()> {
    if seen != expected {
        bail!("exit code {seen} instead of {expected}: {}", text.trim_end());
    }
    Ok(())
}
