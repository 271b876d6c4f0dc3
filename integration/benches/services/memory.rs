//! The whole daemon, alone as a proxy: its memory with a control plane, here the fake API server behind TLS, and
//! with a folder of files, and how long what files say takes to the kernel.

use std::fs::{self, File};
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use longshore_cluster::fake::FakeApi;
use longshore_core::ruleset::nft::{self, ElementKey, Family, TableKey};
use longshore_kernel::netns;
use longshore_kernel::nft::{Nft, RealNft};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{Figure, NFTABLES, Report, cluster_ip, command, service_json, slice_json};

/// How long the daemon may take to fill the table.
const FILLED_WITHIN: Duration = Duration::from_secs(120);
/// How often a file is changed.
const EDITS: usize = 20;
/// Services and their slices in one file.
const IN_ONE_FILE: usize = 200;
/// After that it has nothing to do.
const SETTLING: Duration = Duration::from_secs(5);

pub(super) fn run(report: &mut Report, program: &Path) {
    for (services, endpoints) in [(10usize, 10usize), (10_000, 10)] {
        of_control_plane(report, program, services, endpoints);
        of_files(report, program, services, endpoints);
    }
}

fn of_control_plane(report: &mut Report, program: &Path, services: usize, endpoints: usize) {
    let api = FakeApi::default();
    for number in 0..services {
        api.put(&format!("/api/v1/namespaces/bench/services/s{number}"), service_json(number));
        let slices = "/apis/discovery.k8s.io/v1/namespaces/bench/endpointslices";
        api.put(&format!("{slices}/s{number}-x"), slice_json(number, 0, endpoints));
    }
    api.put("/api/v1/nodes/n1", json!({"metadata": {"name": "n1"}}));
    let folder = tempfile::tempdir().expect("a temporary folder");
    netns::run_in_new(|| {
        command("ip link set lo up");
        let runtime = Runtime::new().expect("a runtime");
        let kubeconfig = folder.path().join("kubeconfig");
        runtime.block_on(serve(api, &kubeconfig));
        let mut daemon = daemon(program, folder.path());
        daemon.args(["--hostname-override", "n1"]).arg("--kubeconfig").arg(kubeconfig);
        measure(report, daemon, ("a control plane", folder.path()), (services, endpoints), |_| {});
    })
    .expect("the step in its namespace succeeds");
}

fn of_files(report: &mut Report, program: &Path, services: usize, endpoints: usize) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let manifests = folder.path().join("manifests");
    fs::create_dir(&manifests).expect("a folder for the figures and inputs");
    for part in 0..services.div_ceil(IN_ONE_FILE) {
        let numbers = part * IN_ONE_FILE..services.min((part + 1) * IN_ONE_FILE);
        write_file(&manifests.join(format!("{part:03}.yaml")), numbers, |_| 0, endpoints);
    }
    netns::run_in_new(|| {
        command("ip link set lo up");
        let mut daemon = daemon(program, folder.path());
        daemon.arg("--standalone").arg("--manifests").arg(&manifests);
        measure(report, daemon, ("files", folder.path()), (services, endpoints), |report| {
            edits(report, &manifests, (services, endpoints));
        });
    })
    .expect("the step in its namespace succeeds");
}

/// A manifest of these Services, put in its place at once.
fn write_file(path: &Path, numbers: Range<usize>, first: impl Fn(usize) -> usize, endpoints: usize) {
    let objects =
        numbers.flat_map(|number| [service_json(number), slice_json(number, first(number), endpoints)]);
    let text: String = objects.map(|object| format!("---\n{object}\n")).collect();
    let beside = path.with_extension("new");
    fs::write(&beside, text).expect("a manifest is written");
    fs::rename(&beside, path).expect("a manifest comes to its place");
}

/// One Service's endpoints changed in one file of many, until the kernel has it.
fn edits(report: &mut Report, manifests: &Path, (services, endpoints): (usize, usize)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let nft = RealNft::open().expect("nf_tables opens");
    let key = ElementKey::of(&[
        nft::Value::Addr(cluster_ip(0).into()),
        nft::Value::Proto(6),
        nft::Value::Port(80),
        nft::Value::Index(0),
    ]);
    let table = TableKey::new(Family::Ip, "longshore");
    let keys = [key];
    let held = || runtime.block_on(nft.elements(&table, "endpoints", &keys)).expect("an element is read");
    let mut values = Vec::new();
    for edit in 0..EDITS {
        // All endpoints are others, so that the first place surely holds another.
        let first = if edit % 2 == 0 { endpoints } else { 0 };
        let before = held();
        let at = manifests.join("000.yaml");
        let began = Instant::now();
        write_file(
            &at,
            0..services.min(IN_ONE_FILE),
            |number| if number == 0 { first } else { 0 },
            endpoints,
        );
        while held() == before {
            assert!(began.elapsed() < FILLED_WITHIN, "a changed file never came to the kernel");
            std::thread::sleep(Duration::from_millis(1));
        }
        values.push(began.elapsed().as_secs_f64() * 1000.0);
        // The folder is read on, and what it says is kept.
        std::thread::sleep(Duration::from_secs(1));
    }
    report.tell(Figure {
        mode: NFTABLES,
        name: "file of 200 Services written with one changed: to kernel",
        services,
        endpoints: services * endpoints,
        unit: "ms",
        values,
        goal: Value::Null,
        peer: Value::Null,
    });
}

/// Begin to serve the API in this network namespace, and write how it is reached.
async fn serve(api: FakeApi, kubeconfig: &Path) {
    let issued = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(issued.signing_key.serialize_der()).expect("a key");
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key)
        .expect("the certificate goes with its key");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let at = api.listen(config).await.expect("a port");
    let text = json!({"apiVersion": "v1", "kind": "Config", "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": {"server": format!("https://{at}"),
            "certificate-authority-data": STANDARD.encode(issued.cert.pem())}}],
        "users": [{"name": "bench", "user": {"token": "bench"}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}]});
    fs::write(kubeconfig, text.to_string()).expect("the kubeconfig is written");
}

fn daemon(program: &Path, folder: &Path) -> Command {
    let mut daemon = Command::new(program);
    daemon
        .args([
            "agent",
            "--roles",
            "proxy",
            "--proxy-mode",
            "nftables",
            "--node-ip",
            "192.0.2.1",
            "--root-dir",
        ])
        .arg(folder.join("root"))
        .arg("--socket")
        .arg(folder.join("admin.sock"))
        .env("NOTIFY_SOCKET", "")
        .stdout(File::create(folder.join("log")).expect("a file for the output"))
        .stderr(File::create(folder.join("errors")).expect("a file for the output"));
    daemon
}

/// Start the daemon, and tell its memory when it has filled the table and come to rest.
fn measure(
    report: &mut Report,
    mut daemon: Command,
    (source, folder): (&str, &Path),
    (services, endpoints): (usize, usize),
    and_then: impl FnOnce(&mut Report),
) {
    let began = Instant::now();
    let mut daemon = daemon.spawn().expect("the daemon starts");
    let synced = first_sync(&folder.join("log"), &folder.join("errors"));
    if !wait_for_elements(services * (endpoints + 2)) {
        daemon.kill().expect("the daemon can be ended");
        daemon.wait().expect("the daemon can be waited for");
        let errors = fs::read_to_string(folder.join("errors")).expect("the file can be read");
        panic!("the table was not full after {FILLED_WITHIN:?}: {errors}");
    }
    report.tell(Figure {
        mode: NFTABLES,
        name: &format!("start of the daemon to all in the kernel, of {source}"),
        services,
        endpoints: services * endpoints,
        unit: "ms",
        values: vec![(synced.unwrap_or_else(Instant::now) - began).as_secs_f64() * 1000.0],
        goal: Value::Null,
        peer: Value::Null,
    });
    std::thread::sleep(SETTLING);
    let large = services == 10_000;
    for (name, field, goal, peer) in [
        ("resident memory of the daemon", "VmRSS", json!(80), 403),
        ("its own part of that", "RssAnon", Value::Null, 0),
        ("resident memory, its highest", "VmHWM", Value::Null, 510),
    ] {
        let peer = json!({"name": "kube-proxy 1.36.3 nftables", "value": peer});
        report.tell(Figure {
            mode: NFTABLES,
            name: &format!("{name}, proxy of {source}"),
            services,
            endpoints: services * endpoints,
            unit: "MiB",
            values: vec![resident(daemon.id(), field)],
            goal: if large { goal } else { Value::Null },
            peer: if large && field != "RssAnon" { peer } else { Value::Null },
        });
    }
    and_then(report);
    daemon.kill().expect("the daemon can be ended");
    daemon.wait().expect("the daemon can be waited for");
}

/// When the daemon said that all is in the kernel.
fn first_sync(log: &Path, errors: &Path) -> Option<Instant> {
    let deadline = Instant::now() + FILLED_WITHIN;
    let said = |path: &Path| {
        fs::read_to_string(path).is_ok_and(|text| text.contains("first full sync is in the kernel"))
    };
    while Instant::now() < deadline {
        if said(log) || said(errors) {
            return Some(Instant::now());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

/// Until the last endpoint is in the table.
fn wait_for_elements(expected: usize) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let nft = RealNft::open().expect("nf_tables opens");
    let deadline = Instant::now() + FILLED_WITHIN;
    while Instant::now() < deadline {
        let dump = runtime.block_on(nft.dump(&TableKey::new(Family::Ip, "longshore"), &[]));
        let sets = dump.ok().and_then(|dump| dump.table).map(|table| table.sets).unwrap_or_default();
        if sets.values().map(|set| set.elements.len()).sum::<usize>() >= expected {
            return true;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    false
}

/// In MiB.
fn resident(pid: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the file can be read");
    let line = status.lines().find(|line| line.starts_with(field)).expect("the field is there");
    let kib = line.split_whitespace().nth(1).expect("the field has a value");
    kib.parse::<f64>().expect("the field is a number") / 1024.0
}
