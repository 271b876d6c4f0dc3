//! The rules of the kubelet's own API: addresses, TLS, who may call and what they may do. Pure, as `rules`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::args::AgentArgs;
use super::cipher_suites;
use super::kubelet::{API_VERSION, KIND, KubeletConfiguration};
use super::rules::Rules;
use super::settings::{CallerRules, JoinSettings, KubeletServer, RightsRules, ServerTls};

pub(super) fn server(
    args: &AgentArgs,
    config: &KubeletConfiguration,
    join: Option<&JoinSettings>,
    rules: &mut Rules<'_>,
) -> KubeletServer {
    let signed = join.is_some_and(|join| join.certificates.serving);
    let addr = |path: &str, text: &str, rules: &mut Rules<'_>| {
        let parsed = text.parse::<IpAddr>().map_err(|_| format!("is {text:?}; it must be an IP address"));
        rules.parsed(path, parsed)
    };
    let address = addr("address", &config.address, rules);
    let at = |address: Option<IpAddr>, port: i32| {
        let port = u16::try_from(port).ok().filter(|port| *port > 0)?;
        Some(SocketAddr::new(address?, port))
    };
    let healthz = addr("healthzBindAddress", &config.healthz_bind_address, rules);
    let serves = config.enable_server.unwrap_or(true);
    let node_logs = config.enable_system_log_handler.unwrap_or(true);
    let node_log_queries = config.enable_system_log_query.unwrap_or(false);
    rules.check(
        node_logs || !node_log_queries,
        "enableSystemLogQuery",
        "is without effect where enableSystemLogHandler is false; turn that on, or the queries off",
    );
    KubeletServer {
        https: at(address, config.port).filter(|_| serves),
        read_only: at(address, config.read_only_port).filter(|_| serves),
        healthz: at(healthz, config.healthz_port.unwrap_or(10248)),
        tls: tls(args, config, signed, rules),
        callers: callers(config, rules),
        rights: rights(config, rules),
        debugging: config.enable_debugging_handlers.unwrap_or(true),
        profiling: config.enable_profiling_handler.unwrap_or(true),
        node_logs,
        node_log_queries,
        configz: shown(config),
        flags: flags(args),
    }
}

/// `signed`: the control plane signs the serving certificate.
fn tls(args: &AgentArgs, config: &KubeletConfiguration, signed: bool, rules: &mut Rules<'_>) -> ServerTls {
    let (certificate, key) = (&config.tls_cert_file, &config.tls_private_key_file);
    rules.check(
        certificate.is_empty() == key.is_empty(),
        "tlsCertFile",
        "and tlsPrivateKeyFile belong together; give both or neither",
    );
    let version = config.tls_min_version.as_str();
    let versions = ["", "VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13"];
    rules.one_of("tlsMinVersion", version, &versions);
    let given = !certificate.is_empty();
    if given && signed {
        // One certificate is shown, and the kubelet too shows the signed one.
        rules.warn("tlsCertFile", "has no effect beside serverTLSBootstrap: true; leave out one of them");
    }
    ServerTls {
        files: (given && !signed).then(|| (PathBuf::from(certificate), PathBuf::from(key))),
        folder: args.cert_dir.clone(),
        cipher_suites: cipher_suites(&config.tls_cipher_suites, rules),
        only_tls13: version == "VersionTLS13",
    }
}

fn cipher_suites(given: &[String], rules: &mut Rules<'_>) -> Vec<&'static str> {
    let path = "tlsCipherSuites";
    let choice = cipher_suites::choice(given);
    for word in &choice.unknown {
        let accepted = cipher_suites::accepted();
        rules.fail(path, format!("holds {word:?}, which is no cipher suite; it may hold {accepted}"));
    }
    if !choice.absent.is_empty() {
        let left = if choice.chosen.is_empty() { "; clients have to speak TLS 1.3 then" } else { "" };
        let absent = choice.absent.join(", ");
        rules.warn(path, format!("holds {absent}, which this server does not speak{left}"));
    }
    choice.chosen
}

fn callers(config: &KubeletConfiguration, rules: &mut Rules<'_>) -> CallerRules {
    let authentication = &config.authentication;
    let file = authentication.x509.client_ca_file.as_str();
    let ttl = rules.not_negative("authentication.webhook.cacheTTL", authentication.webhook.cache_ttl);
    CallerRules {
        client_ca: (!file.is_empty()).then(|| PathBuf::from(file)),
        token_ttl: authentication.webhook.enabled.then_some(ttl),
        anonymous: authentication.anonymous.enabled,
    }
}

fn rights(config: &KubeletConfiguration, rules: &mut Rules<'_>) -> RightsRules {
    let authorization = &config.authorization;
    rules.one_of("authorization.mode", &authorization.mode, &["AlwaysAllow", "Webhook"]);
    let webhook = &authorization.webhook;
    let path = "authorization.webhook.cacheAuthorizedTTL";
    let allowed_ttl = rules.not_negative(path, webhook.cache_authorized_ttl);
    let path = "authorization.webhook.cacheUnauthorizedTTL";
    let denied_ttl = rules.not_negative(path, webhook.cache_unauthorized_ttl);
    match authorization.mode.as_str() {
        "AlwaysAllow" => RightsRules::AlwaysAllow,
        _ => RightsRules::Webhook { allowed_ttl, denied_ttl },
    }
}

fn shown(config: &KubeletConfiguration) -> serde_json::Value {
    let mut shown = serde_json::to_value(config).unwrap_or_default();
    if let Some(fields) = shown.as_object_mut() {
        fields.insert("kind".to_owned(), KIND.into());
        fields.insert("apiVersion".to_owned(), API_VERSION.into());
        // May hold credentials of a server of manifests.
        fields.remove("staticPodURLHeader");
    }
    shown
}

fn flags(args: &AgentArgs) -> String {
    let line = |(flag, texts): &(&super::Flag, Vec<String>)| match flag.name {
        "manifest-url-header" => format!("{}=...\n", flag.name),
        name => format!("{name}={}\n", texts.join(",")),
    };
    args.fields.0.iter().map(line).collect()
}
