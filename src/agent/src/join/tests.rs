use longshore_cluster::fake::{FakeApi, Fault};
use serde_json::json;

use super::*;

const TOKEN: &str = "abcdef.0123456789abcdef";
const INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const CONFIG: &str = "/api/v1/namespaces/kube-system/configmaps/kubelet-config";
const AUTHORITY: &str = include_str!("../../../core/src/certificates/example.pem");

/// One fake server, however it is called.
struct FakeDoors(FakeApi);

impl Doors for FakeDoors {
    fn anybody(&self, _: &Endpoint) -> Result<ApiClient, JoinError> {
        Ok(self.0.client())
    }

    fn checked(&self, _: &Endpoint, authority: &[u8]) -> Result<ApiClient, JoinError> {
        assert_eq!(authority, AUTHORITY.as_bytes());
        Ok(self.0.client())
    }

    fn known(&self, config: &Kubeconfig) -> ApiClient {
        assert_eq!(config.login, Login::Token(Source::Inline(TOKEN.into())));
        self.0.client()
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
    use base64::Engine as _;
    let packed = base64::engine::general_purpose::STANDARD.encode(AUTHORITY);
    format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {packed}\n    server: https://10.0.0.9:6443\n  name: \"\"\ncontexts: null\ncurrent-context: \"\"\nkind: Config\nusers: null\n"
    )
}

fn cluster() -> FakeApi {
    let api = FakeApi::default();
    tell(&api, &kubeconfig(), &sign(&kubeconfig(), "abcdef", "0123456789abcdef"));
    let config = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 7\n";
    api.put(CONFIG, json!({"metadata": {"name": "kubelet-config"}, "data": {"kubelet": config}}));
    api
}

fn tell(api: &FakeApi, text: &str, jws: &str) {
    let data = json!({"kubeconfig": text, "jws-kubeconfig-abcdef": jws});
    api.put(INFO, json!({"metadata": {"name": "cluster-info"}, "data": data}));
}

fn args(folder: &std::path::Path) -> JoinArgs {
    let pin = longshore_core::certificates::x509::key_hashes(AUTHORITY.as_bytes()).unwrap()[0];
    let digits: String = pin.iter().map(|byte| format!("{byte:02x}")).collect();
    JoinArgs {
        address: "10.0.0.1".into(),
        token: TOKEN.into(),
        pins: vec![format!("sha256:{digits}")],
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
    let folder = tempfile::tempdir().unwrap();
    let mut args = args(folder.path());
    change(&mut args);
    let error = run(&args, &FakeDoors(api)).await.unwrap_err();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is written");
    error_chain(&error)
}

#[tokio::test]
async fn joining_writes_what_a_daemon_starts_with() {
    let folder = tempfile::tempdir().unwrap();
    let args = args(folder.path());
    let dry = JoinArgs { dry_run: true, ..args.clone() };
    let lines = run(&dry, &FakeDoors(cluster())).await.unwrap().join("\n");
    assert!(lines.contains("would write") && !lines.contains("systemctl"), "{lines}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let lines = run(&args, &FakeDoors(cluster())).await.unwrap().join("\n");
    assert!(lines.contains("systemctl enable --now longshore"), "{lines}");
    assert!(!lines.contains("0123456789abcdef"), "the secret is not shown");
    let bootstrap = Kubeconfig::read(&folder.path().join("kubernetes/bootstrap-kubelet.conf")).unwrap();
    assert_eq!((bootstrap.host.as_str(), bootstrap.port), ("10.0.0.9", 6443));
    assert_eq!(bootstrap.login, Login::Token(Source::Inline(TOKEN.into())));
    let config = std::fs::read_to_string(folder.path().join("kubelet/config.yaml")).unwrap();
    assert!(config.contains("maxPods: 7"), "{config}");
    // Again is the same; over a node that works only where somebody says so.
    let lines = run(&args, &FakeDoors(cluster())).await.unwrap().join("\n");
    assert!(lines.contains("unchanged") && !lines.contains("\nwrote"), "{lines}");
    let kept = folder.path().join("kubernetes/kubelet.conf");
    std::fs::write(&kept, "old").unwrap();
    let error = run(&args, &FakeDoors(cluster())).await.unwrap_err().to_string();
    assert!(error.contains("kubelet.conf is there already; --force"), "{error}");
    run(&JoinArgs { force: true, ..args }, &FakeDoors(cluster())).await.unwrap();
    assert!(!kept.exists() && folder.path().join("kubernetes/kubelet.conf.before-join").exists());
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
    let lines = run(&args(folder.path()), &FakeDoors(api)).await.unwrap().join("\n");
    assert!(lines.contains("a plain configuration is used"), "{lines}");
    let config = std::fs::read_to_string(folder.path().join("kubelet/config.yaml")).unwrap();
    assert!(config.contains("rotateCertificates: true"), "{config}");
}
