//! Logs of containers through the kubelet's API: a file of 100 MB over TLS beside reading the same file, and what a
//! follower costs that does not read. The runtime is the fake one's program: nothing of it is measured.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::daemon;
use super::figure::{Figure, Goal, Report};
use super::node::{BenchNode, settle};
use super::{build, release};
use crate::node::Node;

const ROUNDS: usize = 7;
/// Lines of the log, of 150 bytes each, 108 of them text.
const LINES: usize = 700_000;
/// As many as there are places for logs.
const FOLLOWERS: usize = 200;
/// Through the API it may take so much longer than reading the file: at least four fifths of its speed.
const GOAL: f64 = 1.25;
const DEADLINE: Duration = Duration::from_secs(300);
/// Everybody may do everything: who may what is not measured. The log is not rotated away meanwhile.
const CONFIG: &str = "authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}\n\
                      authorization: {mode: AlwaysAllow}\n\
                      containerLogMaxSize: 1Gi\n";

pub fn run(report: &mut Report) -> Result<()> {
    if report.builds() {
        build(&["-p", "longshore-fake-runtime"])?;
    }
    let node = BenchNode::start_fake_with("logs", report.binary(), &release("fake-runtime"), CONFIG)?;
    node.start_pods(1, "")?;
    let pod = daemon::names(1).remove(0);
    let file = script(&node, &format!("ls -d /var/log/pods/default_{pod}_*/web"))? + "/0.log";
    let line = format!("2026-01-01T00:00:00.123456789Z stdout F {}", "log line ".repeat(12));
    script(&node, &format!("yes '{line}' | head -n {LINES} > {file}; cat {file} > /dev/null"))?;
    let url = format!("https://127.0.0.1:10250/containerLogs/default/{pod}/web");
    through_the_api(&node, &file, &url, report)?;
    followers(&node, &url, report)
}

/// In turns, so that a moment of other work does not hit only one of them.
fn through_the_api(node: &BenchNode, file: &str, url: &str, report: &mut Report) -> Result<()> {
    let whole = script(node, &format!("stat -c %s {file}"))?;
    let bytes: f64 = whole.parse()?;
    let part = script(node, &format!("cut -d ' ' -f 4- {file} | wc -c"))?;
    let text = script(node, &format!("cut -d ' ' -f 4- {file} | md5sum"))?;
    let got = script(node, &format!("curl -sSk --http1.1 {url} | md5sum"))?;
    ensure!(text == got, "the API does not tell the log's text");
    // Through a pipe: what goes to /dev/null need not be read at all (splice(2)).
    let timed = |command: &str, bytes: &str| -> Result<f64> {
        let line = format!("s=$(date +%s%N); n=$({command} | wc -c); e=$(date +%s%N); echo $n $((e - s))");
        let told = script(node, &line)?;
        let (count, nanos) = told.split_once(' ').context("two numbers")?;
        ensure!(count == bytes, "{command} gave {count} bytes, not {bytes}");
        Ok(nanos.parse::<f64>()? / 1e9)
    };
    let [mut api, mut http2, mut read, mut plain, mut cpu] = [const { Vec::new() }; 5];
    for _ in 0..ROUNDS {
        read.push(timed(&format!("cut -d ' ' -f 4- {file}"), &part)?);
        let before = node.daemon.process.cpu()?;
        api.push(timed(&format!("curl -sSk --http1.1 {url}"), &part)?);
        cpu.push(node.daemon.process.cpu()? - before);
        http2.push(timed(&format!("curl -sSk --http2 {url}"), &part)?);
        plain.push(timed(&format!("cat {file}"), &whole)?);
    }
    let ratios: Vec<f64> = api.iter().zip(&read).map(|(api, read)| api / read).collect();
    let size = format!("{:.0} MB in {LINES} lines, in the page cache", bytes / 1e6);
    report.tell(
        &Figure::new("containerLogs over reading the file", 1, "times", ratios)?.goal(Goal::median(GOAL)).note(
            format!("curl over TLS and HTTP/1.1 beside `cut -d ' ' -f 4-` of the same file, each into a pipe; {size}"),
        ),
    )?;
    for (figure, times) in [
        ("containerLogs over TLS, HTTP/1.1", api),
        ("containerLogs over TLS, HTTP/2", http2),
        ("the file read and cut into the same text in one pass (cut)", read),
        ("the file read and nothing more (cat)", plain),
    ] {
        let speeds = times.iter().map(|took| bytes / took / 1e6).collect();
        report.tell(&Figure::new(figure, 1, "MB/s", speeds)?.note(format!("of the file's bytes; {size}")))?;
    }
    report.tell(&Figure::new("daemon's CPU for the whole file, HTTP/1.1", 1, "s", cpu)?.note(size))
}

/// Followers that take 1 KiB each second of a log that is far longer.
fn followers(node: &BenchNode, url: &str, report: &mut Report) -> Result<()> {
    settle();
    let before = node.daemon.process.memory()?.resident;
    let follow = format!("curl -sSkN --http1.1 --limit-rate 1k '{url}?follow=true' > /dev/null 2>&1");
    script(
        node,
        &format!(
            "pids=; for i in $(seq {FOLLOWERS}); do {follow} & pids=\"$pids $!\"; done
             sleep 20; for pid in $pids; do kill -0 $pid || exit 1; done
             curl -sk -o /dev/null -w '%{{http_code}}' '{url}?follow=true' > /tmp/more
             sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$(pidof -s longshore)/status > /tmp/resident
             kill $pids"
        ),
    )?;
    let more = script(node, "cat /tmp/more")?;
    ensure!(more == "429", "one follower too many got {more:?}");
    let resident: f64 = script(node, "cat /tmp/resident")?.parse().context("the daemon's memory")?;
    let each = (resident - before * 1024.0) / FOLLOWERS as f64;
    report.tell(
        &Figure::one("resident memory for each follower that does not read", 1, "KiB", each)
            .note(format!("{FOLLOWERS} followers, each with a connection of its own; one more is refused")),
    )
}

fn script(node: &BenchNode, script: &str) -> Result<String> {
    let output = node.node.run(script, &[], DEADLINE)?;
    let text = output.stdout.trim().to_owned();
    ensure!(output.success(), "{script}: {}{text}", output.stderr);
    Ok(text)
}
