//! House rules that neither the compiler nor clippy can see: walls between crates, one dependency table, file openings
//! and lengths, names, licences, documents that name real commands. Each rule is one test; it reads tracked files only.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use longshore_integration::{cluster, native};

const MAX_LINES: usize = 900;

/// Includes what is generated from the protocols at build time, which nobody reads or edits.
const GENERATED: &str = "src/cri/src/api.rs";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("integration/ lies in the workspace").to_owned()
}

/// Tracked and new files (not ignored ones), as (path from the root, text); files that are not text are left out.
fn files() -> Vec<(String, String)> {
    let args = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(args).current_dir(root()).output().expect("git runs");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("paths are UTF-8");
    names.lines().filter_map(|n| Some((n.to_owned(), fs::read_to_string(root().join(n)).ok()?))).collect()
}

fn rust_files() -> Vec<(String, String)> {
    let found: Vec<_> = files().into_iter().filter(|(name, _)| name.ends_with(".rs")).collect();
    assert!(found.len() > 5, "the sources were not found");
    found
}

/// Whether the whole file is test code.
fn is_test_file(name: &str) -> bool {
    name.contains("/tests/") || name.ends_with("/tests.rs") || name.ends_with("_tests.rs")
}

/// The part of a file before its unit tests.
fn without_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod ").next().unwrap_or(text)
}

/// Fails with every finding at once.
fn none(rule: &str, findings: Vec<String>) {
    assert!(findings.is_empty(), "{rule}:\n  {}", findings.join("\n  "));
}

/// (package, dependency, development only) as the manifests say.
fn dependencies() -> Vec<(String, String, bool)> {
    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let mut found = Vec::new();
    for package in packages {
        for dependency in package["dependencies"].as_array().expect("a list of dependencies") {
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            found.push((text(&package["name"]), text(&dependency["name"]), dependency["kind"] == "dev"));
        }
    }
    assert!(!found.is_empty(), "no dependencies were read");
    found
}

#[test]
fn crates_import_only_what_the_design_allows() {
    let ours = |names: &[&str]| names.iter().map(|n| format!("longshore-{n}")).collect::<BTreeSet<_>>();
    let allowed = |package: &str| match package {
        "longshore-core" => Some(ours(&[])),
        "longshore-cri" | "longshore-cluster" | "longshore-kernel" => Some(ours(&["core"])),
        "longshore-agent" => Some(ours(&["core", "cri", "cluster", "kernel"])),
        "longshore-ctl" => Some(ours(&["core", "cri", "kernel"])),
        "longshore" => Some(ours(&["agent", "ctl"])),
        _ => None,
    };
    let mut findings = Vec::new();
    for (package, dependency, _) in dependencies() {
        let Some(allowed) = allowed(&package) else { continue };
        // A crate may name itself among its development dependencies, to switch its fakes on.
        if dependency.starts_with("longshore") && dependency != package && !allowed.contains(&dependency) {
            findings.push(format!("{package} must not import {dependency}"));
        }
    }
    none("walls between crates (design, section 2)", findings);
}

#[test]
fn core_imports_plain_data_only() {
    let data = [
        "base64",
        "jiff",
        "k8s-openapi",
        "memchr",
        "serde",
        "serde_json",
        "sha2",
        "thiserror",
        "x509-parser",
        "proptest",
    ];
    let found =
        dependencies().into_iter().filter(|(p, d, _)| p == "longshore-core" && !data.contains(&d.as_str()));
    none("longshore-core decides and never acts", found.map(|(_, d, _)| format!("it imports {d}")).collect());
}

#[test]
fn versions_stand_in_the_root_table_only() {
    let mut findings = Vec::new();
    for (name, text) in files().into_iter().filter(|(n, _)| n.ends_with("/Cargo.toml")) {
        let mut in_dependencies = false;
        for line in text.lines() {
            if line.starts_with('[') {
                in_dependencies = line.ends_with("dependencies]");
            } else if in_dependencies
                && !line.trim().is_empty()
                && !line.starts_with('#')
                && !line.contains("workspace = true")
            {
                findings.push(format!("{name}: {line}"));
            }
        }
    }
    none("a member takes dependencies with `workspace = true`", findings);
}

/// Unit tests beside their module need no opening of their own.
fn opens(name: &str) -> bool {
    !is_test_file(name) || name.contains("/tests/")
}

#[test]
fn every_file_opens_by_saying_what_lives_there() {
    let mut findings = Vec::new();
    for (name, text) in
        rust_files().into_iter().filter(|(name, text)| opens(name) && text.lines().count() > 3)
    {
        let lines = text.lines().take_while(|l| l.starts_with("//!")).count();
        if lines == 0 || lines > 12 {
            findings.push(format!("{name}: {lines} lines of //!"));
        }
    }
    none("a file opens with a few lines of //!", findings);
}

#[test]
fn files_stay_short() {
    let code = rust_files().into_iter().filter(|(name, _)| !is_test_file(name));
    let long = code.filter_map(|(name, text)| {
        let lines = without_tests(&text).lines().count();
        (lines > MAX_LINES).then(|| format!("{name}: {lines}"))
    });
    none("a file stops at 900 lines without its tests", long.collect());
}

#[test]
fn names_say_what_a_thing_is() {
    let vague =
        ["Manager", "Helper", "Utils", "Util", "Common", "manager", "helper", "utils", "util", "common"];
    let mut findings = Vec::new();
    // `tests/common` is cargo's own idiom.
    for (name, text) in rust_files().into_iter().filter(|(name, _)| !is_test_file(name)) {
        let stem = name.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs");
        if vague.contains(&stem) {
            findings.push(format!("{name}: a file of that name"));
        }
        for line in without_tests(&text).lines() {
            let mut words =
                line.split_whitespace().skip_while(|w| !["struct", "enum", "trait", "mod"].contains(w));
            let (Some(kind), Some(named)) = (words.next(), words.next()) else { continue };
            let named: String = named.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let code = line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
            if code.starts_with(kind) && vague.iter().any(|v| named == *v || named.ends_with(&capital(v))) {
                findings.push(format!("{name}: {kind} {named}"));
            }
        }
    }
    none("names say what a thing is (conventions)", findings);
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

#[test]
fn nothing_is_left_for_later_in_the_text() {
    // Put together here, so that this file does not find itself.
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("todo", "!("),
        concat!("unimple", "mented!("),
    ];
    let mut findings = Vec::new();
    for (name, text) in
        files().into_iter().filter(|(n, _)| !n.ends_with("Cargo.lock") && !n.ends_with(".toml"))
    {
        for (number, line) in text.lines().enumerate() {
            if marks.iter().any(|m| line.contains(m)) {
                findings.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    none("what is missing belongs into an issue", findings);
}

#[test]
fn house_lints_are_not_switched_off() {
    let lints = [
        "unwrap_used",
        "too_many_lines",
        "too_many_arguments",
        "await_holding",
        "dead_code",
        "warnings",
        "clippy::all",
    ];
    let mut findings = Vec::new();
    for (name, text) in rust_files().into_iter().filter(|(n, _)| !is_test_file(n) && !n.ends_with("build.rs"))
    {
        for (number, line) in without_tests(&text).lines().enumerate() {
            let switched_off = line.contains(concat!("allow", "(")) && line.trim_start().starts_with('#');
            let switched_off = switched_off && name != GENERATED;
            if switched_off && lints.iter().any(|l| line.contains(l)) {
                findings.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    none("house lints hold everywhere", findings);
}

#[test]
fn only_the_kernel_crate_leaves_the_guarantees() {
    let word = concat!("uns", "afe");
    let mut findings = Vec::new();
    for (name, text) in rust_files().into_iter().filter(|(n, _)| !n.starts_with("src/kernel/")) {
        for (number, line) in text.lines().enumerate().filter(|(_, l)| !l.trim_start().starts_with("//")) {
            if [" {", " fn", " impl", "_code"].iter().any(|after| line.contains(&format!("{word}{after}"))) {
                findings.push(format!("{name}:{}", number + 1));
            }
        }
    }
    none("the kernel crate alone may step outside the compiler's guarantees", findings);
}

#[test]
fn documents_name_commands_that_exist() {
    let makefile = fs::read_to_string(root().join("Makefile")).expect("a Makefile");
    let targets: BTreeSet<&str> =
        makefile.lines().filter_map(|l| l.split_once(": ").or(l.split_once(':'))).map(|(t, _)| t).collect();
    let mut findings = Vec::new();
    for (name, text) in files().into_iter().filter(|(n, _)| n.ends_with(".md")) {
        for quoted in text.split('`').skip(1).step_by(2).filter_map(|q| q.strip_prefix("make ")) {
            let target = quoted.split_whitespace().next().unwrap_or_default();
            if !targets.contains(target) {
                findings.push(format!("{name}: make {quoted}"));
            }
        }
    }
    none("a command named in a document exists", findings);
}

/// Lines of the code blocks of a section.
fn commands<'a>(text: &'a str, section: &str) -> Vec<&'a str> {
    let begin = text.find(section).map_or(text.len(), |at| at + section.len());
    let end = text[begin..].find("\n## ").map_or(text.len(), |at| begin + at);
    let blocks = text[begin..end].split("```").skip(1).step_by(2);
    blocks.flat_map(str::lines).filter(|line| !line.trim().is_empty()).collect()
}

/// What the README tells people to type is what the scenarios play: in one command the same words, in the same order,
/// but for the values.
#[test]
fn joining_is_played_as_the_readme_says() {
    let read = |name: &str| fs::read_to_string(root().join(name)).unwrap();
    let mut played =
        ["40-joined", "60-join", "61-bootstrap-by-hand", "62-package", "67-takeover", "102-proxy-alone"]
            .map(|name| read(&format!("integration/scenarios/{name}.yaml")))
            .concat();
    // What the harness itself does of it.
    let with_flags = played.lines().filter_map(|line| line.split_once("{service: agent, flags: "));
    let agents: String = with_flags.map(|(_, flags)| format!("\nlongshore agent {flags}")).collect();
    played.push_str(&agents);
    let started = native::agent_line(&cluster::flags()).replace("/usr/local/bin/longshore", "longshore");
    played.push_str(&format!("\n{started}\nkubectl {}\n", cluster::LET_NODES_READ_SERVICES));
    let readme = read("README.md");
    let commands = commands(&readme, "\n## Join a cluster\n");
    assert!(commands.len() >= 5, "{commands:?}");
    let is_value = |word: &str| word.contains(|c: char| c.is_ascii_digit()) || word.starts_with("sha256:");
    let mut findings = Vec::new();
    // kubeadm is the cluster's own program.
    for command in commands.iter().filter(|command| !command.starts_with("kubeadm ")) {
        let words: Vec<&str> = command.split(' ').filter(|word| !is_value(word)).collect();
        if !played.split(['\n', ';', '|']).any(|line| has_in_order(line, &words)) {
            findings.push(format!("{command}: no scenario runs this"));
        }
    }
    none("commands of the README are played", findings);
}

fn has_in_order(line: &str, words: &[&str]) -> bool {
    let mut line = line.split(|c: char| c.is_whitespace() || "'\"(){},".contains(c));
    words.iter().all(|wanted| line.any(|word| word == *wanted))
}

#[test]
fn commands_are_found_by_their_words_in_order() {
    let words = ["longshore", "join", "--token", "--force"];
    assert!(has_in_order("  - run: {script: longshore join A --token T --force}", &words));
    for line in
        ["longshore join --force A --token T", "longshore joins --token T --force", "join --token --force"]
    {
        assert!(!has_in_order(line, &words), "{line}");
    }
}

#[test]
fn licences_are_those_of_deny_toml() {
    let deny = fs::read_to_string(root().join("deny.toml")).expect("deny.toml");
    let list = deny
        .split_once("allow = [")
        .and_then(|(_, rest)| rest.split_once(']'))
        .expect("a list of licences")
        .0;
    let allowed: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
    let output = Command::new("cargo")
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let bad = packages.iter().filter_map(|package| {
        let licence = package["license"].as_str().unwrap_or("none named");
        (!allows(&allowed, licence)).then(|| format!("{} {}: {licence}", package["name"], package["version"]))
    });
    none("licences outside deny.toml", bad.collect());
}

/// Whether an SPDX expression of one level (`A OR B`, `A AND (B OR C)`) can be satisfied from the list.
fn allows(allowed: &[&str], expression: &str) -> bool {
    let plain = expression.replace('/', " OR ");
    plain
        .split(" AND ")
        .all(|part| part.split(" OR ").any(|l| allowed.contains(&l.trim().trim_matches(['(', ')']))))
}

#[test]
fn spdx_expressions_are_understood() {
    let allowed = ["MIT", "Apache-2.0", "Unicode-3.0"];
    for (expression, expected) in [
        ("MIT OR Apache-2.0", true),
        ("MIT/GPL-3.0", true),
        ("GPL-3.0", false),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("(MIT OR Apache-2.0) AND NCSA", false),
    ] {
        assert_eq!(allows(&allowed, expression), expected, "{expression}");
    }
}
