use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Mutex;
use std::time::Duration;

use longshore_cluster::fake::{FakeApi, Fault};
use longshore_cluster::kubeconfig::{Login, Source};
use longshore_core::certificates::{request_name, request_object};
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use super::*;

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

/// A signer: answers every request it finds.
struct Signer {
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: Issuer::new(params, KeyPair::generate().unwrap()) }
    }

    /// A certificate for a request's PEM, valid from now for so long.
    fn sign(&self, request: &str, valid: Duration) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(request).unwrap();
        let now = std::time::SystemTime::now();
        request.params.not_before = now.into();
        request.params.not_after = (now + valid).into();
        request.signed_by(&self.issuer).unwrap().pem()
    }
}

/// The only request there is, once there is one.
async fn request(api: &FakeApi, after: usize) -> (String, Value) {
    for _ in 0..20_000 {
        let created = api.calls(&format!("POST {REQUESTS}"));
        if created.len() > after {
            let list: Vec<Value> = api.list(REQUESTS);
            if let Some(object) = list.last() {
                let name = object["metadata"]["name"].as_str().unwrap().to_owned();
                return (format!("{REQUESTS}/{name}"), object.clone());
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("nobody asked for a certificate");
}

fn pem_of(request: &Value) -> String {
    use base64::Engine as _;
    let packed = request["spec"]["request"].as_str().unwrap();
    String::from_utf8(base64::engine::general_purpose::STANDARD.decode(packed).unwrap()).unwrap()
}

fn answer(api: &FakeApi, path: &str, mut object: Value, status: Value) {
    object["status"] = status;
    api.put(path, object);
}

fn issued(pem: &str) -> Value {
    use base64::Engine as _;
    let packed = base64::engine::general_purpose::STANDARD.encode(pem);
    json!({"conditions": [{"type": "Approved", "status": "True"}], "certificate": packed})
}

fn keeper(api: &FakeApi, folder: &std::path::Path, wish: Wish) -> Keeper {
    let store = CertificateStore::new(folder, wish.purpose);
    let ways = Ways { own: api.client(), bootstrap: None, kubeconfig: None };
    Keeper::new(store, wish, ways, true, Clock::System)
}

#[derive(Default)]
struct Served(Mutex<Vec<String>>);

impl Serve for Served {
    fn serve(&self, pair: &std::path::Path) {
        self.0.lock().unwrap().push(std::fs::read_to_string(pair).unwrap());
    }
}

fn wish() -> Wish {
    Wish::serving("worker-1", ["worker-1".to_owned()], ["10.0.0.1".parse().unwrap()])
}

#[tokio::test]
async fn a_certificate_is_asked_for_stored_served_and_rotated() {
    let (api, folder, signer) = (FakeApi::default(), tempfile::tempdir().unwrap(), Signer::new());
    let served = std::sync::Arc::new(Served::default());
    let keeper = keeper(&api, folder.path(), wish()).serving(served.clone());
    let mut state = keeper.state();
    let task = tokio::spawn(keeper.keep());
    let (path, object) = request(&api, 0).await;
    assert_eq!(object["spec"]["signerName"], "kubernetes.io/kubelet-serving");
    // Two seconds of life are over soon: the next is asked for, with another key.
    let first = signer.sign(&pem_of(&object), Duration::from_secs(2));
    answer(&api, &path, object, issued(&first));
    state.wait_for(|state| state.facts.is_some()).await.unwrap();
    let link = folder.path().join("kubelet-server-current.pem");
    let stored = std::fs::read_to_string(&link).unwrap();
    assert!(stored.starts_with(&first) && stored.contains("PRIVATE KEY"), "{stored}");
    let target = std::fs::read_link(&link).unwrap();
    assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
    let facts = state.borrow().facts.clone().unwrap();
    assert_eq!(facts.common_name, "system:node:worker-1");
    assert_eq!(facts.organisations, ["system:nodes"]);
    assert!(facts.dns_names.contains("worker-1") && facts.ips.len() == 1, "{facts:?}");
    let (path, object) = loop {
        if let Some(object) = api.list(REQUESTS).into_iter().find(|object| object["status"].is_null()) {
            break (format!("{REQUESTS}/{}", object["metadata"]["name"].as_str().unwrap()), object);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let second = signer.sign(&pem_of(&object), Duration::from_secs(86_400));
    answer(&api, &path, object, issued(&second));
    let key = facts.key_hash;
    state.wait_for(|state| state.facts.as_ref().is_some_and(|facts| facts.key_hash != key)).await.unwrap();
    assert!(std::fs::read_to_string(&link).unwrap().starts_with(&second));
    assert!(!folder.path().join("kubelet-server.key.tmp").exists());
    let served = served.0.lock().unwrap().clone();
    assert!(served.len() >= 2 && served.last().unwrap().starts_with(&second), "{}", served.len());
    task.abort();
}

#[tokio::test]
async fn killed_while_waiting_it_goes_on_with_the_same_key_and_request() {
    let (api, folder, signer) = (FakeApi::default(), tempfile::tempdir().unwrap(), Signer::new());
    let task = tokio::spawn(keeper(&api, folder.path(), wish()).keep());
    let (path, object) = request(&api, 0).await;
    task.abort();
    let _ = task.await;
    let again = keeper(&api, folder.path(), wish());
    let mut state = again.state();
    let task = tokio::spawn(again.keep());
    request(&api, 1).await;
    assert_eq!(api.list(REQUESTS).len(), 1, "one request, not two");
    let pem = signer.sign(&pem_of(&object), Duration::from_secs(86_400));
    answer(&api, &path, object, issued(&pem));
    state.wait_for(|state| state.facts.is_some()).await.unwrap();
    // Killed once more between the certificate and the removal of its key: the key is not used twice.
    let store = CertificateStore::new(folder.path(), Purpose::Serving);
    let used = std::fs::read_to_string(store.current_path()).unwrap();
    let key = &used[used.find("-----BEGIN PRIVATE KEY").unwrap()..];
    std::fs::write(folder.path().join("kubelet-server.key.tmp"), key).unwrap();
    let next = store.key().unwrap();
    assert_ne!(Some(next.hash()), store.current().map(|facts| facts.key_hash));
    assert_eq!(store.key().unwrap().hash(), next.hash());
    task.abort();
}

#[tokio::test]
async fn what_is_denied_failed_or_wrong_is_told_and_tried_again_with_another_key() {
    let (folder, signer) = (tempfile::tempdir().unwrap(), Signer::new());
    let store = CertificateStore::new(folder.path(), Purpose::Serving);
    let wish = wish();
    let other = Key::generate().unwrap();
    let foreign = signer.sign(&other.request(&wish).unwrap(), Duration::from_secs(60));
    let cases = [
        (json!({"conditions": [{"type": "Denied", "status": "True", "reason": "No"}]}), "was denied (No)"),
        (
            json!({"conditions": [{"type": "Failed", "status": "True", "message": "m"}]}),
            "could not be signed (m)",
        ),
        (issued(&foreign), "it is for another key"),
        (issued("hello"), "no certificate"),
    ];
    for (status, expected) in cases {
        let api = FakeApi::default();
        let key = store.key().unwrap();
        let name = request_name(&wish, &key.hash());
        let object = request_object(&wish, &name, &key.request(&wish).unwrap());
        let path = format!("{REQUESTS}/{name}");
        answer(&api, &path, serde_json::to_value(object).unwrap(), status);
        let error = ask::ask(&api.client(), &wish, &store, Clock::System, &|_| {}).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_ne!(store.key().unwrap().hash(), key.hash(), "{expected}");
        assert!(store.current().is_none(), "{expected}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_is_asked_again_and_the_problem_is_shown() {
    let (api, folder) = (FakeApi::default(), tempfile::tempdir().unwrap());
    api.order("POST", REQUESTS, 1, Fault::Refuse(403, None));
    let keeper = keeper(&api, folder.path(), wish());
    let mut state = keeper.state();
    let task = tokio::spawn(keeper.keep());
    state.wait_for(|state| state.problem.is_some()).await.unwrap();
    let line = state.borrow().line(Timestamp::now());
    assert!(line.contains("there is none") && line.contains("403"), "{line}");
    request(&api, 1).await;
    task.abort();
}

fn join(folder: &std::path::Path, bootstrap: bool, rotate: bool) -> JoinSettings {
    JoinSettings {
        kubeconfig: folder.join("kubelet.conf"),
        certificates: crate::config::CertificateSettings {
            bootstrap: bootstrap.then(|| folder.join("bootstrap.conf")),
            folder: folder.join("pki"),
            rotate,
            serving: false,
        },
        services_kubeconfig: None,
        register: true,
        taints: Vec::new(),
        provider_id: None,
        lease_seconds: 40,
        update_every: Duration::from_secs(10),
        report_every: Duration::from_secs(300),
        max_images: None,
        event_rate: longshore_cluster::events::EventRate { per_second: 1, burst: 1 },
    }
}

const CLUSTER: &str = "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
    contexts: [{name: a, context: {cluster: c, user: u}}]\n\
    clusters: [{name: c, cluster: {server: 'https://[fd00::1]:6443/x', certificate-authority-data: Q0E=, tls-server-name: api}}]\n";

#[test]
fn the_kubeconfig_comes_from_its_file_or_the_bootstrap_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let error = node_kubeconfig(&join(folder.path(), true, true)).unwrap_err().to_string();
    assert!(
        error.contains("kubelet.conf nor bootstrap kubeconfig") && error.contains("longshore join"),
        "{error}"
    );
    std::fs::write(at("bootstrap.conf"), format!("{CLUSTER}users: [{{name: u, user: {{token: a.b}}}}]\n"))
        .unwrap();
    let config = node_kubeconfig(&join(folder.path(), true, true)).unwrap();
    let link = Source::File(at("pki/kubelet-client-current.pem"));
    let current = Login::Certificate { certificate: link.clone(), key: link };
    assert_eq!((config.host.as_str(), &config.login), ("fd00::1", &current));
    // A certificate in the file itself is the first one to rotate from.
    let key = Key::generate().unwrap();
    let pem = Signer::new().sign(&key.request(&Wish::client("a")).unwrap(), Duration::from_secs(3600));
    let pair = |pem: &str| Source::Inline(pem.as_bytes().to_vec());
    let given = Login::Certificate { certificate: pair(&pem), key: pair(&key.pem()) };
    let with_pair = longshore_cluster::Kubeconfig { login: given.clone(), ..config.clone() };
    std::fs::write(at("kubelet.conf"), render(&with_pair)).unwrap();
    assert_eq!(node_kubeconfig(&join(folder.path(), false, false)).unwrap().login, given);
    assert_eq!(node_kubeconfig(&join(folder.path(), false, true)).unwrap().login, current);
    let seeded = std::fs::read_to_string(at("pki/kubelet-client-current.pem")).unwrap();
    assert_eq!(seeded, format!("{pem}{}", key.pem()));
    let inode = std::fs::metadata(at("pki/kubelet-client-current.pem")).unwrap().ino();
    node_kubeconfig(&join(folder.path(), false, true)).unwrap();
    assert_eq!(std::fs::metadata(at("pki/kubelet-client-current.pem")).unwrap().ino(), inode);
    // Written again with the link; what was read comes back.
    let store = CertificateStore::new(&at("pki"), Purpose::Client);
    kubeconfig::ensure_kubeconfig(&at("kubelet.conf"), Some(&at("bootstrap.conf")), &store).unwrap();
    assert_eq!(longshore_cluster::Kubeconfig::read(&at("kubelet.conf")).unwrap(), config);
    assert_eq!(std::fs::metadata(at("kubelet.conf")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_request_that_waits_is_shown_at_once_with_what_approves_it() {
    let (api, folder, signer) = (FakeApi::default(), tempfile::tempdir().unwrap(), Signer::new());
    let keeper = keeper(&api, folder.path(), wish());
    let mut state = keeper.state();
    let shown = Certificates { client: None, serving: Some(keeper.state()) };
    let task = tokio::spawn(keeper.keep());
    state.wait_for(|state| state.waits.is_some()).await.unwrap();
    let (path, object) = request(&api, 0).await;
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    let problems = shown.problems(Timestamp::now());
    assert!(problems[0].1.contains(&format!("kubectl certificate approve {name}")), "{problems:?}");
    let pem = signer.sign(&pem_of(&object), Duration::from_secs(86_400));
    answer(&api, &path, object, issued(&pem));
    state.wait_for(|state| state.facts.is_some()).await.unwrap();
    assert_eq!((state.borrow().waits.clone(), shown.problems(Timestamp::now())), (None, Vec::new()));
    task.abort();
}

#[tokio::test]
async fn without_a_way_to_ask_the_mend_is_named() {
    let (api, folder) = (FakeApi::default(), tempfile::tempdir().unwrap());
    let lost = folder.path().join("bootstrap.conf");
    for (bootstrap, expected) in
        [(None, "no --bootstrap-kubeconfig is given"), (Some(lost), "bootstrap.conf is not there")]
    {
        let store = CertificateStore::new(folder.path(), Purpose::Client);
        let ways = Ways { own: api.client(), bootstrap, kubeconfig: None };
        let keeper = Keeper::new(store, Wish::client("worker-1"), ways, true, Clock::System);
        let mut state = keeper.state();
        let task = tokio::spawn(keeper.keep());
        let problem = state.wait_for(|state| state.problem.is_some()).await.unwrap().problem.clone().unwrap();
        assert!(problem.contains(expected) && problem.contains("kubeadm token create"), "{problem}");
        task.abort();
    }
}

#[test]
fn certificates_that_need_somebody_are_problems() {
    let now: Timestamp = "2026-01-10T12:00:00Z".parse().unwrap();
    let state = |facts| CertificateState {
        purpose: Purpose::Client,
        path: "/p/kubelet-client-current.pem".into(),
        facts,
        waits: None,
        problem: Some("the token has expired".into()),
    };
    let (sender, reader) = watch::channel(state(None));
    let certificates = Certificates { client: Some(reader), serving: None };
    let (path, problem) = certificates.problems(now).remove(0);
    assert!(path.ends_with("kubelet-client-current.pem"));
    assert_eq!(
        problem,
        "client certificate /p/kubelet-client-current.pem: there is none; the token has expired"
    );
    let facts = CertificateFacts {
        not_before: "2026-01-10T00:00:00Z".parse().unwrap(),
        not_after: "2026-01-20T00:00:00Z".parse().unwrap(),
        common_name: String::new(),
        organisations: Vec::new(),
        dns_names: Default::default(),
        ips: Default::default(),
        key_hash: [0; 32],
    };
    sender.send_replace(state(Some(facts)));
    assert!(certificates.problems(now).is_empty());
    assert!(certificates.lines(now)[0].contains("valid for 9 days"), "{:?}", certificates.lines(now));
}
