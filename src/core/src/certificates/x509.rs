//! X.509 certificates in PEM as values. Nothing is verified here: who signed it is the TLS library's
//! and the API server's business.

use std::net::IpAddr;

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;

use super::CertificateFacts;

/// Larger files hold no certificate of a node, bytes.
pub const MAX_BYTES: usize = 1 << 20;

/// The first certificate of a PEM text, as TLS has them: the holder's own comes before its chain.
///
/// # Errors
/// What is wrong with the text.
pub fn read_certificate(pem: &[u8]) -> Result<CertificateFacts, String> {
    read_der(&first_certificate(pem)?)
}

/// A certificate in DER, as TLS libraries hold it.
///
/// # Errors
/// As [`read_certificate`].
pub fn read_der(der: &[u8]) -> Result<CertificateFacts, String> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|error| format!("is no X.509 certificate: {error}"))?;
    facts(&certificate)
}

/// SHA-256 of the public keys of all certificates of a PEM text: kubeadm's pins.
///
/// # Errors
/// As [`read_certificate`].
pub fn key_hashes(pem: &[u8]) -> Result<Vec<[u8; 32]>, String> {
    let mut hashes = Vec::new();
    for block in blocks(pem)? {
        let (_, certificate) =
            X509Certificate::from_der(&block).map_err(|error| format!("is no X.509 certificate: {error}"))?;
        hashes.push(Sha256::digest(certificate.public_key().raw).into());
    }
    Ok(hashes)
}

fn first_certificate(pem: &[u8]) -> Result<Vec<u8>, String> {
    blocks(pem)?.into_iter().next().ok_or_else(|| "holds no certificate in PEM form".to_owned())
}

fn blocks(pem: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    if pem.len() > MAX_BYTES {
        return Err(format!("is larger than {MAX_BYTES} bytes"));
    }
    let mut found = Vec::new();
    for block in Pem::iter_from_buffer(pem) {
        let block = block.map_err(|error| format!("is broken PEM: {error}"))?;
        if block.label == "CERTIFICATE" {
            found.push(block.contents);
        }
    }
    Ok(found)
}

fn facts(certificate: &X509Certificate<'_>) -> Result<CertificateFacts, String> {
    let time = |seconds: i64| {
        Timestamp::from_second(seconds).map_err(|error| format!("has a time beyond all bounds: {error}"))
    };
    let subject = certificate.subject();
    let texts = |mut parts: Box<dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>> + '_>| {
        let mut texts = Vec::new();
        for part in parts.by_ref() {
            texts.extend(part.as_str().ok().map(str::to_owned));
        }
        texts
    };
    let mut facts = CertificateFacts {
        not_before: time(certificate.validity().not_before.timestamp())?,
        not_after: time(certificate.validity().not_after.timestamp())?,
        common_name: texts(Box::new(subject.iter_common_name())).into_iter().next().unwrap_or_default(),
        organisations: texts(Box::new(subject.iter_organization())),
        dns_names: Default::default(),
        ips: Default::default(),
        key_hash: Sha256::digest(certificate.public_key().raw).into(),
    };
    let names =
        certificate.subject_alternative_name().map_err(|error| format!("has broken names: {error}"))?;
    for name in names.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            GeneralName::DNSName(name) => {
                facts.dns_names.insert((*name).to_owned());
            }
            GeneralName::IPAddress(bytes) => facts.ips.extend(address(bytes)),
            _ => {}
        }
    }
    Ok(facts)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(four));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650
    /// -subj /O=system:nodes/CN=system:node:a -addext subjectAltName=DNS:a,IP:10.0.0.1,IP:fd00::1`
    const CERTIFICATE: &str = include_str!("example.pem");

    #[test]
    fn a_certificate_is_read() {
        let facts = read_certificate(CERTIFICATE.as_bytes()).unwrap();
        assert_eq!(facts.common_name, "system:node:a");
        assert_eq!(facts.organisations, ["system:nodes"]);
        assert_eq!(facts.dns_names.iter().collect::<Vec<_>>(), ["a"]);
        let ips: Vec<String> = facts.ips.iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.0.0.1", "fd00::1"]);
        assert_eq!(facts.not_after.duration_since(facts.not_before).as_hours(), 3650 * 24);
        assert_eq!(key_hashes(CERTIFICATE.as_bytes()).unwrap(), [facts.key_hash]);
        // The first of a chain counts, and text around it does not.
        let chain = format!("Bag Attributes\n{CERTIFICATE}{CERTIFICATE}");
        assert_eq!(read_certificate(chain.as_bytes()).unwrap(), facts);
        assert_eq!(key_hashes(chain.as_bytes()).unwrap().len(), 2);
    }

    #[test]
    fn what_is_none_is_told_and_never_panics() {
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let cut = &CERTIFICATE[..CERTIFICATE.len() / 2];
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (text, part) in [
            ("", "no certificate"),
            ("hello", "no certificate"),
            (key, "no certificate"),
            (cut, "broken PEM"),
            (garbage, "no X.509 certificate"),
        ] {
            let error = read_certificate(text.as_bytes()).unwrap_err();
            assert!(error.contains(part), "{text:?}: {error}");
        }
        assert!(read_certificate(&vec![b'-'; MAX_BYTES + 1]).unwrap_err().contains("larger"));
    }
}
