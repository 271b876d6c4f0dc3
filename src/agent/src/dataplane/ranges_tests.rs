//! The ranges Services get their addresses from, on the kernel's fakes: when they come into force, what a
//! change of them costs, and who mends them.

use longshore_core::ruleset::chains;
use longshore_core::ruleset::nft::NftOp;
use longshore_core::ruleset::object::SetId;
use nix::errno::Errno;

use super::kernel::table_key;
use super::tests::{Node, at, population, settled, take};
use super::*;

/// Ranges in force, IPv4 and IPv6, as the kernel has them.
fn in_force(node: &Node) -> String {
    let of = |ipv6| {
        let table = node.nft.table(&table_key(ipv6));
        table.map(|table| chains::service_ranges(&table, ipv6)).unwrap_or_default()
    };
    [of(false), of(true)].concat().iter().map(Cidr::to_string).collect::<Vec<_>>().join(" ")
}

fn ranges(texts: &[&str]) -> Change {
    Change::ServiceRanges(texts.iter().map(|text| text.parse().unwrap()).collect())
}

/// These ranges are told, and after them all Services.
async fn told(node: &Node, texts: &[&str]) -> Engine {
    let changes = [ranges(texts)].into_iter().chain(population()).collect();
    settled(node.engine_without_ipvs(), changes).await
}

#[tokio::test]
async fn nothing_is_dropped_before_every_service_is_in_the_kernel() {
    let node = Node::new();
    let (early, last) = ([ranges(&["10.96.0.0/16"])], population().pop().unwrap());
    let services = population().into_iter().take(5);
    let mut engine = settled(node.engine_without_ipvs(), early.into_iter().chain(services).collect()).await;
    assert_eq!(in_force(&node), "");
    take(&mut engine, last);
    engine.sync(at(1)).await;
    assert_eq!(in_force(&node), "10.96.0.0/16");
    // The last of all: behind every element of a Service.
    let batches = node.nft.batches();
    let is_range =
        |op: &NftOp| matches!(op, NftOp::AddElements { set, .. } if set == SetId::ServiceRanges.name());
    let first = batches.iter().position(|batch| batch.ops.iter().any(is_range));
    assert_eq!(first, Some(batches.len() - 1));
}

#[tokio::test]
async fn a_changed_range_is_a_small_batch_and_what_lies_in_another_is_none() {
    let node = Node::new();
    let mut engine = told(&node, &["10.96.0.0/16", "fd00:96::/112"]).await;
    assert_eq!(in_force(&node), "10.96.0.0/16 fd00:96::/112");
    let table = [
        (&["10.96.0.0/16", "fd00:96::/112", "10.96.7.0/24"][..], "10.96.0.0/16 fd00:96::/112", 0),
        (&["10.96.0.0/12", "fd00:96::/112", "10.96.0.0/16"][..], "10.96.0.0/12 fd00:96::/112", 2),
        (&["10.96.0.0/12", "10.112.0.0/16"][..], "10.96.0.0/12 10.112.0.0/16", 2),
        (&[][..], "", 1),
    ];
    for (told, want, ops) in table {
        let before = node.nft.batches().len();
        take(&mut engine, ranges(told));
        engine.sync(at(1)).await;
        assert_eq!(in_force(&node), want);
        let written: usize = node.nft.batches()[before..].iter().map(|batch| batch.ops.len()).sum();
        assert_eq!(written, ops, "{told:?}: {:?}", &node.nft.batches()[before..]);
    }
}

#[tokio::test]
async fn a_restart_keeps_the_ranges_it_finds_until_others_are_told() {
    let node = Node::new();
    told(&node, &["10.96.0.0/16"]).await;
    let written = node.nft.batches().len();
    let mut engine = told(&node, &["10.96.0.0/16"]).await;
    assert_eq!(engine.audit(at(1)).await, 0);
    // The server may be slow, or away.
    let mut engine = settled(node.engine_without_ipvs(), population()).await;
    assert_eq!(engine.audit(at(1)).await, 0);
    assert_eq!((in_force(&node), node.nft.batches().len()), ("10.96.0.0/16".to_owned(), written));
    take(&mut engine, ranges(&[]));
    engine.sync(at(2)).await;
    assert_eq!((in_force(&node).as_str(), engine.diff().await.differences), ("", Vec::new()));
}

#[tokio::test]
async fn what_others_do_to_the_ranges_and_what_the_kernel_refused_is_mended_by_an_audit() {
    let node = Node::new();
    let mut engine = told(&node, &["10.96.0.0/16"]).await;
    node.nft.corrupt(|ruleset| {
        let table = ruleset.tables.get_mut(&table_key(false)).unwrap();
        table.sets.get_mut(SetId::ServiceRanges.name()).unwrap().elements.clear();
    });
    assert_eq!(in_force(&node), "");
    assert!(engine.diff().await.differences.iter().any(|found| found.object.contains("service-ranges")));
    assert_eq!(engine.audit(at(30)).await, 1);
    assert_eq!(in_force(&node), "10.96.0.0/16");
    node.nft.faults.every(1, Errno::ENOBUFS);
    take(&mut engine, ranges(&["10.96.0.0/15"]));
    engine.sync(at(31)).await;
    assert_eq!(in_force(&node), "10.96.0.0/16");
    node.nft.faults.clear();
    engine.audit(at(60)).await;
    assert_eq!((in_force(&node), engine.audit(at(90)).await), ("10.96.0.0/15".to_owned(), 0));
}
