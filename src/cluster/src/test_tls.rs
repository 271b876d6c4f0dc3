//! Authorities and servers with certificates of any kind, for tests of who is believed.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;

/// An authority and the PEM of its certificate.
pub fn authority(name: &str) -> (Issuer<'static, KeyPair>, String) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

/// What is the matter with a server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    None,
    /// Its key is another's.
    Forged,
    Expired,
    NotYetValid,
}

/// TLS of a server with a certificate for these names.
pub fn server(issuer: &Issuer<'_, KeyPair>, names: &[&str], flaw: Flaw) -> ServerConfig {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    match flaw {
        Flaw::Expired => {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2020, 2, 1);
        }
        Flaw::NotYetValid => params.not_before = date_time_ymd(4000, 1, 1),
        Flaw::None | Flaw::Forged => {}
    }
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let certificate = params.signed_by(&key, issuer).unwrap();
    let held = if flaw == Flaw::Forged { &other } else { &key };
    let der = PrivateKeyDer::try_from(held.serialize_der()).unwrap();
    let provider = rustls::crypto::ring::default_provider();
    let held = provider.key_provider.load_private_key(der).unwrap();
    let pair = rustls::sign::CertifiedKey::new(vec![certificate.der().clone()], held);
    let shown = rustls::sign::SingleCertAndKey::from(pair);
    let builder = ServerConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(shown));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}
