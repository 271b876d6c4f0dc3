//! Image references as people write them, and the repository they mean. Pure text work; whether a reference
//! is valid at all is the runtime's to say.

/// Where images without a registry come from.
const DEFAULT_DOMAIN: &str = "docker.io";

/// The repository an image is in, without tag and digest, spelled out as credentials are matched against it:
/// `web` and `docker.io/web:1` are `docker.io/library/web` (distribution/reference, normalised names).
pub fn repository(image: &str) -> String {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let tag = name.rfind(':').filter(|colon| name.rfind('/').is_none_or(|slash| slash < *colon));
    let name = tag.map_or(name, |colon| &name[..colon]);
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if is_domain(first) => (first, rest),
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
    let library = if domain == DEFAULT_DOMAIN && !path.contains('/') { "library/" } else { "" };
    format!("{domain}/{library}{path}")
}

/// The registry of a repository: what stands before the first slash.
pub fn registry(repository: &str) -> &str {
    repository.split_once('/').map_or(repository, |(registry, _)| registry)
}

/// Only these tell a registry from the first part of a path.
fn is_domain(text: &str) -> bool {
    text.contains(['.', ':']) || text == "localhost" || text.chars().any(char::is_uppercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_spelled_out() {
        for (image, wanted) in [
            ("web", "docker.io/library/web"),
            ("web:1", "docker.io/library/web"),
            ("team/web:1", "docker.io/team/web"),
            ("docker.io/web", "docker.io/library/web"),
            ("index.docker.io/team/web@sha256:00", "docker.io/team/web"),
            ("localhost/web", "localhost/web"),
            ("localhost:5000/web", "localhost:5000/web"),
            ("localhost:5000/a/b:2", "localhost:5000/a/b"),
            ("[::1]:5000/web:2@sha256:00", "[::1]:5000/web"),
            ("Registry/web", "Registry/web"),
            ("", "docker.io/library/"),
        ] {
            assert_eq!(repository(image), wanted, "{image}");
        }
        assert_eq!(registry("localhost:5000/a/b"), "localhost:5000");
    }
}
