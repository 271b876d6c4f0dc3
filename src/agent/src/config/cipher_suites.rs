//! The names `tlsCipherSuites` may hold, which are those of Go's crypto/tls, and what a list of them means
//! for a server that has only the good ones. A word that is no suite is a fault: left out silently it would
//! take TLS 1.2 away from whoever needs it.

/// Suites of TLS 1.2 the server has.
pub(crate) const OFFERED: [&str; 6] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];
/// Suites of TLS 1.3; all are always spoken, as in Go.
const OF_TLS13: [&str; 3] =
    ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];
/// Suites of Go without forward secrecy or with broken modes, in the order of its documentation.
const NOT_OFFERED: [&str; 16] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

/// What a list comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// Words that are no suite.
    pub unknown: Vec<String>,
    /// Suites this server does not have.
    pub absent: Vec<String>,
    /// Suites of TLS 1.2 that are left, by their standard names; all of them where the list is empty.
    pub chosen: Vec<&'static str>,
}

/// Reads a list.
pub(super) fn choice(given: &[String]) -> Choice {
    if given.is_empty() {
        return Choice { chosen: OFFERED.to_vec(), ..Choice::default() };
    }
    let mut choice = Choice::default();
    for word in given {
        let name = word.as_str();
        // Go has two suites by two names.
        let same = |offered: &&&str| **offered == name || short(offered) == Some(name);
        if let Some(offered) = OFFERED.iter().find(same) {
            choice.chosen.push(offered);
        } else if NOT_OFFERED.contains(&name) {
            choice.absent.push(word.clone());
        } else if !OF_TLS13.contains(&name) {
            choice.unknown.push(word.clone());
        }
    }
    choice
}

fn short(name: &str) -> Option<&str> {
    name.strip_suffix("_SHA256").filter(|short| short.ends_with("CHACHA20_POLY1305"))
}

/// Every name that counts, for messages.
pub(super) fn accepted() -> String {
    OFFERED.iter().chain(&OF_TLS13).copied().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_suites_is_read_as_go_does() {
        let chosen = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let choice = choice(&words);
            (choice.chosen.len(), choice.absent.len(), choice.unknown.join(" "))
        };
        let cases: [(&[&str], (usize, usize, &str)); 6] = [
            (&[], (6, 0, "")),
            (&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"], (1, 0, "")),
            (&["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", "TLS_RSA_WITH_AES_256_GCM_SHA384"], (1, 1, "")),
            (&["TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"], (0, 0, "")),
            (
                &["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA265", "AES", "TLS_AES_128_GCM_SHA256"],
                (0, 0, "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA265 AES"),
            ),
            (&["TLS_CHACHA20_POLY1305"], (0, 0, "TLS_CHACHA20_POLY1305")),
        ];
        for (words, (offered, absent, unknown)) in cases {
            assert_eq!(chosen(words), (offered, absent, unknown.to_owned()), "{words:?}");
        }
    }
}
