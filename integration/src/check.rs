//! The quick gates (`make check`): format, lints, tidy, and cargo-deny where it is installed.
//! Each gate is a cargo call; what the house rules are is said in their own files, not here.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

const GATES: &[(&str, &[&str])] = &[
    ("format", &["fmt", "--all", "--check"]),
    (
        "lints",
        &["clippy", "--workspace", "--all-targets", "--locked", "--keep-going", "-q", "--", "-D", "warnings"],
    ),
    ("tidy", &["test", "-q", "--workspace", "--test", "tidy"]),
];

/// Runs every gate, the rest even where one fails.
///
/// # Errors
/// Names the gates that failed.
pub fn run() -> Result<()> {
    let mut gates = GATES.to_vec();
    if cargo_deny_installed() {
        gates.push(("licences and advisories", &["deny", "check"]));
    } else {
        println!("---- cargo-deny is not installed: advisories are not checked (licences are, by tidy)");
    }
    let mut failed = Vec::new();
    for (name, args) in gates {
        let start = Instant::now();
        println!("---- {name}: cargo {}", args.join(" "));
        let status = Command::new("cargo").args(args).status().context("cannot start cargo")?;
        println!(
            "---- {name}: {} in {:.1} s",
            if status.success() { "good" } else { "bad" },
            start.elapsed().as_secs_f32()
        );
        if !status.success() {
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("these gates failed: {}", failed.join(", "));
    }
    Ok(())
}

fn cargo_deny_installed() -> bool {
    Command::new("cargo-deny")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
