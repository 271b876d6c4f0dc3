use super::*;
use proptest::prelude::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn scan(files: &[(&str, &str)]) -> Scan {
    let content = |(name, text): &(&str, &str)| {
        let content = match *text {
            "=" => FileContent::Same,
            text => FileContent::Bytes(text.as_bytes().to_vec()),
        };
        (PathBuf::from(name), content)
    };
    Scan::Files(files.iter().map(content).collect())
}

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 7\n  containers:\n  - {{name: c, image: \"{image}\"}}\n---\n"
    )
}

fn config(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{k: \"{value}\"}}\n---\n")
}

fn image(desired: &DesiredPod) -> String {
    desired.pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap()
}

/// Changes in words: `+pod a:1 @f.yaml#1`, `-pod a:1 Deleted 7s`, `+ConfigMap c`, `-ConfigMap c`.
fn words(changes: Vec<Change>) -> Vec<String> {
    let sign = |some: bool| if some { '+' } else { '-' };
    let word = |change| match change {
        Change::ConfigMap(key, object) => format!("{}ConfigMap {}", sign(object.is_some()), key.name),
        Change::Secret(key, object) => format!("{}Secret {}", sign(object.is_some()), key.name),
        Change::Service(key, object) => format!("{}Service {}", sign(object.is_some()), key.name),
        Change::EndpointSlice(key, object) => format!("{}EndpointSlice {}", sign(object.is_some()), key.name),
        Change::Pod(desired) => match &desired.deletion {
            Some(end) => format!("-pod {} {:?} {}s", image(&desired), end.cause, end.grace_seconds),
            None => {
                let PodSource::File { path, document } = &desired.source else { panic!("a file") };
                format!("+pod {} @{}#{document}", image(&desired), path.display())
            }
        },
    };
    changes.into_iter().map(word).collect()
}

fn messages(folder: &Folder) -> Vec<String> {
    let show = |problem: SourceProblem| {
        format!("{} [{}] {}", problem.place, problem.object.unwrap_or_default(), problem.message)
    };
    folder.problems().into_iter().map(show).collect()
}

/// Runs looks one second apart and gives the words of the last one.
fn run(folder: &mut Folder, looks: &[Scan]) -> Vec<String> {
    let mut last = Vec::new();
    for (second, look) in looks.iter().enumerate() {
        last = words(folder.apply(look.clone(), at(second as i64)));
    }
    last
}

fn folder() -> Folder {
    Folder::new(Path::new("/m"))
}

#[test]
fn a_folder_converges_to_its_files() {
    let (a1, a2, b1) = (pod("a", "a:1"), pod("a", "a:2"), pod("b", "b:1"));
    let cases: &[(&str, &[Scan], &[&str])] = &[
        ("new", &[scan(&[("f.yaml", &a1)])], &["+pod a:1 @/m/f.yaml#1"]),
        ("unchanged", &[scan(&[("f.yaml", &a1)]), scan(&[("f.yaml", "=")])], &[]),
        ("touched", &[scan(&[("f.yaml", &a1)]), scan(&[("f.yaml", &a1)])], &[]),
        (
            "edited",
            &[scan(&[("f.yaml", &a1)]), scan(&[("f.yaml", &a2)])],
            &["-pod a:1 Replaced 7s", "+pod a:2 @/m/f.yaml#1"],
        ),
        ("removed", &[scan(&[("f.yaml", &a1)]), scan(&[])], &["-pod a:1 Deleted 7s"]),
        ("renamed file", &[scan(&[("f.yaml", &a1)]), scan(&[("g.yaml", &a1)])], &["+pod a:1 @/m/g.yaml#1"]),
        (
            "configuration first, then ends, then pods",
            &[
                scan(&[("f.yaml", &a1)]),
                scan(&[("f.yaml", &format!("{b1}{}{}", config("z", "1"), config("x", "1")))]),
            ],
            &["+ConfigMap x", "+ConfigMap z", "-pod a:1 Deleted 7s", "+pod b:1 @/m/f.yaml#1"],
        ),
        (
            "a list",
            &[scan(&[(
                "l.json",
                r#"{"kind":"List","apiVersion":"v1","items":[{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"c"}},
                {"kind":"Secret","apiVersion":"v1","metadata":{"name":"s"},"stringData":{"a":"b"},"data":{"x":"eHk="}}]}"#,
            )])],
            &["+ConfigMap c", "+Secret s"],
        ),
    ];
    for (name, looks, expected) in cases {
        let mut folder = folder();
        assert_eq!(run(&mut folder, looks), *expected, "{name}");
        assert_eq!(messages(&folder), [""; 0], "{name}");
    }
}

#[test]
fn a_mistake_loses_nothing() {
    let good = format!("{}{}", pod("a", "a:1"), config("c", "1"));
    let other = pod("b", "b:1");
    let cases: &[(&str, &str, &str)] = &[
        ("not YAML", "a: b: c\n", "/m/f.yaml:1 [] "),
        ("half written", &good[..good.len() / 2], "/m/f.yaml"),
        ("empty", "", "/m/f.yaml [] is empty; remove the file to end its objects"),
        ("only comments", "# nothing\n---\n", "is empty"),
        (
            "a wrong type",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: 5}]}\n",
            "/m/f.yaml:4 [Pod default/a] spec.containers[0].name: invalid type: integer `5`, expected a string; put it in quotes",
        ),
        (
            "an unknown field",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - name: c\n    image: i\n    readinesProbe: {}\n",
            "/m/f.yaml:8 [Pod default/a] spec.containers[0].readinesProbe: unknown field",
        ),
        (
            "an invalid pod",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}\n",
            "/m/f.yaml:4 [Pod default/a] spec.containers: is empty; give the pod at least one container",
        ),
        ("no name", "apiVersion: v1\nkind: Pod\nspec: {containers: []}\n", "[Pod] metadata.name: is missing"),
        (
            "a name that is a boolean to YAML",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: y}\n",
            "/m/f.yaml:3 [Pod] metadata.name: is not text; put it in quotes",
        ),
        ("no kind", "metadata: {name: a}\n", "kind: is missing; give one of ConfigMap"),
        (
            "a wrong version",
            "apiVersion: v2\nkind: Pod\nmetadata: {name: a}\n",
            "apiVersion: is v2; a Pod must have v1",
        ),
        ("not an object", "- 1\n- 2\n", "is not an object"),
    ];
    for (name, text, expected) in cases {
        let mut folder = folder();
        let looks = [scan(&[("f.yaml", &good)]), scan(&[("f.yaml", text), ("g.yaml", &other)])];
        assert_eq!(run(&mut folder, &looks), ["+pod b:1 @/m/g.yaml#1"], "{name}: other files go on");
        let messages = messages(&folder);
        assert!(messages.iter().any(|message| message.contains(expected)), "{name}: {messages:?}");
        // The same file right after a restart of the daemon: what it had is remembered and goes on.
        let mut restarted = super::Folder::new(Path::new("/m"));
        restarted.remember([remembered(&pod("a", "a:1"))]);
        assert_eq!(run(&mut restarted, &[scan(&[("f.yaml", text)])]), ["+pod a:1 @/m/f.yaml#1"], "{name}");
        // Mended: nothing had happened.
        assert_eq!(
            words(folder.apply(scan(&[("f.yaml", &good), ("g.yaml", "=")]), at(9))),
            [""; 0],
            "{name}"
        );
        assert_eq!(folder.problems(), [], "{name}");
    }
}

/// The one pod of a text, as a record of an earlier run has it.
fn remembered(text: &str) -> DesiredPod {
    let change = folder().apply(scan(&[("f.yaml", text)]), at(0)).pop();
    let Some(Change::Pod(desired)) = change else { panic!("one pod: {change:?}") };
    *desired
}

#[test]
fn what_is_remembered_wants_nothing_by_itself() {
    let a1 = pod("a", "a:1");
    let cases: &[(&[(&str, &str)], &[&str])] = &[
        // Gone or edited while the daemon was away: the end of the old life is told by whoever found it.
        (&[], &[]),
        (&[("f.yaml", &pod("a", "a:2"))], &["+pod a:2 @/m/f.yaml#1"]),
        (&[("f.yaml", &a1)], &["+pod a:1 @/m/f.yaml#1"]),
        (&[("g.yaml", &a1)], &["+pod a:1 @/m/g.yaml#1"]),
    ];
    for (files, expected) in cases {
        let mut folder = folder();
        folder.remember([remembered(&a1)]);
        assert_eq!(run(&mut folder, &[scan(files)]), *expected, "{files:?}");
        assert_eq!(folder.problems(), []);
    }
}

#[test]
fn bytes_that_are_no_text_and_unreadable_files_are_problems() {
    let mut folder = folder();
    run(&mut folder, &[scan(&[("f.yaml", &pod("a", "a:1"))])]);
    let bad = [
        (FileContent::Bytes(b"a: 1\n\xff".to_vec()), "/m/f.yaml:2 [] is not UTF-8 text"),
        (
            FileContent::Unreadable("permission denied".into()),
            "/m/f.yaml [] cannot be read: permission denied; its objects stay",
        ),
    ];
    for (content, expected) in bad {
        let changes = folder.apply(Scan::Files([(PathBuf::from("f.yaml"), content)].into()), at(2));
        assert_eq!(words(changes), [""; 0]);
        assert!(messages(&folder)[0].starts_with(expected), "{:?}", messages(&folder));
    }
}

#[test]
fn of_two_pods_of_one_name_the_first_file_counts() {
    let (a1, a2) = (pod("a", "a:1"), pod("a", "a:2"));
    let mut folder = folder();
    let both = scan(&[("b.yaml", &a2), ("a.yaml", &a1)]);
    assert_eq!(run(&mut folder, &[both]), ["+pod a:1 @/m/a.yaml#1"]);
    assert_eq!(
        messages(&folder),
        [
            "/m/b.yaml [Pod default/a] /m/a.yaml has the same Pod default/a, and the first file by name counts; rename or remove one of them"
        ]
    );
    // The first one gone, the other takes its place.
    let changes = words(folder.apply(scan(&[("b.yaml", "=")]), at(5)));
    assert_eq!(changes, ["-pod a:1 Replaced 7s", "+pod a:2 @/m/b.yaml#1"]);
    assert_eq!(folder.problems(), []);

    let mut folder = super::Folder::new(Path::new("/m"));
    assert_eq!(run(&mut folder, &[scan(&[("f.yaml", &format!("{a1}{a2}"))])]), ["+pod a:1 @/m/f.yaml#1"]);
    assert!(messages(&folder)[0].contains("this file has two of Pod default/a"));
}

#[test]
fn a_folder_that_goes_away_and_comes_back_changes_nothing() {
    let a1 = pod("a", "a:1");
    let b1 = pod("b", "b:1");
    let mut folder = folder();
    folder.apply(scan(&[("f.yaml", &a1), ("g.yaml", &b1)]), at(0));
    assert_eq!(words(folder.apply(Scan::Unreadable("no such file".into()), at(10))), [""; 0]);
    let problem = &folder.problems()[0];
    assert!(problem.message.contains("(no such file); what runs goes on"), "{problem:?}");
    folder.apply(Scan::Unreadable("no such file".into()), at(20));
    assert_eq!(folder.problems()[0].since, at(10), "since the first time");
    // Back, but still being filled.
    assert_eq!(words(folder.apply(scan(&[]), at(30))), [""; 0]);
    assert_eq!(folder.look_again_at(at(30)), Some(at(40)));
    assert_eq!(words(folder.apply(scan(&[("f.yaml", &a1)]), at(31))), [""; 0]);
    // What is not back after the grace was meant to go.
    assert_eq!(words(folder.apply(scan(&[("f.yaml", "=")]), at(41))), ["-pod b:1 Deleted 7s"]);
    assert_eq!(folder.look_again_at(at(41)), None);
}

#[test]
fn controllers_are_named_with_the_pod_they_would_make() {
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  replicas: 2\n  selector: {matchLabels: {app: web}}\n  template:\n    metadata: {labels: {app: web}}\n    spec: {containers: [{name: c, image: \"web:1\"}]}\n---\n";
    let cron = "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: tick, namespace: jobs}\nspec: {jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: x}]}}}}}\n---\n";
    let ingress = "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: in}\n";
    let mut folder = folder();
    run(&mut folder, &[scan(&[("f.yaml", &format!("{deployment}{cron}{ingress}"))])]);
    let problems = folder.problems();
    let of =
        |object: &str| problems.iter().find(|problem| problem.object.as_deref() == Some(object)).unwrap();
    let (sentence, yaml) = of("Deployment default/web").message.split_once('\n').unwrap();
    assert_eq!(
        sentence,
        "a Deployment needs a control plane, and there is none in standalone mode; write the Pod itself:"
    );
    assert_eq!(
        words(super::Folder::new(Path::new("/m")).apply(scan(&[("p.yaml", yaml)]), at(0))),
        ["+pod web:1 @/m/p.yaml#1"]
    );
    assert!(of("CronJob jobs/tick").message.contains("namespace: jobs"));
    assert!(
        of("Ingress default/in")
            .message
            .contains("kind: Ingress is not run from a folder; it may hold ConfigMap, Secret")
    );
    // Removing a pod beside such a kind removes it.
    let mut folder = super::Folder::new(Path::new("/m"));
    let looks =
        [scan(&[("f.yaml", &format!("{deployment}{}", pod("a", "a:1")))]), scan(&[("f.yaml", deployment)])];
    assert_eq!(run(&mut folder, &looks), ["-pod a:1 Deleted 7s"]);
}

#[test]
fn a_secret_never_shows_in_a_problem() {
    let texts = [
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {password: 48151623}\n",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {password: \"48151623!\"}\n",
    ];
    for text in texts {
        let mut folder = folder();
        run(&mut folder, &[scan(&[("s.yaml", text)])]);
        let message = &messages(&folder)[0];
        assert!(
            message.contains("/m/s.yaml:4 [Secret default/s]") && !message.contains("48151623"),
            "{message}"
        );
    }
}

#[test]
fn services_and_slices_are_read_with_the_whole_api_type() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web, labels: {a: b}}\nspec:\n  type: NodePort\n  selector: {app: web}\n  ports: [{name: http, port: 80, targetPort: http, nodePort: 30080, appProtocol: http}]\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nendpoints: [{addresses: [10.0.0.1], conditions: {ready: true}}]\nports: [{name: http, port: 8080}]\n";
    let mut folder = folder();
    assert_eq!(run(&mut folder, &[scan(&[("s.yaml", text)])]), ["+Service web", "+EndpointSlice web-1"]);
    let bad = text.replace("selector:", "selectors:");
    let changes = words(folder.apply(scan(&[("s.yaml", &bad)]), at(1)));
    assert_eq!(changes, [""; 0]);
    assert!(
        messages(&folder)[0].contains("spec.selectors: unknown field; a Service has none of this name here")
    );
}

proptest! {
    #[test]
    fn any_bytes_are_survived_and_end_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut folder = folder();
        folder.apply(scan(&[("f.yaml", &pod("a", "a:1"))]), at(0));
        let changes = folder.apply(Scan::Files([(PathBuf::from("f.yaml"), FileContent::Bytes(bytes))].into()), at(1));
        prop_assert!(changes.is_empty());
    }

    #[test]
    fn a_damaged_manifest_is_survived(cut in 0usize..200, insert in "[ -~\n]{0,12}") {
        let text = pod("a", "a:1");
        let cut = cut.min(text.len());
        let damaged = format!("{}{insert}{}", &text[..cut], &text[cut..]);
        let mut folder = folder();
        folder.apply(scan(&[("f.yaml", &damaged)]), at(0));
        // Whatever it was taken for, the good text converges.
        folder.apply(scan(&[("f.yaml", &text)]), at(1));
        prop_assert_eq!(folder.problems(), vec![]);
        prop_assert_eq!(folder.counts(), (1, 1));
    }
}

/// What each of three files says of three objects: gone, or a value for some of them.
fn history() -> impl Strategy<Value = Vec<Vec<Option<Vec<(u8, u8)>>>>> {
    let file = proptest::option::weighted(0.7, proptest::collection::vec((0u8..3, 0u8..3), 1..3));
    proptest::collection::vec(proptest::collection::vec(file, 3), 1..8)
}

fn said(look: &[Option<Vec<(u8, u8)>>]) -> Vec<(String, String)> {
    let text = |objects: &Vec<(u8, u8)>| {
        objects.iter().map(|(name, value)| config(&format!("o{name}"), &format!("v{value}"))).collect()
    };
    let files = look.iter().enumerate().filter_map(|(number, file)| Some((number, file.as_ref()?)));
    files.map(|(number, objects)| (format!("f{number}.yaml"), text(objects))).collect()
}

proptest! {
    #[test]
    fn any_history_of_files_ends_where_a_first_look_at_the_last_ones_ends(history in history()) {
        let mut folder = folder();
        let mut told: BTreeMap<String, String> = BTreeMap::new();
        let mut before: Vec<(String, String)> = Vec::new();
        let mut looks = 0;
        for look in &history {
            let now = said(look);
            let same = |file: &(String, String)| before.contains(file);
            let files: Vec<(&str, &str)> =
                now.iter().map(|file| (file.0.as_str(), if same(file) { "=" } else { file.1.as_str() })).collect();
            for change in folder.apply(scan(&files), at(looks)) {
                let Change::ConfigMap(key, map) = change else { panic!("there is nothing else") };
                match map {
                    Some(map) => told.insert(key.name.to_string(), map.data.clone().unwrap()["k"].clone()),
                    None => told.remove(&*key.name),
                };
            }
            before = now;
            looks += 1;
        }
        let mut fresh = Folder::new(Path::new("/m"));
        let last: Vec<(&str, &str)> = before.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let mut wanted = BTreeMap::new();
        for change in fresh.apply(scan(&last), at(looks)) {
            let Change::ConfigMap(key, Some(map)) = change else { panic!("a first look removes nothing") };
            wanted.insert(key.name.to_string(), map.data.clone().unwrap()["k"].clone());
        }
        prop_assert_eq!(told, wanted);
        prop_assert_eq!(&folder.published, &fresh.published);
        prop_assert_eq!(messages(&folder), messages(&fresh));
    }
}
