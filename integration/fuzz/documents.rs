//! What people write: manifests, configuration, quantities, addresses.

use bolero::check;
use longshore_agent::{document, sources};
use longshore_core::image::{docker_config, keyring, provider, reference};
use longshore_core::resources::quantity::Amount;
use longshore_core::{bootstrap, certificates};

/// Random bytes rarely are YAML; cutting and joining real manifests is.
const SEEDS: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: default}\nspec:\n  containers:\n  - name: web\n    image: web:1\n    resources: {limits: {cpu: 100m, memory: 64Mi}}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: web}\n  ports: [{port: 80, targetPort: http, nodePort: 30080}]\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: aGVsbG8=}\n---\nkind: List\napiVersion: v1\nitems: [{kind: ConfigMap, apiVersion: v1, metadata: {name: c}, data: {k: v}}]\n";

/// What means something to YAML.
const INDICATORS: &[u8] = b"{}[]:-&*|>'\"\n\t #!%@`,?";

const KUBECONFIG: &str = "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts:\n- name: a\n  context: {cluster: c, user: u}\nclusters:\n- name: c\n  cluster:\n    server: https://[fd00::1]:6443/base\n    certificate-authority-data: Q0E=\nusers:\n- name: u\n  user:\n    client-certificate: pki/a.pem\n    client-key-data: hush\n";

/// The seed with pieces cut out, doubled and overwritten as `bytes` say.
fn mutated(seed: &str, bytes: &[u8]) -> String {
    let mut text = seed.as_bytes().to_vec();
    for edit in bytes.chunks_exact(4).take(32) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % text.len();
        let end = (at + usize::from(edit[3] % 40)).min(text.len());
        match edit[2] % 4 {
            0 => text[at] = edit[3],
            1 => drop(text.drain(at..end)),
            2 => {
                let piece = text[at..end].to_vec();
                text.splice(at..at, piece);
            }
            _ => text.insert(at, INDICATORS[usize::from(edit[3]) % INDICATORS.len()]),
        }
        if text.is_empty() {
            break;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

const CERTIFICATE: &str = include_str!("../../src/core/src/certificates/example.pem");

#[test]
fn certificates_with_damage() {
    check!().for_each(|bytes: &[u8]| {
        let text = mutated(CERTIFICATE, bytes);
        let whole = certificates::read_certificate(text.as_bytes());
        if let Err(error) = &whole {
            assert!(!error.is_empty() && error.len() < 4096, "{error}");
        }
        let keys = certificates::x509::key_hashes(text.as_bytes());
        // What is read as a certificate has a key to be known by, unless what follows it is damaged.
        if let (Ok(facts), Ok(keys)) = (whole, keys) {
            assert_eq!(keys.first(), Some(&facts.key_hash));
        }
    });
}

#[test]
fn words_of_a_join_of_any_bytes() {
    check!().for_each(|bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(endpoint) = bootstrap::Endpoint::parse(&text) {
            assert!(endpoint.port > 0 && !endpoint.host.contains(['/', '[', ']']), "{endpoint:?}");
        }
        if let Ok(pin) = bootstrap::Pin::parse(&text) {
            assert_eq!(pin.to_string(), text.to_lowercase());
        }
        if let Ok(token) = bootstrap::Token::parse(&text) {
            assert_eq!(token.whole(), text);
        }
        if let Ok(parts) = bootstrap::detached(&text) {
            assert_eq!(format!("{}..{}", parts.header, parts.signature), text);
        }
    });
}

const DOCKER_CONFIG: &str = "{\"auths\": {\"https://r.io/v1/\": {\"auth\": \"dTpodXNo\"}, \"*.r.io:5000/a\": {\"username\": \"u\", \"password\": \"hush\"}}}";

#[test]
fn registry_credentials_with_damage() {
    check!().for_each(|bytes: &[u8]| {
        let plain = String::from_utf8_lossy(bytes).into_owned();
        let repository = reference::repository(&plain);
        assert!(repository.contains('/'), "{repository}");
        for text in [mutated(DOCKER_CONFIG, bytes), plain.clone()] {
            for format in [docker_config::Format::ConfigJson, docker_config::Format::Dockercfg] {
                match docker_config::read(format, text.as_bytes()) {
                    Ok(keyring) => {
                        assert!(keyring.fitting(&repository).len() <= 16);
                        assert!(!format!("{keyring:?}").contains("hush"), "a password is shown");
                    }
                    Err(fault) => assert!(!fault.to_string().is_empty()),
                }
            }
        }
        // A pattern of any bytes ends in time.
        keyring::covers(&plain, &repository);
    });
}

const PROVIDED: &str = "{\"kind\": \"CredentialProviderResponse\", \"apiVersion\": \"credentialprovider.kubelet.k8s.io/v1\", \"cacheKeyType\": \"Registry\", \"cacheDuration\": \"1h0m5s\", \"auth\": {\"*.r.io\": {\"username\": \"u\", \"password\": \"hush\"}}}";

#[test]
fn answers_of_credential_providers_with_damage() {
    check!().for_each(|bytes: &[u8]| {
        let text = mutated(PROVIDED, bytes);
        match provider::answer(provider::VERSIONS[0], text.as_bytes()) {
            Ok(answer) => {
                let mut cache = provider::Cache::default();
                let now = std::time::Duration::from_secs(1);
                cache.put(("a.r.io/web", ""), &answer, now, now);
                let kept = cache.get("a.r.io/web", "", now);
                assert_eq!(kept.is_some(), answer.keep.is_none_or(|keep| !keep.is_zero()));
            }
            Err(fault) => assert!(!fault.to_string().contains("hush"), "{fault}"),
        }
    });
}

fn read_everything(text: &str) {
    match document::parse("fuzz.yaml", text) {
        Ok(nodes) => {
            for node in &nodes {
                for fault in sources::object::read_document(node).into_iter().filter_map(Result::err) {
                    assert!(!format!("{fault:?}").is_empty());
                }
            }
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "an error is one line: {error}"),
    }
}

#[test]
fn manifests_of_any_bytes() {
    check!().for_each(|bytes: &[u8]| read_everything(&String::from_utf8_lossy(bytes)));
}

#[test]
fn manifests_with_damage() {
    check!().for_each(|bytes: &[u8]| read_everything(&mutated(SEEDS, bytes)));
}

#[test]
fn kubeconfigs_with_damage() {
    let path = std::path::Path::new("/etc/fuzz.conf");
    check!().for_each(|bytes: &[u8]| {
        for text in [mutated(KUBECONFIG, bytes), String::from_utf8_lossy(bytes).into_owned()] {
            match longshore_cluster::Kubeconfig::parse(path, &text) {
                Ok(config) => {
                    assert!(!config.host.is_empty() && !config.base.ends_with('/'));
                    assert!(!format!("{config:?}").contains("hush"), "a key is shown");
                }
                Err(error) => assert!(error.to_string().contains("fuzz.conf"), "{error}"),
            }
        }
    });
}

#[test]
fn quantities_read_back() {
    check!().for_each(|bytes: &[u8]| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        if let Ok(quantity) = Amount::parse(text) {
            let again = Amount::parse(text).expect("parsing does not depend on what went before");
            assert_eq!((quantity.value(), quantity.milli_value()), (again.value(), again.milli_value()));
        }
    });
}

#[test]
fn quantities_from_their_alphabet() {
    const ALPHABET: &[u8] = b"0123456789.+-eEmunkKMGTPi ";
    check!().for_each(|bytes: &[u8]| {
        let text: String = bytes
            .iter()
            .take(40)
            .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
            .collect();
        if let Ok(quantity) = Amount::parse(&text) {
            // Both round away from zero, so a thousandth never says less than the whole.
            assert!(
                i128::from(quantity.milli_value()).abs()
                    >= i128::from(quantity.value()).abs().saturating_sub(1)
            );
        }
    });
}
