use proptest::prelude::*;

use super::*;
use crate::ruleset::Protocol;

fn v4(low: u8) -> Value {
    Value::Addr(IpAddr::from([10, 96, 0, low]))
}

/// The shape of our own Service table: two maps, one chain per number of endpoints, masquerading.
fn sample() -> NftTable {
    let r = Reg;
    let key4 = [FieldType::Ipv4Addr, FieldType::InetProto, FieldType::InetService];
    let indexed = [&key4[..], &[FieldType::Index]].concat();
    let mut table = NftTable::default();
    let mut services = Set::new(SetSpec::verdict_map(&key4));
    let service = ElementKey::of(&[v4(10), Value::Proto(17), Value::Port(53)]);
    services.elements.insert(
        service,
        ElementValue { data: Some(Data::Verdict(Verdict::Goto("n2".into()))), timeout_ms: None },
    );
    let mut endpoints = Set::new(SetSpec::map(&indexed, &[FieldType::Ipv4Addr, FieldType::InetService]));
    for index in 0..2u8 {
        let key = [v4(10), Value::Proto(17), Value::Port(53), Value::Index(index.into())];
        let to = [Value::Addr(IpAddr::from([10, 1, 2, index])), Value::Port(5353)];
        let element = Element::fields(ElementKey::of(&key), &to);
        endpoints.elements.insert(element.key, element.value);
    }
    table.sets = BTreeMap::from([("services".to_owned(), services), ("endpoints".to_owned(), endpoints)]);
    let load_key = [
        Expr::load(HeaderField::Ip4Daddr, r(0)),
        Expr::meta(MetaKey::L4Proto, r(1)),
        Expr::load(HeaderField::Dport, r(2)),
    ];
    let find = Expr::Lookup { set: "services".into(), src: r(0), target: LookupTarget::Verdict };
    let dispatch = Rule::new([&load_key[..], &[find]].concat());
    let choose = [
        Expr::Numgen { mode: NumgenMode::Random, modulus: 2, offset: 0, dst: r(3) },
        Expr::Lookup { set: "endpoints".into(), src: r(0), target: LookupTarget::Data(r(4)) },
        Expr::Nat {
            kind: NatKind::Dnat,
            ipv6: false,
            addr: Some(r(4)),
            port: Some(r(5)),
            flags: NatFlags::default(),
        },
    ];
    let base = |kind, hook, priority| Some(BaseChain { kind, hook, priority, policy: Policy::Accept });
    let masquerade = Rule::new(vec![
        Expr::meta(MetaKey::Mark, r(0)),
        Expr::mask(r(0), 0x4000),
        Expr::neq(r(0), Value::Mark(0)),
        Expr::Masquerade { flags: NatFlags { fully_random: true, ..NatFlags::default() } },
    ])
    .commented("Service traffic that needs its source rewritten");
    table.chains = BTreeMap::from([
        (
            "prerouting".to_owned(),
            Chain { base: base(ChainType::Nat, Hook::Prerouting, -100), rules: vec![dispatch] },
        ),
        ("n2".to_owned(), Chain { base: None, rules: vec![Rule::new([&load_key[..], &choose].concat())] }),
        (
            "postrouting".to_owned(),
            Chain { base: base(ChainType::Nat, Hook::Postrouting, 100), rules: vec![masquerade] },
        ),
    ]);
    table
}

#[test]
fn a_table_reads_as_the_field_writes_it() {
    let key = TableKey::new(Family::Ip, "longshore");
    assert_eq!(
        sample().text(&key),
        r#"table ip longshore {
  map endpoints { type ipv4_addr . inet_proto . inet_service . integer : ipv4_addr . inet_service
    10.96.0.10 . udp . 53 . 0 : 10.1.2.0 . 5353
    10.96.0.10 . udp . 53 . 1 : 10.1.2.1 . 5353
  }
  map services { type ipv4_addr . inet_proto . inet_service : verdict
    10.96.0.10 . udp . 53 : goto n2
  }
  chain n2 {
    dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @endpoints
  }
  chain postrouting {
    type nat hook postrouting priority 100; policy accept;
    meta mark & 0x4000 != 0x0 masquerade fully-random comment "Service traffic that needs its source rewritten"
  }
  chain prerouting {
    type nat hook prerouting priority -100; policy accept;
    ip daddr . meta l4proto . th dport vmap @services
  }
}
"#
    );
}

#[test]
fn rules_read_in_words() {
    let r = Reg(0);
    let table = NftTable::default();
    let state = ct_state::ESTABLISHED | ct_state::RELATED;
    let cases = [
        (Expr::match_protocol(Protocol::Sctp, r).to_vec(), "meta l4proto sctp"),
        (
            vec![Expr::ct(CtKey::State, r), Expr::mask(r, state), Expr::neq(r, Value::Index(0))],
            "ct state & established,related != 0x0",
        ),
        (
            vec![
                Expr::meta(MetaKey::Mark, r),
                Expr::set_bits(r, 0x4000),
                Expr::MetaSet { key: MetaKey::Mark, src: r },
            ],
            "meta mark set meta mark | 0x4000",
        ),
        (
            vec![
                Expr::Fib {
                    selector: FibSelector { daddr: true, ..FibSelector::default() },
                    result: FibResult::AddrType,
                    dst: r,
                },
                Expr::eq(r, Value::Index(2)),
                Expr::Counter,
                Expr::Verdict(Verdict::Jump("nodeports".into())),
            ],
            "fib daddr type local counter jump nodeports",
        ),
        (vec![Expr::Reject(RejectWith::Icmpx(1))], "reject with icmpx port-unreachable"),
        (
            vec![
                Expr::meta(MetaKey::IifName, r),
                Expr::eq(r, Value::if_name("kube-ipvs0")),
                Expr::Verdict(Verdict::Drop),
            ],
            "iifname \"kube-ipvs0\" drop",
        ),
    ];
    for (exprs, expected) in cases {
        assert_eq!(table.rule_text(&Rule::new(exprs)), expected);
    }
}

#[test]
fn packed_fields_read_back() {
    let values = [v4(1), Value::Proto(6), Value::Port(443), Value::Index(3)];
    let types: Vec<FieldType> = values.iter().map(Value::field_type).collect();
    let packed = Packed::of(&values);
    assert_eq!(packed.as_bytes().len(), 16, "every field fills whole registers");
    assert_eq!(packed.values(&types).as_deref(), Some(&values[..]));
    assert_eq!(Packed::of(&[Value::Port(443)]).as_bytes(), [1, 187], "a field alone is not padded");
    assert_eq!(packed.values(&types[1..]), None);
    assert_eq!(Packed::from_bytes(&[0; Packed::MAX_LEN + 1]), None);
}

/// A small world in which chains, sets, elements and rules refer to each other at random, always to
/// something that is there.
fn table() -> impl Strategy<Value = NftTable> {
    let chains = proptest::collection::btree_set(0u8..4, 0..4);
    let sets = proptest::collection::btree_map(0u8..3, any::<bool>(), 0..3);
    (chains, sets, proptest::collection::vec(any::<u16>(), 24)).prop_map(|(chains, sets, dice)| {
        let mut dice = dice.into_iter().cycle();
        let mut roll = move |sides: usize| usize::from(dice.next().unwrap_or(0)) % sides.max(1);
        let names: Vec<String> = chains.iter().map(|index| format!("c{index}")).collect();
        let mut table = NftTable::default();
        if roll(2) == 1 {
            table.counters.insert("hits".into());
        }
        for (index, is_map) in sets {
            let field = if roll(2) == 0 { FieldType::InetService } else { FieldType::Mark };
            let spec = if is_map { SetSpec::verdict_map(&[field]) } else { SetSpec::set(&[field]) };
            let mut set = Set::new(spec);
            for port in 0..roll(4) as u16 {
                let key = match field {
                    FieldType::InetService => Value::Port(port),
                    _ => Value::Mark(port.into()),
                };
                let verdict = match names.get(roll(names.len() + 1)) {
                    Some(name) => Verdict::Goto(name.clone()),
                    None => Verdict::Drop,
                };
                let data = is_map.then_some(Data::Verdict(verdict));
                set.elements.insert(ElementKey::of(&[key]), ElementValue { data, timeout_ms: None });
            }
            table.sets.insert(format!("s{index}"), set);
        }
        for (position, name) in names.iter().enumerate() {
            let priority = roll(2) as i32;
            let base =
                BaseChain { kind: ChainType::Filter, hook: Hook::Input, priority, policy: Policy::Accept };
            let mut rules = Vec::new();
            for _ in 0..roll(3) {
                let expr = match roll(4) {
                    0 if position > 0 => Expr::Verdict(Verdict::Jump(names[roll(position)].clone())),
                    1 if table.counters.contains("hits") => Expr::CounterRef { counter: "hits".into() },
                    2 if !table.sets.is_empty() => {
                        let set = table.sets.keys().nth(roll(table.sets.len())).unwrap().clone();
                        Expr::Lookup { set, src: Reg(0), target: LookupTarget::Hit }
                    }
                    _ => Expr::Counter,
                };
                rules.push(Rule::new(vec![expr]));
            }
            let base = (position + 1 == names.len()).then_some(base);
            table.chains.insert(name.clone(), Chain { base, rules });
        }
        table
    })
}

proptest! {
    #[test]
    fn diff_applied_to_a_gives_b(a in proptest::option::of(table()), b in proptest::option::of(table())) {
        let key = TableKey::new(Family::Inet, "t");
        let mut ruleset = NftRuleset::default();
        ruleset.tables.extend(a.clone().map(|table| (key.clone(), table)));
        let batch = NftBatch { table: key.clone(), ops: diff(a.as_ref(), b.as_ref()) };
        if let Err(refused) = ruleset.apply(&batch) {
            return Err(TestCaseError::fail(format!("{}: {}", batch.ops[refused.index], refused.refusal)));
        }
        prop_assert_eq!(ruleset.tables.get(&key), b.as_ref());
    }

    #[test]
    fn diff_of_a_table_with_itself_is_empty(a in table()) {
        prop_assert_eq!(diff(Some(&a), Some(&a)), vec![]);
    }
}

#[test]
fn one_changed_endpoint_is_one_element_out_and_one_in() {
    let applied = sample();
    let mut wanted = sample();
    let endpoints = &mut wanted.sets.get_mut("endpoints").unwrap().elements;
    let value = endpoints.values_mut().next().unwrap();
    value.data =
        Some(Data::Fields(Packed::of(&[Value::Addr(IpAddr::from([10, 1, 9, 9])), Value::Port(5353)])));
    let ops: Vec<String> = diff(Some(&applied), Some(&wanted)).iter().map(ToString::to_string).collect();
    assert_eq!(ops, ["set endpoints: delete 1 elements", "set endpoints: add 1 elements"]);
}

#[test]
fn elements_that_packets_made_are_left_alone() {
    let spec = SetSpec {
        flags: SetFlags { timeout: true, dynamic: true, interval: false },
        size: Some(1000),
        ..SetSpec::set(&[FieldType::Ipv4Addr])
    };
    let mut applied = NftTable::default();
    let mut filled = Set::new(spec.clone());
    filled.elements.insert(ElementKey::of(&[v4(1)]), ElementValue::default());
    applied.sets.insert("affinity".into(), filled);
    let mut wanted = NftTable::default();
    wanted.sets.insert("affinity".into(), Set::new(spec));
    assert_eq!(diff(Some(&applied), Some(&wanted)), []);
}

#[test]
fn what_the_kernel_refuses_is_refused_and_undoes_the_batch() {
    let key = TableKey::new(Family::Ip, "longshore");
    let one = |op: NftOp| vec![op];
    let port = |port: u16| ElementKey::of(&[v4(10), Value::Proto(17), Value::Port(port)]);
    let to = |chain: &str, at: u16| Element::verdict(port(at), Verdict::Goto(chain.into()));
    let services = || "services".to_owned();
    let cases = [
        (one(NftOp::DelChain { chain: "n2".into() }), NftRefusal::Busy),
        (one(NftOp::DelChain { chain: "n9".into() }), NftRefusal::NotFound),
        (one(NftOp::FlushChain { chain: "n9".into() }), NftRefusal::NotFound),
        (one(NftOp::DelSet { set: services() }), NftRefusal::Busy),
        (one(NftOp::AddElements { set: services(), elements: vec![to("n9", 80)] }), NftRefusal::NotFound),
        (one(NftOp::DelElements { set: services(), keys: vec![port(54)] }), NftRefusal::NotFound),
        (
            one(NftOp::AddElements {
                set: services(),
                elements: vec![Element::verdict(port(53), Verdict::Drop)],
            }),
            NftRefusal::Exists,
        ),
        (
            one(NftOp::AddElements { set: services(), elements: vec![Element::key(port(99))] }),
            NftRefusal::Invalid,
        ),
        (one(NftOp::AddChain { chain: "prerouting".into(), base: None }), NftRefusal::Exists),
    ];
    for (ops, refusal) in cases {
        let mut ruleset = NftRuleset { tables: BTreeMap::from([(key.clone(), sample())]) };
        let mut all = vec![NftOp::AddChain { chain: "new".into(), base: None }];
        all.extend(ops);
        let text = all[1].to_string();
        let outcome = ruleset.apply(&NftBatch { table: key.clone(), ops: all });
        assert_eq!(outcome, Err(NftRefused { index: 1, refusal }), "{text}");
        assert_eq!(ruleset.tables[&key], sample(), "{text}");
    }
}

#[test]
fn ranges_of_one_field_may_not_overlap() {
    let key = TableKey::new(Family::Ip, "t");
    let range = |from: u16, to: u16| ElementKey::range(&[Value::Port(from)], &[Value::Port(to)]);
    let add = |key: ElementKey| NftOp::AddElements { set: "ports".into(), elements: vec![Element::key(key)] };
    let spec = SetSpec::set(&[FieldType::InetService]).interval();
    let mut ruleset = NftRuleset::default();
    let ops = vec![NftOp::AddTable, NftOp::AddSet { set: "ports".into(), spec }, add(range(10, 20))];
    ruleset.apply(&NftBatch { table: key.clone(), ops }).unwrap();
    for (range, fits) in
        [(range(20, 30), false), (range(5, 10), false), (range(21, 30), true), (range(1, 1), true)]
    {
        let outcome = ruleset.clone().apply(&NftBatch { table: key.clone(), ops: vec![add(range.clone())] });
        assert_eq!(outcome.is_ok(), fits, "{range:?}");
    }
}
