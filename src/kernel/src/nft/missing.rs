//! A kernel without nf_tables: it holds no table, and takes none.

use async_trait::async_trait;
use longshore_core::ruleset::nft::{ElementKey, ElementValue, NftBatch, TableKey};

use super::{Guess, Nft, NftDump, NftError, Touched};

/// Stands where nf_tables is not: what is read is empty, what is written is refused.
#[derive(Debug, Clone)]
pub struct MissingNft {
    why: NftError,
}

impl MissingNft {
    /// `why` is what every write is answered.
    pub fn new(why: NftError) -> Self {
        MissingNft { why }
    }
}

#[async_trait]
impl Nft for MissingNft {
    async fn apply(&self, _batch: &NftBatch, _generation: Option<u32>) -> Result<(), NftError> {
        Err(self.why.clone())
    }

    async fn dump(&self, _table: &TableKey, _leave_out: &[&str]) -> Result<NftDump, NftError> {
        Ok(NftDump::default())
    }

    async fn dump_guessed(&self, _table: &TableKey, _guess: Guess) -> Result<NftDump, NftError> {
        Ok(NftDump::default())
    }

    async fn elements(
        &self,
        _table: &TableKey,
        _set: &str,
        keys: &[ElementKey],
    ) -> Result<Vec<Option<ElementValue>>, NftError> {
        Ok(vec![None; keys.len()])
    }

    async fn tables(&self) -> Result<Vec<TableKey>, NftError> {
        Ok(Vec::new())
    }

    async fn generation(&self) -> Result<u32, NftError> {
        Err(self.why.clone())
    }

    async fn touched_by_others(&self, _name: &str) -> Result<Touched, NftError> {
        std::future::pending().await
    }
}
