//! The fake refuses as the program does, and one bad object keeps no other out.

use std::time::Duration;

use longshore_core::ruleset::desired::{BackEnd, Desired};
use longshore_core::ruleset::diff::{self, Applied, Op};
use longshore_core::ruleset::ipt::text::Restore;
use longshore_core::ruleset::ipt::{ChainId, ChainName, Match, Rule, Table, Target};
use longshore_core::ruleset::object::{Claim, ObjectKey, ObjectValue};
use longshore_core::ruleset::render_ipvs::NodeNetwork;
use nix::errno::Errno;

use super::super::{Iptables, IptablesError, apply_each};
use super::FakeIptables;

/// What an empty node has in iptables mode, as operations.
fn fixed() -> Vec<Op> {
    let desired = Desired::new(BackEnd::Iptables, NodeNetwork::default());
    let claims: Vec<Claim> = desired.claims().copied().filter(|claim| !claim.is_ipv6()).collect();
    diff::plan(&desired, &Applied::default(), claims, &|_, _| true)
}

fn text(text: &str) -> Restore {
    Restore::from_text(false, text)
}

#[tokio::test]
async fn what_the_program_refuses_is_refused_and_changes_nothing_of_its_table() {
    let iptables = FakeIptables::default();
    let cases = [
        ("*nat\n-A LONGSHORE-A -j DROP\nCOMMIT\n", 2, "no chain by that name"),
        ("*nat\n:LONGSHORE-A - [0:0]\n-A LONGSHORE-A -j LONGSHORE-B\nCOMMIT\n", 4, "no chain/target"),
        ("*nat\n-D PREROUTING -j LONGSHORE-A\nCOMMIT\n", 2, "does a matching rule exist"),
        ("*nat\n-X LONGSHORE-A\nCOMMIT\n", 2, "no chain by that name"),
        ("*nat\n:LONGSHORE-A - [0:0]\n-A LONGSHORE-A -j DROP\n-X LONGSHORE-A\nCOMMIT\n", 4, "not empty"),
        ("*nat\n:LONGSHORE-A - [0:0]\n-A LONGSHORE-A -m nonsense -j DROP\nCOMMIT\n", 3, "no chain/target"),
        ("*cheese\nCOMMIT\n", 1, "no such table"),
    ];
    for (change, at, why) in cases {
        match iptables.apply(&text(change)).await {
            Err(IptablesError::Refused { line, said, .. }) => {
                assert_eq!(line, Some(at), "{change}");
                assert!(said.contains(why), "{change}: {said}");
            }
            other => panic!("{change}: {other:?}"),
        }
        assert!(iptables.objects().is_empty(), "{change}");
    }
    // What came before in another table stays.
    let two = "*filter\n:LONGSHORE-A - [0:0]\nCOMMIT\n*nat\n-X LONGSHORE-B\nCOMMIT\n";
    iptables.apply(&text(two)).await.unwrap_err();
    assert_eq!(iptables.objects().len(), 1);
}

#[tokio::test]
async fn everything_goes_in_by_one_run() {
    let iptables = FakeIptables::default();
    let ops = fixed();
    let outcomes = apply_each(&iptables, false, &ops).await;
    assert_eq!(outcomes.each, vec![Ok(()); ops.len()]);
    assert_eq!((outcomes.runs, iptables.runs().len(), iptables.objects().len()), (1, 1, ops.len()));
    let dump = iptables.dump(false).await.unwrap();
    assert_eq!(dump.objects, iptables.objects().into_iter().collect());
    assert!(iptables.dump(true).await.unwrap().objects.is_empty());
}

fn chain(name: &str) -> ObjectKey {
    let id = ChainId { ipv6: false, table: Table::Nat, name: ChainName::new(name).unwrap() };
    ObjectKey::Chain(id)
}

#[tokio::test]
async fn one_bad_object_is_named_and_keeps_no_other_out() {
    // By its line; and where only the whole table is refused, by halving.
    for named in [true, false] {
        let iptables = FakeIptables::default();
        let ops = fixed();
        let bad = ops.iter().position(|op| op.key == chain("LONGSHORE-OUTSIDE")).unwrap();
        let line = "-A LONGSHORE-OUTSIDE";
        if named {
            iptables.faults.script(line, Errno::ENOENT, 1);
        } else {
            iptables.refuse_at_commit(line);
        }
        let outcomes = apply_each(&iptables, false, &ops).await;
        let failed: Vec<usize> = (0..ops.len()).filter(|index| outcomes.each[*index].is_err()).collect();
        assert_eq!(failed, [bad], "{named}");
        // It stands empty for those that jump to it.
        let objects = iptables.objects();
        assert_eq!(objects.len(), ops.len());
        assert_eq!(objects.get(&chain("LONGSHORE-OUTSIDE")), Some(&ObjectValue::Rules(Vec::new())));
        assert!(outcomes.runs <= if named { 2 } else { 16 }, "{}", outcomes.runs);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_another_program_holds_is_waited_for_and_measured() {
    let iptables = FakeIptables::default();
    iptables.hold_lock(Duration::from_secs(10));
    let began = tokio::time::Instant::now();
    let outcomes = apply_each(&iptables, false, &fixed()).await;
    assert_eq!(outcomes.waited, Duration::from_secs(10));
    assert_eq!(began.elapsed(), Duration::from_secs(10));
}

#[tokio::test]
async fn a_flush_by_hand_leaves_empty_chains_and_no_jump() {
    let iptables = FakeIptables::default();
    let ops = fixed();
    apply_each(&iptables, false, &ops).await;
    iptables.flush(false, Table::Nat);
    let left = iptables.objects();
    let nat = |key: &ObjectKey| matches!(key, ObjectKey::Chain(id) if id.table == Table::Nat);
    assert!(
        left.iter().filter(|(key, _)| nat(key)).all(|(_, value)| *value == ObjectValue::Rules(Vec::new()))
    );
    assert!(!left.keys().any(|key| matches!(key, ObjectKey::Hook(hook) if hook.to.table == Table::Nat)));
    assert!(left.keys().any(|key| matches!(key, ObjectKey::Hook(hook) if hook.to.table == Table::Filter)));
    // Compared with what is wanted, everything of the table is due again.
    let desired = Desired::new(BackEnd::Iptables, NodeNetwork::default());
    let claims: Vec<Claim> = desired.claims().copied().filter(|claim| !claim.is_ipv6()).collect();
    let repair = diff::plan(&desired, &Applied::adopt(left.into_iter().collect()), claims, &|_, _| true);
    apply_each(&iptables, false, &repair).await;
    let mut all: Vec<ObjectKey> = ops.into_iter().map(|op| op.key).collect();
    all.sort_unstable();
    assert_eq!(iptables.objects().into_keys().collect::<Vec<_>>(), all);
}

#[tokio::test]
async fn a_copy_of_a_jump_is_another_object_and_can_be_removed() {
    let iptables = FakeIptables::default();
    apply_each(&iptables, false, &fixed()).await;
    let before = iptables.objects();
    let again = "*nat\n-I PREROUTING -j LONGSHORE-SERVICES\nCOMMIT\n";
    iptables.apply(&text(again)).await.unwrap();
    assert_eq!(iptables.objects().len(), before.len() + 1);
    iptables.apply(&text(&again.replace("-I", "-D"))).await.unwrap();
    assert_eq!(iptables.objects(), before);
    let rule = Rule::new(vec![Match::SourceIsLocal], Target::Jump(ChainName::fixed("LONGSHORE-SERVICES")));
    assert!(!before.keys().any(|key| matches!(key, ObjectKey::Hook(hook) if *hook.rule == rule)));
}
