//! How a node finds its cluster with a bootstrap token, as `kubeadm join` does (KEP-130): what people type,
//! what `cluster-info` has to say before it is believed, and which files follow from it. No effects.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::certificates::x509::key_hashes;

/// Where API servers listen unless told otherwise.
pub const DEFAULT_PORT: u16 = 6443;

/// A bootstrap token: `abcdef.0123456789abcdef`. Never shown whole.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    id: String,
    secret: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Token {
    /// # Errors
    /// What is expected instead; never quotes the text, which is a secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let plain = |part: &str, length: usize| {
            part.len() == length && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        match text.split_once('.') {
            Some((id, secret)) if plain(id, 6) && plain(secret, 16) => {
                Ok(Self { id: id.to_owned(), secret: secret.to_owned() })
            }
            _ => Err("is not a bootstrap token: 6 small letters or digits, a dot, 16 more; \
                 `kubeadm token create` prints one"
                .to_owned()),
        }
    }

    /// Its public half.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// As a bearer token.
    pub fn whole(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }
}

/// SHA-256 of a certificate authority's public key: `sha256:HEX`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl Pin {
    /// # Errors
    /// What is expected instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not sha256:HEX with 64 digits");
        // Rust reads a sign as part of a number.
        let plain = |digits: &&str| digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        let digits = text.strip_prefix("sha256:").filter(plain);
        let digits = digits.ok_or_else(wrong)?;
        let mut bytes = [0; 32];
        for (place, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * place..2 * place + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// `HOST[:PORT]` of an API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Without brackets.
    pub host: String,
    pub port: u16,
}

impl Endpoint {
    /// # Errors
    /// What is expected instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{text:?} {why}; write it like 192.0.2.1:6443 or [2001:db8::1]:6443");
        let port = |port: &str| match port.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(wrong("has no port between 1 and 65535")),
        };
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(|| wrong("lacks a closing bracket"))?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong("has no IPv6 address in its brackets"))?;
            match rest.strip_prefix(':') {
                Some(digits) => (host, port(digits)?),
                None if rest.is_empty() => (host, DEFAULT_PORT),
                None => return Err(wrong("is not understood")),
            }
        } else if text.parse::<std::net::Ipv6Addr>().is_ok() {
            (text, DEFAULT_PORT)
        } else {
            match text.split_once(':') {
                Some((host, digits)) => (host, port(digits)?),
                None => (text, DEFAULT_PORT),
            }
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || !host.chars().all(plain) {
            return Err(wrong("is not a host name or address"));
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

/// How the server is known to be the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Its authority has one of these keys.
    Pins(Vec<Pin>),
    /// Whoever knows the token counts (`--discovery-token-unsafe-skip-ca-verification`).
    TokenOnly,
}

impl Trust {
    /// # Errors
    /// Where neither is given: a token alone is no proof unless somebody says so.
    pub fn new(pins: &[String], unsafe_skip: bool) -> Result<Self, String> {
        match (pins.is_empty(), unsafe_skip) {
            (false, _) => pins.iter().map(|pin| Pin::parse(pin)).collect::<Result<_, _>>().map(Self::Pins),
            (true, true) => Ok(Self::TokenOnly),
            (true, false) => Err("is missing: `kubeadm token create --print-join-command` prints it; \
                 --discovery-token-unsafe-skip-ca-verification does without, and trusts whoever answers \
                 and knows the token"
                .to_owned()),
        }
    }

    /// Whether an authority, PEM, is the one that is meant.
    ///
    /// # Errors
    /// Which keys it has instead.
    pub fn check(&self, authority: &[u8]) -> Result<(), String> {
        let found: Vec<Pin> = key_hashes(authority)?.into_iter().map(Pin).collect();
        if found.is_empty() {
            return Err("holds no certificate in PEM form".into());
        }
        match self {
            Self::TokenOnly => Ok(()),
            Self::Pins(pins) if found.iter().any(|pin| pins.contains(pin)) => Ok(()),
            Self::Pins(_) => {
                let found: Vec<String> = found.iter().map(ToString::to_string).collect();
                Err(format!("has the key {}, which is none of the given", found.join(" and ")))
            }
        }
    }
}

/// The parts of a detached JWS (RFC 7515, appendix F): header, and signature over header, dot, payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detached<'a> {
    pub header: &'a str,
    pub signature: &'a str,
}

/// # Errors
/// Where it is none.
pub fn detached(jws: &str) -> Result<Detached<'_>, String> {
    let parts: Vec<&str> = jws.split('.').collect();
    match parts[..] {
        [header, "", signature] if !header.is_empty() && !signature.is_empty() => {
            Ok(Detached { header, signature })
        }
        _ => Err("is no detached JWS".into()),
    }
}

/// Whether a JWS's header, decoded, says what a bootstrap signer's does: no other method counts, or a
/// forger could choose none.
///
/// # Errors
/// What it says instead.
pub fn check_header(header: &[u8], token: &Token) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Header {
        alg: String,
        kid: String,
    }
    let header: Header =
        serde_json::from_slice(header).map_err(|error| format!("has a broken header: {error}"))?;
    if header.alg != "HS256" {
        return Err(format!("is made by {:?}; only HS256 counts", header.alg));
    }
    if header.kid != token.id {
        return Err(format!("is made with token {:?}, not {:?}", header.kid, token.id));
    }
    Ok(())
}

/// What joining is to leave on the disk.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinFile {
    pub path: PathBuf,
    pub mode: u32,
    pub text: String,
    /// What it is, in a few words.
    pub what: &'static str,
}

impl fmt::Debug for JoinFile {
    /// Never the text: it may hold the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Where joining writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinFolders {
    /// `/etc/kubernetes`.
    pub kubernetes: PathBuf,
    /// `/var/lib/kubelet`.
    pub root: PathBuf,
}

impl JoinFolders {
    pub fn bootstrap(&self) -> PathBuf {
        self.kubernetes.join("bootstrap-kubelet.conf")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.kubernetes.join("kubelet.conf")
    }

    pub fn authority(&self) -> PathBuf {
        self.kubernetes.join("pki/ca.crt")
    }

    pub fn config(&self) -> PathBuf {
        self.root.join("config.yaml")
    }

    /// Flags of the daemon; the unit reads it.
    pub fn environment(&self) -> PathBuf {
        self.root.join("longshore.env")
    }
}

/// What the cluster told and the user wished.
#[derive(Clone, Debug)]
pub struct JoinPlan<'a> {
    pub folders: &'a JoinFolders,
    /// PEM.
    pub authority: &'a str,
    /// Text of the bootstrap kubeconfig.
    pub bootstrap: &'a str,
    /// The cluster's KubeletConfiguration; `None` where the token may not read it.
    pub config: Option<&'a str>,
    pub node_name: Option<&'a str>,
    pub cri_socket: Option<&'a str>,
}

/// The files of a node that has joined.
pub fn join_files(plan: &JoinPlan<'_>) -> Vec<JoinFile> {
    let folders = plan.folders;
    let file = |path: PathBuf, mode, text: String, what| JoinFile { path, mode, text, what };
    let config = plan.config.map_or_else(|| default_config(folders), with_final_newline);
    vec![
        file(folders.authority(), 0o644, with_final_newline(plan.authority), "the cluster's authority"),
        file(folders.config(), 0o644, config, "the kubelet's configuration"),
        file(folders.environment(), 0o644, environment(plan), "the daemon's flags"),
        file(
            folders.bootstrap(),
            0o600,
            plan.bootstrap.to_owned(),
            "the credential for the first certificate",
        ),
    ]
}

/// Files that show that this node has joined a cluster already.
pub fn signs_of_a_node(folders: &JoinFolders) -> Vec<PathBuf> {
    vec![folders.kubeconfig(), folders.root.join("pki/kubelet-client-current.pem")]
}

fn with_final_newline(text: &str) -> String {
    format!("{}\n", text.trim_end_matches('\n'))
}

/// As kubeadm configures a node, without what only the cluster's own configuration knows.
fn default_config(folders: &JoinFolders) -> String {
    let quoted = |path: &Path| serde_json::Value::from(path.display().to_string()).to_string();
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         authentication:\n  anonymous: {{enabled: false}}\n  webhook: {{enabled: true}}\n  x509: {{clientCAFile: {}}}\n\
         authorization: {{mode: Webhook}}\nrotateCertificates: true\nstaticPodPath: {}\n",
        quoted(&folders.authority()),
        quoted(&folders.kubernetes.join("manifests")),
    )
}

fn environment(plan: &JoinPlan<'_>) -> String {
    let folders = plan.folders;
    let mut flags = vec![
        format!("--bootstrap-kubeconfig={}", folders.bootstrap().display()),
        format!("--kubeconfig={}", folders.kubeconfig().display()),
        format!("--config={}", folders.config().display()),
        format!("--root-dir={}", folders.root.display()),
        format!("--cert-dir={}", folders.root.join("pki").display()),
    ];
    flags.extend(plan.node_name.map(|name| format!("--hostname-override={name}")));
    flags.extend(plan.cri_socket.map(|socket| format!("--container-runtime-endpoint={socket}")));
    format!("# Written by `longshore join`; read by longshore.service.\nLONGSHORE_ARGS={}\n", flags.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type_is_read_or_mended() {
        let token = Token::parse("abcdef.0123456789abcdef").unwrap();
        assert_eq!((token.id(), token.secret()), ("abcdef", "0123456789abcdef"));
        assert!(!format!("{token:?}").contains("0123456789"));
        for text in [
            "",
            "abcdef",
            "abcdef.",
            "ABCDEF.0123456789abcdef",
            "abcdef.0123456789abcdef0",
            "abcde.f0123456789abcdef",
        ] {
            let error = Token::parse(text).unwrap_err();
            assert!(
                error.contains("kubeadm token create") && (text.len() < 8 || !error.contains(text)),
                "{error}"
            );
        }
        let pin = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(Pin::parse(&pin).unwrap().to_string(), pin);
        for text in [
            "",
            "0a",
            "sha256:0a",
            &format!("sha1:{}", "0a".repeat(32)),
            &format!("sha256:{}", "zz".repeat(32)),
            &format!("sha256:{}", "+a".repeat(32)),
            &format!("sha256:{}", "é".repeat(32)),
        ] {
            assert!(Pin::parse(text).is_err(), "{text}");
        }
        let good = [
            ("192.0.2.1", "192.0.2.1", 6443),
            ("192.0.2.1:443", "192.0.2.1", 443),
            ("api.example.org:6443", "api.example.org", 6443),
            ("[2001:db8::1]:8443", "2001:db8::1", 8443),
            ("[2001:db8::1]", "2001:db8::1", 6443),
            ("2001:db8::1", "2001:db8::1", 6443),
        ];
        for (text, host, port) in good {
            assert_eq!(Endpoint::parse(text).unwrap(), Endpoint { host: host.into(), port }, "{text}");
        }
        for text in ["", ":6443", "a:0", "a:99999", "a:b", "https://a:6443", "[::1", "[::1]x", "a b", "a/b"] {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_authority_is_known_by_its_key() {
        let authority = include_bytes!("certificates/example.pem");
        let pin = Pin(key_hashes(authority).unwrap()[0]).to_string();
        let trust = |pins: &[&str], skip| {
            Trust::new(&pins.iter().map(|pin| (*pin).to_owned()).collect::<Vec<_>>(), skip)
        };
        let other = format!("sha256:{}", "00".repeat(32));
        assert_eq!(trust(&[&other, &pin], false).unwrap().check(authority), Ok(()));
        let error = trust(&[&other], false).unwrap().check(authority).unwrap_err();
        assert!(error.contains(&pin) && error.contains("none of the given"), "{error}");
        assert_eq!(trust(&[], true).unwrap().check(authority), Ok(()));
        assert!(trust(&[], true).unwrap().check(b"").is_err());
        assert!(trust(&[], false).unwrap_err().contains("--discovery-token-unsafe-skip-ca-verification"));
        // A pin that is given counts, whatever else is said.
        assert!(trust(&[&other], true).unwrap().check(authority).is_err());
    }

    #[test]
    fn only_the_signers_own_method_counts() {
        let token = Token::parse("abcdef.0123456789abcdef").unwrap();
        assert_eq!(detached("aa..bb"), Ok(Detached { header: "aa", signature: "bb" }));
        for text in ["", "aa.bb.cc", "aa..", "..bb", "aa", "a..b..c"] {
            assert!(detached(text).is_err(), "{text}");
        }
        let cases = [
            (r#"{"alg":"HS256","kid":"abcdef"}"#, None),
            (r#"{"alg":"none","kid":"abcdef"}"#, Some("only HS256")),
            (r#"{"alg":"HS256","kid":"other1"}"#, Some("not \"abcdef\"")),
            ("[]", Some("broken header")),
        ];
        for (header, expected) in cases {
            let got = check_header(header.as_bytes(), &token);
            match expected {
                None => assert_eq!(got, Ok(())),
                Some(part) => assert!(got.clone().unwrap_err().contains(part), "{got:?}"),
            }
        }
    }

    #[test]
    fn a_joined_node_has_kubeadms_files() {
        let folders = JoinFolders { kubernetes: "/etc/kubernetes".into(), root: "/var/lib/kubelet".into() };
        let plan = JoinPlan {
            folders: &folders,
            authority: "CA",
            bootstrap: "B\n",
            config: Some("kind: KubeletConfiguration"),
            node_name: Some("worker-1"),
            cri_socket: None,
        };
        let files = join_files(&plan);
        let shown: Vec<String> = files
            .iter()
            .map(|file| format!("{:o} {} {}", file.mode, file.path.display(), file.text.len()))
            .collect();
        assert_eq!(shown[0], "644 /etc/kubernetes/pki/ca.crt 3");
        assert_eq!(shown[1], "644 /var/lib/kubelet/config.yaml 27");
        assert!(shown[2].starts_with("644 /var/lib/kubelet/longshore.env"));
        assert_eq!(shown[3], "600 /etc/kubernetes/bootstrap-kubelet.conf 2");
        assert!(files[2].text.contains(
            "LONGSHORE_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
             --kubeconfig=/etc/kubernetes/kubelet.conf --config=/var/lib/kubelet/config.yaml"
        ));
        assert!(files[2].text.ends_with("--hostname-override=worker-1\n"), "{}", files[2].text);
        let without = join_files(&JoinPlan { config: None, ..plan });
        assert!(
            without[1].text.contains("clientCAFile: \"/etc/kubernetes/pki/ca.crt\""),
            "{}",
            without[1].text
        );
        assert!(!format!("{files:?}").contains("CA\n"));
    }
}
