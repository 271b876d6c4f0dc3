//! Takes out of texts and objects what nobody should see who reads a report: values of Secrets and of environment
//! variables, keys, tokens, passwords. It errs towards masking: what is hidden can be asked for, what is sent cannot be
//! taken back.

use serde_json::{Map, Value};

/// What stands where something was taken out.
pub const MASKED: &str = "[masked]";

/// Words in a name that say its value is nobody else's business.
const SECRET_WORDS: [&str; 9] = [
    "password",
    "passwd",
    "secret",
    "token",
    "apikey",
    "api-key",
    "credential",
    "authorization",
    "private-key",
];

/// Endings of names that only speak of a secret: where it is, how it is called, how long it lasts.
const HARMLESS_ENDINGS: [&str; 7] = ["name", "path", "file", "folder", "seconds", "ttl", "key"];

/// Annotations and labels that hold whole objects.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A text of any kind, line by line: `name=value` and `name: value` where the name is that of a secret, what follows
/// `Bearer` and `Basic`, JSON web tokens, bootstrap tokens, passwords in URLs, and private keys in PEM.
pub fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_key = false;
    for line in text.split_inclusive('\n') {
        let begins = line.contains("-----BEGIN") && line.contains("PRIVATE KEY");
        if begins {
            out.push_str(MASKED);
            out.push('\n');
        }
        in_key |= begins;
        if !in_key {
            mask_line(after_pair(line, &mut out), &mut out);
        }
        in_key &= !(line.contains("-----END") && line.contains("PRIVATE KEY"));
    }
    out
}

/// A line that is one pair as a header or YAML has it, `password: all of the rest`, has no other end of its value
/// than its own. Such a pair is written; what is left of the line is given back.
fn after_pair<'a>(line: &'a str, out: &mut String) -> &'a str {
    let ended = line.trim_end();
    let pair = ended.split_once(": ").filter(|(name, value)| {
        let name = name.trim_start().trim_start_matches("- ");
        !name.contains(char::is_whitespace) && is_secret_name(name) && !value.trim().is_empty()
    });
    let Some((name, value)) = pair else { return line };
    let scheme =
        value.split_inclusive(' ').next().filter(|word| word.ends_with(' ') && is_scheme(word.trim_end()));
    let scheme = scheme.unwrap_or_default();
    for piece in [name, ": ", scheme, &quoted(&value[scheme.len()..], MASKED)] {
        out.push_str(piece);
    }
    &line[ended.len()..]
}

fn mask_line(line: &str, out: &mut String) {
    let mut mask_next = false;
    // The quote that ends a value of several words.
    let mut until: Option<char> = None;
    // A value that was hidden had no quotes and may have a comma in it.
    let mut goes_on = false;
    for piece in line.split_inclusive([' ', '\t', '\n', ',']) {
        let end = piece.trim_end_matches([' ', '\t', '\n', ',']).len();
        let (word, gap) = piece.split_at(end);
        if let Some(quote) = until {
            until = (!word.contains(quote)).then_some(quote);
            out.push_str(if until.is_none() { gap } else { "" });
            continue;
        }
        if std::mem::replace(&mut goes_on, false) {
            if !word.is_empty() && !begins_anew(word) {
                goes_on = gap == ",";
                out.push_str(if goes_on { "" } else { gap });
                continue;
            }
            out.push(',');
        }
        if word.is_empty() {
            out.push_str(gap);
            continue;
        }
        let (masked, next) = match (mask_next, word) {
            // The scheme itself is not what is to be hidden.
            (true, word) if is_scheme(word) => (word.to_owned(), true),
            (true, word) => (quoted(word, MASKED), false),
            (false, word) => (mask_word(word), asks_for_masking(word)),
        };
        mask_next = next;
        if masked != word {
            until = open_quote(word);
            goes_on = gap == "," && masked.ends_with(MASKED);
        }
        out.push_str(&masked);
        out.push_str(if until.is_none() && !goes_on { gap } else { "" });
    }
    if goes_on {
        out.push(',');
    }
    if until.is_some() && line.ends_with('\n') {
        out.push('\n');
    }
}

/// Whether what stands behind a comma is something of its own and no rest of what stands before it.
fn begins_anew(word: &str) -> bool {
    let pair = word.split_once(['=', ':']).is_some_and(|(name, _)| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    });
    pair || word.starts_with(['"', '\'', '{', '[', '('])
}

/// Whether the word says that the next one is a secret: `Bearer`, `password:`, `--token`.
fn asks_for_masking(word: &str) -> bool {
    let name = word
        .strip_suffix([':', '='])
        .or_else(|| (word.starts_with("--") && !word.contains('=')).then_some(word));
    is_scheme(word) || name.is_some_and(is_secret_name)
}

/// The quote that a value opens and does not close.
fn open_quote(word: &str) -> Option<char> {
    let quotes = |quote: &char| word.matches(*quote).count() % 2 == 1;
    ['"', '\''].into_iter().find(quotes)
}

fn is_scheme(word: &str) -> bool {
    let word = word.trim_matches(['"', '\'']);
    word.eq_ignore_ascii_case("bearer") || word.eq_ignore_ascii_case("basic")
}

/// The replacement in the quotes that the word has.
fn quoted(word: &str, replacement: &str) -> String {
    if word.contains(replacement) {
        return word.to_owned();
    }
    let open = word.len() - word.trim_start_matches(['"', '\'', '{', '[', '(']).len();
    let close = word.trim_end_matches(['"', '\'', '}', ']', ')']).len().max(open);
    format!("{}{replacement}{}", &word[..open], &word[close..])
}

fn mask_word(word: &str) -> String {
    if let Some((name, value)) = word.split_once(['=', ':'])
        && let mark = &word[name.len()..=name.len()]
        && !value.is_empty()
        // `secret://host` is a URL, `secret=//x` is not.
        && !(mark == ":" && value.starts_with("//"))
        && is_secret_name(name)
    {
        return format!("{name}{mark}{}", quoted(value, MASKED));
    }
    let bare = word.trim_matches(['"', '\'', '{', '}', '[', ']', '(', ')', ';']);
    if is_web_token(bare) || is_bootstrap_token(bare) {
        return quoted(word, MASKED);
    }
    mask_url(word).unwrap_or_else(|| word.to_owned())
}

/// Whether the value of something of this name is to be hidden: `DB_PASSWORD`, `--token`, `clientSecret`.
fn is_secret_name(name: &str) -> bool {
    let name = name.trim_matches(['"', '\'', '-', '{', '[', '(']).to_ascii_lowercase().replace('_', "-");
    let plain = name.replace('-', "");
    SECRET_WORDS.iter().any(|word| name.contains(word) || plain.contains(&word.replace('-', "")))
        && !HARMLESS_ENDINGS.iter().any(|ending| {
            plain.ends_with(ending)
                && !(*ending == "key" && (plain.ends_with("privatekey") || plain.ends_with("apikey")))
        })
}

/// Three parts in base64url, the first of which is a JSON object (RFC 7519).
fn is_web_token(word: &str) -> bool {
    let parts: Vec<&str> = word.split('.').collect();
    word.starts_with("eyJ")
        && parts.len() == 3
        && parts[..2].iter().all(|part| part.len() > 8)
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

/// `abcdef.0123456789abcdef`, the form of kubeadm's tokens.
fn is_bootstrap_token(word: &str) -> bool {
    let small = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    word.split_once('.')
        .is_some_and(|(id, secret)| id.len() == 6 && secret.len() == 16 && small(id) && small(secret))
}

/// The password of a URL's authority.
fn mask_url(word: &str) -> Option<String> {
    let at = word.find("://")? + 3;
    let authority = word[at..].split('/').next()?;
    let (user, host) = authority.rsplit_once('@')?;
    let (name, _) = user.split_once(':')?;
    Some(format!("{}{name}:{MASKED}@{host}{}", &word[..at], &word[at + authority.len()..]))
}

/// An API object or a list of them. Values of Secrets and ConfigMaps and literal values of environment variables are
/// taken out; every other text is masked as [`text`] does it.
pub fn object(value: &mut Value) {
    match value {
        Value::Object(map) => fields(map),
        Value::Array(items) => items.iter_mut().for_each(object),
        Value::String(string) => *string = text(string),
        _ => {}
    }
}

fn fields(map: &mut Map<String, Value>) {
    let holds_data = matches!(map.get("kind").and_then(Value::as_str), Some("Secret" | "ConfigMap"));
    for (name, value) in map.iter_mut() {
        match (name.as_str(), &mut *value) {
            ("data" | "stringData" | "binaryData", Value::Object(data)) if holds_data => {
                data.values_mut().for_each(|value| *value = MASKED.into());
            }
            ("env", Value::Array(variables)) => variables.iter_mut().for_each(variable),
            (LAST_APPLIED, value) => *value = MASKED.into(),
            (name, Value::String(string)) if is_secret_name(name) => *string = MASKED.into(),
            (_, value) => object(value),
        }
    }
}

fn variable(variable: &mut Value) {
    match variable.get_mut("value") {
        Some(value) => *value = MASKED.into(),
        None => object(variable),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_secret_goes_and_what_only_speaks_of_it_stays() {
        let web_token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl";
        let cases = [
            ("DB_PASSWORD=hunter2 HOST=db", "DB_PASSWORD=[masked] HOST=db"),
            ("--token=abc, --token-ttl=24h", "--token=[masked], --token-ttl=24h"),
            ("password: hunter2", "password: [masked]"),
            ("  - password: two words, and more\n", "  - password: [masked]\n"),
            ("password: \"two words\"\nport: 80\n", "password: \"[masked]\"\nport: 80\n"),
            ("password=//a/b host=db", "password=[masked] host=db"),
            ("secret://host/path", "secret://host/path"),
            ("password=a,b,c host=db", "password=[masked] host=db"),
            ("password=a,b,host=db", "password=[masked],host=db"),
            ("set password=\"two words\" host=db", "set password=\"[masked] host=db"),
            ("run --token abc --port 80", "run --token [masked] --port 80"),
            (
                "\"clientSecret\":\"x\",\"secretName\":\"web-tls\"",
                "\"clientSecret\":\"[masked]\",\"secretName\":\"web-tls\"",
            ),
            ("Authorization: Bearer abc.def", "Authorization: Bearer [masked]"),
            ("got 401 for basic dXNlcjpw", "got 401 for basic [masked]"),
            (&format!("sent \"{web_token}\" twice"), "sent \"[masked]\" twice"),
            ("join with abcdef.0123456789abcdef now", "join with [masked] now"),
            ("pull https://me:pw@registry.example/a/b:1", "pull https://me:[masked]@registry.example/a/b:1"),
            ("https://registry.example/a:1@sha256:0", "https://registry.example/a:1@sha256:0"),
            (
                "api_key=1 cacheKeyType=Image private-key=2",
                "api_key=[masked] cacheKeyType=Image private-key=[masked]",
            ),
            ("volume token of default/web is mounted", "volume token of default/web is mounted"),
            ("Secret default/absent is missing", "Secret default/absent is missing"),
            ("tokenExpirationSeconds: 3600", "tokenExpirationSeconds: 3600"),
            (
                "a\n-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nb\n",
                "a\n[masked]\nb\n",
            ),
            ("-----BEGIN CERTIFICATE-----\nMII\n", "-----BEGIN CERTIFICATE-----\nMII\n"),
        ];
        for (from, to) in cases {
            assert_eq!(text(from), to, "{from:?}");
        }
    }

    #[test]
    fn objects_keep_their_shape_and_lose_their_values() {
        let mut pod = json!({
            "kind": "Pod",
            "metadata": {"name": "web", "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "a": "b"}},
            "spec": {
                "containers": [{
                    "args": ["--db-password=hunter2", "--port=80"],
                    "env": [
                        {"name": "PLAIN", "value": "x"},
                        {"name": "REF", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}},
                    ],
                }],
                "volumes": [{"name": "tls", "secret": {"secretName": "web-tls"}}],
            },
        });
        object(&mut pod);
        let expected = json!({
            "kind": "Pod",
            "metadata": {"name": "web", "annotations": {"kubectl.kubernetes.io/last-applied-configuration": MASKED, "a": "b"}},
            "spec": {
                "containers": [{
                    "args": ["--db-password=[masked]", "--port=80"],
                    "env": [
                        {"name": "PLAIN", "value": MASKED},
                        {"name": "REF", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}},
                    ],
                }],
                "volumes": [{"name": "tls", "secret": {"secretName": "web-tls"}}],
            },
        });
        assert_eq!(pod, expected);
        let mut maps = json!([{"kind": "ConfigMap", "data": {"page": "x"}}, {"kind": "Secret", "data": {"key": "eA=="}}]);
        object(&mut maps);
        let expected = json!([{"kind": "ConfigMap", "data": {"page": MASKED}}, {"kind": "Secret", "data": {"key": MASKED}}]);
        assert_eq!(maps, expected);
    }

    proptest! {
        #[test]
        fn any_text_can_be_masked_and_masking_again_changes_nothing(from in "(?s).{0,200}") {
            let once = text(&from);
            prop_assert_eq!(text(&once), once);
        }

        #[test]
        fn a_password_never_gets_through(before in "[a-z ]{0,20}", secret in "[A-Za-z0-9+/]{12,30}") {
            let masked = text(&format!("{before} DB_PASSWORD={secret} --token {before}"));
            prop_assert!(!masked.contains(&secret), "{}", masked);
        }
    }
}
