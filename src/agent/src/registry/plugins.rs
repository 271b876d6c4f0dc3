//! Credential provider plugins: programs that are started for an image and answer with credentials. What they are
//! asked, what an answer means and how long it counts is decided in `longshore_core::image::provider`.

use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ServiceAccount;
use longshore_cluster::path::Path;
use longshore_cluster::token::{self, IssuedToken};
use longshore_cluster::{ApiClient, ApiError};
use longshore_core::ids::PodUid;
use longshore_core::image::keyring::{self, Keyring};
use longshore_core::image::provider::{
    self, AnswerFault, Cache, MAX_ANSWER_BYTES, PodAccount, Speaker, TokenAttributes,
};
use longshore_core::kubelet_api::cache::TtlCache;
use longshore_core::pod::token::{renew_at, spec as token_spec};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::children::Group;
use crate::config::CredentialProvider;

/// What a plugin may take, as with the kubelet.
const DEADLINE: Duration = Duration::from_secs(60);
/// Processes of one plugin at a time.
const AT_ONCE: usize = 4;
/// Tokens kept for one plugin; a node has far fewer pods.
const MAX_TOKENS: usize = 1024;
/// Of what a failed plugin wrote to its standard error, bytes.
const MAX_SAID: u64 = 512;

/// One plugin with the answers that still count.
#[derive(Debug)]
pub(super) struct Plugin {
    settings: CredentialProvider,
    deadline: Duration,
    cache: Mutex<Cache>,
    tokens: PodTokens,
    at_once: Semaphore,
    began: Instant,
}

/// Why a plugin gave nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum PluginError {
    #[error("cannot be started")]
    Start(#[source] std::io::Error),
    #[error("cannot be read")]
    Read(#[source] std::io::Error),
    #[error("took longer than {} s", .0.as_secs())]
    Late(Duration),
    #[error("ended with {status}{said}")]
    Failed { status: ExitStatus, said: String },
    #[error(transparent)]
    Answer(#[from] AnswerFault),
    #[error("is not asked without the service account {0}")]
    Account(String, #[source] ApiError),
    #[error("is not asked without a token of service account {0}")]
    Token(String, #[source] ApiError),
}

impl Plugin {
    pub fn new(settings: CredentialProvider) -> Self {
        Self {
            settings,
            deadline: DEADLINE,
            cache: Mutex::default(),
            tokens: PodTokens::default(),
            at_once: Semaphore::new(AT_ONCE),
            began: Instant::now(),
        }
    }

    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Whether it is to be asked for a repository at all.
    pub fn serves(&self, repository: &str) -> bool {
        self.settings.match_images.iter().any(|pattern| keyring::covers(pattern, repository))
    }

    /// Whether it is given tokens of ServiceAccounts.
    pub fn wants_tokens(&self) -> bool {
        self.settings.tokens.is_some()
    }

    /// What it has for a repository, by an answer that still counts or a new one; nothing where it is not to be asked
    /// for this pod. `speaks`: where tokens come from, and whose.
    pub async fn keyring(
        &self,
        repository: &str,
        speaks: Option<&(&ApiClient, &PodAccount)>,
    ) -> Result<Keyring, PluginError> {
        // The semaphore is never closed.
        let _turn = self.at_once.acquire().await.ok();
        let speaker = match (&self.settings.tokens, speaks) {
            (None, _) => None,
            (Some(attributes), None) if attributes.required => return Ok(Keyring::default()),
            (Some(_), None) => None,
            (Some(attributes), Some((client, account))) => {
                match self.tokens.speaker(client, account, attributes, self.began.elapsed()).await? {
                    Some(speaker) => Some((speaker.key(attributes.keep_for), speaker)),
                    None => return Ok(Keyring::default()),
                }
            }
        };
        let (whom, speaker) = speaker.unzip();
        let whom = whom.unwrap_or_default();
        if let Some(kept) = self.cache().get(repository, &whom, self.began.elapsed()) {
            return Ok(kept.clone());
        }
        let version = &self.settings.api_version;
        let request = provider::request(version, repository, speaker.as_ref());
        let asked = tokio::time::timeout(self.deadline, self.ask(request));
        let bytes = asked.await.map_err(|_| PluginError::Late(self.deadline))??;
        let answer = provider::answer(version, &bytes)?;
        self.cache().put((repository, &whom), &answer, self.settings.keep, self.began.elapsed());
        Ok(answer.keyring)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the program, without a shell, and gives what it wrote. Dropping the future kills it.
    async fn ask(&self, request: Vec<u8>) -> Result<Vec<u8>, PluginError> {
        let env = self.settings.env.iter().map(|(name, value)| (name, value));
        let child = Command::new(&self.settings.program)
            .args(&self.settings.args)
            // What it says of its own state is not the daemon's.
            .env_remove("NOTIFY_SOCKET")
            .envs(env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(PluginError::Start)?;
        let mut group = Group(child);
        let (stdin, stdout, stderr) = (group.0.stdin.take(), group.0.stdout.take(), group.0.stderr.take());
        let feed = async {
            if let Some(mut stdin) = stdin {
                // One that needs nothing of the request may close it.
                let _ = stdin.write_all(&request).await;
            }
            Ok(())
        };
        let ((), answer, said) = tokio::try_join!(feed, read(stdout), overhear(stderr))?;
        let status = group.0.wait().await.map_err(PluginError::Read)?;
        if status.success() { Ok(answer) } else { Err(PluginError::Failed { status, said }) }
    }
}

/// Tokens of pods' ServiceAccounts for one plugin, kept while they are young enough to be shown.
#[derive(Debug)]
struct PodTokens(Mutex<TtlCache<PodUid, IssuedToken>>);

impl Default for PodTokens {
    fn default() -> Self {
        Self(Mutex::new(TtlCache::new(MAX_TOKENS)))
    }
}

impl PodTokens {
    /// Who speaks for a pod; `None` where the plugin is not to be asked for its ServiceAccount.
    async fn speaker(
        &self,
        client: &ApiClient,
        account: &PodAccount,
        attributes: &TokenAttributes,
        now: Duration,
    ) -> Result<Option<Speaker>, PluginError> {
        let namespace = account.pod.namespace.to_string();
        let name = || format!("{namespace}/{}", account.name);
        let path = Path::core_in(&namespace, "serviceaccounts").then(&account.name);
        let found: ServiceAccount =
            client.get(&path).await.map_err(|source| PluginError::Account(name(), source))?;
        let Some(annotations) = attributes.told(&found.metadata.annotations.unwrap_or_default()) else {
            return Ok(None);
        };
        let issued = self.token(client, account, attributes, now).await;
        let token = issued.map_err(|source| PluginError::Token(name(), source))?.token;
        let uid = found.metadata.uid.unwrap_or_default();
        Ok(Some(Speaker { namespace, account: account.name.clone(), uid, annotations, token }))
    }

    async fn token(
        &self,
        client: &ApiClient,
        account: &PodAccount,
        attributes: &TokenAttributes,
        now: Duration,
    ) -> Result<IssuedToken, ApiError> {
        if let Some(kept) = self.kept().get(&account.uid, now) {
            return Ok(kept);
        }
        let spec = token_spec(Some(&attributes.audience), None);
        let asked = Timestamp::now();
        let issued = token::request(client, &account.pod, &account.uid, &account.name, &spec).await?;
        let keep = renew_at(asked, issued.expires_at, Duration::ZERO).duration_since(asked);
        let keep = Duration::try_from(keep).unwrap_or_default();
        self.kept().put(account.uid.clone(), issued.clone(), now, keep);
        Ok(issued)
    }

    fn kept(&self) -> MutexGuard<'_, TtlCache<PodUid, IssuedToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All of a stream, or an error as soon as it is too much.
async fn read(stream: Option<impl AsyncRead + Unpin>) -> Result<Vec<u8>, PluginError> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        let mut bounded = stream.take(MAX_ANSWER_BYTES as u64 + 1);
        bounded.read_to_end(&mut bytes).await.map_err(PluginError::Read)?;
    }
    if bytes.len() > MAX_ANSWER_BYTES { Err(AnswerFault::TooLarge.into()) } else { Ok(bytes) }
}

/// The beginning of what a stream says, on one line; the rest is taken and let go.
async fn overhear(stream: Option<impl AsyncRead + Unpin>) -> Result<String, PluginError> {
    let Some(mut stream) = stream else { return Ok(String::new()) };
    let mut bytes = Vec::new();
    (&mut stream).take(MAX_SAID).read_to_end(&mut bytes).await.map_err(PluginError::Read)?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map_err(PluginError::Read)?;
    let text = String::from_utf8_lossy(&bytes);
    let words: Vec<&str> = text.split_whitespace().collect();
    Ok(if words.is_empty() { String::new() } else { format!(": {}", words.join(" ")) })
}

#[cfg(test)]
mod tests {
    use longshore_cluster::fake::{FakeApi, Fault};
    use longshore_core::ids::PodKey;
    use longshore_core::image::provider::KeptFor;
    use serde_json::json;

    use super::*;

    /// A plugin that runs this script.
    fn plugin(dir: &tempfile::TempDir, script: &str) -> Plugin {
        let count = dir.path().join("count").display().to_string();
        let settings = CredentialProvider {
            name: "plugin".into(),
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into(), "plugin".into(), count],
            env: vec![("WHO".into(), "robot".into())],
            match_images: vec!["*.r.io".into()],
            keep: Duration::from_secs(60),
            api_version: provider::VERSIONS[0].into(),
            tokens: None,
        };
        Plugin { deadline: Duration::from_secs(10), ..Plugin::new(settings) }
    }

    const ANSWER: &str = r#"
read -r request
echo "$request" >> "$1"
echo '{"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
  "cacheKeyType": "Image", "auth": {"a.r.io": {"username": "'$WHO'", "password": "hush"}}}'
"#;

    #[tokio::test]
    async fn a_plugin_is_asked_once_per_image_while_its_answer_counts() {
        let dir = tempfile::tempdir().unwrap();
        // The request has no newline at its end; `read` takes it all the same.
        let plugin = plugin(&dir, ANSWER);
        assert!(plugin.serves("a.r.io/web") && !plugin.serves("r.io/web"));
        for image in ["a.r.io/web", "a.r.io/web", "a.r.io/other"] {
            let found = plugin.keyring(image, None).await.unwrap().fitting(image);
            assert_eq!(found[0].username, "robot");
        }
        let asked = std::fs::read_to_string(dir.path().join("count")).unwrap();
        assert_eq!(asked.lines().count(), 2, "{asked}");
        assert!(asked.contains(r#""image":"a.r.io/web""#), "{asked}");
        assert!(!format!("{plugin:?}").contains("hush"));
    }

    #[tokio::test]
    async fn what_a_plugin_does_wrong_is_said_and_bounded() {
        for (script, says) in [
            ("echo no token server >&2; exit 3", "exit status: 3: no token server"),
            ("echo hush", "no CredentialProviderResponse"),
            ("cat /dev/zero", "more than 1048576 bytes"),
            ("cat /dev/zero >&2", "took longer than 1 s"),
            ("sleep 60", "took longer than 1 s"),
            ("sleep 60 & exec cat", "took longer than 1 s"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let plugin = Plugin { deadline: Duration::from_secs(1), ..plugin(&dir, script) };
            let begin = std::time::Instant::now();
            let said = crate::text::error_chain(&plugin.keyring("a.r.io/web", None).await.unwrap_err());
            assert!(said.contains(says) && !said.contains("hush"), "{script}: {said}");
            assert!(begin.elapsed() < Duration::from_secs(30), "{script}");
        }
        let dir = tempfile::tempdir().unwrap();
        let mut gone = plugin(&dir, "");
        gone.settings.program = dir.path().join("plugin");
        let said = crate::text::error_chain(&gone.keyring("a.r.io/web", None).await.unwrap_err());
        assert!(said.starts_with("cannot be started: "), "{said}");
    }

    const ACCOUNT: &str = "/api/v1/namespaces/shop/serviceaccounts/web";

    /// A plugin that is given tokens, an API server with one ServiceAccount, and pods of it by their number.
    fn with_tokens(
        dir: &tempfile::TempDir,
        keep_for: KeptFor,
    ) -> (Plugin, FakeApi, impl Fn(u32) -> PodAccount) {
        let mut plugin = plugin(dir, ANSWER);
        plugin.settings.tokens = Some(TokenAttributes {
            audience: "registry".into(),
            keep_for,
            required: true,
            required_annotations: vec!["a.io/role".into()],
            optional_annotations: vec!["a.io/more".into()],
        });
        let api = FakeApi::default();
        api.put(ACCOUNT, json!({"metadata": {"annotations": {"a.io/role": "reader", "other": "hush"}}}));
        let pod = |n: u32| PodAccount {
            pod: PodKey::new("shop", format!("web-{n}")),
            uid: format!("u-{n}").as_str().into(),
            name: "web".into(),
        };
        (plugin, api, pod)
    }

    fn asked(dir: &tempfile::TempDir) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(dir.path().join("count")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn a_plugin_is_given_the_token_of_the_pods_account_and_its_answer_counts_for_whom_it_may() {
        for (keep_for, runs) in [(KeptFor::ServiceAccount, 1), (KeptFor::Token, 2)] {
            let dir = tempfile::tempdir().unwrap();
            let (plugin, api, pod) = with_tokens(&dir, keep_for);
            let client = api.client();
            for number in [1, 1, 2] {
                let found = plugin.keyring("a.r.io/web", Some(&(&client, &pod(number)))).await.unwrap();
                assert_eq!(found.fitting("a.r.io/web").len(), 1);
            }
            let requests = asked(&dir);
            assert_eq!(requests.len(), runs, "{keep_for:?}");
            assert_eq!(requests[0]["serviceAccountToken"], "token-of-web-for-web-1");
            assert_eq!(requests[0]["serviceAccountAnnotations"], json!({"a.io/role": "reader"}));
            assert_eq!(api.calls("/token").len(), 2, "one for each pod: {:?}", api.calls(""));
            // Another account of the same name is somebody else.
            api.remove(ACCOUNT);
            api.put(ACCOUNT, json!({"metadata": {"annotations": {"a.io/role": "reader"}}}));
            plugin.keyring("a.r.io/web", Some(&(&client, &pod(1)))).await.unwrap();
            assert_eq!(asked(&dir).len(), runs + 1, "{keep_for:?}");
        }
    }

    #[tokio::test]
    async fn a_plugin_is_not_asked_for_whom_it_has_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (mut plugin, api, pod) = with_tokens(&dir, KeptFor::Token);
        let client = api.client();
        assert!(plugin.keyring("a.r.io/web", None).await.unwrap().is_empty(), "no account");
        api.put(ACCOUNT, json!({"metadata": {"annotations": {"a.io/more": "x"}}}));
        let speaks = (&client, &pod(1));
        assert!(
            plugin.keyring("a.r.io/web", Some(&speaks)).await.unwrap().is_empty(),
            "an annotation is missing"
        );
        api.remove(ACCOUNT);
        let said = crate::text::error_chain(&plugin.keyring("a.r.io/web", Some(&speaks)).await.unwrap_err());
        assert!(said.contains("without the service account shop/web: ") && said.contains("404"), "{said}");
        api.put(ACCOUNT, json!({"metadata": {"annotations": {"a.io/role": "x"}}}));
        api.order("POST", ACCOUNT, 1, Fault::Refuse(403, None));
        let said = crate::text::error_chain(&plugin.keyring("a.r.io/web", Some(&speaks)).await.unwrap_err());
        assert!(
            said.contains("without a token of service account shop/web: ") && said.contains("403"),
            "{said}"
        );
        assert!(asked(&dir).is_empty());
        // Static pods have no account; a plugin that allows it is asked without one.
        plugin.settings.tokens.as_mut().unwrap().required = false;
        plugin.keyring("a.r.io/web", None).await.unwrap();
        assert_eq!(asked(&dir)[0].get("serviceAccountToken"), None);
    }
}
