//! A kubeconfig file (client-go `clientcmd/api/v1`): which server to call and with which credentials.
//! Text in, values out; files it names are read by `credentials`, at every connection anew.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// Larger files are refused, bytes.
pub const MAX_BYTES: usize = 1 << 20;

/// What is wrong with a kubeconfig, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    #[error("cannot read kubeconfig {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("kubeconfig {} is larger than {MAX_BYTES} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("kubeconfig {}: {message}", path.display())]
    Syntax { path: PathBuf, message: String },
    #[error("kubeconfig {}: {field}: {message}", path.display())]
    Field { path: PathBuf, field: String, message: String },
}

/// PEM text in the file itself, or the file that holds it.
#[derive(Clone, PartialEq, Eq)]
pub enum Source {
    Inline(Vec<u8>),
    File(PathBuf),
}

impl std::fmt::Debug for Source {
    /// Never the content: it may be a key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline(_) => f.write_str("Inline(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// How the node says who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// A client certificate and its key.
    Certificate { certificate: Source, key: Source },
    /// A bearer token.
    Token(Source),
}

/// The server and credentials of the current context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubeconfig {
    /// Host name or address, without brackets.
    pub host: String,
    pub port: u16,
    /// Path before `/api`, without a final slash; mostly empty.
    pub base: String,
    /// The name the server's certificate has to have, where it is not the host.
    pub tls_server_name: Option<String>,
    pub authority: Source,
    pub login: Login,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    kind: Option<String>,
    #[serde(rename = "current-context")]
    current_context: Option<String>,
    clusters: Option<Vec<NamedCluster>>,
    users: Option<Vec<NamedUser>>,
    contexts: Option<Vec<NamedContext>>,
}

#[derive(Debug, Deserialize)]
struct NamedCluster {
    name: String,
    #[serde(default)]
    cluster: Cluster,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: Option<String>,
    tls_server_name: Option<String>,
    insecure_skip_tls_verify: Option<bool>,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Debug, Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default)]
    user: User,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    exec: Option<serde_json::Value>,
    username: Option<String>,
}

#[derive(Debug, Deserialize)]
struct NamedContext {
    name: String,
    #[serde(default)]
    context: Context,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

impl Kubeconfig {
    /// Reads a file.
    ///
    /// # Errors
    /// Names the file, the field, what is wrong with it and what to do.
    pub fn read(path: &Path) -> Result<Self, KubeconfigError> {
        let read = |source| KubeconfigError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(read)?.len() > MAX_BYTES as u64 {
            return Err(KubeconfigError::TooLarge { path: path.to_owned() });
        }
        Self::parse(path, &std::fs::read_to_string(path).map_err(read)?)
    }

    /// Reads a text; paths in it are relative to the folder of `path`, as client-go has them.
    ///
    /// # Errors
    /// As [`Kubeconfig::read`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, KubeconfigError> {
        if text.len() > MAX_BYTES {
            return Err(KubeconfigError::TooLarge { path: path.to_owned() });
        }
        let file: File = serde_saphyr::from_str(text).map_err(|error| KubeconfigError::Syntax {
            path: path.to_owned(),
            message: first_line(&error.to_string()),
        })?;
        Reader { path }.config(file)
    }

    /// `HOST:PORT`, with brackets where the host is an IPv6 address.
    pub fn authority_text(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// The parser quotes the lines around a mistake, and one of them may hold a token.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

struct Reader<'a> {
    path: &'a Path,
}

impl Reader<'_> {
    fn wrong(&self, field: impl Into<String>, message: impl Into<String>) -> KubeconfigError {
        KubeconfigError::Field { path: self.path.to_owned(), field: field.into(), message: message.into() }
    }

    fn config(&self, file: File) -> Result<Kubeconfig, KubeconfigError> {
        if let Some(kind) = file.kind.as_deref().filter(|kind| *kind != "Config") {
            return Err(self.wrong("kind", format!("is {kind:?}; a kubeconfig has Config")));
        }
        let mut contexts = file.contexts.unwrap_or_default();
        let wanted = file.current_context.unwrap_or_default();
        let place = contexts.iter().position(|context| context.name == wanted);
        let Some(place) = place else {
            return Err(
                self.wrong("current-context", format!("is {wanted:?}, and there is no context of that name"))
            );
        };
        let context = contexts.swap_remove(place);
        let field = format!("contexts[{}].context", context.name);
        let clusters = file.clusters.unwrap_or_default();
        let cluster = clusters.into_iter().find(|cluster| cluster.name == context.context.cluster);
        let cluster = cluster.ok_or_else(|| {
            self.wrong(
                format!("{field}.cluster"),
                format!("is {:?}, and there is no cluster of that name", context.context.cluster),
            )
        })?;
        let users = file.users.unwrap_or_default();
        let user = users.into_iter().find(|user| user.name == context.context.user);
        let user = user.ok_or_else(|| {
            self.wrong(
                format!("{field}.user"),
                format!("is {:?}, and there is no user of that name", context.context.user),
            )
        })?;
        let (host, port, base) = self.server(&cluster)?;
        Ok(Kubeconfig {
            host,
            port,
            base,
            authority: self.authority(&cluster)?,
            tls_server_name: cluster.cluster.tls_server_name.filter(|name| !name.is_empty()),
            login: self.login(&user.name, user.user)?,
        })
    }

    fn server(&self, named: &NamedCluster) -> Result<(String, u16, String), KubeconfigError> {
        let field = format!("clusters[{}].cluster.server", named.name);
        let text = named.cluster.server.as_deref().unwrap_or_default();
        let wrong = |message: &str| self.wrong(field.clone(), format!("is {text:?}; {message}"));
        let uri: http::Uri =
            text.parse().map_err(|_| wrong("write it like https://apiserver.example:6443"))?;
        if uri.scheme_str() != Some("https") {
            return Err(wrong("it must begin with https://"));
        }
        if uri.query().is_some() {
            return Err(wrong("it must have no query"));
        }
        if named.cluster.proxy_url.as_deref().is_some_and(|url| !url.is_empty()) {
            let field = format!("clusters[{}].cluster.proxy-url", named.name);
            return Err(self.wrong(field, "proxies are not spoken; give the server's own address"));
        }
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(wrong("it has no host"));
        }
        Ok((host, uri.port_u16().unwrap_or(443), uri.path().trim_end_matches('/').to_owned()))
    }

    fn authority(&self, named: &NamedCluster) -> Result<Source, KubeconfigError> {
        let field = |name: &str| format!("clusters[{}].cluster.{name}", named.name);
        let cluster = &named.cluster;
        if cluster.insecure_skip_tls_verify == Some(true) {
            return Err(self.wrong(
                field("insecure-skip-tls-verify"),
                "is true; a node does not talk to a server it cannot tell from another: give \
                 certificate-authority",
            ));
        }
        let data = &cluster.certificate_authority_data;
        match self.source(&field("certificate-authority-data"), data, &cluster.certificate_authority)? {
            Some(source) => Ok(source),
            None => Err(self.wrong(
                field("certificate-authority"),
                "is missing; give the file of the cluster's CA certificate, or certificate-authority-data",
            )),
        }
    }

    fn login(&self, name: &str, user: User) -> Result<Login, KubeconfigError> {
        let field = |part: &str| format!("users[{name}].user.{part}");
        let data = &user.client_certificate_data;
        let certificate = self.source(&field("client-certificate-data"), data, &user.client_certificate)?;
        let key = self.source(&field("client-key-data"), &user.client_key_data, &user.client_key)?;
        match (certificate, key) {
            (Some(certificate), Some(key)) => return Ok(Login::Certificate { certificate, key }),
            (Some(_), None) => {
                return Err(self.wrong(field("client-key"), "is missing beside the certificate"));
            }
            (None, Some(_)) => {
                return Err(self.wrong(field("client-certificate"), "is missing beside the key"));
            }
            (None, None) => {}
        }
        // The file wins, as in client-go.
        if let Some(file) = user.token_file {
            return Ok(Login::Token(Source::File(self.beside(&file))));
        }
        if let Some(token) = user.token.filter(|token| !token.is_empty()) {
            return Ok(Login::Token(Source::Inline(token.into_bytes())));
        }
        let message = if user.exec.is_some() {
            "is not run by a node; give client-certificate and client-key, or tokenFile"
        } else if user.username.is_some() {
            "is not taken by any API server since 1.19; give client-certificate and client-key"
        } else {
            "has no credentials; give client-certificate and client-key, or tokenFile"
        };
        let part = if user.exec.is_some() { ".exec" } else { "" };
        Err(self.wrong(format!("users[{name}].user{part}"), message))
    }

    /// Data wins over a file, as in client-go.
    fn source(
        &self,
        field: &str,
        data: &Option<String>,
        file: &Option<PathBuf>,
    ) -> Result<Option<Source>, KubeconfigError> {
        if let Some(data) = data.as_deref().filter(|data| !data.is_empty()) {
            let packed: String = data.chars().filter(|c| !c.is_ascii_whitespace()).collect();
            let bytes = STANDARD.decode(packed).map_err(|_| self.wrong(field, "is not base64"))?;
            return Ok(Some(Source::Inline(bytes)));
        }
        let file = file.as_deref().filter(|file| !file.as_os_str().is_empty());
        Ok(file.map(|file| Source::File(self.beside(file))))
    }

    fn beside(&self, file: &Path) -> PathBuf {
        match self.path.parent() {
            Some(folder) => folder.join(file),
            None => file.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
apiVersion: v1
kind: Config
current-context: here
contexts:
- {name: other, context: {cluster: x, user: y}}
- {name: here, context: {cluster: c, user: node}}
clusters:
- name: c
  cluster: {server: 'https://[fd00::1]:6443/base/', certificate-authority-data: Q0E=, tls-server-name: api}
users:
- name: node
  user: {client-certificate: pki/current.pem, client-key: /abs/current.pem}
";

    fn parse(text: &str) -> Result<Kubeconfig, String> {
        Kubeconfig::parse(Path::new("/etc/kubernetes/kubelet.conf"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_current_context_is_read() {
        let config = parse(GOOD).unwrap();
        assert_eq!((config.host.as_str(), config.port, config.base.as_str()), ("fd00::1", 6443, "/base"));
        assert_eq!(config.authority_text(), "[fd00::1]:6443");
        assert_eq!(config.tls_server_name.as_deref(), Some("api"));
        assert_eq!(config.authority, Source::Inline(b"CA".to_vec()));
        let expected = Login::Certificate {
            certificate: Source::File("/etc/kubernetes/pki/current.pem".into()),
            key: Source::File("/abs/current.pem".into()),
        };
        assert_eq!(config.login, expected);
    }

    #[test]
    fn mistakes_name_file_field_and_mend() {
        let user = "user: {client-certificate: pki/current.pem, client-key: /abs/current.pem}";
        let cases = [
            ("current-context: here", "current-context: gone", "current-context: is \"gone\""),
            ("cluster: c, user: node", "cluster: d, user: node", "context.cluster: is \"d\""),
            ("https://", "http://", "it must begin with https://"),
            ("certificate-authority-data: Q0E=", "certificate-authority-data: '*'", "is not base64"),
            ("certificate-authority-data: Q0E=, ", "", "certificate-authority: is missing"),
            ("certificate-authority-data", "insecure-skip-tls-verify: true, x", "cannot tell from another"),
            (user, "user: {exec: {command: aws}}", "user.exec: is not run by a node"),
            (user, "user: {client-key: k}", "client-certificate: is missing"),
            (user, "user: {}", "has no credentials"),
            ("kind: Config", "kind: Pod", "a kubeconfig has Config"),
        ];
        for (from, to, expected) in cases {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD, "{from}");
            let error = parse(&text).unwrap_err();
            assert!(error.contains(expected) && error.contains("kubelet.conf"), "{to}: {error}");
        }
    }

    #[test]
    fn keys_and_tokens_are_never_shown() {
        let user = "user: {client-certificate: pki/current.pem, client-key: /abs/current.pem}";
        let text = GOOD.replace(user, "user: {token: hush}");
        assert!(!format!("{:?}", parse(&text).unwrap()).contains("hush"));
        let broken = parse(&format!("{text}\n  bad: [token: hush")).unwrap_err();
        assert!(!broken.contains("hush"), "{broken}");
    }
}
