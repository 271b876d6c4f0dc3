//! Private keys (ECDSA P-256) and the PKCS#10 requests they sign. Nothing of a key is ever logged.

use longshore_core::certificates::{NODES, Wish};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData as _, SanType};
use sha2::{Digest as _, Sha256};

use super::CertificateError;

/// A private key.
pub struct Key(KeyPair);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// A new one.
    ///
    /// # Errors
    /// Where the system has no randomness to give.
    pub fn generate() -> Result<Self, CertificateError> {
        let pair = KeyPair::generate();
        pair.map(Self).map_err(|source| CertificateError::Make { what: "private key", source })
    }

    /// Reads PKCS#8 in PEM; `None` where it is none.
    pub fn read(pem: &[u8]) -> Option<Self> {
        KeyPair::from_pem(std::str::from_utf8(pem).ok()?).ok().map(Self)
    }

    /// PKCS#8 in PEM.
    pub fn pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// SHA-256 of the public key, as certificates hold it.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.subject_public_key_info()).into()
    }

    /// The signing request of a wish, in PEM.
    ///
    /// # Errors
    /// A name of the node that no certificate can carry.
    pub fn request(&self, wish: &Wish) -> Result<String, CertificateError> {
        let wrong = |source| CertificateError::Make { what: "certificate signing request", source };
        let mut params = CertificateParams::default();
        let mut subject = DistinguishedName::new();
        subject.push(DnType::OrganizationName, NODES);
        subject.push(DnType::CommonName, wish.common_name());
        params.distinguished_name = subject;
        for name in &wish.dns_names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().map_err(wrong)?));
        }
        params.subject_alt_names.extend(wish.ips.iter().map(|ip| SanType::IpAddress(*ip)));
        params.serialize_request(&self.0).and_then(|request| request.pem()).map_err(wrong)
    }
}
