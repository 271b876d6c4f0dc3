//! Credentials by the places they are for, and which of them fit an image (kubelet: pkg/credentialprovider).
//! Where they come from is in `docker_config`, `pull_secrets` and the agent; none is ever shown.

use std::fmt;

/// The most credentials that are tried for one pull: each costs the registry a request.
const MAX_TRIED: usize = 16;
/// The place older Docker versions wrote for the default registry.
const DEFAULT_REGISTRY: &str = "index.docker.io";

/// What a registry is told. `Debug` shows neither part.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Credential {
    pub username: String,
    pub password: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(hidden)")
    }
}

/// Credentials by place: a host with an optional port and an optional beginning of a path. Host parts may be
/// patterns (`*.azurecr.io`). Ordered as they are tried: the longer of two places that begin alike first, and of
/// one place the one that was added first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyring(Vec<(Place, Credential)>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    text: String,
    split: Split,
}

impl Keyring {
    /// Adds a credential for a place as people write it: with or without a scheme, and with Docker's `/v1/` or
    /// `/v2/` in front of the path.
    pub fn add(&mut self, place: &str, credential: Credential) {
        let text = cleaned(place);
        let split = Split::of(&text);
        let at = self.0.partition_point(|(known, _)| known.text >= text);
        self.0.insert(at, (Place { text, split }, credential));
    }

    /// Takes in what another has; for the same place its own come first.
    pub fn extend(&mut self, other: &Self) {
        for (place, credential) in &other.0 {
            self.add(&place.text, credential.clone());
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those for a repository as [`super::reference::repository`] spells it, in the order they are to be tried.
    pub fn fitting(&self, repository: &str) -> Vec<Credential> {
        let target = Split::of(repository);
        let mut found: Vec<&Credential> =
            self.0.iter().filter(|(place, _)| place.split.covers(&target)).map(|(_, known)| known).collect();
        if found.is_empty() && super::reference::registry(repository) == "docker.io" {
            let default = self.0.iter().filter(|(place, _)| place.text == DEFAULT_REGISTRY);
            found = default.map(|(_, known)| known).collect();
        }
        joined([found.into_iter().cloned().collect()])
    }
}

/// Several lists as one, in their order, each credential once, no more than are tried.
pub fn joined(lists: impl IntoIterator<Item = Vec<Credential>>) -> Vec<Credential> {
    let mut all: Vec<Credential> = Vec::new();
    for credential in lists.into_iter().flatten() {
        if all.len() < MAX_TRIED && !all.contains(&credential) {
            all.push(credential);
        }
    }
    all
}

/// Whether a pattern such as `*.registry.io:8080/path` covers a repository.
pub fn covers(pattern: &str, repository: &str) -> bool {
    Split::of(&cleaned(pattern)).covers(&Split::of(repository))
}

/// `https://host/v1/path` -> `host/path`, `host/` -> `host`.
fn cleaned(place: &str) -> String {
    let place = place.strip_prefix("https://").or_else(|| place.strip_prefix("http://")).unwrap_or(place);
    let place = place.split(['?', '#']).next().unwrap_or_default();
    let (host, path) = place.find('/').map_or((place, ""), |slash| place.split_at(slash));
    let path = match path.strip_prefix("/v1/").or_else(|| path.strip_prefix("/v2/")) {
        Some(rest) => format!("/{rest}"),
        None => path.to_owned(),
    };
    if path == "/" { host.to_owned() } else { format!("{host}{path}") }
}

/// A place in the parts that are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Split {
    /// The host's parts between dots.
    parts: Vec<String>,
    port: String,
    /// With its first slash; empty without one.
    path: String,
}

impl Split {
    fn of(text: &str) -> Self {
        let (host, path) = text.find('/').map_or((text, ""), |slash| text.split_at(slash));
        let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((name, port)) => (name, port.trim_start_matches(':')),
            None => host.rsplit_once(':').unwrap_or((host, "")),
        };
        Self {
            parts: name.split('.').map(str::to_owned).collect(),
            port: port.to_owned(),
            path: path.to_owned(),
        }
    }

    /// The same port, as many parts of the host each matching its pattern, and a path that begins alike.
    fn covers(&self, target: &Self) -> bool {
        self.port == target.port
            && self.parts.len() == target.parts.len()
            && target.path.starts_with(&self.path)
            && self.parts.iter().zip(&target.parts).all(|(pattern, part)| matches(pattern, part))
    }
}

/// One step of a pattern.
enum Token {
    Any,
    Char(char),
    /// `[a-z]`, `[^a-z]`.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// Shell patterns (Go's path/filepath.Match) but for `?`, with which a query begins in a place; one that is malformed
/// matches nothing.
fn matches(pattern: &str, text: &str) -> bool {
    let Some(tokens) = tokens(pattern) else { return false };
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut token) = (0, 0);
    // Where to go on after the last `*` took one more: no recursion, and no more than their product of steps.
    let mut retry: Option<(usize, usize)> = None;
    while at < text.len() || token < tokens.len() {
        match tokens.get(token) {
            Some(Token::Any) => {
                retry = Some((token, at + 1));
                token += 1;
                continue;
            }
            Some(one) if text.get(at).is_some_and(|char| one.takes(*char)) => {
                (at, token) = (at + 1, token + 1);
                continue;
            }
            _ => {}
        }
        match retry {
            Some((star, next)) if next <= text.len() => {
                (at, token, retry) = (next, star + 1, Some((star, next + 1)));
            }
            _ => return false,
        }
    }
    true
}

impl Token {
    fn takes(&self, char: char) -> bool {
        match self {
            Self::Any => true,
            Self::Char(wanted) => *wanted == char,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&char)) != *negated
            }
        }
    }
}

fn tokens(pattern: &str) -> Option<Vec<Token>> {
    let mut chars = pattern.chars().peekable();
    let mut tokens = Vec::new();
    while let Some(char) = chars.next() {
        tokens.push(match char {
            '*' => Token::Any,
            '\\' => Token::Char(chars.next()?),
            '[' => class(&mut chars)?,
            other => Token::Char(other),
        });
    }
    Some(tokens)
}

fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Token> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        let low = match chars.next()? {
            ']' if !ranges.is_empty() => return Some(Token::Class { negated, ranges }),
            ']' | '-' => return None,
            '\\' => chars.next()?,
            plain => plain,
        };
        let high = match chars.next_if_eq(&'-') {
            None => low,
            Some(_) => match chars.next()? {
                ']' | '-' => return None,
                '\\' => chars.next()?,
                plain => plain,
            },
        };
        ranges.push((low, high));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(name: &str) -> Credential {
        Credential { username: name.to_owned(), password: "hush".to_owned() }
    }

    #[test]
    fn places_cover_hosts_ports_and_paths() {
        for (pattern, repository, wanted) in [
            ("registry.io", "registry.io/team/web", true),
            ("https://registry.io/v2/", "registry.io/team/web", true),
            ("registry.io/team", "registry.io/team/web", true),
            ("registry.io/team", "registry.io/other/web", false),
            ("https://registry.io/v1/team", "registry.io/team/web", true),
            ("*.registry.io", "a.registry.io/web", true),
            ("*.registry.io", "registry.io/web", false),
            ("*.registry.io", "a.b.registry.io/web", false),
            ("*.*.registry.io", "a.b.registry.io/web", true),
            ("a*e.registry.*o", "azure.registry.io/web", true),
            ("registry.?o", "registry.io/web", false),
            ("regi[s-t]try.[^x]o", "registry.io/web", true),
            ("regi[stry.io", "registry.io/web", false),
            ("registry.io:5000", "registry.io/web", false),
            ("registry.io:5000", "registry.io:5000/web", true),
            ("registry.io", "registry.io:5000/web", false),
            ("registry.io:*", "registry.io:5000/web", false),
            ("[::1]:5000", "[::1]:5000/web", true),
            ("localhost:5000/private", "localhost:5000/private/web", true),
            ("*", "registry.io/web", false),
        ] {
            assert_eq!(covers(pattern, repository), wanted, "{pattern} for {repository}");
        }
    }

    #[test]
    fn patterns_match_as_a_shells() {
        for (pattern, text, wanted) in [
            ("*", "", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("**a", "bba", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("[]a]", "a", false),
            ("[a-]", "a", false),
            ("a[", "a", false),
            ("\\", "a", false),
        ] {
            assert_eq!(matches(pattern, text), wanted, "{pattern} on {text:?}");
        }
        let long = "a".repeat(2000);
        assert!(!matches(&format!("{}b", "a*".repeat(200)), &long), "ends in time");
    }

    #[test]
    fn the_longest_place_comes_first_and_each_credential_once() {
        let mut keyring = Keyring::default();
        for (place, name) in [
            ("registry.io", "host"),
            ("registry.io/team/web", "image"),
            ("registry.io/team", "team"),
            ("registry.io/team", "team2"),
            ("*.io", "glob"),
            ("registry.io/team/", "host"),
            ("elsewhere.io", "other"),
        ] {
            keyring.add(place, credential(name));
        }
        let names = |repository| {
            keyring.fitting(repository).into_iter().map(|found| found.username).collect::<Vec<_>>()
        };
        assert_eq!(names("registry.io/team/web"), ["image", "host", "team", "team2", "glob"]);
        assert_eq!(names("registry.io/x"), ["host", "glob"]);
        assert_eq!(names("nothing.org/x"), Vec::<String>::new());
    }

    #[test]
    fn the_default_registry_has_an_older_name() {
        let mut keyring = Keyring::default();
        keyring.add("https://index.docker.io/v1/", credential("old"));
        assert_eq!(keyring.fitting("docker.io/library/web"), [credential("old")]);
        assert_eq!(keyring.fitting("docker.example/web"), []);
        keyring.add("docker.io", credential("new"));
        assert_eq!(keyring.fitting("docker.io/library/web"), [credential("new")]);
    }

    #[test]
    fn no_more_are_tried_than_a_registry_bears() {
        let many = (0..100).map(|n| credential(&n.to_string())).collect();
        assert_eq!(joined([many]).len(), MAX_TRIED);
    }

    #[test]
    fn nothing_of_a_credential_is_shown() {
        let mut keyring = Keyring::default();
        keyring.add("registry.io", credential("robot"));
        let shown = format!("{keyring:?}");
        assert!(!shown.contains("hush") && !shown.contains("robot"), "{shown}");
    }
}
