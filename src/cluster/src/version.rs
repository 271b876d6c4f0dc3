//! Resource versions: which of two is older.

/// Whether a version is older than another. Versions of one kind of objects compare as decimal numbers of any length
/// (KEP-5504); of what is none, nothing is known, and it is taken as it comes.
pub(crate) fn is_older(version: Option<&str>, than: Option<&str>) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match (version, than) {
        (Some(version), Some(than)) if number(version) && number(than) => {
            (version.len(), version) < (than.len(), than)
        }
        _ => false,
    }
}
