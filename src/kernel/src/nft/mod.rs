//! nf_tables over netlink, by an encoder of our own (verified: a changed endpoint is in the kernel in
//! 0.6 ms, where a whole `nft -f` takes tens of milliseconds): the `Nft` trait, its real implementation
//! and, with the feature `fake`, an in-memory one. The model is `longshore_core::ruleset::nft`.

pub mod decode;
mod encode;
pub mod expr;
#[cfg(any(test, feature = "fake"))]
mod fake;
mod missing;
mod real;
mod watch;
mod wire;

use std::collections::BTreeMap;

use async_trait::async_trait;
use longshore_core::ruleset::nft::{ElementKey, ElementValue, NftBatch, NftOp, NftTable, TableKey};
use nix::errno::Errno;

pub use expr::CounterValue;
#[cfg(any(test, feature = "fake"))]
pub use fake::FakeNft;
pub use missing::MissingNft;
pub use real::RealNft;
pub use watch::Touched;

use crate::netlink::{NetlinkError, Refusal};

/// A table as the kernel holds it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NftDump {
    /// Its content; `None` when it is not there.
    pub table: Option<NftTable>,
    /// The ruleset's generation the content was read at. Any program's commit raises it.
    pub generation: u32,
    /// Figures of counters in rules, by chain and position.
    pub rule_counters: BTreeMap<(String, usize), CounterValue>,
    /// Figures of named counters.
    pub counters: BTreeMap<String, CounterValue>,
}

/// Why an nf_tables operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NftError {
    /// The kernel has no nf_tables, or the caller may not use it.
    #[error("nf_tables is not available (kernel module nf_tables)")]
    Unavailable(#[source] NetlinkError),
    /// One operation was refused, and with it the whole batch.
    #[error("nft table {table}: {op}")]
    Refused {
        /// The table.
        table: TableKey,
        /// Which operation of the batch, counted from 0.
        index: usize,
        /// The operation and its object.
        op: String,
        /// The kernel's answer.
        #[source]
        source: Refusal,
    },
    /// The batch was refused as a whole.
    #[error("nft table {table}: transaction of {ops} operations")]
    Transaction {
        /// The table.
        table: TableKey,
        /// How many operations it had.
        ops: usize,
        /// The kernel's answer.
        #[source]
        source: Refusal,
    },
    /// The ruleset changed since the generation the batch was made for; nothing was applied.
    #[error("nft table {table}: the ruleset changed since it was read")]
    Changed {
        /// The table.
        table: TableKey,
    },
    /// A rule holds an expression that was only read, never written.
    #[error("nft table {table}: {op}: cannot write expression {name:?}")]
    Unsupported {
        /// The table.
        table: TableKey,
        /// The operation and its object.
        op: String,
        /// The expression.
        name: String,
    },
    /// There was no answer; whether the batch was applied is not known.
    #[error("nft table {table}: no answer")]
    NoAnswer {
        /// The table.
        table: TableKey,
        /// What broke.
        #[source]
        source: NetlinkError,
    },
    /// Reading failed.
    #[error("nft: read {what}")]
    Read {
        /// What.
        what: String,
        /// What broke.
        #[source]
        source: NetlinkError,
    },
}

impl NftError {
    /// Whether the same batch may well be taken a moment later.
    pub fn is_retryable(&self) -> bool {
        match self {
            NftError::Refused { source, .. } | NftError::Transaction { source, .. } => source.is_retryable(),
            NftError::Unavailable(source)
            | NftError::NoAnswer { source, .. }
            | NftError::Read { source, .. } => source.is_retryable(),
            NftError::Changed { .. } => true,
            NftError::Unsupported { .. } => false,
        }
    }

    /// Whether the kernel has no nf_tables at all, and not only none for us now.
    pub fn is_missing(&self) -> bool {
        let errno = match self {
            NftError::Unavailable(NetlinkError::Open { source, .. }) => *source,
            NftError::Unavailable(NetlinkError::Refused(refusal)) => refusal.errno,
            _ => return false,
        };
        // nfnetlink answers so for a subsystem nobody registered (`nfnetlink_rcv_msg`).
        matches!(errno, Errno::EINVAL | Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP)
    }

    /// Whether the kernel's table is not what the batch took it to be: read it back before trying again.
    pub fn is_drift(&self) -> bool {
        match self {
            NftError::Refused { source, .. } => {
                matches!(source.errno, Errno::EEXIST | Errno::ENOENT | Errno::EBUSY | Errno::ENOTEMPTY)
            }
            NftError::Changed { .. } | NftError::NoAnswer { .. } => true,
            _ => false,
        }
    }

    fn refused(batch: &NftBatch, index: usize, source: Refusal) -> Self {
        let op = batch.ops.get(index).map(NftOp::to_string).unwrap_or_default();
        NftError::Refused { table: batch.table.clone(), index, op, source }
    }
}

/// Keys that are probably in a table, by set.
pub type Guess = BTreeMap<String, Vec<ElementKey>>;

/// The nf_tables ruleset of one network namespace.
#[async_trait]
pub trait Nft: Send + Sync {
    /// Apply a batch whole or not at all. With a generation, only if no program has committed anything
    /// since; that is for the first batch after a dump, not for every change.
    async fn apply(&self, batch: &NftBatch, generation: Option<u32>) -> Result<(), NftError>;

    /// Read a table back, without the elements of the sets named in `leave_out` and without what packets
    /// put into dynamic ones. The cost grows with the elements read, and for a large set with their square:
    /// the kernel walks it from its beginning for every 32 KiB (`nf_tables_dump_set`).
    async fn dump(&self, table: &TableKey, leave_out: &[&str]) -> Result<NftDump, NftError>;

    /// Read a table back whole, by a guess of the keys in some of its sets. Where these are all that the
    /// kernel counts in a set, no dump of it is needed, and the cost grows with its elements only. A wrong
    /// guess, and a kernel that does not count, cost the dump.
    async fn dump_guessed(&self, table: &TableKey, guess: Guess) -> Result<NftDump, NftError>;

    /// Ask for single elements of a set without a time-out or ranges of one field: for each key its value,
    /// or `None` where there is no such element, set or table. Costs as much as is asked for.
    async fn elements(
        &self,
        table: &TableKey,
        set: &str,
        keys: &[ElementKey],
    ) -> Result<Vec<Option<ElementValue>>, NftError>;

    /// The tables there are, whoever made them.
    async fn tables(&self) -> Result<Vec<TableKey>, NftError>;

    /// The ruleset's generation now; the cheapest proof that nf_tables works.
    async fn generation(&self) -> Result<u32, NftError>;

    /// Wait until another program's commit touches a table of this name, of any family. The first call
    /// begins to listen; it says so at once where another program committed anything between the first dump
    /// that left nothing out, guessed or not, and now. What happened before that dump is in it. A call that was dropped loses
    /// nothing, and one that finds something waiting does not wait.
    async fn touched_by_others(&self, name: &str) -> Result<Touched, NftError>;
}
