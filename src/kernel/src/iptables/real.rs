//! `Iptables` by the installed programs.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use longshore_core::ruleset::ipt::parse::SaveReader;
use longshore_core::ruleset::ipt::text::Restore;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::program::{Ended, failed_line, run};
use super::{Features, Iptables, IptablesDump, IptablesError, Spent, Variant};

/// Where distributions have the programs.
const FOLDERS: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin"];
/// The lock that all programs of the legacy variant share.
const LOCK: &str = "/run/xtables.lock";
/// How long another program may hold it.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// How often a held lock is tried.
const LOCK_POLL: Duration = Duration::from_millis(20);
/// How long a program may work. A hundred thousand Services take the slower variant two minutes.
const DEADLINE: Duration = Duration::from_secs(300);
const MAX_SAID: usize = 500;

/// The programs of one family.
#[derive(Debug, Clone)]
struct Programs {
    restore: PathBuf,
    save: PathBuf,
}

/// Where programs are looked for, and the lock.
#[derive(Debug, Clone)]
pub struct Tools {
    pub folders: Vec<PathBuf>,
    pub lock: PathBuf,
    pub lock_patience: Duration,
}

impl Default for Tools {
    fn default() -> Self {
        Tools {
            folders: FOLDERS.iter().map(PathBuf::from).collect(),
            lock: LOCK.into(),
            lock_patience: LOCK_PATIENCE,
        }
    }
}

impl Tools {
    pub(crate) fn find(&self, name: &str) -> Result<PathBuf, IptablesError> {
        let places = self.folders.iter().map(|folder| folder.join(name));
        places.into_iter().find(|path| path.is_file()).ok_or_else(|| IptablesError::Missing(name.to_owned()))
    }

    fn programs(&self, ipv6: bool, variant: Option<Variant>) -> Result<Programs, IptablesError> {
        let family = if ipv6 { "ip6tables" } else { "iptables" };
        let part = match variant {
            None => "",
            Some(Variant::Legacy) => "-legacy",
            Some(Variant::Nft) => "-nft",
        };
        Ok(Programs {
            restore: self.find(&format!("{family}{part}-restore"))?,
            save: self.find(&format!("{family}{part}-save"))?,
        })
    }
}

/// iptables of the network namespace of the thread that runs its programs.
#[derive(Debug, Clone)]
pub struct RealIptables {
    features: Features,
    ipv4: Programs,
    /// Why there is no ip6tables, where there is none.
    ipv6: Result<Programs, IptablesError>,
    tools: Tools,
}

impl RealIptables {
    /// The variant the node uses (what `iptables` is), or a given one.
    ///
    /// # Errors
    /// Where the programs are missing or do not say what they are.
    pub async fn open(variant: Option<Variant>, tools: Tools) -> Result<Self, IptablesError> {
        let ipv4 = tools.programs(false, variant)?;
        let ipv6 = tools.programs(true, variant);
        let mut said = String::new();
        let version = &["--version"];
        run(&ipv4.restore, version, "", Duration::from_secs(10), &mut |line| said.push_str(line)).await?;
        let features = read_version(&said)
            .ok_or_else(|| IptablesError::Version { program: ipv4.restore.clone(), said: cut(&said, 200) })?;
        Ok(RealIptables { features, ipv4, ipv6, tools })
    }

    fn programs(&self, ipv6: bool) -> Result<&Programs, IptablesError> {
        if ipv6 { self.ipv6.as_ref().map_err(Clone::clone) } else { Ok(&self.ipv4) }
    }

    /// Wait until nobody holds the lock, so that the wait is known; the program takes it itself.
    async fn wait_for_lock(&self) -> Result<Duration, IptablesError> {
        let began = Instant::now();
        while self.features.variant == Variant::Legacy && is_held(&self.tools.lock) {
            if began.elapsed() > self.tools.lock_patience {
                return Err(IptablesError::Locked { waited: began.elapsed() });
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
        Ok(began.elapsed())
    }

    fn refusal(&self, change: &Restore, ended: &Ended, waited: Duration) -> IptablesError {
        if ended.errors.contains("xtables lock") {
            return IptablesError::Locked { waited };
        }
        let line = failed_line(&ended.errors);
        IptablesError::Refused { what: change.describe(line), line, said: cut(&ended.errors, MAX_SAID) }
    }
}

/// Whether another process holds the lock now. A lock that cannot be opened is left to the program to
/// complain about.
fn is_held(path: &Path) -> bool {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    file.is_ok_and(|file| {
        matches!(Flock::lock(file, FlockArg::LockExclusiveNonblock), Err((_, Errno::EWOULDBLOCK)))
    })
}

/// `iptables-restore v1.8.9 (nf_tables)`; versions before 1.8 name no variant and are legacy.
pub fn read_version(said: &str) -> Option<Features> {
    let word = said.split_whitespace().find(|word| word.starts_with('v'))?;
    let mut numbers = word[1..].split('.').map(str::parse::<u32>);
    let version =
        (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next().and_then(Result::ok).unwrap_or(0));
    let variant = if said.contains("nf_tables") { Variant::Nft } else { Variant::Legacy };
    Some(Features { variant, version })
}

/// The first part of a program's words, on one line.
pub(crate) fn cut(text: &str, limit: usize) -> String {
    let end = (0..=limit.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[..end].split_whitespace().collect::<Vec<_>>().join(" ")
}

#[async_trait]
impl Iptables for RealIptables {
    fn features(&self) -> Features {
        self.features
    }

    async fn apply(&self, change: &Restore) -> Result<Spent, IptablesError> {
        if change.is_empty() {
            return Ok(Spent::default());
        }
        let programs = self.programs(change.ipv6)?;
        let waited = self.wait_for_lock().await?;
        let patience = self.tools.lock_patience.saturating_sub(waited).as_secs().max(1).to_string();
        let mut args = vec!["--noflush"];
        if self.features.waits() {
            args.extend(["-w", &patience]);
        }
        let ended = run(&programs.restore, &args, &change.text, DEADLINE, &mut |_| {}).await?;
        if ended.status.success() { Ok(Spent { waited }) } else { Err(self.refusal(change, &ended, waited)) }
    }

    async fn dump(&self, ipv6: bool) -> Result<IptablesDump, IptablesError> {
        let programs = self.programs(ipv6)?;
        let mut reader = SaveReader::new(ipv6);
        let ended = run(&programs.save, &[], "", DEADLINE, &mut |line| reader.line(line)).await?;
        if !ended.status.success() {
            let (what, said) =
                (format!("to list {}", if ipv6 { "IPv6" } else { "IPv4" }), cut(&ended.errors, MAX_SAID));
            return Err(IptablesError::Refused { what, line: None, said });
        }
        Ok(IptablesDump { foreign_rules: reader.foreign_rules(), objects: reader.finish() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_say_the_variant_and_what_it_can_do() {
        let cases = [
            ("iptables-restore v1.8.9 (nf_tables)", Variant::Nft, (1, 8, 9), true),
            ("iptables-restore v1.8.10 (legacy)", Variant::Legacy, (1, 8, 10), true),
            ("iptables v1.6.1", Variant::Legacy, (1, 6, 1), false),
            ("iptables v1.6.2", Variant::Legacy, (1, 6, 2), true),
            ("ip6tables-restore v2.0 (nf_tables)", Variant::Nft, (2, 0, 0), true),
        ];
        for (said, variant, version, new) in cases {
            let features = read_version(said).unwrap();
            assert_eq!((features.variant, features.version), (variant, version), "{said}");
            assert_eq!((features.random_fully(), features.waits()), (new, new), "{said}");
        }
        for said in ["", "iptables", "version one", "v", "v1", "vx.y.z"] {
            assert_eq!(read_version(said), None, "{said}");
        }
    }

    #[tokio::test]
    async fn missing_programs_are_named() {
        let tools = Tools { folders: vec!["/no/such".into()], ..Tools::default() };
        let error = RealIptables::open(Some(Variant::Nft), tools).await.unwrap_err();
        assert_eq!(error.to_string(), "no program iptables-nft-restore is installed (package iptables)");
    }
}
