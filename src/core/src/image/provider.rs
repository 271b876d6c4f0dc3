//! What a credential provider plugin is asked and answers (credentialprovider.kubelet.k8s.io, KEP-2133), and for
//! how long an answer counts. Starting plugins is the agent's.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::keyring::{Credential, Keyring};
use super::reference::registry;
use crate::go_duration::GoDuration;
use crate::ids::{PodKey, PodUid};
use crate::pod::desired::{DesiredPod, PodSource};

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

/// The pod whose ServiceAccount speaks for a pull (KEP-4412).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAccount {
    pub pod: PodKey,
    pub uid: PodUid,
    /// Of the ServiceAccount, in the pod's namespace.
    pub name: String,
}

impl PodAccount {
    /// `None` for pods the API server knows nothing of, which have no ServiceAccount.
    pub fn of(desired: &DesiredPod) -> Option<Self> {
        let name = desired.pod.spec.as_ref()?.service_account_name.clone().filter(|name| !name.is_empty())?;
        let known = desired.source == PodSource::Api;
        known.then(|| Self { pod: desired.key.clone(), uid: desired.uid.clone(), name })
    }
}

/// How a plugin is given tokens of pods' ServiceAccounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenAttributes {
    pub audience: String,
    pub keep_for: KeptFor,
    /// It is not asked for pods without a ServiceAccount.
    pub required: bool,
    /// It is not asked for ServiceAccounts without all of these.
    pub required_annotations: Vec<String>,
    pub optional_annotations: Vec<String>,
}

/// Whom an answer counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum KeptFor {
    /// For pulls with the same token: those of one pod.
    Token,
    /// For all pods of a ServiceAccount.
    ServiceAccount,
}

impl TokenAttributes {
    /// What the plugin is told of a ServiceAccount's annotations; `None` where one it requires is not there.
    pub fn told(&self, annotations: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
        if !self.required_annotations.iter().all(|key| annotations.contains_key(key)) {
            return None;
        }
        let wanted = |key: &String| {
            self.required_annotations.iter().chain(&self.optional_annotations).any(|one| one == key)
        };
        let told = annotations.iter().filter(|(key, _)| wanted(key));
        Some(told.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

/// For whom a plugin is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speaker {
    pub namespace: String,
    pub account: String,
    /// Of the ServiceAccount: another one of the same name is somebody else.
    pub uid: String,
    pub annotations: BTreeMap<String, String>,
    pub token: String,
}

impl Speaker {
    /// What answers for it are kept by. Holds no secret.
    pub fn key(&self, keep_for: KeptFor) -> String {
        let mut parts = vec![&*self.namespace, &*self.account, &*self.uid];
        parts.extend(self.annotations.iter().flat_map(|(key, value)| [&**key, &**value]));
        if keep_for == KeptFor::Token {
            parts.push(&self.token);
        }
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        format!("{:x}", hash.finalize())
    }
}

/// What is written to a plugin's standard input.
pub fn request(api_version: &str, repository: &str, speaker: Option<&Speaker>) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Request<'a> {
        kind: &'static str,
        api_version: &'a str,
        image: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        service_account_token: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        service_account_annotations: Option<&'a BTreeMap<String, String>>,
    }
    let request = Request {
        kind: "CredentialProviderRequest",
        api_version,
        image: repository,
        service_account_token: speaker.map(|speaker| speaker.token.as_str()),
        service_account_annotations: speaker
            .map(|speaker| &speaker.annotations)
            .filter(|all| !all.is_empty()),
    };
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
pub struct Cache(HashMap<Key, Kept>);

/// For which images, of which place, and for whom: empty where the plugin asks for nobody's token.
type Key = (CacheKeyType, String, String);

#[derive(Debug)]
struct Kept {
    keyring: Keyring,
    until: Duration,
}

impl Cache {
    /// The answer that counts for a repository and for whom ([`Speaker::key`]): the most exact one.
    pub fn get(&self, repository: &str, whom: &str, now: Duration) -> Option<&Keyring> {
        let kept = [CacheKeyType::Image, CacheKeyType::Registry, CacheKeyType::Global]
            .into_iter()
            .filter_map(|key_type| self.0.get(&key(key_type, repository, whom)));
        kept.filter(|kept| kept.until > now).map(|kept| &kept.keyring).next()
    }

    /// Keeps an answer for as long as it says, or else for `default`.
    pub fn put(
        &mut self,
        (repository, whom): (&str, &str),
        answer: &Answer,
        default: Duration,
        now: Duration,
    ) {
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
        self.0.insert(key(answer.key_type, repository, whom), kept);
    }
}

fn key(key_type: CacheKeyType, repository: &str, whom: &str) -> Key {
    let place = match key_type {
        CacheKeyType::Image => repository,
        CacheKeyType::Registry => registry(repository),
        CacheKeyType::Global => "",
    };
    (key_type, place.to_owned(), whom.to_owned())
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

    fn speaker() -> Speaker {
        Speaker {
            namespace: "shop".into(),
            account: "web".into(),
            uid: "u-1".into(),
            annotations: BTreeMap::new(),
            token: "hush".into(),
        }
    }

    #[test]
    fn answers_are_kept_for_the_account_or_for_the_token_and_never_for_another() {
        let key = |change: fn(&mut Speaker), keep_for| {
            let mut speaker = speaker();
            change(&mut speaker);
            speaker.key(keep_for)
        };
        let same: fn(&mut Speaker) = |_| {};
        let others: [fn(&mut Speaker); 5] = [
            |speaker| speaker.namespace = "shopw".into(),
            |speaker| (speaker.namespace, speaker.account) = ("shopw".into(), "eb".into()),
            |speaker| speaker.uid = "u-2".into(),
            |speaker| speaker.annotations = BTreeMap::from([("a".into(), "b".into())]),
            |speaker| speaker.annotations = BTreeMap::from([("ab".into(), String::new())]),
        ];
        for keep_for in [KeptFor::Token, KeptFor::ServiceAccount] {
            assert_eq!(key(same, keep_for), key(same, keep_for));
            let keys: std::collections::BTreeSet<String> =
                others.iter().chain([&same]).map(|change| key(*change, keep_for)).collect();
            assert_eq!(keys.len(), 6, "{keep_for:?}");
        }
        let other: fn(&mut Speaker) = |speaker| speaker.token = "other".into();
        assert_eq!(key(other, KeptFor::ServiceAccount), key(same, KeptFor::ServiceAccount));
        assert_ne!(key(other, KeptFor::Token), key(same, KeptFor::Token));
        assert!(!key(same, KeptFor::Token).contains("hush"));
    }

    #[test]
    fn a_plugin_is_told_the_annotations_it_names_and_asked_only_with_those_it_requires() {
        let map = |all: &[&str]| {
            all.iter().map(|key| ((*key).to_owned(), "v".to_owned())).collect::<BTreeMap<_, _>>()
        };
        let attributes = TokenAttributes {
            audience: "a".into(),
            keep_for: KeptFor::Token,
            required: true,
            required_annotations: vec!["r".into()],
            optional_annotations: vec!["o".into()],
        };
        for (there, told) in [
            (&["r", "x"][..], Some(&["r"][..])),
            (&["r", "o", "x"], Some(&["r", "o"])),
            (&["o", "x"], None),
            (&[], None),
        ] {
            assert_eq!(attributes.told(&map(there)), told.map(map), "{there:?}");
        }
    }

    #[test]
    fn the_image_is_asked_for() {
        assert_eq!(
            String::from_utf8(request(V1, "r.io/web", None)).unwrap(),
            r#"{"kind":"CredentialProviderRequest","apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"r.io/web"}"#
        );
        let told = BTreeMap::from([("a/b".to_owned(), "c".to_owned())]);
        let speaker = Speaker { annotations: told, ..speaker() };
        let text = String::from_utf8(request(V1, "r.io/web", Some(&speaker))).unwrap();
        let expected =
            r#""image":"r.io/web","serviceAccountToken":"hush","serviceAccountAnnotations":{"a/b":"c"}}"#;
        assert!(text.ends_with(expected), "{text}");
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
            cache.put(("r.io/web", "w"), &answer, seconds(10), seconds(100));
            assert!(cache.get("r.io/web", "", seconds(101)).is_none(), "for somebody else");
            let found = |now| {
                ["r.io/web", "r.io/other", "else.io/web"]
                    .map(|image| cache.get(image, "w", seconds(now)).is_some())
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
                (&format!("r.io/{image}"), ""),
                &answer,
                Duration::from_secs(60),
                Duration::from_millis(image as u64),
            );
        }
        assert_eq!(cache.0.len(), MAX_KEPT);
        let last = format!("r.io/{}", 3 * MAX_KEPT - 1);
        assert!(cache.get(&last, "", Duration::from_secs(4)).is_some(), "the newest stays");
    }
}
