use std::path::Path;
use std::time::Duration;

use clap::Parser;
use longshore_core::pod::snapshot::CgroupDriver;

use super::*;

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    agent: AgentArgs,
}

/// `load` of a command line in which `%` stands for the folder the files were written to.
pub(super) fn load_with(files: &[(&str, &str)], line: &str) -> Result<Settings, String> {
    let dir = tempfile::tempdir().expect("tempdir");
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        std::fs::write(path, text).expect("write");
    }
    let root = dir.path().display().to_string();
    let words = line.split_whitespace().map(|word| word.replace('%', &root));
    let cli =
        Cli::try_parse_from(std::iter::once("agent".to_owned()).chain(words)).map_err(|e| e.to_string())?;
    load(&cli.agent).map_err(|error| error.to_string().replace(&format!("{root}/"), ""))
}

const KUBELET: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
pub(super) const PROXY: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
const ALONE: &str = "--standalone --manifests /m";

fn with_kubelet(body: &str) -> Result<Settings, String> {
    load_with(&[("k.yaml", &format!("{KUBELET}{body}"))], &format!("{ALONE} --config %/k.yaml"))
}

fn with_proxy(body: &str) -> Result<Settings, String> {
    load_with(&[("p.yaml", &format!("{PROXY}{body}"))], &format!("{ALONE} --proxy-config %/p.yaml"))
}

#[test]
fn defaults_are_the_ones_of_kubernetes() {
    let settings = load_with(&[], ALONE).expect("defaults are valid");
    assert_eq!(settings.runtime.endpoint, Path::new("/run/containerd/containerd.sock"));
    assert_eq!(settings.runtime.image_endpoint, settings.runtime.endpoint);
    assert_eq!(settings.runtime.request_timeout, Duration::from_secs(120));
    assert_eq!(settings.sources.audit_period, Duration::from_secs(20));
    assert_eq!(settings.cgroups.driver, CgroupDriver::Cgroupfs);
    assert_eq!((settings.cgroups.per_qos, settings.cgroups.cpu_cfs_period_us), (true, 100_000));
    assert_eq!(settings.cgroups.pod_pids_limit, None);
    assert_eq!(settings.pods.max_restart_backoff, Duration::from_secs(300));
    assert_eq!(settings.images.max_parallel_pulls, Some(1));
    assert_eq!(settings.images.pull_rate, Some((5, 10)));
    assert_eq!(settings.dataplane.mode, DataplaneMode::Auto);
    assert_eq!(settings.dataplane.ipvs.scheduler, "rr");
    assert_eq!(settings.roles, Roles { node: true, proxy: true });
    assert_eq!(settings.admin.socket, Path::new("/run/longshore/longshore.sock"));
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
}

#[test]
fn every_field_is_accepted_with_its_own_default() {
    // The default written out and read back is the default: names, types and forms agree.
    let kubelet = serde_json::to_string(&kubelet::KubeletConfiguration::default()).expect("json");
    let proxy = serde_json::to_string(&proxy::KubeProxyConfiguration::default()).expect("json");
    let tree = document::parse("k", &kubelet).expect("parses").remove(0);
    let reading = document::read::<kubelet::KubeletConfiguration>(&tree).expect("reads");
    assert_eq!(reading.value, kubelet::KubeletConfiguration::default());
    assert!(reading.unknown.is_empty(), "{:?}", reading.unknown);
    let tree = document::parse("p", &proxy).expect("parses").remove(0);
    let reading = document::read::<proxy::KubeProxyConfiguration>(&tree).expect("reads");
    assert_eq!(reading.value, proxy::KubeProxyConfiguration::default());
    assert!(reading.unknown.is_empty(), "{:?}", reading.unknown);
    assert_eq!(kubelet::KUBELET_FIELDS.len(), 125, "Kubernetes 1.36 has 125 fields");
    assert_eq!(proxy::PROXY_FIELDS.len(), 24);
}

#[test]
fn a_kubeadm_file_is_read() {
    let settings = with_kubelet(
        "authentication: {anonymous: {enabled: false}, webhook: {cacheTTL: 0s, enabled: true}, x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}}\n\
         authorization: {mode: Webhook, webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}}\n\
         cgroupDriver: systemd\nclusterDNS:\n- 10.96.0.10\nclusterDomain: cluster.local\n\
         cpuManagerReconcilePeriod: 0s\ncrashLoopBackOff: {}\nevictionPressureTransitionPeriod: 0s\n\
         fileCheckFrequency: 0s\nhealthzBindAddress: 127.0.0.1\nhealthzPort: 10248\nhttpCheckFrequency: 0s\n\
         imageMaximumGCAge: 0s\nimageMinimumGCAge: 0s\nlogging: {flushFrequency: 0, options: {json: {infoBufferSize: \"0\"}}, verbosity: 0}\n\
         memorySwap: {}\nnodeStatusReportFrequency: 0s\nnodeStatusUpdateFrequency: 0s\nrotateCertificates: true\n\
         runtimeRequestTimeout: 0s\nshutdownGracePeriod: 0s\nshutdownGracePeriodCriticalPods: 0s\n\
         staticPodPath: /etc/kubernetes/manifests\nstreamingConnectionIdleTimeout: 0s\nsyncFrequency: 0s\nvolumeStatsAggPeriod: 0s\n",
    )
    .expect("valid");
    assert_eq!(settings.cgroups.driver, CgroupDriver::Systemd);
    assert_eq!(settings.dns.cluster_domain, "cluster.local");
    // Zero stands for "not given" where the field is no pointer.
    assert_eq!(settings.runtime.request_timeout, Duration::from_secs(120));
    assert_eq!(settings.pods.sync_frequency, Duration::from_secs(60));
    let unknown: Vec<_> = settings.warnings.iter().filter(|warning| warning.contains("unknown")).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn faults_name_file_line_field_and_mend() {
    let cases = [
        ("maxPods: many\n", "k.yaml:3:10: maxPods: invalid type: string \"many\", expected i32"),
        ("maxPods: -1\n", "k.yaml:3:10: maxPods: is -1; it must be between 1 and 2147483647"),
        ("syncFrequency: 10\n", "k.yaml:3:16: syncFrequency: invalid type: integer `10`, expected a string"),
        (
            "syncFrequency: 10d\n",
            "k.yaml:3:16: syncFrequency: \"10d\" is not a duration; write it like 30s, 1m30s or 500ms",
        ),
        (
            "cgroupDriver: cgroups\n",
            "k.yaml:3:15: cgroupDriver: is \"cgroups\"; it must be one of systemd, cgroupfs",
        ),
        ("clusterDNS: [10.0.0.10, dns]\n", "k.yaml:3:13: clusterDNS: \"dns\" is not an IP address"),
        ("cpuCFSQuotaPeriod: 2s\n", "k.yaml:3:20: cpuCFSQuotaPeriod: is 2s; it must be between 1ms and 1s"),
        ("runOnce: true\n", "runOnce: is true"),
        (
            "serializeImagePulls: true\nmaxParallelImagePulls: 4\n",
            "k.yaml:4:24: maxParallelImagePulls: is 4, which needs serializeImagePulls: false",
        ),
        ("containerRuntimeEndpoint: tcp://1.2.3.4:5\n", "it must be a unix socket"),
        ("crashLoopBackOff: {maxContainerRestartPeriod: 10m}\n", "it must be between 1s and 300s"),
        (
            "enableSystemLogHandler: false\nenableSystemLogQuery: true\n",
            "enableSystemLogQuery: is without effect where enableSystemLogHandler is false",
        ),
        ("containerLogMaxSize: 10MB\n", "\"10MB\" is not a quantity"),
        ("systemReserved: {cpu: lots}\n", "systemReserved: cpu: \"lots\" is not a quantity"),
        ("systemReserved: {gpu: \"1\"}\n", "it must be one of cpu, memory"),
        (
            "cgroupsPerQOS: false\nenforceNodeAllocatable: [pods]\n",
            "enforceNodeAllocatable: must be empty or [none]",
        ),
        ("logging: {format: xml}\n", "k.yaml:3:19: logging.format: is \"xml\"; it must be one of text, json"),
        ("a: b: c\n", "k.yaml:3:"),
        ("maxPods: 5\nmaxPods: 6\n", "k.yaml:4:1"),
    ];
    for (body, expected) in cases {
        let error = with_kubelet(body).expect_err(body);
        assert!(error.contains(expected), "{body:?} gave {error:?}, not {expected:?}");
    }
}

#[test]
fn all_broken_rules_are_told_at_once() {
    let error = with_kubelet("maxPods: -1\ncgroupDriver: x\noomScoreAdj: 5000\n").expect_err("three faults");
    for field in ["maxPods", "cgroupDriver", "oomScoreAdj"] {
        assert!(error.contains(field), "{error}");
    }
}

#[test]
fn gates_of_either_file_that_nobody_knows_are_named_with_their_place() {
    let told = |settings: Settings| -> Vec<String> {
        settings.warnings.iter().map(|text| text.rsplit('/').next().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(
        told(with_kubelet("featureGates:\n  NodeSwap: true\n  NodeSwapp: true\n").expect("lenient")),
        ["k.yaml:5:14: featureGates.NodeSwapp: no gate that this version knows; it is ignored"]
    );
    let gates = "{NFTablesProxyMode: true, WinOverlay: false, AllAlpha: true, NFTables: true}";
    assert_eq!(
        told(with_proxy(&format!("featureGates: {gates}\n")).expect("lenient")),
        [
            "p.yaml:3:70: featureGates.AllAlpha: is true and has no effect; this version behaves as with false",
            "p.yaml:3:86: featureGates.NFTables: no gate that this version knows; it is ignored",
        ]
    );
}

#[test]
fn unknown_fields_and_settings_without_effect_are_warnings() {
    let settings =
        with_kubelet("maxPodz: 5\nmemorySwap: {swapBehaviour: x}\nevictionSoft: {}\n").expect("lenient");
    let warned = |text: &str| settings.warnings.iter().any(|warning| warning.contains(text));
    assert!(warned("k.yaml:3:10: maxPodz: unknown field; it is ignored"), "{:?}", settings.warnings);
    assert!(warned("k.yaml:4:"), "{:?}", settings.warnings);
    assert!(warned("memorySwap.swapBehaviour: unknown field"), "{:?}", settings.warnings);
    assert!(warned("evictionSoft: has no effect in this version"), "{:?}", settings.warnings);
}

#[test]
fn a_word_that_is_no_cipher_suite_is_a_fault_and_an_old_suite_a_warning() {
    let suites = |list: &str| with_kubelet(&format!("tlsCipherSuites: [{list}]\n"));
    let error = suites("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA265").expect_err("a typo");
    let told = "tlsCipherSuites: holds \"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA265\", which is no cipher suite";
    assert!(error.contains(told) && error.contains("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"), "{error}");
    let names = |settings: &Settings| settings.server.tls.cipher_suites.len();
    let settings = suites("TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384").expect("only TLS 1.3");
    assert_eq!((names(&settings), settings.warnings.len()), (0, 0));
    let settings = suites("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305, TLS_RSA_WITH_AES_256_GCM_SHA384")
        .expect("a list of hardening guides");
    assert_eq!(names(&settings), 1);
    assert!(
        settings.warnings[0].contains("holds TLS_RSA_WITH_AES_256_GCM_SHA384, which"),
        "{:?}",
        settings.warnings
    );
    let settings = suites("TLS_RSA_WITH_AES_256_GCM_SHA384").expect("a suite of Go");
    assert!(settings.warnings[0].ends_with("clients have to speak TLS 1.3 then"), "{:?}", settings.warnings);
    assert_eq!(names(&with_kubelet("").expect("defaults")), 6);
}

#[test]
fn there_is_one_serving_certificate_and_one_folder_of_certificates() {
    let config = format!(
        "{KUBELET}tlsCertFile: /tls/a.crt\ntlsPrivateKeyFile: /tls/a.key\nserverTLSBootstrap: true\n"
    );
    let load =
        |line: &str| load_with(&[("k.yaml", &config)], &format!("--config %/k.yaml {line}")).expect(line);
    // Alone nobody signs one; joined, the signed one would be overwritten by the files or the files by it.
    let alone = load(ALONE);
    assert!(alone.server.tls.files.is_some() && alone.warnings.is_empty(), "{:?}", alone.warnings);
    let joined = load("--kubeconfig=/k.conf --root-dir=/srv/kubelet");
    assert_eq!(joined.server.tls.files, None);
    assert!(
        joined.warnings[0].contains("tlsCertFile: has no effect beside serverTLSBootstrap"),
        "{:?}",
        joined.warnings
    );
    let folders = |settings: &Settings| {
        let join = settings.join.as_ref().expect("it joins");
        (join.certificates.folder.clone(), settings.server.tls.folder.clone())
    };
    let pki = std::path::PathBuf::from("/var/lib/kubelet/pki");
    assert_eq!(folders(&joined), (pki.clone(), pki));
    let (one, other) = folders(&load("--kubeconfig=/k.conf --cert-dir=/tls"));
    assert_eq!((one.as_path(), other.as_path()), (Path::new("/tls"), Path::new("/tls")));
}

#[test]
fn drop_ins_merge_in_order_and_flags_win() {
    let files = [
        ("k.yaml", format!("{KUBELET}maxPods: 50\nclusterDNS: [10.0.0.1]\nlogging: {{verbosity: 1, format: json}}\nsystemReserved: {{cpu: 1, memory: 1Gi}}\n").replace("cpu: 1,", "cpu: \"1\",")),
        ("d/20-b.conf", format!("{KUBELET}maxPods: 70\nlogging: {{verbosity: 3}}\n")),
        ("d/10-a.conf", format!("{KUBELET}maxPods: 60\nclusterDNS: [10.0.0.2]\npodLogsDir: /l\n")),
        ("d/sub/30.conf", format!("{KUBELET}podLogsDir: ~\n")),
        ("d/ignored.yaml", "not: [even yaml".to_owned()),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let line = format!("{ALONE} --config %/k.yaml --config-dir %/d");
    let settings = load_with(&files, &line).expect("valid");
    assert_eq!(settings.pods.max_pods, 70);
    assert_eq!(settings.dns.cluster_dns, ["10.0.0.2".parse::<std::net::IpAddr>().expect("ip")]);
    assert_eq!(settings.logging, LoggingSettings { format: LogFormat::Json, verbosity: 3 });
    assert_eq!(settings.pods.pod_logs_dir, Path::new("/var/log/pods"));

    let line = format!(
        "{line} --max-pods 80 --cluster-dns=10.0.0.3,10.0.0.4 --cgroups-per-qos=false --system-reserved cpu=200m -v 5"
    );
    let settings = load_with(&files, &line).expect("valid");
    assert_eq!(settings.pods.max_pods, 80);
    assert_eq!(settings.dns.cluster_dns.len(), 2);
    assert_eq!(settings.logging.verbosity, 5);
    assert!(!settings.cgroups.per_qos);
    assert_eq!(
        settings.node.reserved_millis,
        [("cpu".to_owned(), 200)].into(),
        "a flag replaces the file's map"
    );
}

#[test]
fn faults_in_drop_ins_and_flags_name_their_own_place() {
    let good = format!("{KUBELET}maxPods: 50\n");
    let bad = format!("{KUBELET}\nmaxPods: no\n");
    let headless = "maxPods: 1\n";
    type Files<'a> = &'a [(&'a str, &'a str)];
    let cases: [(Files<'_>, &str, &str); 7] = [
        (
            &[("k.yaml", &good), ("d/1.conf", &bad)],
            "--config %/k.yaml --config-dir %/d",
            "d/1.conf:4:10: maxPods: ",
        ),
        (&[("k.yaml", headless)], "--config %/k.yaml", "kind is missing; it must be KubeletConfiguration"),
        (&[("k.yaml", PROXY)], "--config %/k.yaml", "k.yaml:2:7: kind is KubeProxyConfiguration"),
        (&[("k.yaml", "")], "--config %/k.yaml", "holds 0 documents"),
        (&[], "--config %/absent.yaml", "cannot read configuration absent.yaml"),
        (&[], "--max-pods few", "--max-pods: \"few\" is not a whole number"),
        (&[], "--max-pods=-3", "flag --max-pods: maxPods: is -3"),
    ];
    for (files, line, expected) in cases {
        let error = load_with(files, &format!("{ALONE} {line}")).expect_err(line);
        assert!(error.contains(expected), "{line:?} gave {error:?}, not {expected:?}");
    }
}

#[test]
fn flags_reach_an_existing_field_of_the_right_type() {
    for flag in FLAGS {
        let text = match flag.form {
            Form::Text => "x",
            Form::Bool => "true",
            Form::Int => "1",
            Form::List => "a,b",
            Form::Map => "cpu=1",
            Form::Gates => "A=true",
            Form::Thresholds => "memory.available<1Gi",
            Form::Taints => "k=v:NoSchedule,only:NoExecute",
            Form::Headers => "Name:value",
        };
        let duration = ["frequency", "period", "timeout", "ttl", "age", "flush"];
        let text = if flag.form == Form::Text && duration.iter().any(|word| flag.name.contains(word)) {
            "7s"
        } else {
            text
        };
        let json = flags::field_value(flag.form, &[text.to_owned()]).expect(flag.name);
        let mut tree = empty_tree("t");
        let unknown = match flag.target {
            Target::Kubelet(path) => {
                set_at(&mut tree, path, Node::from_json(&Place::whole("f"), json), false);
                document::read::<kubelet::KubeletConfiguration>(&tree).map(|reading| reading.unknown)
            }
            Target::Proxy(path) => {
                set_at(&mut tree, path, Node::from_json(&Place::whole("f"), json), false);
                document::read::<proxy::KubeProxyConfiguration>(&tree).map(|reading| reading.unknown)
            }
            Target::ProxyBoth(paths) => {
                paths.iter().for_each(|path| {
                    set_at(&mut tree, path, Node::from_json(&Place::whole("f"), json.clone()), false);
                });
                document::read::<proxy::KubeProxyConfiguration>(&tree).map(|reading| reading.unknown)
            }
            Target::Either { kubelet, proxy } => {
                let mut other = empty_tree("t");
                set_at(&mut other, proxy, Node::from_json(&Place::whole("f"), json.clone()), false);
                let mut unknown = document::read::<proxy::KubeProxyConfiguration>(&other)
                    .map(|reading| reading.unknown)
                    .expect(flag.name);
                set_at(&mut tree, kubelet, Node::from_json(&Place::whole("f"), json), false);
                document::read::<kubelet::KubeletConfiguration>(&tree).map(|reading| {
                    unknown.extend(reading.unknown);
                    unknown
                })
            }
            Target::Nothing => continue,
        };
        assert_eq!(unknown, Ok(Vec::new()), "--{}", flag.name);
    }
}

#[test]
fn proxy_files_are_read_and_checked() {
    let settings = with_proxy(
        "mode: ipvs\nipvs: {scheduler: wlc, strictARP: true, tcpTimeout: 15m, excludeCIDRs: [10.1.0.0/16]}\nclusterCIDR: 10.244.0.0/16,fd00::/48\nnodePortAddresses: [192.168.0.0/16]\n",
    )
    .expect("valid");
    let dataplane = &settings.dataplane;
    assert_eq!((dataplane.mode, dataplane.ipvs.scheduler.as_str()), (DataplaneMode::Ipvs, "wlc"));
    assert_eq!(dataplane.ipvs.tcp_timeout, Duration::from_secs(900));
    assert!(matches!(&dataplane.detect_local, DetectLocal::ClusterCidr(networks) if networks.len() == 2));
    assert!(matches!(&dataplane.node_ports, NodePortAddresses::Within(networks) if networks.len() == 1));

    let cases = [
        ("mode: userspace\n", "p.yaml:3:7: mode: is \"userspace\"; it must be one of"),
        ("ipvs: {scheduler: best}\n", "ipvs.scheduler: is \"best\""),
        ("clusterCIDR: 10.0.0.0/33\n", "clusterCIDR: \"10.0.0.0/33\" is not a network"),
        ("clusterCIDR: 10.0.0.0/8,11.0.0.0/8\n", "give one network, or one per family"),
        ("nodePortAddresses: [primary, 10.0.0.0/8]\n", "must stand alone"),
        ("detectLocalMode: BridgeInterface\n", "detectLocal.bridgeInterface: is \"\""),
        ("nftables: {masqueradeBit: 32}\n", "nftables.masqueradeBit: is 32; it must be between 0 and 31"),
        ("iptables: {syncPeriod: 1s, minSyncPeriod: 2s}\n", "iptables.minSyncPeriod: is longer than"),
        ("ipvs: {minSyncPeriod: -1s}\n", "ipvs.minSyncPeriod: is -1s; it must not be negative"),
        ("bindAddress: here\n", "bindAddress: is \"here\"; it must be an IP address"),
        ("healthzBindAddress: '10256'\n", "healthzBindAddress: is \"10256\"; write an address and port"),
        ("metricsBindAddress: '[::1]'\n", "metricsBindAddress: is \"[::1]\""),
        ("metricsBindAddress: localhost:10249\n", "metricsBindAddress: is \"localhost:10249\""),
        ("conntrack: {min: -1}\n", "conntrack.min: is -1"),
        ("conntrack: {udpTimeout: -5s}\n", "conntrack.udpTimeout: is -5s"),
    ];
    for (body, expected) in cases {
        let error = with_proxy(body).expect_err(body);
        assert!(error.contains(expected), "{body:?} gave {error:?}, not {expected:?}");
    }
}

#[test]
fn the_proxy_s_servers_and_the_connection_tracker_follow_the_file() {
    let settings = with_proxy("").expect("defaults");
    let shown = |addr: Option<std::net::SocketAddr>| addr.map(|addr| addr.to_string()).unwrap_or_default();
    let servers = |settings: &Settings| {
        (shown(settings.servers.healthz), shown(settings.servers.metrics), settings.servers.hard_fail)
    };
    assert_eq!(servers(&settings), ("0.0.0.0:10256".into(), "127.0.0.1:10249".into(), false));
    assert_eq!(settings.servers.configz["kind"], "KubeProxyConfiguration");
    let wish = settings.dataplane.conntrack;
    assert_eq!((wish.max_per_core, wish.min, wish.tcp_established_seconds), (32_768, 131_072, 86_400));
    let cases = [
        ("bindAddress: '::'\n", "[::]:10256", "[::1]:10249"),
        ("bindAddress: '::'\nhealthzBindAddress: ''\nmetricsBindAddress: ''\n", "[::]:10256", "[::1]:10249"),
        ("bindAddress: 192.0.2.7\nmetricsBindAddress: 127.0.0.1:0\n", "0.0.0.0:10256", ""),
        ("healthzBindAddress: :0\nmetricsBindAddress: :9\n", "", "[::]:9"),
        (
            "healthzBindAddress: 192.0.2.7\nmetricsBindAddress: 'fd00::7'\n",
            "192.0.2.7:10256",
            "[fd00::7]:10249",
        ),
    ];
    for (body, healthz, metrics) in cases {
        let settings = with_proxy(body).expect(body);
        assert_eq!(servers(&settings), (healthz.into(), metrics.into(), false), "{body}");
        // What is shown and written out means the same when it is read.
        let shown = ["healthzBindAddress", "metricsBindAddress"]
            .map(|name| format!("{name}: '{}'\n", settings.servers.configz[name].as_str().expect("text")));
        let again = with_proxy(&shown.concat()).expect("valid");
        assert_eq!(servers(&again), servers(&settings), "{body}");
    }
    let off =
        load_with(&[], &format!("{ALONE} --roles proxy --healthz-bind-address= --metrics-bind-address="));
    assert_eq!(
        servers(&off.expect("valid")),
        (String::new(), String::new(), false),
        "as flags, empty is off"
    );
    let settings = with_proxy(
        "bindAddress: 192.0.2.7\nbindAddressHardFail: true\niptables: {masqueradeAll: true, minSyncPeriod: 2s}\n\
         conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpBeLiberal: true, udpStreamTimeout: 3m}\n",
    )
    .expect("valid");
    let dataplane = &settings.dataplane;
    assert_eq!(dataplane.bind_address, Some("192.0.2.7".parse().expect("address")));
    assert!(settings.servers.hard_fail && dataplane.conntrack.tcp_be_liberal);
    assert_eq!((dataplane.conntrack.max_per_core, dataplane.conntrack.tcp_established_seconds), (0, 0));
    assert_eq!(dataplane.conntrack.udp_stream_seconds, 180);
    // IPVS mode has no masquerade settings of its own.
    let all = dataplane.tuning;
    let masquerade = [all.nftables, all.ipvs, all.iptables].map(|tuning| tuning.masquerade_all);
    assert_eq!(masquerade, [false, true, true]);
    let min = [all.nftables, all.ipvs, all.iptables].map(|tuning| tuning.min_sync_period);
    assert_eq!(min, [None, None, Some(Duration::from_secs(2))]);
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
}

#[test]
fn kube_proxy_s_file_names_its_own_credentials() {
    let file = [(
        "p.yaml",
        &*format!("{PROXY}clientConnection: {{kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}}\n"),
    )];
    let settings = load_with(&file, "--roles proxy --proxy-config %/p.yaml").expect("as kubeadm starts it");
    let join = settings.join.expect("it joins");
    assert_eq!(join.kubeconfig, Path::new("/var/lib/kube-proxy/kubeconfig.conf"));
    let alone = load_with(&file, &format!("{ALONE} --roles proxy --proxy-config %/p.yaml")).expect("alone");
    assert_eq!(alone.join, None, "--standalone is kept to");
    load_with(&file, "--proxy-config %/p.yaml").expect_err("pods need the kubelet's credentials");
}

#[test]
fn a_flag_of_both_programs_goes_to_the_half_that_runs() {
    let both = load_with(&[], &format!("{ALONE} --oom-score-adj -500")).expect("valid");
    let proxy = load_with(&[], &format!("{ALONE} --roles proxy --oom-score-adj -400 --masquerade-all"));
    let proxy = proxy.expect("valid");
    assert_eq!((both.node.oom_score_adj, proxy.node.oom_score_adj), (-500, -400));
    assert!(proxy.dataplane.tuning.nftables.masquerade_all && proxy.dataplane.tuning.ipvs.masquerade_all);
}

#[test]
fn the_command_line_says_what_is_missing() {
    let cases = [
        ("", "give --kubeconfig FILE to join a control plane, or --standalone --manifests DIR"),
        ("--standalone", "give --manifests DIR"),
        ("--kubeconfig /k --standalone --manifests /m", "leave out one"),
        ("--kubeconfig /k --node-labels kubernetes.io/x=1", "not for a node to give itself"),
        ("--standalone --manifests /m --roles pods", "\"pods\" is no role"),
        ("--standalone --roles proxy", "give --manifests DIR"),
        ("--standalone --manifests /m --roles ,", "names no half of the node"),
        ("--standalone --manifests /m --node-ip 1.2.3.4,5.6.7.8", "one per family"),
        ("--standalone --manifests /m --node-ip host", "\"host\" is not an IP address"),
        ("--standalone --manifests /m --root-dir here", "it must be an absolute path"),
    ];
    for (line, expected) in cases {
        let error = load_with(&[], line).expect_err(line);
        assert!(error.contains(expected), "{line:?} gave {error:?}, not {expected:?}");
    }
    for line in ["--cleanup", "--cleanup --dry-run", "--init-only", "--roles proxy --write-config-to /f"] {
        load_with(&[], line).unwrap_or_else(|error| panic!("{line} needs no source of objects: {error}"));
    }
    let settings = load_with(&[], &format!("{ALONE} --roles node")).expect("pods without Services");
    assert_eq!(settings.roles, Roles { node: true, proxy: false });
    let settings = load_with(&[], &format!("{ALONE} --roles proxy")).expect("Services without pods");
    assert_eq!(settings.roles, Roles { node: false, proxy: true });
    let join = load_with(&[], "--kubeconfig /k --register-node=false").expect("a node joins").join;
    let join = join.expect("it has settings for that");
    assert_eq!((join.register, join.lease_seconds, join.max_images), (false, 40, Some(50)));
    assert_eq!(join.report_every, std::time::Duration::from_secs(300));
    let settings = load_with(&[], &format!("{ALONE} --pod-infra-container-image pause:3"))
        .expect("old unit files start");
    assert_eq!(settings.warnings, ["flag --pod-infra-container-image has no effect"]);
}

proptest::proptest! {
    /// No bytes of a file make the reader panic, and what it refuses it refuses with a place.
    #[test]
    fn any_file_is_survived(body in "[ -~\n]{0,200}") {
        if let Err(error) = with_kubelet(&body) {
            proptest::prop_assert!(error.contains("k.yaml"), "{error}");
        }
    }

    #[test]
    fn any_value_of_any_field_is_survived(field in 0..kubelet::KUBELET_FIELDS.len(), value in "[ -~]{0,20}") {
        let name = kubelet::KUBELET_FIELDS[field].name;
        let _ = with_kubelet(&format!("{name}: {value}\n"));
    }

    #[test]
    fn durations_survive_any_text(text in "\\PC{0,20}") {
        if let Ok(duration) = units::GoDuration::parse(&text) {
            proptest::prop_assert_eq!(units::GoDuration::parse(&duration.to_string()), Ok(duration));
        }
    }
}

/// `kubeadm join` writes the two first files; its package's drop-in starts the kubelet with this line, the
/// last part of which is kubeadm-flags.env's KUBELET_KUBEADM_ARGS and what an admin has added.
#[test]
fn a_node_of_kubeadms_starts_with_its_own_files_and_flags() {
    let config = format!(
        "{KUBELET}authentication: {{x509: {{clientCAFile: /etc/kubernetes/pki/ca.crt}}}}\ncontainerRuntimeEndpoint: \"\"\n\
         rotateCertificates: true\nstaticPodPath: /etc/kubernetes/manifests\n"
    );
    let line = "--roles=node --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf \
                --config=%/config.yaml --container-runtime-endpoint=unix:///run/other.sock --hostname-override=Worker-1 \
                --pod-infra-container-image=registry.k8s.io/pause:3.10 --register-with-taints=a=b:NoSchedule --node-ip=192.0.2.1 --v=2";
    let settings = load_with(&[("config.yaml", &config)], line).expect("as kubeadm's drop-in starts it");
    assert_eq!(settings.roles, Roles { node: true, proxy: false });
    assert_eq!(settings.runtime.endpoint, Path::new("/run/other.sock"));
    assert_eq!(settings.node.name.as_deref(), Some("worker-1"));
    assert_eq!(settings.sources.manifests.as_deref(), Some(Path::new("/etc/kubernetes/manifests")));
    let join = settings.join.expect("it joins");
    assert_eq!(join.kubeconfig, Path::new("/etc/kubernetes/kubelet.conf"));
    assert_eq!(join.taints.len(), 1);
    let expected = CertificateSettings {
        bootstrap: Some("/etc/kubernetes/bootstrap-kubelet.conf".into()),
        folder: "/var/lib/kubelet/pki".into(),
        rotate: true,
        serving: false,
    };
    assert_eq!(join.certificates, expected);
}
