//! TLS on both sides: files that must be there and fit each other.

use super::Check;
use crate::config::{
    RawClientTls, RawTls,
    tls::{ClientTls, PemFile, ServerTls},
};

impl Check<'_> {
    /// TLS for callers; `None` where plain HTTP is spoken.
    pub(super) fn server_tls(&mut self, raw: &RawTls) -> Option<ServerTls> {
        self.together("tls", raw.cert_file.is_some(), raw.key_file.is_some());
        self.require("tls.client_ca_file", raw.client_ca_file.is_none() || raw.cert_file.is_some(), || {
            "callers' certificates are seen over TLS only: set `tls.cert_file` and `tls.key_file` too"
                .to_owned()
        });
        let cert = self.pem("tls.cert_file", raw.cert_file.as_deref());
        let key = self.pem("tls.key_file", raw.key_file.as_deref());
        let clients = self.pem("tls.client_ca_file", raw.client_ca_file.as_deref());
        if raw.client_ca_file.is_some() && clients.is_none() {
            return None;
        }
        let clients = clients.as_ref().map(|ca| (ca, raw.client_auth));
        if let Some((ca, _)) = clients {
            self.parsed("tls.client_ca_file", ca.roots())?;
        }
        self.parsed("tls.cert_file", ServerTls::new(&cert?, &key?, clients))
    }

    /// TLS of the upstream in the section `at`.
    pub(super) fn client_tls(&mut self, at: &str, raw: &RawClientTls) -> ClientTls {
        let at = format!("{at}.tls");
        self.together(&at, raw.cert_file.is_some(), raw.key_file.is_some());
        let ca_key = format!("{at}.ca_file");
        let ca = self.pem(&ca_key, raw.ca_file.as_deref());
        let cert_key = format!("{at}.cert_file");
        let cert = self.pem(&cert_key, raw.cert_file.as_deref());
        let key = self.pem(&format!("{at}.key_file"), raw.key_file.as_deref());
        if let Some(ca) = &ca
            && self.parsed(&ca_key, ca.roots()).is_none()
        {
            return ClientTls::default();
        }
        let identity = cert.as_ref().zip(key.as_ref()).map(|(cert, key)| [cert, key]);
        self.parsed(&cert_key, ClientTls::new(ca.as_ref(), identity)).unwrap_or_default()
    }

    fn together(&mut self, at: &str, cert: bool, key: bool) {
        let missing = |set: &str| format!("is not set, but `{at}.{set}` is; a certificate needs its key");
        self.require(&format!("{at}.key_file"), key || !cert, || missing("cert_file"));
        self.require(&format!("{at}.cert_file"), cert || !key, || missing("key_file"));
    }

    fn pem<'a>(&mut self, key: &str, path: Option<&'a str>) -> Option<PemFile<'a>> {
        self.parsed(key, PemFile::read(path?))
    }
}
