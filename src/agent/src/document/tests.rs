use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::*;

fn one(text: &str) -> Node {
    let mut documents = parse("f.yaml", text).expect("parses");
    assert_eq!(documents.len(), 1, "{documents:?}");
    documents.remove(0)
}

#[test]
fn scalars_are_read_as_kubectl_reads_them() {
    let node =
        one("a: yes\nb: 0644\nc: \"0644\"\nd: 1.5\ne: ~\nf: off\ng: 18446744073709551615\nh: 1e3x\n1: x\n");
    let expect = [
        ("a", Value::Bool(true)),
        ("b", Value::Int(0o644)),
        ("c", Value::Text("0644".into())),
        ("d", Value::Float(1.5)),
        ("e", Value::Null),
        ("f", Value::Bool(false)),
        ("g", Value::Uint(u64::MAX)),
        ("h", Value::Text("1e3x".into())),
        ("1", Value::Text("x".into())),
    ];
    for (name, value) in expect {
        assert_eq!(node.get(name).map(|node| &node.value), Some(&value), "{name}");
    }
}

#[test]
fn syntax_errors_have_a_line() {
    let cases = [
        ("a: b: c\n", 1),
        ("a: 1\nb: [1, 2\nc: 3\n", 3),
        ("a: 1\na: 2\n", 2),
        ("ok: 1\n---\n\"unfinished\n", 3),
        ("a:\n\t- b\n", 2),
    ];
    for (text, line) in cases {
        let error = parse("f.yaml", text).expect_err(text);
        assert!(error.place.line.abs_diff(line) <= 1, "{text:?}: {error}");
        assert!(!error.message.is_empty() && !error.message.contains('\n'), "{error}");
    }
}

#[test]
fn a_long_text_of_many_documents_is_read_like_each_of_them() {
    let document = |n: usize| {
        format!("--- # {n}\nname: pod-{n}\ntext: |\n  first\n  --- no marker\nlist: [{}]\n", "x, ".repeat(50))
    };
    let text: String = (0..200).map(document).collect();
    let all = parse("f.yaml", &text).unwrap();
    assert_eq!(all.len(), 200);
    for (n, read) in all.iter().enumerate() {
        let alone = one(&document(n));
        assert_eq!(read.get("text").unwrap().value, alone.get("text").unwrap().value, "document {n}");
        let name = read.get("name").unwrap();
        assert_eq!(name.as_text(), Some(format!("pod-{n}").as_str()));
        assert_eq!(name.place.line as usize, n * 6 + 2, "document {n}");
    }
    for broken in [10, 190] {
        let text: String = (0..200)
            .map(|n| if n == broken { "---\na: b: c\n\n\n\n\n".into() } else { document(n) })
            .collect();
        let error = parse("f.yaml", &text).unwrap_err();
        assert!(error.place.line.abs_diff(broken as u32 * 6 + 2) <= 1, "document {broken}: {error}");
    }
}

#[test]
fn nesting_and_aliases_are_bounded() {
    let deep = "[".repeat(MAX_DEPTH + 10) + &"]".repeat(MAX_DEPTH + 10);
    parse("f", &deep).expect_err("too deep");
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..9 {
        let previous = level - 1;
        laughs += &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{previous}"); 10].join(", "));
    }
    parse("f", &laughs).expect_err("a billion laughs");
}

#[test]
fn wrong_types_and_unknown_fields_name_path_and_place() {
    let node = one("kind: Pod\nspec:\n  containers:\n  - name: web\n    ports:\n    - containerPort: http\n");
    let error = read::<Pod>(&node).expect_err("a word is no port");
    assert_eq!(error.path, "spec.containers[0].ports[0].containerPort");
    assert_eq!((error.place.line, error.place.column), (6, 22));
    assert!(
        error.to_string().starts_with("f.yaml:6:22: spec.containers[0].ports[0].containerPort: "),
        "{error}"
    );

    let node = one(
        "kind: Pod\nspec:\n  containers:\n  - name: web\n    readinesProbe: {httpGet: {port: 80}}\n  x: ~\n",
    );
    let reading = read::<Pod>(&node).expect("reads");
    let unknown: Vec<String> = reading.unknown.iter().map(ToString::to_string).collect();
    let expected =
        ["f.yaml:5:20: spec.containers[0].readinesProbe: unknown field", "f.yaml:6:3: spec.x: unknown field"];
    assert_eq!(unknown, expected);
}

#[test]
fn quantities_may_be_numbers_and_ports_words() {
    let node = one(
        "spec:\n  containers:\n  - name: a\n    resources: {limits: {cpu: 2, memory: 64Mi}}\n    livenessProbe: {httpGet: {port: web}}\n",
    );
    let pod = read::<Pod>(&node).expect("reads").value;
    let container = &pod.spec.expect("spec").containers[0];
    let limits = container.resources.clone().and_then(|resources| resources.limits).expect("limits");
    assert_eq!(limits["cpu"].0, "2");
    assert_eq!(limits["memory"].0, "64Mi");
}

#[test]
fn merge_patch_keeps_each_value_at_its_own_place() {
    let mut base = one("a: 1\nb: {c: 2, d: 3}\nl: [1]\n");
    let patch =
        parse("drop.conf", "b: {c: 9, d: ~}\n\nl: [2, 3]\nn: {x: ~, y: 1}\n").expect("parses").remove(0);
    base.merge_patch(patch);
    let json = read::<serde_json::Value>(&base).expect("reads").value;
    assert_eq!(json, json!({"a": 1, "b": {"c": 9}, "l": [2, 3], "n": {"y": 1}}));
    assert_eq!(base.at("b.c").map(|node| node.place.to_string()).as_deref(), Some("drop.conf:1:8"));
    assert_eq!(base.at("a").map(|node| node.place.to_string()).as_deref(), Some("f.yaml:1:4"));
}

#[test]
fn json_is_read_as_well() {
    let node = one("{\"a\": {\"b\": [1, \"two\", null, true]}}");
    assert_eq!(
        read::<serde_json::Value>(&node).expect("reads").value,
        json!({"a": {"b": [1, "two", null, true]}})
    );
}

#[test]
fn null_fields_are_absent_and_still_have_to_be_spelt_right() {
    let node = one(
        "metadata: {creationTimestamp: null, label: null}\nspec:\n  nodeName: ~\n  containers:\n  - {name: a, imag: ~, resources: ~}\nstatus: null\n",
    );
    let reading = read::<Pod>(&node).expect("reads");
    let unknown: Vec<&str> = reading.unknown.iter().map(|field| field.path.as_str()).collect();
    assert_eq!(unknown, ["metadata.label", "spec.containers[0].imag"]);
    let pod = reading.value;
    assert_eq!((pod.metadata.creation_timestamp, pod.status), (None, None));
}
