//! TLS, to upstreams and from callers.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::{path::Path, process::Stdio, sync::Arc};

use bytes::Bytes;
use forethought_proxy::config::{CheckedConfig, Sources};
use forethought_tests::{Client, FakeGuard, FakeUpstream, TestProxy, chat};
use http::{Request, Response, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
};

/// A server over TLS that answers with the HTTP version it was asked in. Its certificate lands in `folder`.
async fn upstream(folder: &Path, protocols: &[&[u8]]) -> String {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("roots.pem"), cert.pem()).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let mut config =
        ServerConfig::builder_with_provider(Arc::new(tokio_rustls::rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let service = hyper::service::service_fn(async |request: Request<Incoming>| {
                        let version = if request.version() == Version::HTTP_2 { "2" } else { "1.1" };
                        let host =
                            request.headers().contains_key("host") || request.uri().authority().is_some();
                        let body = json!({"version": version, "host": host}).to_string();
                        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(body))))
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                }
            });
        }
    });
    format!("https://localhost:{port}")
}

/// A proxy before `upstream` that trusts the certificates in the file `roots` only. They are the process's, so it is a
/// process of its own.
async fn proxy(folder: &Path, upstream: &str, roots: &str) -> Result<(Child, Client), String> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fake-serve"))
        .current_dir(folder)
        .args(["--listen", "127.0.0.1:0", "--upstream", upstream])
        .env("FORETHOUGHT_HOME", folder)
        .env("SSL_CERT_FILE", folder.join(roots))
        .env_remove("SSL_CERT_DIR")
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).await.unwrap();
    let Some((_, url)) = line.split_once("listening on ") else {
        log.read_to_string(&mut line).await.unwrap();
        return Err(line);
    };
    let client = Client::new(url.trim().to_owned());
    tokio::spawn(async move { log.read_to_string(&mut line).await });
    Ok((child, client))
}

#[tokio::test]
async fn both_versions_of_http_are_spoken_over_tls() {
    for (protocols, version) in
        [(&[b"h2".as_slice(), b"http/1.1"][..], "2"), (&[b"http/1.1"], "1.1"), (&[], "1.1")]
    {
        let folder = tempfile::tempdir().unwrap();
        let upstream = upstream(folder.path(), protocols).await;
        let (_proxy, client) = proxy(folder.path(), &upstream, "roots.pem").await.unwrap();
        let reply = client.chat(&chat("hi", json!({}))).await;
        assert_eq!(reply.json(), json!({"version": version, "host": true}));
    }
}

#[tokio::test]
async fn a_certificate_that_nobody_signed_is_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let trusted = upstream(folder.path(), &[]).await;
    let untrusted = upstream(other.path(), &[]).await;
    drop(trusted);
    let (_proxy, client) = proxy(folder.path(), &untrusted, "roots.pem").await.unwrap();
    let reply = client.chat(&chat("hi", json!({}))).await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (502, "upstream_unreachable"));
}

#[tokio::test]
async fn certificates_are_needed_for_https_only() {
    let folder = tempfile::tempdir().unwrap();
    let error = proxy(folder.path(), "https://localhost:9", "missing.pem").await.err().unwrap();
    assert!(error.contains("can't read the system's TLS certificate roots"), "{error}");
    assert!(proxy(folder.path(), "http://localhost:9", "missing.pem").await.is_ok());
}

/// A certificate authority, and PEM files of what it signs.
struct Authority {
    folder: tempfile::TempDir,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(folder.path().join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: rcgen::Issuer::new(params, key) }
    }

    /// Where a file of this name is.
    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Signs a certificate for `localhost`; it and its key land in `{name}.crt` and `{name}.key`.
    fn sign(&self, name: &str) {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{name}.crt")), cert.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// Settings for a server that shows what `name` names.
    fn server(&self, name: &str) -> String {
        format!(
            "[tls]\ncert_file = \"{}\"\nkey_file = \"{}\"\n",
            self.path(&format!("{name}.crt")),
            self.path(&format!("{name}.key"))
        )
    }

    /// Settings for a client of `upstream` that trusts this authority, and shows what `name` names.
    fn client(&self, name: Option<&str>) -> String {
        let own = name.map(|name| {
            format!(
                "cert_file = \"{}\"\nkey_file = \"{}\"\n",
                self.path(&format!("{name}.crt")),
                self.path(&format!("{name}.key"))
            )
        });
        format!("[upstream.tls]\nca_file = \"{}\"\n{}", self.path("ca.crt"), own.unwrap_or_default())
    }
}

/// A proxy that speaks TLS with `toml`, before an upstream that says its name; and its URL.
async fn secured(toml: &str) -> (TestProxy, FakeUpstream, String) {
    let upstream = FakeUpstream::answering("{\"from\": \"upstream\"}").await;
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), toml).await;
    let url = format!("https://localhost:{}/v1", proxy.address.port());
    (proxy, upstream, url)
}

/// Asks the server at `url` through a proxy in plain HTTP whose upstream it is: both sides are the ones under test.
async fn ask(url: &str, toml: &str) -> Result<(), u16> {
    let caller = TestProxy::start(&FakeGuard::scoring(0.1), url, toml).await;
    let reply = caller.client().chat(&chat("hi", json!({}))).await;
    if reply.status == 200 && reply.json()["from"] == "upstream" {
        Ok(())
    } else {
        Err(reply.status.as_u16())
    }
}

#[tokio::test]
async fn callers_over_tls_with_and_without_certificates() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    for authority in [&ours, &theirs] {
        authority.sign("server");
        authority.sign("client");
    }
    let clients = |auth: &str| {
        format!(
            "{}client_ca_file = \"{}\"\nclient_auth = \"{auth}\"\n",
            ours.server("server"),
            ours.path("ca.crt")
        )
    };
    // Of `theirs`, but trusting ours.
    let foreign = theirs.client(Some("client")).replace(&theirs.path("ca.crt"), &ours.path("ca.crt"));
    for (server, caller, expected) in [
        (ours.server("server"), ours.client(None), Ok(())),
        (ours.server("server"), theirs.client(None), Err(502)),
        (ours.server("server"), ours.client(Some("client")), Ok(())),
        (clients("required"), ours.client(Some("client")), Ok(())),
        (clients("required"), ours.client(None), Err(502)),
        (clients("required"), foreign.clone(), Err(502)),
        (clients("optional"), ours.client(Some("client")), Ok(())),
        (clients("optional"), ours.client(None), Ok(())),
        (clients("optional"), foreign.clone(), Err(502)),
    ] {
        let (proxy, upstream, url) = secured(&server).await;
        for http in ["auto", "1", "2"] {
            let caller = format!("upstream.http = \"{http}\"\n{caller}");
            assert_eq!(ask(&url, &caller).await, expected, "{server}\n{caller}");
        }
        assert_eq!(upstream.seen().len(), if expected.is_ok() { 3 } else { 0 });
        drop(proxy);
    }
}

#[tokio::test]
async fn plain_http_is_not_answered_over_tls_and_the_other_way_round() {
    let ours = Authority::new();
    ours.sign("server");
    let (proxy, upstream, _) = secured(&ours.server("server")).await;
    assert!(!proxy.raw(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n").await.contains("HTTP/1.1"));
    let (plain, _, url) = secured("").await;
    assert_eq!(ask(&url, &ours.client(None)).await, Err(502));
    assert!(upstream.seen().is_empty());
    drop(plain);
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_new_connections() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    ours.sign("server");
    let (proxy, _upstream, url) = secured(&ours.server("server")).await;
    let reloader = proxy.reloader();
    // A connection that stays open.
    let caller = TestProxy::start(&FakeGuard::scoring(0.1), &url, &ours.client(None)).await;
    let stays = caller.client();
    assert_eq!(stays.chat(&chat("hi", json!({}))).await.status, 200);

    theirs.sign("server");
    let copy = |name: &str| std::fs::copy(theirs.path(name), ours.path(name)).unwrap();
    copy("server.crt");
    // Without its key it is not put in force.
    assert!(reloader.reload().await.unwrap_err().to_string().contains("is not that of the certificate"));
    assert_eq!(ask(&url, &ours.client(None)).await, Ok(()));
    copy("server.key");
    reloader.reload().await.unwrap();
    assert_eq!(ask(&url, &theirs.client(None)).await, Ok(()));
    assert_eq!(ask(&url, &ours.client(None)).await, Err(502));
    assert_eq!(stays.chat(&chat("hi", json!({}))).await.status, 200);
}

#[test]
fn files_that_do_not_fit_are_named() {
    let ours = Authority::new();
    ours.sign("a");
    ours.sign("b");
    let check = |text: &str, expected: &str| {
        let file = ours.path("forethought.toml");
        std::fs::write(&file, text).unwrap();
        let sources = Sources { file: Some(file.into()), ..Sources::default() };
        let problems = CheckedConfig::load(&sources).unwrap_err().to_string();
        assert!(
            problems.contains(expected) && !problems.contains("BEGIN PRIVATE KEY-----\n"),
            "{expected}\n{problems}"
        );
    };
    let path = |name: &str| ours.path(name);
    let tls = |cert: &str, key: &str| {
        format!("[tls]\ncert_file = \"{}\"\nkey_file = \"{}\"\n", path(cert), path(key))
    };
    check(&tls("a.crt", "b.key"), "`tls.cert_file` (");
    check(&tls("a.crt", "b.key"), "is not that of the certificate");
    check(&tls("a.key", "a.key"), "holds no certificate in PEM");
    check(&tls("a.crt", "a.crt"), "holds no private key in PEM");
    check(&tls("a.crt", "nowhere"), "`tls.key_file` (");
    check("tls.cert_file = \"/nowhere\"", "`tls.key_file` (");
    check("tls.client_ca_file = \"/nowhere\"", "callers' certificates are seen over TLS only");
    check(
        &(tls("a.crt", "a.key") + &format!("client_ca_file = \"{}\"", path("a.key"))),
        "`tls.client_ca_file` (",
    );
    check(&format!("upstream.tls.ca_file = \"{}\"", path("a.key")), "`upstream.tls.ca_file` (");
}
