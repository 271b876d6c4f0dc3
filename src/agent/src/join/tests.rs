use longshore_cluster::fake::{FakeApi, Fault};
use serde_json::json;

use super::*;

const TOKEN: &str = "abcdef.0123456789abcdef";
const INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const CONFIG: &str = "/api/v1/namespaces/kube-system/configmaps/kubelet-config";
const AUTHORITY: &str = include_str!("../../../core/src/certificates/example.pem");

/// Fake servers, one for each way of calling.
struct FakeDoors {
    anybody: FakeApi,
    checked: FakeApi,
    known: FakeApi,
}

impl FakeDoors {
    /// One server, however it is called.
    fn one(api: FakeApi) -> Self {
        Self { anybody: api.clone(), checked: api.clone(), known: api }
    }
}

impl Doors for FakeDoors {
    fn anybody(&self, _: &Endpoint) -> Result<ApiClient, JoinError> {
        Ok(self.anybody.client())
    }

    fn checked(&self, _: &Endpoint, authority: &[u8]) -> Result<ApiClient, JoinError> {
        assert_eq!(authority, AUTHORITY.as_bytes());
        Ok(self.checked.client())
    }

    fn known(&self, config: &Kubeconfig) -> ApiClient {
        assert_eq!(config.login, Login::Token(Source::Inline(TOKEN.into())));
        self.known.client()
    }
}

/// Made with openssl: `printf '%s' HEADER.PAYLOAD | openssl dgst -sha256 -hmac SECRET -binary | basenc --base64url`.
fn sign(text: &str, id: &str, secret: &str) -> String {
    use base64::Engine as _;
    let pack = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let header = pack(format!(r#"{{"alg":"HS256","kid":"{id}"}}"#).as_bytes());
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
    let signature = ring::hmac::sign(&key, format!("{header}.{}", pack(text.as_bytes())).as_bytes());
    format!("{header}..{}", pack(signature.as_ref()))
}

fn kubeconfig() -> String {
    kubeconfig_of(AUTHORITY, 6443)
}

fn kubeconfig_of(authority: &str, port: u16) -> String {
    use base64::Engine as _;
    let packed = base64::engine::general_purpose::STANDARD.encode(authority);
    let host = if port == 6443 { "10.0.0.9" } else { "127.0.0.1" };
    format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {packed}\n    server: https://{host}:{port}\n  name: \"\"\ncontexts: null\ncurrent-context: \"\"\nkind: Config\nusers: null\n"
    )
}

fn cluster() -> FakeApi {
    let api = FakeApi::default();
    tell_signed(&api, &kubeconfig());
    let config = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 7\n";
    api.put(CONFIG, json!({"metadata": {"name": "kubelet-config"}, "data": {"kubelet": config}}));
    api
}

fn tell_signed(api: &FakeApi, text: &str) {
    tell(api, text, &sign(text, "abcdef", "0123456789abcdef"));
}

fn tell(api: &FakeApi, text: &str, jws: &str) {
    let data = json!({"kubeconfig": text, "jws-kubeconfig-abcdef": jws});
    api.put(INFO, json!({"metadata": {"name": "cluster-info"}, "data": data}));
}

fn pin(authority: &str) -> String {
    let pin = longshore_core::certificates::x509::key_hashes(authority.as_bytes()).unwrap()[0];
    let digits: String = pin.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

fn args(folder: &std::path::Path) -> JoinArgs {
    JoinArgs {
        address: "10.0.0.1".into(),
        token: TOKEN.into(),
        pins: vec![pin(AUTHORITY)],
        unsafe_skip: false,
        node_name: None,
        cri_socket: None,
        dry_run: false,
        force: false,
        kubernetes_dir: folder.join("kubernetes"),
        root_dir: folder.join("kubelet"),
    }
}

async fn refused(api: FakeApi, change: impl FnOnce(&mut JoinArgs)) -> String {
    refused_at(&FakeDoors::one(api), change).await
}

/// Why it is not joined; nothing may be written then.
async fn refused_at(doors: &dyn Doors, change: impl FnOnce(&mut JoinArgs)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut args = args(folder.path());
    change(&mut args);
    let error = run(&args, doors).await.unwrap_err();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is written");
    error_chain(&error)
}

#[tokio::test]
async fn joining_writes_what_a_daemon_starts_with() {
    let folder = tempfile::tempdir().unwrap();
    let args = args(folder.path());
    let dry = JoinArgs { dry_run: true, ..args.clone() };
    let lines = run(&dry, &FakeDoors::one(cluster())).await.unwrap().join("\n");
    assert!(lines.contains("would write") && !lines.contains("systemctl"), "{lines}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let lines = run(&args, &FakeDoors::one(cluster())).await.unwrap().join("\n");
    assert!(lines.contains("systemctl enable --now longshore"), "{lines}");
    assert!(!lines.contains("0123456789abcdef"), "the secret is not shown");
    let bootstrap = Kubeconfig::read(&folder.path().join("kubernetes/bootstrap-kubelet.conf")).unwrap();
    assert_eq!((bootstrap.host.as_str(), bootstrap.port), ("10.0.0.9", 6443));
    assert_eq!(bootstrap.login, Login::Token(Source::Inline(TOKEN.into())));
    let config = std::fs::read_to_string(folder.path().join("kubelet/config.yaml")).unwrap();
    assert!(config.contains("maxPods: 7"), "{config}");
    // Again is the same; over a node that works only where somebody says so.
    let lines = run(&args, &FakeDoors::one(cluster())).await.unwrap().join("\n");
    assert!(lines.contains("unchanged") && !lines.contains("\nwrote"), "{lines}");
    let kept = folder.path().join("kubernetes/kubelet.conf");
    std::fs::write(&kept, "old").unwrap();
    let error = run(&args, &FakeDoors::one(cluster())).await.unwrap_err().to_string();
    assert!(error.contains("kubelet.conf is there already; --force"), "{error}");
    run(&JoinArgs { force: true, ..args }, &FakeDoors::one(cluster())).await.unwrap();
    assert!(!kept.exists() && folder.path().join("kubernetes/kubelet.conf.before-join").exists());
}

#[tokio::test]
async fn a_credential_that_others_may_read_is_narrowed() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let args = args(folder.path());
    run(&args, &FakeDoors::one(cluster())).await.unwrap();
    let credential = folder.path().join("kubernetes/bootstrap-kubelet.conf");
    let mode = || std::fs::metadata(&credential).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(), 0o600);
    std::fs::set_permissions(&credential, std::fs::Permissions::from_mode(0o644)).unwrap();
    let lines = run(&args, &FakeDoors::one(cluster())).await.unwrap().join("\n");
    assert!(lines.contains("wrote") && lines.contains("unchanged") && mode() == 0o600, "{lines}");
}

#[tokio::test]
async fn the_node_of_before_is_put_aside_only_when_everything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let args = JoinArgs { force: true, ..args(folder.path()) };
    let kept = folder.path().join("kubernetes/kubelet.conf");
    std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
    std::fs::write(&kept, "old").unwrap();
    // A folder in the place of the last file.
    let last = folder.path().join("kubernetes/bootstrap-kubelet.conf");
    std::fs::create_dir_all(last.join("below")).unwrap();
    let error = run(&args, &FakeDoors::one(cluster())).await.unwrap_err().to_string();
    assert!(error.contains("cannot write") && error.contains("bootstrap-kubelet.conf"), "{error}");
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), "old");
    std::fs::remove_dir_all(&last).unwrap();
    run(&args, &FakeDoors::one(cluster())).await.unwrap();
    assert!(!kept.exists() && last.is_file());
}

#[tokio::test]
async fn what_is_not_proved_is_not_joined() {
    let (text, good) = (kubeconfig(), sign(&kubeconfig(), "abcdef", "0123456789abcdef"));
    let told = |text: &str, jws: &str| {
        let api = cluster();
        tell(&api, text, jws);
        api
    };
    let same = |_: &mut JoinArgs| {};
    let cases = [
        (
            refused(told(&text, &sign(&text, "abcdef", "fedcba9876543210")), same).await,
            "is not made with this token's secret",
        ),
        (
            refused(told(&text.replace("10.0.0.9", "10.0.0.8"), &good), same).await,
            "is not made with this token's secret",
        ),
        (refused(told(&text, "eyJhbGciOiJub25lIn0..aa"), same).await, "its signature"),
        (
            refused(cluster(), |args| args.token = "fedcba.0123456789abcdef".into()).await,
            "not signed with token \"fedcba\"",
        ),
        (
            refused(cluster(), |args| args.pins = vec![format!("sha256:{}", "00".repeat(32))]).await,
            "this is not the cluster that was meant",
        ),
        (refused(cluster(), |args| args.pins.clear()).await, "--discovery-token-ca-cert-hash: is missing"),
        (refused(cluster(), |args| args.token = "x".into()).await, "--token: is not a bootstrap token"),
        (refused(FakeApi::default(), same).await, "404"),
    ];
    for (error, expected) in cases {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let api = cluster();
    api.order("GET", CONFIG, 1, Fault::Refuse(401, None));
    assert!(refused(api, same).await.contains("does not take token"));
}

#[tokio::test]
async fn a_configuration_that_may_not_be_read_is_replaced_by_a_plain_one() {
    let (api, folder) = (cluster(), tempfile::tempdir().unwrap());
    api.order("GET", CONFIG, 1, Fault::Refuse(403, None));
    let lines = run(&args(folder.path()), &FakeDoors::one(api)).await.unwrap().join("\n");
    assert!(lines.contains("a plain configuration is used"), "{lines}");
    let config = std::fs::read_to_string(folder.path().join("kubelet/config.yaml")).unwrap();
    assert!(config.contains("rotateCertificates: true"), "{config}");
}

#[tokio::test]
async fn what_changes_between_the_two_reads_is_not_believed() {
    let same = |_: &mut JoinArgs| {};
    let (anybody, checked) = (cluster(), cluster());
    tell_signed(&checked, &kubeconfig().replace("10.0.0.9", "10.0.0.8"));
    let doors = FakeDoors { anybody, checked, known: cluster() };
    let error = refused_at(&doors, same).await;
    assert!(error.contains("says one thing to anybody and another over the checked connection"), "{error}");
    // Another authority, also signed with the token: as if somebody had changed the first answer on its way.
    let (_, other) = tls_authority();
    tell_signed(&doors.checked, &kubeconfig_of(&other, 6443));
    assert!(refused_at(&doors, same).await.contains("says one thing to anybody and another"));
    // A server that goes away between the two is no impostor.
    doors.checked.set_down(true);
    let error = refused_at(&doors, same).await;
    assert!(
        error.contains("once more, over the checked connection") && !error.contains("somebody"),
        "{error}"
    );
    // Nor is it cluster-info that cannot be read where it is the configuration.
    let doors = FakeDoors::one(cluster());
    doors.known.order("GET", CONFIG, 1, Fault::Refuse(500, None));
    let error = refused_at(&doors, same).await;
    assert!(error.starts_with("cannot read kubelet-config of"), "{error}");
}

/// An authority that signs servers' certificates, and its own certificate in PEM.
fn tls_authority() -> (rcgen::Issuer<'static, rcgen::KeyPair>, String) {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    (rcgen::Issuer::new(params, key), pem)
}

/// A server on the loopback with a certificate of this authority, and its cluster's words, which name `authority`.
async fn server(issuer: &rcgen::Issuer<'_, rcgen::KeyPair>, authority: &str) -> u16 {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let chain = vec![params.signed_by(&key, issuer).unwrap().der().clone()];
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let mut tls = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let api = cluster();
    let port = api.listen(tls).await.unwrap().port();
    tell_signed(&api, &kubeconfig_of(authority, port));
    port
}

#[tokio::test]
async fn over_real_connections_only_the_authoritys_own_server_is_joined() {
    let ((issuer, authority), (forger, forged)) = (tls_authority(), tls_authority());
    let real = server(&issuer, &authority).await;
    // It passes on the real cluster's signed words and has a certificate of its own authority.
    let between = server(&forger, &authority).await;
    let to = |port: u16, pins: Vec<String>| {
        move |args: &mut JoinArgs| {
            args.address = format!("127.0.0.1:{port}");
            args.unsafe_skip = pins.is_empty();
            args.pins = pins;
        }
    };
    let cases = [
        (to(real, vec![pin(&forged)]), "this is not the cluster that was meant"),
        (to(between, vec![pin(&authority)]), "shows a certificate that does not count"),
        (to(between, vec![]), "shows a certificate that does not count"),
    ];
    for (change, expected) in cases {
        let error = refused_at(&RealDoors, change).await;
        assert!(error.contains(expected), "{expected}: {error}");
    }
    for (pins, said) in [
        (vec![pin(&forged), pin(&authority)], "has a key that was given"),
        (vec![], "its authority is not checked, as --discovery-token-unsafe-skip-ca-verification asks"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut args = args(folder.path());
        to(real, pins)(&mut args);
        let lines = run(&args, &RealDoors).await.unwrap().join("\n");
        assert!(lines.contains(said), "{lines}");
        let written = std::fs::read_to_string(folder.path().join("kubernetes/pki/ca.crt")).unwrap();
        assert_eq!(written, authority);
    }
}
