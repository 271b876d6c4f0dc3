//! Credential provider plugins: programs that are started for an image and answer with credentials. What they are
//! asked, what an answer means and how long it counts is decided in `longshore_core::image::provider`.

use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use longshore_core::image::keyring::{self, Keyring};
use longshore_core::image::provider::{self, AnswerFault, Cache, MAX_ANSWER_BYTES};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::config::CredentialProvider;

/// What a plugin may take, as with the kubelet.
const DEADLINE: Duration = Duration::from_secs(60);
/// Processes of one plugin at a time.
const AT_ONCE: usize = 4;
/// Of what a failed plugin wrote to its standard error, bytes.
const MAX_SAID: u64 = 512;

/// One plugin with the answers that still count.
#[derive(Debug)]
pub(super) struct Plugin {
    settings: CredentialProvider,
    deadline: Duration,
    cache: Mutex<Cache>,
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
}

impl Plugin {
    pub fn new(settings: CredentialProvider) -> Self {
        Self {
            settings,
            deadline: DEADLINE,
            cache: Mutex::default(),
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

    /// What it has for a repository, by an answer that still counts or a new one.
    pub async fn keyring(&self, repository: &str) -> Result<Keyring, PluginError> {
        // The semaphore is never closed.
        let _turn = self.at_once.acquire().await.ok();
        if let Some(kept) = self.cache().get(repository, self.began.elapsed()) {
            return Ok(kept.clone());
        }
        let version = &self.settings.api_version;
        let asked = tokio::time::timeout(self.deadline, self.ask(provider::request(version, repository)));
        let bytes = asked.await.map_err(|_| PluginError::Late(self.deadline))??;
        let answer = provider::answer(version, &bytes)?;
        self.cache().put(repository, &answer, self.settings.keep, self.began.elapsed());
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

/// A process and what it started; killed together unless it has ended and was waited for.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // Without an id it was waited for, and the number may be another's by now.
        if let Some(id) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            // It may have ended this moment.
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
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
            let found = plugin.keyring(image).await.unwrap().fitting(image);
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
            let said = crate::text::error_chain(&plugin.keyring("a.r.io/web").await.unwrap_err());
            assert!(said.contains(says) && !said.contains("hush"), "{script}: {said}");
            assert!(begin.elapsed() < Duration::from_secs(30), "{script}");
        }
        let dir = tempfile::tempdir().unwrap();
        let mut gone = plugin(&dir, "");
        gone.settings.program = dir.path().join("plugin");
        let said = crate::text::error_chain(&gone.keyring("a.r.io/web").await.unwrap_err());
        assert!(said.starts_with("cannot be started: "), "{said}");
    }
}
