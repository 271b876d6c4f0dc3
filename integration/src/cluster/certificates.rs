//! Certificates of a test cluster: one authority, and what it issues to servers and clients.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

/// A certificate authority.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    key: String,
}

/// Someone who gets a certificate.
pub(super) struct Party {
    common_name: String,
    organisation: String,
    /// Of a server.
    names: Vec<String>,
}

impl Party {
    pub(super) fn server(common_name: &str, names: &[&str]) -> Self {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Self { common_name: common_name.to_owned(), organisation: String::new(), names }
    }

    pub(super) fn client(common_name: &str, organisation: &str) -> Self {
        Self { common_name: common_name.to_owned(), organisation: organisation.to_owned(), names: Vec::new() }
    }
}

impl Authority {
    pub(super) fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name = name_of(name, "");
        let key = key_pair()?;
        let certificate = params.self_signed(&key)?.pem();
        let pem = key.serialize_pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate, key: pem })
    }

    pub(super) fn certificate(&self) -> &str {
        &self.certificate
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// Certificate and key of a party, in PEM.
    pub(super) fn issue(&self, party: &Party) -> Result<(String, String)> {
        let mut params = CertificateParams::new(party.names.clone())?;
        params.distinguished_name = name_of(&party.common_name, &party.organisation);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let purpose = if party.names.is_empty() {
            ExtendedKeyUsagePurpose::ClientAuth
        } else {
            ExtendedKeyUsagePurpose::ServerAuth
        };
        params.extended_key_usages = vec![purpose];
        let key = key_pair()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

fn name_of(common_name: &str, organisation: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if !organisation.is_empty() {
        name.push(DnType::OrganizationName, organisation);
    }
    name.push(DnType::CommonName, common_name);
    name
}

/// A new key: P-256.
pub(super) fn key_pair() -> Result<KeyPair> {
    Ok(KeyPair::generate()?)
}

/// As kubeconfigs embed files.
pub(super) fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
