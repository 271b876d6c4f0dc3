//! What a credential provider plugin is asked and answers (credentialprovider.kubelet.k8s.io, KEP-2133), and for
//! how long an answer counts. Starting plugins is the agent's.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::keyring::{Credential, Keyring};
use super::reference::registry;
use crate::go_duration::GoDuration;

/// Versions of the protocol; they differ in name only.
pub const VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];
/// Longest answer that is read, bytes.
pub const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Answers kept of one plugin; what ends soonest makes room.
const MAX_KEPT: usize = 1024;

/// What is written to a plugin's standard input.
pub fn request(api_version: &str, repository: &str) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Request<'a> {
        kind: &'static str,
        api_version: &'a str,
        image: &'a str,
    }
    let request = Request { kind: "CredentialProviderRequest", api_version, image: repository };
    serde_json::to_vec(&request).unwrap_or_default()
}

/// For which images an answer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
pub enum CacheKeyType {
    Image,
    Registry,
    Global,
}

/// What a plugin gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub key_type: CacheKeyType,
    /// `None` leaves it to the configuration; zero is not to be kept.
    pub keep: Option<Duration>,
    pub keyring: Keyring,
}

/// Why an answer is of no use. Never holds a part of it that could be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerFault {
    #[error("it answers what is no CredentialProviderResponse, line {line} column {column}")]
    Json { line: usize, column: usize },
    #[error("it answers in another version than {wanted}, in which it was asked")]
    Version { wanted: String },
    #[error("it answers more than {MAX_ANSWER_BYTES} bytes")]
    TooLarge,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    kind: String,
    api_version: String,
    cache_key_type: CacheKeyType,
    #[serde(default)]
    cache_duration: Option<GoDuration>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Auth>>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// Reads what a plugin wrote.
///
/// # Errors
/// Where it cannot be used; nothing of it is then.
pub fn answer(api_version: &str, bytes: &[u8]) -> Result<Answer, AnswerFault> {
    if bytes.len() > MAX_ANSWER_BYTES {
        return Err(AnswerFault::TooLarge);
    }
    let response: Response = serde_json::from_slice(bytes)
        .map_err(|error| AnswerFault::Json { line: error.line(), column: error.column() })?;
    if response.api_version != api_version || response.kind != "CredentialProviderResponse" {
        return Err(AnswerFault::Version { wanted: api_version.to_owned() });
    }
    let mut keyring = Keyring::default();
    for (place, Auth { username, password }) in response.auth.unwrap_or_default() {
        keyring.add(&place, Credential { username, password });
    }
    let keep = response.cache_duration.map(GoDuration::get);
    Ok(Answer { key_type: response.cache_key_type, keep, keyring })
}

/// Answers of one plugin while they count. Times are since any fixed instant.
#[derive(Debug, Default)]
pub struct Cache(HashMap<(CacheKeyType, String), Kept>);

#[derive(Debug)]
struct Kept {
    keyring: Keyring,
    until: Duration,
}

impl Cache {
    /// The answer that counts for a repository: the most exact one.
    pub fn get(&self, repository: &str, now: Duration) -> Option<&Keyring> {
        let kept = [CacheKeyType::Image, CacheKeyType::Registry, CacheKeyType::Global]
            .into_iter()
            .filter_map(|key_type| self.0.get(&key(key_type, repository)));
        kept.filter(|kept| kept.until > now).map(|kept| &kept.keyring).next()
    }

    /// Keeps an answer for as long as it says, or else for `default`.
    pub fn put(&mut self, repository: &str, answer: &Answer, default: Duration, now: Duration) {
        let keep = answer.keep.unwrap_or(default);
        if keep.is_zero() {
            return;
        }
        self.0.retain(|_, kept| kept.until > now);
        if self.0.len() >= MAX_KEPT {
            let first = self.0.iter().min_by_key(|(_, kept)| kept.until).map(|(key, _)| key.clone());
            first.map(|key| self.0.remove(&key));
        }
        let kept = Kept { keyring: answer.keyring.clone(), until: now.saturating_add(keep) };
        self.0.insert(key(answer.key_type, repository), kept);
    }
}

fn key(key_type: CacheKeyType, repository: &str) -> (CacheKeyType, String) {
    let place = match key_type {
        CacheKeyType::Image => repository,
        CacheKeyType::Registry => registry(repository),
        CacheKeyType::Global => "",
    };
    (key_type, place.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = VERSIONS[0];

    fn text(key_type: &str, more: &str) -> String {
        format!(
            r#"{{"kind": "CredentialProviderResponse", "apiVersion": "{V1}", "cacheKeyType": "{key_type}"{more}}}"#
        )
    }

    #[test]
    fn the_image_is_asked_for() {
        assert_eq!(
            String::from_utf8(request(V1, "r.io/web")).unwrap(),
            r#"{"kind":"CredentialProviderRequest","apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"r.io/web"}"#
        );
    }

    #[test]
    fn answers_are_read_or_refused_without_their_secrets() {
        let auth = r#", "cacheDuration": "1m30s", "auth": {"*.io": {"username": "u", "password": "p"}}"#;
        let good = answer(V1, text("Registry", auth).as_bytes()).unwrap();
        assert_eq!((good.key_type, good.keep), (CacheKeyType::Registry, Some(Duration::from_secs(90))));
        assert_eq!(good.keyring.fitting("r.io/web").len(), 1);
        let none = answer(V1, text("Global", r#", "auth": null"#).as_bytes()).unwrap();
        assert!(none.keyring.is_empty() && none.keep.is_none());
        for (wrong, says) in [
            (text("Everything", r#", "auth": {"hush": {}}"#), "no CredentialProviderResponse"),
            (text("Image", r#", "auth": "hush""#), "no CredentialProviderResponse"),
            (text("Image", r#", "cacheDuration": "hush""#), "no CredentialProviderResponse"),
            (text("Image", "").replace("/v1", "/v1beta1"), "another version"),
            (text("Image", "").replace("Response", "Request"), "another version"),
            (String::new(), "no CredentialProviderResponse"),
        ] {
            let said = answer(V1, wrong.as_bytes()).unwrap_err().to_string();
            assert!(said.contains(says) && !said.contains("hush"), "{wrong}: {said}");
        }
        assert_eq!(answer(V1, &vec![b' '; MAX_ANSWER_BYTES + 1]), Err(AnswerFault::TooLarge));
    }

    #[test]
    fn answers_count_for_what_they_say_and_as_long() {
        let seconds = Duration::from_secs;
        for (key_type, keep, covered) in [
            ("Image", r#", "cacheDuration": "10s""#, [true, false, false]),
            ("Registry", r#", "cacheDuration": "10s""#, [true, true, false]),
            ("Global", "", [true, true, true]),
            ("Global", r#", "cacheDuration": "0s""#, [false; 3]),
            ("Global", r#", "cacheDuration": "-1s""#, [false; 3]),
        ] {
            let mut cache = Cache::default();
            let answer = answer(V1, text(key_type, keep).as_bytes()).unwrap();
            cache.put("r.io/web", &answer, seconds(10), seconds(100));
            let found = |now| {
                ["r.io/web", "r.io/other", "else.io/web"]
                    .map(|image| cache.get(image, seconds(now)).is_some())
            };
            assert_eq!(found(109), covered, "{key_type} {keep}");
            assert_eq!(found(110), [false; 3], "{key_type} {keep}");
        }
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let mut cache = Cache::default();
        let answer = answer(V1, text("Image", "").as_bytes()).unwrap();
        for image in 0..3 * MAX_KEPT {
            cache.put(
                &format!("r.io/{image}"),
                &answer,
                Duration::from_secs(60),
                Duration::from_millis(image as u64),
            );
        }
        assert_eq!(cache.0.len(), MAX_KEPT);
        let last = format!("r.io/{}", 3 * MAX_KEPT - 1);
        assert!(cache.get(&last, Duration::from_secs(4)).is_some(), "the newest stays");
    }
}
