//! TLS for callers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// TLS for callers. Where no certificate is set, plain HTTP is spoken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawTls {
    /// PEM file with the certificate to show, and those that signed it.
    pub cert_file: Option<String>,
    /// PEM file with that certificate's key.
    pub key_file: Option<String>,
    /// PEM file with the certificates that sign callers' certificates. Where it is not set, callers show none.
    pub client_ca_file: Option<String>,
    /// Whether callers must show a certificate, where `client_ca_file` is set.
    pub client_auth: ClientAuth,
}

impl Default for RawTls {
    fn default() -> Self {
        Self { cert_file: None, key_file: None, client_ca_file: None, client_auth: ClientAuth::Required }
    }
}

/// Whether callers must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// Without one there is no connection.
    Required,
    /// One that is shown must be right.
    Optional,
}
