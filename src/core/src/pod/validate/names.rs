//! Rules for names, labels, addresses and paths in manifests (RFC 1123, apimachinery validation).

use std::net::IpAddr;

use super::Problems;

/// RFC 1123 label: at most 63 of `a-z0-9-`, starting and ending with an alphanumeric.
pub(super) fn label(problems: &mut Problems, field: &str, name: &str) {
    if !is_label(name) {
        problems.add(
            field,
            format!("{name:?} is not a DNS label"),
            "use at most 63 lower-case letters, digits and '-', starting and ending with a letter or digit",
        );
    }
}

pub(super) fn is_label(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// RFC 1123 subdomain: labels joined by dots, at most 253 characters.
pub(super) fn subdomain(problems: &mut Problems, field: &str, name: &str) {
    if !is_subdomain(name) {
        problems.add(
            field,
            format!("{name:?} is not a DNS name"),
            "use at most 253 lower-case letters, digits, '-' and '.', each part starting and ending with a letter or digit",
        );
    }
}

pub(super) fn is_subdomain(name: &str) -> bool {
    // Parts of a subdomain may be longer than a label.
    let part = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(part)
}

/// `[prefix/]name` as of label and annotation keys.
pub(super) fn qualified(problems: &mut Problems, field: &str, key: &str) {
    if !is_qualified(key) {
        problems.add(
            field,
            format!("{key:?} is not a valid key"),
            "use [dns.prefix/]name with at most 63 letters, digits, '-', '_' and '.' in the name",
        );
    }
}

/// Whether this can be the key of a label or an annotation.
pub fn is_qualified(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(is_subdomain) && is_qualified_name(name)
}

fn is_qualified_name(name: &str) -> bool {
    !name.is_empty() && is_label_text(name)
}

/// Letters, digits, `-_.`, alphanumeric at both ends, at most 63; may be empty.
fn is_label_text(text: &str) -> bool {
    let alphanumeric = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    text.len() <= 63
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && alphanumeric(text.as_bytes().first())
        && alphanumeric(text.as_bytes().last())
}

pub(super) fn label_value(problems: &mut Problems, field: &str, value: &str) {
    if !is_label_text(value) {
        problems.add(
            field,
            format!("{value:?} is not a valid label value"),
            "use at most 63 letters, digits, '-', '_' and '.', starting and ending with a letter or digit",
        );
    }
}

pub(super) fn ip(problems: &mut Problems, field: &str, text: &str) {
    if text.parse::<IpAddr>().is_err() {
        problems.add(field, format!("{text:?} is not an IP address"), "write it as in 10.0.0.1 or fd00::1");
    }
}

/// IANA service name: at most 15 of `a-z0-9-` with a letter, no doubled or outer hyphens.
pub(super) fn port_name(problems: &mut Problems, field: &str, name: &str) {
    let valid = name.len() <= 15
        && is_label(name)
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
        && !name.contains("--");
    if !valid {
        problems.add(
            field,
            format!("{name:?} is not a port name"),
            "use at most 15 lower-case letters, digits and single '-', with at least one letter",
        );
    }
}

pub(super) fn port(problems: &mut Problems, field: &str, port: i32) {
    if !(1..=65535).contains(&port) {
        problems.add(field, format!("{port} is not a port"), "use 1 to 65535");
    }
}

/// Relaxed rule of v1.36: printable ASCII without `=`.
pub(super) fn env_name(problems: &mut Problems, field: &str, name: &str) {
    let valid = !name.is_empty() && name.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=');
    if !valid {
        problems.add(
            field,
            format!("{name:?} is not a variable name"),
            "use printable ASCII characters other than '='",
        );
    }
}

pub(super) fn sysctl(problems: &mut Problems, field: &str, name: &str) {
    let valid = !name.is_empty()
        && name.len() <= 253
        && name.split(['.', '/']).all(|part| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte))
        });
    if !valid {
        problems.add(field, format!("{name:?} is not a sysctl name"), "write it as in net.core.somaxconn");
    }
}

/// A path below a volume: relative, without `..`.
pub(super) fn relative_path(problems: &mut Problems, field: &str, path: &str) {
    if path.is_empty() {
        problems.add(field, "is empty", "write a path relative to the volume");
    } else if path.starts_with('/') {
        problems.add(
            field,
            format!("{path:?} is absolute"),
            "write it relative to the volume, without a leading /",
        );
    } else if path.split('/').any(|part| part == "..") {
        problems.add(field, format!("{path:?} leaves the volume"), "write it without '..'");
    }
}
