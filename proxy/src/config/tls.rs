//! Certificates and keys, read and checked to fit each other.

use std::{fmt, sync::Arc};

use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::{
    self, ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
    sign::CertifiedKey,
};

use super::ClientAuth;

/// A certificate with those that signed it, and its key.
pub(super) struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// TLS of an upstream. Two that were made of the same files are equal.
#[derive(Clone, Default)]
pub struct ClientTls {
    /// Certificates to trust in place of the system's.
    roots: Option<Arc<RootCertStore>>,
    identity: Option<Arc<Identity>>,
    /// sha256 of the files' contents.
    sha256: [u8; 32],
}

/// TLS for callers.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    knows_callers: bool,
}

/// A file of the configuration, with its contents.
pub(super) struct PemFile<'a> {
    pub(super) path: &'a str,
    pub(super) bytes: Vec<u8>,
}

impl<'a> PemFile<'a> {
    pub(super) fn read(path: &'a str) -> Result<Self, String> {
        let bytes = std::fs::read(path).map_err(|error| format!("can't read `{path}`: {error}"))?;
        Ok(Self { path, bytes })
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let path = self.path;
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.bytes).collect();
        match read {
            Ok(certificates) if !certificates.is_empty() => Ok(certificates),
            Ok(_) => Err(format!("`{path}` holds no certificate in PEM (`-----BEGIN CERTIFICATE-----`)")),
            Err(error) => Err(format!("`{path}` is not a PEM file of certificates: {error}")),
        }
    }

    pub(super) fn roots(&self) -> Result<Arc<RootCertStore>, String> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            roots.add(certificate).map_err(|error| {
                format!("`{}` holds a certificate that can't be trusted: {error}", self.path)
            })?;
        }
        Ok(Arc::new(roots))
    }

    /// The certificate of this file, with the key in `key`.
    pub(super) fn identity(&self, key: &PemFile<'_>) -> Result<Identity, String> {
        let chain = self.certificates()?;
        // The error is not shown: it might quote the file.
        let key_der = PrivateKeyDer::from_pem_slice(&key.bytes).map_err(|_| {
            format!("`{}` holds no private key in PEM (`-----BEGIN PRIVATE KEY-----`)", key.path)
        })?;
        let pair = CertifiedKey::from_der(chain.clone(), key_der.clone_key(), &provider());
        pair.map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                format!("the key in `{}` is not that of the certificate in `{}`", key.path, self.path)
            }
            error => format!("the certificate in `{}` can't be used: {error}", self.path),
        })?;
        Ok(Identity { chain, key: key_der })
    }
}

fn sha256<'a>(files: impl IntoIterator<Item = &'a PemFile<'a>>) -> [u8; 32] {
    let mut all = Sha256::new();
    for file in files {
        all.update(Sha256::digest(&file.bytes));
    }
    all.finalize().into()
}

/// The cryptography of this program.
fn provider() -> CryptoProvider {
    ring::default_provider()
}

impl ClientTls {
    /// Trusts `ca`, or the system, and shows the certificate and key of `identity`.
    pub(super) fn new(ca: Option<&PemFile<'_>>, identity: Option<[&PemFile<'_>; 2]>) -> Result<Self, String> {
        let [cert, key] = identity.map_or([None; 2], |pair| pair.map(Some));
        Ok(Self {
            roots: ca.map(PemFile::roots).transpose()?,
            identity: cert.zip(key).map(|(cert, key)| cert.identity(key)).transpose()?.map(Arc::new),
            sha256: sha256([ca, cert, key].into_iter().flatten()),
        })
    }

    /// What a connector takes.
    ///
    /// # Errors
    /// If the system's certificates are asked for and can't be read.
    pub(crate) fn config(&self) -> std::io::Result<ClientConfig> {
        let roots = match &self.roots {
            Some(roots) => roots.clone(),
            None => Arc::new(system_roots()?),
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .map_err(std::io::Error::other)?
            .with_root_certificates(roots);
        match &self.identity {
            None => Ok(builder.with_no_client_auth()),
            Some(own) => builder
                .with_client_auth_cert(own.chain.clone(), own.key.clone_key())
                .map_err(std::io::Error::other),
        }
    }
}

fn system_roots() -> std::io::Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    match found.errors.into_iter().next() {
        _ if !roots.is_empty() => Ok(roots),
        Some(error) => Err(std::io::Error::other(error)),
        None => {
            Err(std::io::Error::other("the system has no certificates; set `tls.ca_file` of the upstream"))
        }
    }
}

impl ServerTls {
    /// Shows the certificate `cert` with `key`, and checks callers' certificates by `clients`.
    pub(super) fn new(
        cert: &PemFile<'_>,
        key: &PemFile<'_>,
        clients: Option<(&PemFile<'_>, ClientAuth)>,
    ) -> Result<Self, String> {
        let Identity { chain, key: key_der } = cert.identity(key)?;
        let provider = Arc::new(provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some((ca, auth)) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(ca.roots()?, provider);
                let verifier = match auth {
                    ClientAuth::Required => verifier,
                    ClientAuth::Optional => verifier.allow_unauthenticated(),
                };
                builder.with_client_cert_verifier(verifier.build().map_err(|error| error.to_string())?)
            }
        };
        let mut config = builder.with_single_cert(chain, key_der).map_err(|error| error.to_string())?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let knows_callers = clients.is_some_and(|(_, auth)| auth == ClientAuth::Required);
        Ok(Self { config: Arc::new(config), knows_callers })
    }

    /// What an acceptor takes.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    /// Whether every caller shows a certificate.
    pub fn knows_callers(&self) -> bool {
        self.knows_callers
    }
}

impl PartialEq for ClientTls {
    fn eq(&self, other: &Self) -> bool {
        let has = |tls: &Self| (tls.roots.is_some(), tls.identity.is_some());
        self.sha256 == other.sha256 && has(self) == has(other)
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientTls")
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}
