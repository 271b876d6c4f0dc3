//! The probe on this kernel: what it says must be what the other tests show.

#![allow(clippy::unwrap_used)]

mod common;

use longshore_kernel::cgroup::DEFAULT_ROOT;
use longshore_kernel::nft::{Nft, RealNft};
use longshore_kernel::probe::{Support, probe};

#[test]
fn asking_leaves_nothing_behind() {
    common::in_new_netns(|| async {
        let before = RealNft::open().unwrap().generation().await.unwrap();
        let support = probe(DEFAULT_ROOT);
        assert!(support.nftables.works(), "{support:?}");
        assert!(!support.release.is_empty());
        let nft = RealNft::open().unwrap();
        assert_eq!(nft.generation().await.unwrap(), before);
        assert_eq!(nft.tables().await, Ok(vec![]));
        for (name, support) in [("ipvs", &support.ipvs), ("dummy", &support.dummy)] {
            if let Support::Missing(reason) = support {
                assert!(reason.contains(name), "{reason}");
            }
        }
    });
}
