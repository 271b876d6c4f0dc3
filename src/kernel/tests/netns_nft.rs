//! `RealNft` against the kernel, in a network namespace of each test's own.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;

use longshore_core::ruleset::Protocol;
use longshore_core::ruleset::nft::{
    BaseChain, Chain, ChainType, CmpOp, CtKey, Data, DynsetOp, Element, ElementKey, ElementValue, Expr,
    Family, FibResult, FibSelector, FieldType, HeaderField, Hook, LookupTarget, MetaKey, NatFlags, NatKind,
    NftBatch, NftOp, NftTable, NumgenMode, Packed, Policy, Reg, RejectWith, Rule, Set, SetFlags, SetSpec,
    TableKey, Value, Verdict, ct_state, ct_status, diff,
};
use longshore_kernel::nft::{FakeNft, Guess, Nft, NftError, RealNft, Touched};

const KEY4: [FieldType; 3] = [FieldType::Ipv4Addr, FieldType::InetProto, FieldType::InetService];

fn key() -> TableKey {
    TableKey::new(Family::Ip, "longshore")
}

fn v4(a: u8, b: u8) -> Value {
    Value::Addr(IpAddr::from([10, 96, a, b]))
}

fn service(a: u8, b: u8) -> Vec<Value> {
    vec![v4(a, b), Value::Proto(6), Value::Port(80)]
}

fn base(kind: ChainType, hook: Hook, priority: i32) -> Option<BaseChain> {
    Some(BaseChain { kind, hook, priority, policy: Policy::Accept })
}

fn load_key() -> Vec<Expr> {
    vec![
        Expr::load(HeaderField::Ip4Daddr, Reg(0)),
        Expr::meta(MetaKey::L4Proto, Reg(1)),
        Expr::load(HeaderField::Dport, Reg(2)),
    ]
}

fn indexed() -> Vec<FieldType> {
    [&KEY4[..], &[FieldType::Index]].concat()
}

/// The Service table of the design: two maps, one chain per number of endpoints.
fn services(count: u16, endpoints: u8) -> NftTable {
    let mut table = NftTable::default();
    let chain = format!("n{endpoints}");
    let mut frontends = Set::new(SetSpec::verdict_map(&KEY4));
    let mut backends = Set::new(SetSpec::map(&indexed(), &[FieldType::Ipv4Addr, FieldType::InetService]));
    for index in 0..count {
        let [a, b] = index.to_be_bytes();
        let element = Element::verdict(ElementKey::of(&service(a, b)), Verdict::Goto(chain.clone()));
        frontends.elements.insert(element.key, element.value);
        for endpoint in 0..endpoints {
            let key = [service(a, b), vec![Value::Index(endpoint.into())]].concat();
            let to = [Value::Addr(IpAddr::from([10, 1, b, endpoint])), Value::Port(8080)];
            let element = Element::fields(ElementKey::of(&key), &to);
            backends.elements.insert(element.key, element.value);
        }
    }
    let choose = [
        load_key(),
        vec![
            Expr::Numgen { mode: NumgenMode::Random, modulus: endpoints.into(), offset: 0, dst: Reg(3) },
            Expr::Lookup { set: "endpoints".into(), src: Reg(0), target: LookupTarget::Data(Reg(4)) },
            Expr::Nat {
                kind: NatKind::Dnat,
                ipv6: false,
                addr: Some(Reg(4)),
                port: Some(Reg(5)),
                flags: NatFlags::default(),
            },
        ],
    ]
    .concat();
    let find = Expr::Lookup { set: "services".into(), src: Reg(0), target: LookupTarget::Verdict };
    table.sets = BTreeMap::from([("services".to_owned(), frontends), ("endpoints".to_owned(), backends)]);
    table.chains = BTreeMap::from([
        (chain, Chain { base: None, rules: vec![Rule::new(choose)] }),
        (
            "prerouting".to_owned(),
            Chain {
                base: base(ChainType::Nat, Hook::Prerouting, -100),
                rules: vec![Rule::new([load_key(), vec![find]].concat())],
            },
        ),
    ]);
    table
}

/// Every expression and kind of set the model has, so that each is shown to be taken by the kernel and
/// to come back the same.
fn everything() -> NftTable {
    let mut table = services(2, 3);
    table.counters.insert("drops".into());
    let affinity = SetSpec {
        flags: SetFlags { timeout: true, dynamic: true, interval: false },
        timeout_ms: Some(60_000),
        size: Some(1024),
        ..SetSpec::map(
            &[&[FieldType::Ipv4Addr], &KEY4[..]].concat(),
            &[FieldType::Ipv4Addr, FieldType::InetService],
        )
    };
    let mut ports = Set::new(SetSpec::set(&[FieldType::InetService]).interval());
    let mut ranges = Set::new(SetSpec::set(&[&KEY4[..], &[FieldType::Ipv4Addr]].concat()).interval());
    for (from, to) in [(1, 1), (10, 20), (21, 30), (65_000, 65_535)] {
        let key = ElementKey::range(&[Value::Port(from)], &[Value::Port(to)]);
        ports.elements.insert(key, ElementValue::default());
    }
    let source = |from: [u8; 4], to: [u8; 4]| {
        let key = |last| [service(0, 1), vec![Value::Addr(IpAddr::from(last))]].concat();
        ElementKey::range(&key(from), &key(to))
    };
    ranges.elements.insert(source([10, 0, 0, 0], [10, 255, 255, 255]), ElementValue::default());
    ranges.elements.insert(source([192, 168, 0, 7], [192, 168, 0, 7]), ElementValue::default());
    let mut names = Set::new(SetSpec::verdict_map(&[FieldType::IfName]));
    let element = Element::verdict(ElementKey::of(&[Value::if_name("eth0")]), Verdict::Return);
    names.elements.insert(element.key, element.value);
    table.sets.extend([
        ("affinity".to_owned(), Set::new(affinity)),
        ("ports".to_owned(), ports),
        ("sources".to_owned(), ranges),
        ("names".to_owned(), names),
        ("marks".to_owned(), Set::new(SetSpec::set(&[FieldType::Mark]))),
    ]);
    let filter = filter_rules();
    table
        .chains
        .insert("filter".into(), Chain { base: base(ChainType::Filter, Hook::Forward, 5), rules: filter });
    let masquerade = Rule::new(vec![
        Expr::meta(MetaKey::Mark, Reg(0)),
        Expr::mask(Reg(0), 0x4000),
        Expr::neq(Reg(0), Value::Mark(0)),
        Expr::meta(MetaKey::Mark, Reg(0)),
        Expr::set_bits(Reg(0), 0x1),
        Expr::MetaSet { key: MetaKey::Mark, src: Reg(0) },
        Expr::Counter,
        Expr::Masquerade { flags: NatFlags { fully_random: true, ..NatFlags::default() } },
    ]);
    table.chains.insert(
        "postrouting".into(),
        Chain {
            base: base(ChainType::Nat, Hook::Postrouting, 100),
            rules: vec![masquerade.commented("Service traffic that needs its source rewritten")],
        },
    );
    let raw = vec![Rule::new(vec![Expr::Notrack])];
    table
        .chains
        .insert("raw".into(), Chain { base: base(ChainType::Filter, Hook::Prerouting, -300), rules: raw });
    table
}

fn filter_rules() -> Vec<Rule> {
    let r = Reg(0);
    let word = |word: u32| Packed::of(&[Value::Index(word)]);
    let lookup = |set: &str, target| Expr::Lookup { set: set.into(), src: r, target };
    let affinity_key = vec![
        Expr::ct_original(CtKey::SrcIp, Reg(0)),
        Expr::ct_original(CtKey::DstIp, Reg(1)),
        Expr::meta(MetaKey::L4Proto, Reg(2)),
        Expr::ct_original(CtKey::ProtoDst, Reg(3)),
        Expr::load(HeaderField::Ip4Daddr, Reg(4)),
        Expr::load(HeaderField::Dport, Reg(5)),
        Expr::Dynset {
            set: "affinity".into(),
            op: DynsetOp::Update,
            key: Reg(0),
            data: Some(Reg(4)),
            timeout_ms: Some(10_800_000),
        },
    ];
    let local = FibSelector { daddr: true, ..FibSelector::default() };
    vec![
        Rule::new(affinity_key),
        Rule::new(vec![
            Expr::ct(CtKey::State, r),
            Expr::mask(r, ct_state::NEW),
            Expr::neq(r, Value::Index(0)),
            Expr::ct(CtKey::Status, r),
            Expr::mask(r, ct_status::DNAT),
            Expr::eq(r, Value::Index(ct_status::DNAT)),
            Expr::Verdict(Verdict::Accept),
        ]),
        Rule::new(vec![
            Expr::load(HeaderField::Dport, r),
            lookup("ports", LookupTarget::Miss),
            Expr::CounterRef { counter: "drops".into() },
            Expr::Verdict(Verdict::Drop),
        ]),
        Rule::new(vec![
            Expr::meta(MetaKey::IifName, r),
            lookup("names", LookupTarget::Verdict),
            Expr::load(HeaderField::Sport, r),
            Expr::Range { src: r, op: CmpOp::Neq, from: Value::Port(1).into(), to: Value::Port(1023).into() },
            Expr::Fib { selector: local, result: FibResult::AddrType, dst: r },
            Expr::eq(r, Value::Index(2)),
            Expr::Verdict(Verdict::Return),
        ]),
        Rule::new(vec![
            Expr::load(HeaderField::Ip4Saddr, Reg(0)),
            Expr::Jhash { src: Reg(0), len: 4, modulus: 3, seed: 7, offset: 1, dst: Reg(1) },
            Expr::Cmp { src: Reg(1), op: CmpOp::Gt, value: word(1) },
            Expr::immediate(r, Value::Mark(9)),
            Expr::CtSet { key: CtKey::Mark, src: r },
            Expr::Reject(RejectWith::Icmpx(1)),
        ]),
        Rule::new(
            [&Expr::match_protocol(Protocol::Tcp, r)[..], &[Expr::Reject(RejectWith::TcpReset)]].concat(),
        ),
        Rule::new(vec![Expr::Reject(RejectWith::Icmp(3))]),
    ]
}

async fn converge(nft: &RealNft, wanted: Option<&NftTable>) {
    let read = nft.dump(&key(), &[]).await.unwrap();
    let batch = NftBatch { table: key(), ops: diff(read.table.as_ref(), wanted) };
    nft.apply(&batch, Some(read.generation)).await.unwrap_or_else(|err| {
        panic!("{err}: {:?}", std::error::Error::source(&err).map(ToString::to_string));
    });
    let after = nft.dump(&key(), &[]).await.unwrap().table;
    if after.as_ref() != wanted {
        let text = |table: Option<&NftTable>| table.map(|table| table.text(&key())).unwrap_or_default();
        assert_eq!(text(after.as_ref()), text(wanted));
        assert_eq!(after.as_ref(), wanted);
    }
    assert_eq!(diff(after.as_ref(), wanted), []);
}

#[test]
fn every_object_reads_back_as_it_was_written() {
    common::in_new_netns(|| async {
        let nft = RealNft::open().unwrap();
        converge(&nft, Some(&everything())).await;
        converge(&nft, Some(&services(1, 1))).await;
        converge(&nft, Some(&everything())).await;
        assert_eq!(nft.tables().await, Ok(vec![key()]));
        converge(&nft, None).await;
        assert_eq!(nft.tables().await, Ok(vec![]));
    });
}

/// People look at tables with `nft`; ours must not be gibberish to it.
#[test]
fn the_nft_program_lists_what_we_write() {
    let has_nft = std::process::Command::new("nft").arg("--version").output().is_ok();
    if !has_nft {
        return common::skip("nft", "the nft program is not installed");
    }
    common::in_new_netns(|| async {
        let nft = RealNft::open().unwrap();
        converge(&nft, Some(&everything())).await;
        // A child of this thread, and so in its network namespace.
        let output = std::process::Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        println!("{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success());
        for expected in [
            "10.96.0.1 . tcp . 80 : goto n3",
            "\"eth0\" : return",
            "masquerade fully-random comment \"Service traffic that needs its source rewritten\"",
        ] {
            assert!(text.contains(expected), "{expected}");
        }
    });
}

#[test]
fn inet_and_ip6_tables_work_too() {
    common::in_new_netns(|| async {
        let nft = RealNft::open().unwrap();
        for family in [Family::Ip6, Family::Inet] {
            let table = TableKey::new(family, "longshore");
            let daddr = Expr::match_daddr("fd00::1".parse().unwrap(), Reg(0));
            let proto = [Expr::meta(MetaKey::NfProto, Reg(0)), Expr::eq(Reg(0), Value::Proto(10))];
            let nat = [
                Expr::immediate(Reg(0), Value::Addr("fd00::2".parse().unwrap())),
                Expr::Nat {
                    kind: NatKind::Dnat,
                    ipv6: true,
                    addr: Some(Reg(0)),
                    port: None,
                    flags: NatFlags { persistent: true, ..NatFlags::default() },
                },
            ];
            let rule = Rule::new([&proto[..], &daddr, &nat].concat());
            let chain = Chain { base: base(ChainType::Nat, Hook::Output, -100), rules: vec![rule] };
            let mut wanted = NftTable::default();
            wanted.chains.insert("output".into(), chain);
            let mut set = Set::new(SetSpec::set(&[FieldType::Ipv6Addr]).interval());
            let range =
                ["fd00::".parse().unwrap(), "fd00::ffff".parse().unwrap()].map(|addr| [Value::Addr(addr)]);
            set.elements.insert(ElementKey::range(&range[0], &range[1]), ElementValue::default());
            wanted.sets.insert("six".into(), set);
            let batch = NftBatch { table: table.clone(), ops: diff(None, Some(&wanted)) };
            nft.apply(&batch, None).await.unwrap();
            assert_eq!(nft.dump(&table, &[]).await.unwrap().table, Some(wanted));
        }
    });
}

#[test]
fn a_refused_operation_is_named_as_the_fake_names_it() {
    common::in_new_netns(|| async {
        let nft = RealNft::open().unwrap();
        let fake = FakeNft::new();
        let start = NftBatch { table: key(), ops: diff(None, Some(&services(2, 2))) };
        nft.apply(&start, None).await.unwrap();
        fake.apply(&start, None).await.unwrap();
        let services = || "services".to_owned();
        let to =
            |chain: &str, b| Element::verdict(ElementKey::of(&service(0, b)), Verdict::Goto(chain.into()));
        let jump = |to: &str| Rule::new(vec![Expr::Verdict(Verdict::Jump(to.into()))]);
        let cases = [
            NftOp::DelChain { chain: "n2".into() },
            NftOp::DelChain { chain: "n9".into() },
            NftOp::FlushChain { chain: "n9".into() },
            NftOp::DelSet { set: services() },
            NftOp::DelSet { set: "none".into() },
            NftOp::AddElements { set: services(), elements: vec![to("n9", 9)] },
            NftOp::AddElements { set: services(), elements: vec![to("n2", 1)] },
            NftOp::AddElements {
                set: services(),
                elements: vec![Element {
                    value: ElementValue { data: Some(Data::Verdict(Verdict::Drop)), timeout_ms: None },
                    ..to("n2", 1)
                }],
            },
            NftOp::AddElements { set: "none".into(), elements: vec![to("n2", 9)] },
            NftOp::DelElements { set: services(), keys: vec![to("n2", 7).key] },
            NftOp::AddRule { chain: "n2".into(), rule: jump("n9") },
            NftOp::AddChain { chain: "n2".into(), base: None },
            NftOp::AddSet { set: services(), spec: SetSpec::verdict_map(&KEY4) },
            NftOp::AddTable,
            NftOp::DelCounter { counter: "none".into() },
        ];
        let outcome = |outcome: Result<(), NftError>| match outcome {
            Ok(()) => None,
            Err(NftError::Refused { index, source, .. }) => Some((index, source.errno)),
            Err(err) => panic!("{err:?}"),
        };
        for op in cases {
            let text = op.to_string();
            let first = NftOp::AddChain { chain: "before".into(), base: None };
            let batch = NftBatch { table: key(), ops: vec![first, op] };
            let (real, fake) = (nft.apply(&batch, None).await, fake.apply(&batch, None).await);
            assert_eq!(outcome(real), outcome(fake), "{text}");
        }
        let (real, fake) = (nft.dump(&key(), &[]).await.unwrap(), fake.dump(&key(), &[]).await.unwrap());
        assert_eq!(real.table, fake.table);
    });
}

#[test]
fn a_batch_for_an_older_generation_is_refused() {
    common::in_new_netns(|| async {
        let nft = RealNft::open().unwrap();
        let generation = nft.generation().await.unwrap();
        let batch = NftBatch { table: key(), ops: vec![NftOp::AddTable] };
        nft.apply(&batch, Some(generation)).await.unwrap();
        assert_eq!(nft.apply(&batch, Some(generation)).await, Err(NftError::Changed { table: key() }));
    });
}

#[test]
fn thousands_of_errors_still_name_the_first() {
    common::in_new_netns(|| async {
        let nft = RealNft::open().unwrap();
        let table = services(20, 2);
        let mut ops = diff(None, Some(&table));
        ops.extend((0..20_000).map(|_| NftOp::FlushChain { chain: "gone".into() }));
        let first = ops.len() - 20_000;
        match nft.apply(&NftBatch { table: key(), ops }, None).await {
            Err(NftError::Refused { index, op, .. }) => {
                assert_eq!((index, op.as_str()), (first, "chain gone: flush"));
            }
            other => panic!("{other:?}"),
        }
        converge(&nft, Some(&table)).await;
    });
}

#[test]
fn ten_thousand_services_are_one_transaction_and_one_change_stays_small() {
    common::in_new_netns(|| async {
        let nft = RealNft::open().unwrap();
        let table = services(10_000, 10);
        let batch = NftBatch { table: key(), ops: diff(None, Some(&table)) };
        let start = std::time::Instant::now();
        nft.apply(&batch, None).await.unwrap();
        println!("10000 services x 10 endpoints in {:?}", start.elapsed());
        let mut wanted = table.clone();
        let elements = &mut wanted.sets.get_mut("endpoints").unwrap().elements;
        elements.values_mut().next().unwrap().data =
            Some(Data::Fields(Packed::of(&[Value::Addr(IpAddr::from([10, 9, 9, 9])), Value::Port(1)])));
        let batch = NftBatch { table: key(), ops: diff(Some(&table), Some(&wanted)) };
        let start = std::time::Instant::now();
        nft.apply(&batch, None).await.unwrap();
        println!("one endpoint changed in {:?}", start.elapsed());
        let start = std::time::Instant::now();
        let read = nft.dump(&key(), &[]).await.unwrap();
        println!("read back in {:?}", start.elapsed());
        for (name, set) in &wanted.sets {
            let keys: Vec<ElementKey> = set.elements.keys().cloned().collect();
            let start = std::time::Instant::now();
            let found = nft.elements(&key(), name, &keys).await.unwrap();
            println!("{} elements of {name} by key in {:?}", keys.len(), start.elapsed());
            assert!(found.iter().map(Option::as_ref).eq(set.elements.values().map(Some)), "{name}");
        }
        let start = std::time::Instant::now();
        let guessed = nft.dump_guessed(&key(), guess(&wanted)).await.unwrap();
        println!("read back by a right guess in {:?}", start.elapsed());
        assert_eq!(guessed.table.as_ref(), Some(&wanted));
        assert_eq!(read.table, Some(wanted));
    });
}

fn guess(table: &NftTable) -> Guess {
    let keys = |set: &Set| set.elements.keys().cloned().collect();
    table.sets.iter().map(|(name, set)| (name.clone(), keys(set))).collect()
}

/// Strangers' elements, in whatever number, and ours that are gone, are seen as a dump sees them.
#[test]
fn whatever_is_guessed_what_is_read_is_what_is_there() {
    common::in_new_netns(|| async {
        let (nft, other) = (RealNft::open().unwrap(), RealNft::open().unwrap());
        let believed = services(400, 5);
        nft.apply(&batch(&key(), diff(None, Some(&believed))), None).await.unwrap();
        let at = |first: u8, last: u8| ElementKey::of(&service(first, last));
        let add = |keys: Vec<ElementKey>, like: &NftTable| {
            let value = like.sets["services"].elements.values().next().unwrap().clone();
            let elements = keys.into_iter().map(|key| Element { key, value: value.clone() }).collect();
            NftOp::AddElements { set: "services".to_owned(), elements }
        };
        let del = |keys: Vec<ElementKey>| NftOp::DelElements { set: "services".to_owned(), keys };
        let ours: Vec<ElementKey> = believed.sets["services"].elements.keys().take(2).cloned().collect();
        let steps: [(&str, Vec<NftOp>); 6] = [
            ("nothing", vec![]),
            ("one more", vec![add(vec![at(99, 1)], &believed)]),
            ("one of ours less, which another stands for", vec![del(vec![ours[0].clone()])]),
            (
                "as many as ours, and the other gone",
                vec![add(vec![ours[0].clone()], &believed), del(vec![at(99, 1)])],
            ),
            ("two of ours less", vec![del(ours.clone())]),
            ("no set at all", vec![NftOp::DelTable]),
        ];
        for (what, ops) in steps {
            if !ops.is_empty() {
                other.apply(&batch(&key(), ops), None).await.unwrap();
            }
            let dump = nft.dump(&key(), &[]).await.unwrap();
            for guess in [guess(&believed), Guess::new(), dump.table.as_ref().map(guess).unwrap_or_default()]
            {
                assert_eq!(nft.dump_guessed(&key(), guess).await.unwrap(), dump, "{what}");
            }
        }
    });
}

fn batch(table: &TableKey, ops: Vec<NftOp>) -> NftBatch {
    NftBatch { table: table.clone(), ops }
}

#[test]
fn what_others_do_to_our_table_is_told_and_nothing_else() {
    common::in_new_netns(|| async {
        let (nft, other) = (RealNft::open().unwrap(), RealNft::open().unwrap());
        let foreign = TableKey::new(Family::Inet, "filter");
        let told = async || {
            let wait = nft.touched_by_others("longshore");
            tokio::time::timeout(std::time::Duration::from_millis(200), wait).await.ok()
        };
        assert_eq!(told().await, None, "the first call begins to listen");
        // Ours, however large, and what is none of ours.
        nft.apply(&batch(&key(), diff(None, Some(&services(2000, 3)))), None).await.unwrap();
        other.apply(&batch(&foreign, diff(None, Some(&everything()))), None).await.unwrap();
        assert_eq!(told().await, None);
        let own = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
        let keys = vec![ElementKey::of(&service(0, 1))];
        let one = NftOp::DelElements { set: "services".to_owned(), keys };
        for op in [one, NftOp::DelTable] {
            other.apply(&batch(&key(), vec![op.clone()]), None).await.unwrap();
            let by = told().await.unwrap().unwrap().by.unwrap();
            assert!(!by.is_empty(), "{op}: {own}");
        }
        assert_eq!(told().await, None, "each is told once");
        nft.apply(&batch(&key(), vec![NftOp::AddTable]), None).await.unwrap();
        // What was lost may have been about our table.
        other.apply(&batch(&foreign, vec![NftOp::DelTable]), None).await.unwrap();
        for _ in 0..40 {
            other.apply(&batch(&foreign, diff(None, Some(&services(500, 3)))), None).await.unwrap();
            other.apply(&batch(&foreign, vec![NftOp::DelTable]), None).await.unwrap();
        }
        assert_eq!(told().await, Some(Ok(Touched { by: None })));
    });
}

#[test]
fn what_others_did_before_listening_began_is_told_first() {
    common::in_new_netns(|| async {
        let foreign = TableKey::new(Family::Inet, "filter");
        let one = |ops| batch(&key(), ops);
        // Whether another program commits between the whole dump and the first call, and whether that tells.
        for (whole, commits, expected) in [(true, false, false), (true, true, true), (false, true, false)] {
            let (nft, other) = (RealNft::open().unwrap(), RealNft::open().unwrap());
            nft.apply(&one(diff(None, Some(&services(20, 3)))), None).await.unwrap();
            let leave_out: &[&str] = if whole { &[] } else { &["services"] };
            nft.dump(&key(), leave_out).await.unwrap();
            // Ours, taken and refused.
            nft.apply(&one(vec![NftOp::AddChain { chain: "one".into(), base: None }]), None).await.unwrap();
            nft.apply(&one(vec![NftOp::DelChain { chain: "none".into() }]), None).await.unwrap_err();
            nft.apply(&one(vec![NftOp::DelChain { chain: "one".into() }]), None).await.unwrap();
            if commits {
                other.apply(&batch(&foreign, vec![NftOp::AddTable]), None).await.unwrap();
            }
            let wait = async || {
                let wait = nft.touched_by_others("longshore");
                tokio::time::timeout(std::time::Duration::from_millis(100), wait).await.ok()
            };
            let told = expected.then_some(Ok(Touched { by: None }));
            assert_eq!(wait().await, told, "whole {whole}, commits {commits}");
            assert_eq!(wait().await, None, "once");
            // What waits in the socket is told to who does not wait.
            other.apply(&one(vec![NftOp::DelTable]), None).await.unwrap();
            tokio::select! {
                biased;
                told = nft.touched_by_others("longshore") => assert!(told.is_ok()),
                () = std::future::ready(()) => panic!("a commit that is over was not told"),
            }
        }
    });
}

#[test]
fn single_elements_are_asked_for_as_the_fake_has_them() {
    common::in_new_netns(|| async {
        let (nft, fake) = (RealNft::open().unwrap(), FakeNft::new());
        let mut table = services(300, 4);
        let mut ranges = Set::new(SetSpec::set(&[FieldType::InetProto, FieldType::Ipv4Addr]).interval());
        let at = |last: u8| [Value::Proto(6), v4(0, last)];
        let range = ElementKey::range(&at(1), &at(9));
        ranges.elements.insert(range.clone(), ElementValue::default());
        table.sets.insert("ranges".into(), ranges);
        let start = NftBatch { table: key(), ops: diff(None, Some(&table)) };
        nft.apply(&start, None).await.unwrap();
        fake.apply(&start, None).await.unwrap();
        let some = |set: &str| table.sets[set].elements.keys().cloned().collect::<Vec<_>>();
        let mut endpoints = some("endpoints");
        // Missing in the middle of a request, at its beginning and at its end.
        for place in [63, 64, 700] {
            let missing = Value::Index(place as u32 + 10);
            endpoints.insert(place, ElementKey::of(&[service(9, 9), vec![missing]].concat()));
        }
        endpoints.insert(7, ElementKey::of(&[service(9, 9), vec![Value::Index(1)]].concat()));
        let within = ElementKey::of(&at(5));
        let cases = [
            ("services", some("services")),
            ("endpoints", endpoints),
            ("ranges", vec![range, within, ElementKey::of(&at(77))]),
            ("none", some("services")),
            ("services", vec![]),
        ];
        for (set, keys) in cases {
            let (real, fake) =
                (nft.elements(&key(), set, &keys).await, fake.elements(&key(), set, &keys).await);
            assert_eq!(real, fake, "{set}");
        }
        let all = nft.elements(&key(), "endpoints", &some("endpoints")).await.unwrap();
        assert_eq!(all.iter().flatten().count(), 1200);
    });
}

#[test]
fn a_table_is_read_while_others_never_rest() {
    common::in_new_netns(|| async {
        let nft = RealNft::open().unwrap();
        let wanted = services(3000, 4);
        nft.apply(&batch(&key(), diff(None, Some(&wanted))), None).await.unwrap();
        let other = RealNft::open().unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let foreign = TableKey::new(Family::Ip, "busy");
        let busy = async {
            let mut commits = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                other.apply(&batch(&foreign, vec![NftOp::AddTable]), None).await.unwrap();
                other.apply(&batch(&foreign, vec![NftOp::DelTable]), None).await.unwrap();
                commits += 2;
            }
            commits
        };
        let read = async {
            for _ in 0..3 {
                assert_eq!(nft.dump(&key(), &[]).await.unwrap().table.as_ref(), Some(&wanted));
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        };
        let (commits, ()) = tokio::join!(busy, read);
        assert!(commits > 10, "{commits}");
    });
}
