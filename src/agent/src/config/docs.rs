//! The tables of `docs/configuration.md`, made from the field rows, and the test that the document has
//! them as they are. Run the test with `UPDATE_DOCS=1` to write them anew.

use std::fmt::Write;

use serde::Serialize;

use super::fields::{Effect, FieldInfo};
use super::flags::{FLAGS, Target};
use super::kubelet::{KUBELET_FIELDS, KubeletConfiguration};
use super::proxy::{KubeProxyConfiguration, PROXY_FIELDS};

/// One generated part of the document: its marker and its text.
fn parts() -> [(&'static str, String); 3] {
    [
        ("kubelet-fields", field_table(KUBELET_FIELDS, &KubeletConfiguration::default())),
        ("proxy-fields", field_table(PROXY_FIELDS, &KubeProxyConfiguration::default())),
        ("flags", flag_table()),
    ]
}

fn field_table(rows: &[FieldInfo], defaults: &impl Serialize) -> String {
    let defaults = serde_json::to_value(defaults).expect("plain data serializes");
    let mut table = String::from("| field | default | effect | what it is |\n|---|---|---|---|\n");
    for row in rows {
        let effect = match row.effect {
            Effect::Now => "yes",
            Effect::Later => "not yet",
            Effect::Never => "none",
        };
        let default = shown(&defaults[row.name]);
        let what = row.what.replace('|', "\\|");
        writeln!(table, "| `{}` | {default} | {effect} | {what} |", row.name).expect("a String takes all");
    }
    table
}

/// A default as a file would have it; nested sections are described in words instead.
fn shown(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => "not set".to_owned(),
        serde_json::Value::String(text) if text.is_empty() => "empty".to_owned(),
        serde_json::Value::String(text) => format!("`{text}`"),
        serde_json::Value::Array(items) if items.is_empty() => "none".to_owned(),
        serde_json::Value::Object(fields) if fields.is_empty() => "none".to_owned(),
        serde_json::Value::Object(_) => "its fields' own".to_owned(),
        other => format!("`{other}`"),
    }
}

fn flag_table() -> String {
    let mut table = String::from("| flag | stands for |\n|---|---|\n");
    for flag in FLAGS {
        let meaning = match flag.target {
            Target::Kubelet(field) => format!("KubeletConfiguration `{field}`"),
            Target::Proxy(field) => format!("KubeProxyConfiguration `{field}`"),
            Target::ProxyBoth([one, two]) => format!("KubeProxyConfiguration `{one}` and `{two}`"),
            Target::Either { kubelet, proxy } => format!(
                "KubeletConfiguration `{kubelet}`; where the proxy runs alone, KubeProxyConfiguration `{proxy}`"
            ),
            Target::Nothing => "accepted, without effect".to_owned(),
        };
        writeln!(table, "| `--{}` | {meaning} |", flag.name).expect("a String takes all");
    }
    table
}

/// The document with the text between a part's two markers replaced.
fn with_part(document: &str, name: &str, text: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {name}: generated -->\n"), format!("<!-- {name}: end -->"));
    let (before, rest) = document.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}{text}{end}{after}"))
}

#[test]
fn the_document_has_the_tables_as_they_are() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let document = std::fs::read_to_string(&path).expect("docs/configuration.md is there");
    let mut expected = document.clone();
    for (name, text) in parts() {
        expected =
            with_part(&expected, name, &text).unwrap_or_else(|| panic!("the document has no part {name}"));
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &expected).expect("write");
        return;
    }
    let differing = document.lines().zip(expected.lines()).find(|(is, should)| is != should);
    assert!(
        document == expected,
        "docs/configuration.md is not as the fields are, run this test with UPDATE_DOCS=1: {differing:?}"
    );
}

#[test]
fn the_document_names_every_flag_of_the_daemon() {
    use clap::Args;
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let document = std::fs::read_to_string(&path).expect("docs/configuration.md is there");
    let command = super::AgentArgs::augment_args(clap::Command::new("agent"));
    for argument in command.get_arguments() {
        let Some(long) = argument.get_long() else { continue };
        let dashes = if long.len() == 1 { "-" } else { "--" };
        assert!(document.contains(&format!("`{dashes}{long}")), "--{long} is not in docs/configuration.md");
    }
}
