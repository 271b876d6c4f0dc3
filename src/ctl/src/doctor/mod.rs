//! `longshore doctor`: is this node fit to run pods? Facts are read in `facts.rs`, judged by pure
//! functions in `checks.rs`, and shown here: each line with what it means and what mends it.

pub mod certificates;
pub mod checks;
pub mod facts;

use serde::Serialize;

use crate::error::{CliError, FAILED};
use crate::output::{Paint, Screen, print, structured};
use crate::pods::Node;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    Ok,
    Warn,
    Fail,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }
}

/// One line of the doctor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub level: Level,
    pub check: String,
    /// What was found.
    pub says: String,
    /// What it means for pods; empty where all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub means: String,
    /// The command that mends it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mend: String,
}

impl Finding {
    pub fn ok(check: &str, says: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            check: check.into(),
            says: says.into(),
            means: String::new(),
            mend: String::new(),
        }
    }

    pub fn bad(
        level: Level,
        check: &str,
        says: impl Into<String>,
        means: &str,
        mend: impl Into<String>,
    ) -> Self {
        Self { level, check: check.into(), says: says.into(), means: means.into(), mend: mend.into() }
    }
}

/// Examines the node, given the folders of pods' volumes and of certificates; an error where a check failed, so
/// that scripts see it in the exit code.
pub async fn run(
    node: &Node,
    screen: &Screen,
    folders: (&std::path::Path, &std::path::Path),
) -> Result<u8, CliError> {
    let facts = facts::gather(node, folders).await;
    let findings = checks::all(&facts);
    if !structured(screen, &findings)? {
        print(&render(&findings, screen))?;
    }
    Ok(if findings.iter().any(|finding| finding.level == Level::Fail) { FAILED } else { 0 })
}

/// The findings as text, worst ones explained.
pub fn render(findings: &[Finding], screen: &Screen) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let paint = match finding.level {
            Level::Ok => Paint::Good,
            Level::Warn => Paint::Warn,
            Level::Fail => Paint::Bad,
        };
        let level = screen.paint(paint, &format!("{:<4}", finding.level.word()));
        text.push_str(&format!("{level}  {:<width$}  {}\n", finding.check, finding.says));
        for (label, value) in [("means", &finding.means), ("mend", &finding.mend)] {
            if !value.is_empty() {
                text.push_str(&format!("      {:<width$}  {label}: {value}\n", ""));
            }
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    text.push_str(&format!(
        "\n{} checks: {} ok, {} warnings, {} failed\n",
        findings.len(),
        count(Level::Ok),
        count(Level::Warn),
        count(Level::Fail)
    ));
    text
}
