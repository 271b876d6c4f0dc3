//! `make demo` and `make node-shell`: a throwaway node VM with longshore.service on `examples/`. The demo shows the main
//! job and succeeds only if all of it was seen; its expectations are `integration/demo.yaml`.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::node::{self, Kind, MANIFESTS, Node, Service, sh};
use crate::process::wait_until;
use crate::scenario::form::{PodState, parse};
use crate::scenario::play::Player;
use crate::scenario::{state, suite};
use crate::tiers::{Tier, workspace_root};
use crate::vm::{CgroupDriver, NodeVm, Options};
use crate::{native, qemu, root};

/// Shows the main job.
///
/// # Errors
/// Where something of it was not seen; the node's state is printed then.
pub fn run() -> Result<()> {
    let start = Instant::now();
    let mut vm = boot("demo")?;
    let patience = vm.patience();
    if let Err(error) = show(&mut vm, patience) {
        println!("{}", state::dump(&vm));
        return Err(error);
    }
    println!(
        "\nall of it was seen, in {:.0} s; `make node-shell` gives a shell on such a node",
        start.elapsed().as_secs_f32()
    );
    Ok(())
}

/// Boots the same node and gives a shell on it; the node ends with the shell.
///
/// # Errors
/// Where the node does not come up.
pub fn shell() -> Result<()> {
    let mut vm = boot("node-shell")?;
    start_on_examples(&mut vm)?;
    node::put(&vm, GREETING_FILE, greeting(vm.node_port()).as_bytes())?;
    println!();
    let shell = format!("cat {GREETING_FILE}; exec bash -l");
    vm.shell_command().arg(shell).status().context("cannot start ssh")?;
    step("ending the node", || {
        drop(vm);
        Ok(())
    })
}

const GREETING_FILE: &str = "/etc/longshore/greeting";

/// What a person sees first on the node: what is there, and what to try. At most 80 columns.
fn greeting(node_port: u16) -> String {
    format!(
        "\
You are root on a throwaway node: longshore runs the manifests of examples/,
copied to {MANIFESTS}. The pods may still be starting.

  longshore ps                        the pods and what each one waits for
  longshore why pod/crashing          why a pod is not well, and what to do
  longshore timeline pod/web-0        every step of its start, with times
  longshore logs batch                what a container printed
  longshore exec web-0 -- /web get http://127.0.0.1:8080/
  longshore svc list                  Services; more by `svc explain web`
  curl 10.96.0.80                     a different pod answers each time
  busybox vi {MANIFESTS}/web.yaml     an edited pod is replaced
  systemctl restart longshore         no container is restarted by it
  journalctl -u longshore -f          what the daemon decides

From your own machine the NodePort answers: curl http://127.0.0.1:{node_port}/
Leave with `exit` or Ctrl-D: the node ends and nothing of it is kept.

"
    )
}

/// One line per step, with the time it took.
fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    println!("==> {what}");
    let result = work().with_context(|| what.to_owned())?;
    println!("    done in {:.1} s", start.elapsed().as_secs_f32());
    Ok(result)
}

fn boot(name: &str) -> Result<NodeVm> {
    if let Some(reason) = Tier::Vm.obstacle() {
        bail!("{reason}");
    }
    let binary = step("building longshore", suite::binary)?;
    step("building the demo's images and the node's root file system", native::image_store)?;
    let accelerator = step("choosing an accelerator", || {
        root::folder()?;
        qemu::accelerator()
    })?;
    println!(
        "    {accelerator:?}{}",
        if accelerator == qemu::Accelerator::Tcg {
            " (emulation: everything takes about ten times longer)"
        } else {
            ""
        }
    );
    let driver = CgroupDriver::Systemd;
    let config = suite::config(Kind::Vm, driver, "");
    let options = Options { name: name.to_owned(), binary: Some(binary), config, cgroup_driver: driver };
    step("booting the node", || NodeVm::start(&options))
}

fn show(vm: &mut NodeVm, patience: u32) -> Result<()> {
    start_on_examples(vm)?;
    step("waiting until the pods are as their manifests say", || fill_up(vm, patience))?;
    println!("==> the main job");
    let scenario = parse(&fs::read_to_string(workspace_root().join("integration/demo.yaml"))?)?;
    Player::new(vm, patience, &mut |line| println!("    {line}")).play(&scenario)
}

fn start_on_examples(vm: &mut NodeVm) -> Result<()> {
    step("starting longshore.service on examples/", || {
        for path in fs::read_dir(workspace_root().join("examples"))?.flatten().map(|e| e.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(".yaml") {
                node::put(vm, &format!("{MANIFESTS}/{name}"), &fs::read(&path)?)?;
            }
        }
        vm.start(Service::Agent)
    })
}

/// Prints the pod table whenever it changes, until every pod is as it should be.
fn fill_up(vm: &mut NodeVm, patience: u32) -> Result<()> {
    let ready = |name: &str| PodState { name: name.into(), ready: Some("1/1".into()), ..PodState::default() };
    let ended = PodState { name: "batch".into(), phase: Some("Succeeded".into()), ..PodState::default() };
    let crashing = PodState { name: "crashing".into(), restarts: Some(">=1".into()), ..PodState::default() };
    let wanted = [ready("web-0"), ready("web-1"), ready("web-2"), ended, crashing];
    let mut last = String::new();
    wait_until(Duration::from_secs(60) * patience, Duration::from_millis(500), || {
        let table = sh(vm, "longshore ps")?;
        // Ages change with every look; the rest is what is worth a line.
        let gist: String = state::pods(vm)?
            .iter()
            .map(|p| format!("{} {} {} {}\n", p.name, p.ready, p.status, p.restarts))
            .collect();
        if gist != last {
            println!("{}", table.lines().map(|line| format!("    {line}\n")).collect::<String>());
            last = gist;
        }
        wanted.iter().try_for_each(|pod| state::check_pod(vm, pod).map(drop))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::form::Action;

    #[test]
    fn the_greeting_fits_a_terminal_and_names_what_is_in_the_examples() {
        let text = greeting(65535);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let dir = workspace_root().join("examples");
        let files = fs::read_dir(dir).unwrap().flatten().map(|e| fs::read_to_string(e.path()).unwrap());
        let examples: String = files.collect();
        for name in ["crashing", "web-0", "batch", "10.96.0.80"] {
            assert!(text.contains(name) && examples.contains(name), "{name}");
        }
    }

    #[test]
    fn the_demo_expects_what_it_shows() {
        let file = fs::read_to_string(workspace_root().join("integration/demo.yaml")).unwrap();
        let steps = parse(&file).unwrap().steps;
        assert!(steps.iter().any(|s| matches!(&s.action, Action::Unchanged(_))));
        assert!(steps.iter().filter(|s| s.show).count() >= 8);
    }
}
