//! What people type to name a pod: `web`, `shop/web`, `pod/web`, `pod/shop/web`, `-n shop web`.
//! Pure: names in, a choice or a helpful error out.

use longshore_core::ids::PodKey;

use crate::error::CliError;

/// A pod name as typed; the namespace is open where it was not said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    pub namespace: Option<String>,
    pub name: String,
}

impl PodName {
    /// Reads a name; `namespace` is what `-n` said.
    pub fn parse(text: &str, namespace: Option<&str>) -> Result<Self, CliError> {
        let mut parts: Vec<&str> = text.split('/').collect();
        if parts.len() > 1 && matches!(parts[0], "pod" | "pods" | "po") {
            parts.remove(0);
        }
        let (typed, name) = match parts.as_slice() {
            [name] => (None, *name),
            [namespace, name] => (Some(*namespace), *name),
            _ => ("".into(), ""),
        };
        if name.is_empty() || typed == Some("") {
            return Err(CliError::usage(format!("{text:?} does not name a pod"))
                .hint("write NAME, NAMESPACE/NAME or pod/NAME"));
        }
        if let (Some(typed), Some(flag)) = (typed, namespace)
            && typed != flag
        {
            return Err(CliError::usage(format!("{text} and -n {flag} name two namespaces")));
        }
        Ok(Self { namespace: typed.or(namespace).map(str::to_string), name: name.to_string() })
    }

    fn matches(&self, key: &PodKey) -> bool {
        self.namespace.as_deref().is_none_or(|namespace| namespace == &*key.namespace)
            && self.name == *key.name
    }

    /// The one pod that is meant among those that are there.
    pub fn choose<'a>(&self, keys: impl Iterator<Item = &'a PodKey> + Clone) -> Result<PodKey, CliError> {
        let mut found: Vec<&PodKey> = keys.clone().filter(|key| self.matches(key)).collect();
        found.sort();
        found.dedup();
        match found.as_slice() {
            [one] => Ok((*one).clone()),
            [] => {
                let error = CliError::new(format!("there is no pod {} on this node", self.shown()));
                Err(match self.nearest(keys) {
                    Some(near) => error.hint(format!("did you mean {near}?")),
                    None => error.hint("longshore ps shows the pods there are"),
                })
            }
            several => {
                // The default namespace wins, as it does for kubectl.
                if let Some(key) = several.iter().find(|key| &*key.namespace == "default") {
                    return Ok((*key).clone());
                }
                let names: Vec<String> = several.iter().map(ToString::to_string).collect();
                Err(CliError::new(format!("{} is in several namespaces", self.name))
                    .hint(format!("say which: {}", names.join(", "))))
            }
        }
    }

    fn shown(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}", self.name),
            None => self.name.clone(),
        }
    }

    fn nearest<'a>(&self, keys: impl Iterator<Item = &'a PodKey>) -> Option<PodKey> {
        let typed = self.shown();
        keys.map(|key| {
            let whole = if self.namespace.is_some() { key.to_string() } else { key.name.to_string() };
            let contained = whole.contains(&self.name) || self.name == *key.name;
            (if contained { 1 } else { distance(&typed, &whole) }, key)
        })
        .filter(|(distance, key)| *distance <= 2.max(key.name.len() / 3))
        .min()
        .map(|(_, key)| key.clone())
    }
}

/// Edits between two words (Levenshtein).
pub fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_every_form() {
        type Read = Result<(Option<&'static str>, &'static str), &'static str>;
        let cases: [(&str, Option<&str>, Read); 9] = [
            ("web", None, Ok((None, "web"))),
            ("web", Some("shop"), Ok((Some("shop"), "web"))),
            ("shop/web", None, Ok((Some("shop"), "web"))),
            ("pod/web", None, Ok((None, "web"))),
            ("pod/shop/web", None, Ok((Some("shop"), "web"))),
            ("shop/web", Some("shop"), Ok((Some("shop"), "web"))),
            ("shop/web", Some("other"), Err("two namespaces")),
            ("a/b/c", None, Err("does not name a pod")),
            ("/web", None, Err("does not name a pod")),
        ];
        for (text, flag, expected) in cases {
            match (PodName::parse(text, flag), expected) {
                (Ok(got), Ok((namespace, name))) => {
                    assert_eq!((got.namespace.as_deref(), got.name.as_str()), (namespace, name), "{text}");
                }
                (Err(error), Err(part)) => assert!(error.message.contains(part), "{text}: {error}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }

    #[test]
    fn the_pod_that_is_meant_is_found_or_guessed() {
        let keys = [
            PodKey::new("default", "web"),
            PodKey::new("shop", "web"),
            PodKey::new("shop", "database-0"),
            PodKey::new("a", "twin"),
            PodKey::new("b", "twin"),
        ];
        let cases = [
            ("web", Ok("default/web")),
            ("shop/web", Ok("shop/web")),
            ("database-0", Ok("shop/database-0")),
            ("database", Err("did you mean shop/database-0?")),
            ("datbase-0", Err("did you mean shop/database-0?")),
            ("shop/wbe", Err("did you mean shop/web?")),
            ("twin", Err("say which: a/twin, b/twin")),
            ("something-else", Err("longshore ps shows the pods there are")),
        ];
        for (typed, expected) in cases {
            let chosen = PodName::parse(typed, None).unwrap().choose(keys.iter());
            match (chosen, expected) {
                (Ok(key), Ok(want)) => assert_eq!(key.to_string(), want),
                (Err(error), Err(hint)) => assert_eq!(error.hint.as_deref(), Some(hint), "{typed}"),
                (got, _) => panic!("{typed}: {got:?}"),
            }
        }
    }
}
