//! Docker's two configuration formats read into a keyring: `config.json` with `auths`, and the older
//! `.dockercfg`. What is wrong is said without a byte of what was read.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::keyring::{Credential, Keyring};

/// Longest file that is read, bytes: as large as a Secret can be.
pub const MAX_BYTES: usize = 1 << 20;

/// People and tools write base64 with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `{"auths": {PLACE: ENTRY}}`, of a Secret's `.dockerconfigjson` and of `config.json`.
    ConfigJson,
    /// `{PLACE: ENTRY}`, of a Secret's `.dockercfg`.
    Dockercfg,
}

/// Why a file or Secret gives no credentials.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigFault {
    #[error("is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// The parser's own words may quote what it stumbled over.
    #[error("is not JSON of the right form, line {line} column {column}; write it with docker login")]
    Json { line: usize, column: usize },
    #[error("auth of {place:?} is not base64 of user:password")]
    Auth { place: String },
}

#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    auths: Option<BTreeMap<String, Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    /// Wins over the two.
    #[serde(default)]
    auth: Option<String>,
    /// Read so that its form is checked; registries do not want it any more.
    #[serde(default, rename = "email")]
    _email: Option<IgnoredAny>,
}

/// # Errors
/// What is wrong with the whole; nothing of it is used then.
pub fn read(format: Format, bytes: &[u8]) -> Result<Keyring, ConfigFault> {
    if bytes.len() > MAX_BYTES {
        return Err(ConfigFault::TooLarge);
    }
    let entries = match format {
        Format::ConfigJson => {
            serde_json::from_slice::<ConfigJson>(bytes).map(|file| file.auths.unwrap_or_default())
        }
        Format::Dockercfg => serde_json::from_slice(bytes),
    };
    let entries: BTreeMap<String, Entry> =
        entries.map_err(|error| ConfigFault::Json { line: error.line(), column: error.column() })?;
    let mut keyring = Keyring::default();
    for (place, entry) in entries {
        let credential = match entry.auth.filter(|auth| !auth.trim().is_empty()) {
            Some(auth) => decoded(&auth).ok_or_else(|| ConfigFault::Auth { place: place.clone() })?,
            None => Credential {
                username: entry.username.unwrap_or_default(),
                password: entry.password.unwrap_or_default(),
            },
        };
        // A place with neither is kept by Docker for credential helpers, which a node does not have.
        if credential != Credential::default() {
            keyring.add(&place, credential);
        }
    }
    Ok(keyring)
}

/// The first colon ends the user's name: passwords may have more of them.
fn decoded(auth: &str) -> Option<Credential> {
    let packed: String = auth.chars().filter(|char| !char.is_ascii_whitespace()).collect();
    let text = String::from_utf8(BASE64.decode(packed).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    Some(Credential { username: username.to_owned(), password: password.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(format: Format, text: &str) -> Result<Vec<(String, String)>, String> {
        let keyring = read(format, text.as_bytes()).map_err(|fault| fault.to_string())?;
        let found = keyring.fitting("r.io/web").into_iter();
        Ok(found.map(|credential| (credential.username, credential.password)).collect())
    }

    #[test]
    fn both_formats_are_read() {
        let one = |name: &str, word: &str| Ok(vec![(name.to_owned(), word.to_owned())]);
        for (format, text, wanted) in [
            (Format::ConfigJson, r#"{"auths": {"r.io": {"username": "u", "password": "p"}}}"#, one("u", "p")),
            (Format::ConfigJson, r#"{"auths": {"r.io": {"auth": "dTpw"}}}"#, one("u", "p")),
            (Format::ConfigJson, r#"{"auths": {"r.io": {"auth": "dTpwYTpz"}}}"#, one("u", "pa:s")),
            (Format::ConfigJson, r#"{"auths": {"r.io": {"auth": "dTpwYQ==\n"}}}"#, one("u", "pa")),
            (Format::ConfigJson, r#"{"auths": {"r.io": {"auth": "dTpwYQ"}}}"#, one("u", "pa")),
            (
                Format::ConfigJson,
                r#"{"auths": {"r.io": {"username": "x", "password": "y", "auth": "dTpw", "email": "e"}}}"#,
                one("u", "p"),
            ),
            (Format::ConfigJson, r#"{"auths": {"r.io": {}}, "credsStore": "pass"}"#, Ok(vec![])),
            (Format::ConfigJson, "{}", Ok(vec![])),
            (Format::ConfigJson, r#"{"auths": null}"#, Ok(vec![])),
            (Format::Dockercfg, r#"{"https://r.io/v1/": {"auth": "dTpw"}}"#, one("u", "p")),
        ] {
            assert_eq!(found(format, text), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_the_secret() {
        for (text, wanted) in [
            (r#"{"auths": {"r.io": {"auth": "hush!"}}}"#, "auth of \"r.io\" is not base64 of user:password"),
            (
                r#"{"auths": {"r.io": {"auth": "aHVzaA=="}}}"#,
                "auth of \"r.io\" is not base64 of user:password",
            ),
            (
                r#"{"auths": {"r.io": "hush"}}"#,
                "is not JSON of the right form, line 1 column 25; write it with docker login",
            ),
            ("hush", "is not JSON of the right form, line 1 column 1; write it with docker login"),
        ] {
            let said = found(Format::ConfigJson, text).unwrap_err();
            assert_eq!(said, wanted, "{text}");
            assert!(!said.contains("hush"));
        }
        let large = vec![b' '; MAX_BYTES + 1];
        assert_eq!(read(Format::ConfigJson, &large), Err(ConfigFault::TooLarge));
    }
}
