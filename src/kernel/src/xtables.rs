//! The rules of iptables as texts, of both its variants: what another proxy left is read and taken out
//! here. Which chains those are is decided in `longshore_core::ruleset::former`; rules of our own do not
//! come this way.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;

use crate::iptables::program::run;
use crate::iptables::real::cut;
use crate::iptables::{IptablesError, Tools};

/// One of the four tables of programs a host can have rules in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Which {
    /// ip_tables of old instead of nf_tables behind the same syntax.
    pub legacy: bool,
    pub ipv6: bool,
}

impl Which {
    pub const ALL: [Which; 4] = [
        Which { legacy: false, ipv6: false },
        Which { legacy: false, ipv6: true },
        Which { legacy: true, ipv6: false },
        Which { legacy: true, ipv6: true },
    ];

    /// `iptables-nft`, `ip6tables-legacy`: how its programs' names begin.
    pub fn program(self) -> &'static str {
        match (self.ipv6, self.legacy) {
            (false, false) => "iptables-nft",
            (true, false) => "ip6tables-nft",
            (false, true) => "iptables-legacy",
            (true, true) => "ip6tables-legacy",
        }
    }
}

/// Why rules could not be read or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XtablesError {
    /// The program could not be run to its end.
    #[error(transparent)]
    Run(#[from] IptablesError),
    #[error("{program} says: {said}")]
    Refused {
        program: String,
        /// The program's own words, cut to 300 bytes.
        said: String,
    },
}

/// Rules of iptables in one network namespace.
#[async_trait]
pub trait Xtables: Send + Sync {
    /// Every table, as `iptables-save` prints it; empty where the programs are not installed.
    async fn save(&self, which: Which) -> Result<String, XtablesError>;

    /// Carry out a text, leaving what it does not name.
    async fn restore(&self, which: Which, text: &str) -> Result<(), XtablesError>;
}

/// The installed programs.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealXtables;

/// Seconds another program may hold the lock.
const LOCK_SECONDS: &str = "10";
/// How long a program may work, the wait for the lock included.
const DEADLINE: Duration = Duration::from_secs(300);
const MAX_SAID: usize = 300;

/// What the program prints; its own words where it refuses.
async fn printed(program: &Path, arguments: &[&str], input: &str) -> Result<String, XtablesError> {
    let mut text = String::new();
    let mut keep = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    let ended = run(program, arguments, input, DEADLINE, &mut keep).await?;
    if ended.status.success() {
        return Ok(text);
    }
    let said = cut(&ended.errors, MAX_SAID);
    Err(XtablesError::Refused { program: program.display().to_string(), said })
}

/// Nothing where the program is not installed.
async fn run_part(which: Which, part: &str, arguments: &[&str], input: &str) -> Result<String, XtablesError> {
    match Tools::default().find(&format!("{}-{part}", which.program())) {
        Ok(program) => printed(&program, arguments, input).await,
        Err(_) => Ok(String::new()),
    }
}

#[async_trait]
impl Xtables for RealXtables {
    async fn save(&self, which: Which) -> Result<String, XtablesError> {
        run_part(which, "save", &[], "").await
    }

    async fn restore(&self, which: Which, text: &str) -> Result<(), XtablesError> {
        run_part(which, "restore", &["--noflush", "-w", LOCK_SECONDS], text).await.map(drop)
    }
}

/// Rules in memory: whole saved texts, changed as `iptables-restore --noflush` would.
#[cfg(any(test, feature = "fake"))]
#[derive(Debug, Default)]
pub struct FakeXtables {
    saved: std::sync::Mutex<std::collections::BTreeMap<Which, String>>,
}

#[cfg(any(test, feature = "fake"))]
impl FakeXtables {
    /// Put rules there as another program would.
    pub fn set(&self, which: Which, saved: &str) {
        self.lock().insert(which, saved.to_owned());
    }

    /// The rules now.
    pub fn get(&self, which: Which) -> String {
        self.lock().get(&which).cloned().unwrap_or_default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, std::collections::BTreeMap<Which, String>> {
        self.saved.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// One line of a text on the lines of a table; refuses what the program refuses.
#[cfg(any(test, feature = "fake"))]
fn carry_out(lines: &mut Vec<String>, command: &str) -> Result<(), String> {
    let refused = || Err(format!("line failed: {command}"));
    let has_chain =
        |lines: &[String], chain: &str| lines.iter().any(|line| line.starts_with(&format!(":{chain} ")));
    match command.split_once(' ') {
        Some(("-D", rule)) => match lines.iter().position(|line| *line == format!("-A {rule}")) {
            Some(at) => drop(lines.remove(at)),
            None => return refused(),
        },
        Some(("-F", chain)) if has_chain(lines, chain) => {
            lines.retain(|line| !line.starts_with(&format!("-A {chain} ")));
        }
        Some(("-X", chain)) if has_chain(lines, chain) => {
            let used = |line: &String| {
                line.starts_with(&format!("-A {chain} ")) || line.ends_with(&format!(" -j {chain}"))
            };
            if lines.iter().any(used) {
                return refused();
            }
            lines.retain(|line| !line.starts_with(&format!(":{chain} ")));
        }
        _ => return refused(),
    }
    Ok(())
}

#[cfg(any(test, feature = "fake"))]
#[async_trait]
impl Xtables for FakeXtables {
    async fn save(&self, which: Which) -> Result<String, XtablesError> {
        Ok(self.get(which))
    }

    async fn restore(&self, which: Which, text: &str) -> Result<(), XtablesError> {
        let mut tables: Vec<Vec<String>> = Vec::new();
        for line in self.get(which).lines() {
            if line.starts_with('*') {
                tables.push(Vec::new());
            }
            if let Some(table) = tables.last_mut() {
                table.push(line.to_owned());
            }
        }
        let refused =
            |said: String| XtablesError::Refused { program: format!("{}-restore", which.program()), said };
        let mut current = None;
        for line in text.lines().filter(|line| *line != "COMMIT") {
            if line.starts_with('*') {
                current = tables.iter_mut().find(|table| table.first().is_some_and(|name| name == line));
                continue;
            }
            let table = current.as_mut().ok_or_else(|| refused("no such table".to_owned()))?;
            carry_out(table, line).map_err(refused)?;
        }
        let saved: String = tables.concat().iter().map(|line| format!("{line}\n")).collect();
        self.lock().insert(which, saved);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use longshore_core::ruleset::former;

    use super::*;

    #[tokio::test]
    async fn the_fake_refuses_a_chain_that_is_used_and_takes_core_s_text() {
        let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n-A KUBE-SERVICES -j RETURN\nCOMMIT\n";
        let which = Which::ALL[0];
        let fake = FakeXtables::default();
        fake.set(which, saved);
        for text in [
            "*nat\n-X KUBE-SERVICES\nCOMMIT\n",
            "*raw\n-F X\nCOMMIT\n",
            "*nat\n-D PREROUTING -j OTHER\nCOMMIT\n",
        ] {
            assert!(fake.restore(which, text).await.is_err(), "{text}");
            assert_eq!(fake.get(which), saved);
        }
        let text = former::without_chains(saved, former::is_kube_proxys).unwrap();
        fake.restore(which, &text).await.unwrap();
        assert_eq!(fake.get(which), "*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n");
    }

    #[tokio::test]
    async fn a_program_s_words_are_passed_on() {
        let (sh, cat) = (Path::new("/bin/sh"), Path::new("/bin/cat"));
        let error = printed(sh, &["-c", "echo no such chain >&2; exit 1"], "").await.unwrap_err();
        assert_eq!(error.to_string(), "/bin/sh says: no such chain");
        let missing = printed(Path::new("/does/not/exist"), &[], "").await;
        assert!(matches!(missing, Err(XtablesError::Run { .. })));
        assert_eq!(printed(cat, &[], "text\n").await.unwrap(), "text\n");
    }
}
