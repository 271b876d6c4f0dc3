//! Audits of nftables mode on the kernel's fakes: what they read, what they find, and that neither they nor
//! what follows the first sync reads more the more Services there are.

use longshore_core::ruleset::nft::{Data, ElementKey, ElementValue, NftTable, Packed, Value};
use longshore_core::ruleset::object::SetId;
use nix::errno::Errno;
use serde_json::json;

use super::engine::{PREPARED_CHAINS, SAMPLE};
use super::kernel::table_key;
use super::tests::{Node, at, endpoints, population, settled, take};
use super::*;

/// Services with three endpoints each.
fn many(count: usize) -> Vec<Change> {
    let of = |number: usize| {
        let name = format!("s{number:04}");
        let [.., high, low] = number.to_be_bytes();
        let service = json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {
            "clusterIP": format!("10.97.{high}.{low}"), "ports": [{"name": "p", "port": 80}]}});
        let service = Change::Service(Box::new(serde_json::from_value(service).unwrap()));
        let addrs: Vec<String> = (1..4).map(|host| format!("10.24{host}.{high}.{low}")).collect();
        let addrs: Vec<&str> = addrs.iter().map(String::as_str).collect();
        [service, endpoints(&name, &addrs)]
    };
    (0..count).flat_map(of).chain([Change::SourcesSynced]).collect()
}

/// More than an audit of an untouched table reads: its sample, three more of the last Service, and what does
/// not grow.
const LITTLE: usize = SAMPLE + 3 + 2 * 6 + PREPARED_CHAINS as usize + 1;

fn table(node: &Node) -> NftTable {
    node.nft.table(&table_key(false)).unwrap()
}

/// Audits until one finds something; how many were needed, of at most so many.
async fn audits_until_found(engine: &mut Engine, at_most: usize) -> Option<usize> {
    for number in 1..=at_most {
        if engine.audit(at(30 * number as i64)).await > 0 {
            return Some(number);
        }
    }
    None
}

#[tokio::test]
async fn an_audit_reads_the_same_however_many_services_there_are() {
    for count in [1000, 2000] {
        let node = Node::new();
        let mut engine = settled(node.engine_without_ipvs(), many(count)).await;
        let before = node.nft.elements_read();
        engine.retire().await;
        let after_start = node.nft.elements_read() - before;
        let mut audits = Vec::new();
        for number in 1..=6 {
            let before = node.nft.elements_read();
            assert_eq!(engine.audit(at(30 * number)).await, 0);
            audits.push(node.nft.elements_read() - before);
        }
        // What does not grow: the classes of both families, and the chains that spread.
        assert_eq!(after_start, 2 * 6 + PREPARED_CHAINS as usize);
        assert!(audits.iter().all(|read| *read < LITTLE), "{audits:?}");
        assert!(table(&node).sets[SetId::Endpoints.name()].elements.len() > SAMPLE);
    }
}

#[tokio::test]
async fn the_next_audit_finds_what_was_told_and_reads_everything_for_it() {
    let node = Node::new();
    let mut engine = settled(node.engine_without_ipvs(), many(1500)).await;
    let whole = table(&node);
    assert_eq!(engine.audit(at(1)).await, 0);
    node.nft.tamper(|ruleset| {
        let table = ruleset.tables.get_mut(&table_key(false)).unwrap();
        table.sets.get_mut(SetId::Endpoints.name()).unwrap().elements.pop_last();
    });
    assert_eq!(engine.audit(at(2)).await, 1);
    assert_eq!(table(&node), whole);
    let before = node.nft.elements_read();
    assert_eq!(engine.audit(at(3)).await, 0);
    assert!(node.nft.elements_read() - before < LITTLE, "it is trusted again");
    // An element more than there should be is found as well, since whoever made it was heard.
    node.nft.tamper(|ruleset| {
        let table = ruleset.tables.get_mut(&table_key(false)).unwrap();
        let key = ElementKey::of(&[
            Value::Addr([10, 97, 0, 1].into()),
            Value::Proto(6),
            Value::Port(80),
            Value::Index(7),
        ]);
        let data = Data::Fields(Packed::of(&[Value::Addr([10, 9, 9, 9].into()), Value::Port(1)]));
        let value = ElementValue { data: Some(data), timeout_ms: None };
        table.sets.get_mut(SetId::Endpoints.name()).unwrap().elements.insert(key, value);
    });
    assert_eq!(engine.audit(at(4)).await, 1);
    assert_eq!(table(&node), whole);
}

#[tokio::test]
async fn what_was_never_told_is_found_at_once_in_the_chains_and_in_turn_among_the_elements() {
    let node = Node::new();
    let mut engine = settled(node.engine_without_ipvs(), many(1500)).await;
    engine.retire().await;
    let whole = table(&node);
    let elements: usize = whole.sets.values().map(|set| set.elements.len()).sum();
    let turn = elements.div_ceil(SAMPLE) + 1;
    type Corrupt = fn(&mut NftTable);
    let cases: [(&str, Corrupt, usize); 6] = [
        ("a fixed chain", |table| drop(table.chains.get_mut("reject").unwrap().rules.pop()), 1),
        ("a chain that spreads", |table| drop(table.chains.get_mut("n3").unwrap().rules.pop()), 1),
        ("its element", |table| table.sets.get_mut("spreads").unwrap().elements.clear(), 1),
        ("the table", |table| *table = NftTable::default(), 1),
        ("an endpoint", |table| drop(table.sets.get_mut("endpoints").unwrap().elements.pop_last()), turn),
        (
            "an endpoint's address",
            |table| {
                let data = Data::Fields(Packed::of(&[Value::Addr([10, 9, 9, 9].into()), Value::Port(1)]));
                let elements = &mut table.sets.get_mut("endpoints").unwrap().elements;
                elements.values_mut().nth(700).unwrap().data = Some(data);
            },
            turn,
        ),
    ];
    for (what, corrupt, at_most) in cases {
        node.nft.corrupt(|ruleset| corrupt(ruleset.tables.get_mut(&table_key(false)).unwrap()));
        assert_ne!(table(&node), whole, "{what}");
        assert!(audits_until_found(&mut engine, at_most).await.is_some(), "{what}");
        assert_eq!(table(&node), whole, "{what}");
    }
}

/// Elements of the maps that grow with Services.
fn growing(table: &NftTable) -> usize {
    let grows = |name: &str| SetId::from_name(name).is_some_and(SetId::grows);
    table.sets.iter().filter(|(name, _)| grows(name)).map(|(_, set)| set.elements.len()).sum()
}

#[tokio::test]
async fn a_restart_and_a_repair_ask_for_what_is_there_and_dump_no_map_that_grows() {
    let node = Node::new();
    settled(node.engine_without_ipvs(), many(1500)).await;
    let (whole, written) = (table(&node), node.nft.batches().len());
    let mut engine = settled(node.engine_without_ipvs(), many(1500)).await;
    assert_eq!(node.nft.elements_guessed(), growing(&whole));
    engine.repair(at(1)).await;
    assert_eq!(node.nft.elements_guessed(), 3 * growing(&whole), "and the difference after it");
    assert_eq!((table(&node), node.nft.batches().len()), (whole, written));
}

#[tokio::test]
async fn a_restart_takes_out_what_nobody_wants_any_more_whether_the_kernel_counts_or_not() {
    for counts in [true, false] {
        let node = Node::new();
        if !counts {
            node.nft.count_nothing();
        }
        settled(node.engine_without_ipvs(), many(30)).await;
        let fresh = Node::new();
        settled(fresh.engine_without_ipvs(), many(20)).await;
        let mut engine = settled(node.engine_without_ipvs(), many(20)).await;
        assert_eq!(table(&node), table(&fresh), "counts: {counts}");
        assert_eq!(engine.audit_whole(at(1)).await, 0);
    }
}

#[tokio::test]
async fn a_restart_that_cannot_read_at_first_reads_later_and_writes_nothing() {
    let node = Node::new();
    settled(node.engine_without_ipvs(), many(30)).await;
    let written = node.nft.batches().len();
    let mut engine = node.engine_without_ipvs();
    engine.start().await;
    node.nft.faults.script("read table", Errno::ENOBUFS, 1);
    many(30).into_iter().for_each(|change| take(&mut engine, change));
    engine.sync(at(0)).await;
    assert_eq!(engine.view().mode, "none");
    assert_eq!(engine.audit(at(30)).await, 0);
    assert_eq!((engine.view().mode.as_str(), node.nft.batches().len()), ("nftables", written));
}

#[tokio::test]
async fn a_repair_that_was_asked_for_reads_everything() {
    let node = Node::new();
    let mut engine = settled(node.engine_without_ipvs(), many(1500)).await;
    let whole = table(&node);
    engine.audit(at(1)).await;
    node.nft.corrupt(|ruleset| {
        let table = ruleset.tables.get_mut(&table_key(false)).unwrap();
        table.sets.get_mut(SetId::Endpoints.name()).unwrap().elements.pop_last();
    });
    assert_eq!(engine.repair(at(2)).await.repaired, Some(1));
    assert_eq!(table(&node), whole);
}

#[tokio::test]
async fn an_audit_that_cannot_read_reads_everything_and_then_trusts_again() {
    let node = Node::new();
    let mut engine = settled(node.engine_without_ipvs(), population()).await;
    let whole = table(&node);
    node.nft.faults.script("elements of set", Errno::ENOBUFS, 1);
    assert_eq!(engine.audit(at(1)).await, 0);
    assert_eq!(table(&node), whole);
    let read = node.nft.elements_read();
    assert_eq!(engine.audit(at(2)).await, 0);
    assert!(node.nft.elements_read() > read);
}

#[tokio::test]
async fn our_own_changes_never_make_an_audit_read_everything() {
    let node = Node::new();
    let mut engine = settled(node.engine_without_ipvs(), many(1500)).await;
    for number in 0..20 {
        let addrs: &[&str] = if number % 2 == 0 { &["10.241.0.1"] } else { &["10.241.0.1", "10.242.0.2"] };
        take(&mut engine, endpoints("s0000", addrs));
        engine.sync(at(number)).await;
        let before = node.nft.elements_read();
        assert_eq!(engine.audit(at(number)).await, 0);
        assert!(node.nft.elements_read() - before < LITTLE, "{number}");
    }
}
