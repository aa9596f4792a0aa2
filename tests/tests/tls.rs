//! Upstreams over TLS.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::{path::Path, process::Stdio, sync::Arc};

use bytes::Bytes;
use forethought_tests::{Client, chat};
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
