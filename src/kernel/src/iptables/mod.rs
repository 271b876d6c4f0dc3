//! iptables by its own programs: `iptables-restore --noflush` for changes, `iptables-save` to read back;
//! the `Iptables` trait, its real implementation and, with the feature `fake`, an in-memory one. The
//! texts are written and read in `longshore_core::ruleset::ipt`; here they meet the program.

mod each;
#[cfg(any(test, feature = "fake"))]
mod fake;
pub(crate) mod program;
pub(crate) mod real;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use longshore_core::ruleset::ipt::text::Restore;
use longshore_core::ruleset::object::Objects;
use nix::errno::Errno;

pub use each::{Outcomes, apply_each};
#[cfg(any(test, feature = "fake"))]
pub use fake::FakeIptables;
pub use program::failed_line;
pub use real::{RealIptables, Tools, read_version};

/// Which kernel interface the programs write to. Both can hold rules at once, and packets meet both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variant {
    /// ip_tables: a table is replaced whole, under a lock that all programs share.
    Legacy,
    /// nf_tables behind iptables' syntax.
    Nft,
}

impl Variant {
    pub const fn name(self) -> &'static str {
        match self {
            Variant::Legacy => "legacy",
            Variant::Nft => "nf_tables",
        }
    }
}

/// What the installed programs can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    pub variant: Variant,
    /// Major, minor, patch.
    pub version: (u32, u32, u32),
}

impl Features {
    /// Masquerading with random ports (iptables 1.6.2).
    pub fn random_fully(&self) -> bool {
        self.version >= (1, 6, 2)
    }

    /// `iptables-restore -w` (iptables 1.6.2); older ones take the lock without asking.
    pub fn waits(&self) -> bool {
        self.version >= (1, 6, 2)
    }
}

/// Why iptables did not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IptablesError {
    /// The programs are not installed.
    #[error("no program {0} is installed (package iptables)")]
    Missing(String),
    /// The program is too old or says nothing that can be read.
    #[error("{}: its version {said:?} cannot be read", program.display())]
    Version {
        /// The program.
        program: PathBuf,
        /// What it said, cut to 200 bytes.
        said: String,
    },
    /// The program could not be run.
    #[error("run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// The cause.
        #[source]
        source: Errno,
    },
    /// It did not end in time and was killed; what it did is not known.
    #[error("{} was killed after {} s", program.display(), after.as_secs())]
    Deadline {
        /// The program.
        program: PathBuf,
        /// How long it had.
        after: Duration,
    },
    /// Another program held the xtables lock for too long.
    #[error("another program has held the xtables lock (/run/xtables.lock) for {} s", waited.as_secs())]
    Locked {
        /// How long was waited.
        waited: Duration,
    },
    /// The change was refused. Tables that come before the one at fault in the text are changed.
    #[error("iptables refused {what}: {said}")]
    Refused {
        /// The line's object, or the whole change.
        what: String,
        /// The line of the text, counted from 1, where the program named one.
        line: Option<usize>,
        /// The program's own words, cut to 500 bytes.
        said: String,
    },
    /// More was printed than any table of ours could be.
    #[error("{} printed more than {limit} bytes", program.display())]
    TooLong {
        /// The program.
        program: PathBuf,
        /// The limit.
        limit: usize,
    },
}

impl IptablesError {
    /// Whether the same change may well be taken a moment later.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            IptablesError::Run { .. } | IptablesError::Deadline { .. } | IptablesError::Locked { .. }
        )
    }

    /// Whether the kernel may be not what it is believed to be: read it back before trying again.
    pub fn is_drift(&self) -> bool {
        matches!(self, IptablesError::Refused { .. } | IptablesError::Deadline { .. })
    }
}

/// What a change cost besides the work itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// How long another program's xtables lock was waited for.
    pub waited: Duration,
}

/// What is there of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IptablesDump {
    /// Our chains, the jumps into them, and chains other programs look for.
    pub objects: Objects,
    /// How many rules of others were passed over.
    pub foreign_rules: u64,
}

/// iptables and ip6tables of one network namespace.
#[async_trait]
pub trait Iptables: Send + Sync {
    /// What the programs can do.
    fn features(&self) -> Features;

    /// Make a change; each of its tables at once or not at all.
    async fn apply(&self, change: &Restore) -> Result<Spent, IptablesError>;

    /// Read back what is ours in one family. For adoption and audits: its cost grows with all tables.
    async fn dump(&self, ipv6: bool) -> Result<IptablesDump, IptablesError>;
}
