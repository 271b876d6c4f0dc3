//! The configuration of image credential provider plugins: `CredentialProviderConfig` files and their rules
//! (kubelet: pkg/credentialprovider/plugin/config.go). What plugins are asked is in `crate::registry`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use longshore_core::go_duration::GoDuration;
use longshore_core::image::provider::{KeptFor, TokenAttributes, VERSIONS};
use longshore_core::pod::validate::is_qualified;
use serde::Deserialize;

use super::settings::CredentialProvider;
use super::{AgentArgs, ConfigError, Loaded, read_kind, typed};
use crate::document::DocumentError;

const KIND: &str = "CredentialProviderConfig";
const API_VERSIONS: [&str; 3] =
    ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"];
const CONFIG_FLAG: &str = "image-credential-provider-config";
const FOLDER_FLAG: &str = "image-credential-provider-bin-dir";

#[derive(Deserialize)]
struct ProviderConfig {
    #[serde(default)]
    providers: Vec<Provider>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Provider {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: Option<GoDuration>,
    api_version: String,
    args: Option<Vec<String>>,
    env: Option<Vec<EnvVar>>,
    token_attributes: Option<Tokens>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Tokens {
    service_account_token_audience: String,
    cache_type: String,
    require_service_account: Option<bool>,
    required_service_account_annotation_keys: Vec<String>,
    optional_service_account_annotation_keys: Vec<String>,
}

#[derive(Deserialize)]
struct EnvVar {
    name: String,
    #[serde(default)]
    value: String,
}

/// The plugins that the flags name, in the order they are asked.
///
/// # Errors
/// A file that cannot be read, all rules broken at once, and a program that is not there: a node that cannot pull
/// its images is better told so at once.
pub(super) fn load(
    args: &AgentArgs,
    warnings: &mut Vec<String>,
) -> Result<Vec<CredentialProvider>, ConfigError> {
    let (config, folder) = (&args.image_credential_provider_config, &args.image_credential_provider_bin_dir);
    let Some(config) = config else {
        if folder.is_some() {
            warnings.push(format!("flag --{FOLDER_FLAG} has no effect without --{CONFIG_FLAG}"));
        }
        return Ok(Vec::new());
    };
    let Some(folder) = folder else {
        let message = format!("needs --{FOLDER_FLAG}, the folder its programs are in");
        return Err(ConfigError::Flag { flag: CONFIG_FLAG.to_owned(), message });
    };
    let (mut found, mut broken) = (Vec::new(), Vec::new());
    for path in files(config)? {
        let tree = read_kind(&path, KIND, &API_VERSIONS)?;
        let loaded: Loaded<ProviderConfig> = typed(tree, warnings)?;
        check(&loaded, folder, &mut found, &mut broken);
    }
    if !broken.is_empty() {
        return Err(ConfigError::Rules(broken));
    }
    Ok(found)
}

/// The file itself, or those of a folder in the order of their names.
fn files(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(read)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(read)? {
        let file = entry.map_err(read)?.path();
        let known =
            file.extension().is_some_and(|kind| ["json", "yaml", "yml"].iter().any(|one| kind == *one));
        if known && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn check(
    loaded: &Loaded<ProviderConfig>,
    folder: &Path,
    found: &mut Vec<CredentialProvider>,
    broken: &mut Vec<DocumentError>,
) {
    let place = &loaded.tree.get("providers").unwrap_or(&loaded.tree).place;
    let mut fail = |path: String, message: String| {
        broken.push(DocumentError { place: place.clone(), path, message });
    };
    if loaded.value.providers.is_empty() {
        fail("providers".to_owned(), "is empty; name at least one plugin".to_owned());
    }
    for (index, provider) in loaded.value.providers.iter().enumerate() {
        let mut fail = |field: &str, message: String| fail(format!("providers[{index}].{field}"), message);
        if let Some(problem) = bad_name(&provider.name) {
            fail("name", problem);
            continue;
        }
        if found.iter().any(|known| known.name == provider.name) {
            fail("name", format!("is {:?} for the second time; each plugin is named once", provider.name));
        }
        if provider.match_images.is_empty() {
            fail("matchImages", "is empty; name the images the plugin has credentials for".to_owned());
        }
        if !VERSIONS.contains(&provider.api_version.as_str()) {
            let known = VERSIONS.join(", ");
            fail("apiVersion", format!("is {:?}; it must be one of {known}", provider.api_version));
        }
        if provider.default_cache_duration.is_none_or(GoDuration::is_negative) {
            fail("defaultCacheDuration", "is missing or negative; write it like 10m or 0s".to_owned());
        }
        if let Some(tokens) = &provider.token_attributes {
            check_tokens(tokens, &provider.api_version, |field, message| {
                fail(&format!("tokenAttributes.{field}"), message);
            });
        }
        let program = folder.join(&provider.name);
        if !program.is_file() {
            fail("name", format!("there is no program {}", program.display()));
        }
        found.push(settings(provider, program));
    }
}

fn check_tokens(tokens: &Tokens, api_version: &str, mut fail: impl FnMut(&str, String)) {
    if api_version != VERSIONS[0] {
        let message = format!("needs apiVersion {}; the other versions know no tokens", VERSIONS[0]);
        fail("serviceAccountTokenAudience", message);
    }
    if tokens.service_account_token_audience.is_empty() {
        fail("serviceAccountTokenAudience", "is missing; name whom the tokens are for".to_owned());
    }
    if kept_for(&tokens.cache_type).is_none() {
        fail("cacheType", format!("is {:?}; it must be Token or ServiceAccount", tokens.cache_type));
    }
    let required = &tokens.required_service_account_annotation_keys;
    match tokens.require_service_account {
        None => fail("requireServiceAccount", "is missing; write true or false".to_owned()),
        Some(false) if !required.is_empty() => {
            let message = "must be true where annotations are required of the service account".to_owned();
            fail("requireServiceAccount", message);
        }
        Some(_) => {}
    }
    let mut seen = std::collections::BTreeSet::new();
    for (field, keys) in [
        ("requiredServiceAccountAnnotationKeys", required),
        ("optionalServiceAccountAnnotationKeys", &tokens.optional_service_account_annotation_keys),
    ] {
        for key in keys {
            if !is_qualified(key) {
                fail(field, format!("{key:?} is no key of an annotation"));
            } else if !seen.insert(key) {
                fail(field, format!("{key:?} is named twice"));
            }
        }
    }
}

fn kept_for(cache_type: &str) -> Option<KeptFor> {
    match cache_type {
        "Token" => Some(KeptFor::Token),
        "ServiceAccount" => Some(KeptFor::ServiceAccount),
        _ => None,
    }
}

/// A name that would lead out of the folder of programs is none.
fn bad_name(name: &str) -> Option<String> {
    let bad = name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0', ' ']);
    bad.then(|| format!("is {name:?}; it must be the name of a file in the folder of --{FOLDER_FLAG}"))
}

fn settings(provider: &Provider, program: PathBuf) -> CredentialProvider {
    let env = provider.env.iter().flatten();
    CredentialProvider {
        name: provider.name.clone(),
        program,
        args: provider.args.clone().unwrap_or_default(),
        env: env.map(|variable| (variable.name.clone(), variable.value.clone())).collect(),
        match_images: provider.match_images.clone(),
        keep: provider.default_cache_duration.map_or(Duration::ZERO, GoDuration::get),
        api_version: provider.api_version.clone(),
        tokens: provider.token_attributes.as_ref().and_then(attributes),
    }
}

/// `None` only where a rule is broken.
fn attributes(tokens: &Tokens) -> Option<TokenAttributes> {
    Some(TokenAttributes {
        audience: tokens.service_account_token_audience.clone(),
        keep_for: kept_for(&tokens.cache_type)?,
        required: tokens.require_service_account?,
        required_annotations: tokens.required_service_account_annotation_keys.clone(),
        optional_annotations: tokens.optional_service_account_annotation_keys.clone(),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: AgentArgs,
    }

    fn loaded(text: &str) -> Result<Vec<CredentialProvider>, String> {
        let dir = tempfile::tempdir().unwrap();
        let (config, folder) = (dir.path().join("providers"), dir.path().join("bin"));
        std::fs::create_dir_all(&config).unwrap();
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["one", "two"] {
            std::fs::write(folder.join(name), "").unwrap();
        }
        for (number, part) in text.split("---\n").enumerate() {
            std::fs::write(config.join(format!("{number}.yaml")), part).unwrap();
        }
        std::fs::write(config.join("README"), "no configuration").unwrap();
        let flags = [
            format!("--{CONFIG_FLAG}={}", config.display()),
            format!("--{FOLDER_FLAG}={}", folder.display()),
        ];
        let args = Cli::parse_from(["agent".to_owned()].into_iter().chain(flags)).args;
        load(&args, &mut Vec::new()).map_err(|error| error.to_string())
    }

    fn file(provider: &str) -> String {
        format!("kind: {KIND}\napiVersion: kubelet.config.k8s.io/v1\nproviders:\n- {provider}\n")
    }

    const ONE: &str = "{name: one, apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: ['*.r.io'], defaultCacheDuration: 12h, args: [a], env: [{name: WHO, value: hush}]}";
    const TWO: &str = "{name: two, apiVersion: credentialprovider.kubelet.k8s.io/v1beta1, matchImages: [r.io], defaultCacheDuration: 0s}";

    const TOKENS: &str = "serviceAccountTokenAudience: a, cacheType: Token, requireServiceAccount: true, \
        requiredServiceAccountAnnotationKeys: [a.io/r], optionalServiceAccountAnnotationKeys: [b]";

    fn with_tokens(tokens: &str) -> String {
        ONE.replace("args: [a]", &format!("tokenAttributes: {{{tokens}}}"))
    }

    #[test]
    fn tokens_of_service_accounts_are_given_as_written() {
        let found = loaded(&file(&with_tokens(TOKENS))).unwrap();
        let expected = TokenAttributes {
            audience: "a".into(),
            keep_for: KeptFor::Token,
            required: true,
            required_annotations: vec!["a.io/r".into()],
            optional_annotations: vec!["b".into()],
        };
        assert_eq!(found[0].tokens, Some(expected));
    }

    #[test]
    fn plugins_of_all_files_are_taken_in_order() {
        let found = loaded(&format!("{}---\n{}", file(ONE), file(TWO))).unwrap();
        let names: Vec<_> = found.iter().map(|provider| provider.name.as_str()).collect();
        assert_eq!(names, ["one", "two"]);
        assert_eq!(found[0].keep, Duration::from_secs(12 * 3600));
        assert!(found[0].program.ends_with("bin/one"));
        assert!(!format!("{found:?}").contains("hush"), "values of variables may be secrets");
    }

    #[test]
    fn every_broken_rule_is_named_with_its_field() {
        for (provider, says) in [
            (ONE.replace("name: one", "name: ../one"), "providers[0].name: is \"../one\""),
            (ONE.replace("name: one", "name: three"), "there is no program"),
            (ONE.replace("['*.r.io']", "[]"), "providers[0].matchImages: is empty"),
            (ONE.replace("k8s.io/v1", "k8s.io/v2"), "providers[0].apiVersion: is"),
            (ONE.replace("12h", "-1s"), "providers[0].defaultCacheDuration: is missing or negative"),
            (
                with_tokens("requireServiceAccount: true"),
                "tokenAttributes.serviceAccountTokenAudience: is missing",
            ),
            (with_tokens("serviceAccountTokenAudience: a"), "tokenAttributes.cacheType: is \"\""),
            (with_tokens(&TOKENS.replace("Token,", "Pod,")), "tokenAttributes.cacheType: is \"Pod\""),
            (
                with_tokens("serviceAccountTokenAudience: a, cacheType: Token"),
                "tokenAttributes.requireServiceAccount: is missing",
            ),
            (with_tokens(&TOKENS.replace("true", "false")), "requireServiceAccount: must be true"),
            (with_tokens(&TOKENS.replace("[b]", "[a.io/r]")), "\"a.io/r\" is named twice"),
            (with_tokens(&TOKENS.replace("[b]", "[a b]")), "\"a b\" is no key"),
            (
                with_tokens(TOKENS).replace("k8s.io/v1,", "k8s.io/v1beta1,"),
                "the other versions know no tokens",
            ),
            (format!("{ONE}\n- {ONE}"), "providers[1].name: is \"one\" for the second time"),
        ] {
            let said = loaded(&file(&provider)).unwrap_err();
            assert!(said.contains(says), "{provider}: {said}");
        }
        assert!(loaded(&format!("kind: {KIND}\napiVersion: kubelet.config.k8s.io/v1\n")).is_err());
        assert!(loaded("kind: Pod\napiVersion: v1\n").unwrap_err().contains(KIND));
    }
}
