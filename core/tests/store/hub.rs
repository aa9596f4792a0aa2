//! Fetching from a hub on loopback.

use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
};

use forethought_core::store::{Hub, Silent, Store, StoreError};
use tempfile::TempDir;

use super::{
    Recorder, registry, resolving_process,
    server::{Reply, Request, Server},
    sha256, spec, store, tree,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_test";

/// Weights too long for one read.
fn weights() -> Vec<u8> {
    (0..400_000u32).flat_map(u32::to_le_bytes).collect()
}

/// The listing of a repository with these files; weights are large files with a hash.
fn listing(files: &[(&str, &[u8])]) -> Reply {
    let file = |(name, bytes): &(&str, &[u8])| {
        let hash = sha256(bytes);
        let is_large = name.ends_with(".gguf") || name.ends_with(".safetensors");
        let lfs = if is_large { serde_json::json!({ "sha256": hash }) } else { serde_json::Value::Null };
        serde_json::json!({ "rfilename": name, "size": bytes.len(), "lfs": lfs })
    };
    let siblings: Vec<_> = files.iter().map(file).collect();
    Reply::ok(serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string())
}

fn is_listing(request: &Request) -> bool {
    request.target.starts_with("/api/models/")
}

fn asking(home: &TempDir, server: &Server) -> Store {
    store(home).with_hub(Hub { endpoint: Some(server.url()), token: None })
}

/// A hub with `o/r`, whose one file is `weights()`.
fn one_file(handler: impl Fn(&Request) -> Reply + Send + 'static) -> Server {
    Server::start(
        move |request| {
            if is_listing(request) { listing(&[("sub/m.gguf", &weights())]) } else { handler(request) }
        },
    )
}

#[test]
fn a_file_is_fetched_at_the_commit_of_the_revision() {
    let home = TempDir::new().unwrap();
    let server = one_file(|request| Reply::ranged(request, &weights()));
    let progress = Recorder::default();
    let store = asking(&home, &server);
    let resolved = store.resolve(&spec("hf:o/r@v2/sub/m.gguf"), &progress).unwrap();
    assert_eq!(fs::read(&resolved.path).unwrap(), weights());
    assert_eq!(resolved.sha256.as_deref(), Some(sha256(&weights()).as_str()));
    let size = weights().len() as u64;
    assert_eq!(*progress.last.lock().unwrap(), (size, Some(size)));
    let targets: Vec<_> = server.requests().iter().map(|request| request.target.clone()).collect();
    assert_eq!(
        targets,
        ["/api/models/o/r/revision/v2?blobs=true", &format!("/o/r/resolve/{COMMIT}/sub/m.gguf")]
    );
    assert!(!store.resolve(&spec("hf:o/r@v2/sub/m.gguf"), &Silent).unwrap().fetched);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_folder_brings_what_a_model_needs_and_no_more() {
    const FILES: [(&str, &[u8]); 8] = [
        ("README.md", b"#"),
        ("config.json", b"{}"),
        ("tokenizer.json", b"{\"model\":1}"),
        ("tokenizer_config.json", b"{\"a\":1}"),
        ("model-00001-of-00002.safetensors", b"first"),
        ("model-00002-of-00002.safetensors", b"second"),
        ("pytorch_model.bin", b"pickle"),
        ("onnx/model.safetensors", b"other"),
    ];
    let home = TempDir::new().unwrap();
    let server = Server::start(|request| {
        if is_listing(request) {
            return listing(&FILES);
        }
        let name = request.target.strip_prefix(&format!("/o/r/resolve/{COMMIT}/")).unwrap();
        Reply::ranged(request, FILES.iter().find(|file| file.0 == name).unwrap().1)
    });
    let store = asking(&home, &server);
    let resolved = store.resolve(&spec("hf:o/r"), &Silent).unwrap();
    assert_eq!(resolved.sha256, None);
    assert_eq!(
        tree(&resolved.path),
        [
            ".manifest.json",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    assert_eq!(fs::read(resolved.path.join("model-00002-of-00002.safetensors")).unwrap(), b"second");
    store.verify(&spec("hf:o/r")).unwrap();
    fs::write(resolved.path.join("tokenizer.json"), "forged").unwrap();
    assert!(matches!(store.verify(&spec("hf:o/r")), Err(StoreError::WrongSize { .. })));
    assert!(!resolved.path.exists());
}

#[test]
fn a_folder_without_safetensors_is_refused_before_any_transfer() {
    let home = TempDir::new().unwrap();
    let server = one_file(|_| Reply::status(500));
    let error = asking(&home, &server).resolve(&spec("hf:o/r"), &Silent).unwrap_err();
    assert!(matches!(error, StoreError::HubNotFound { .. }), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn refusals_are_told_apart() {
    #[track_caller]
    fn check(list: u16, file: u16, is_right: fn(&StoreError) -> bool) {
        let home = TempDir::new().unwrap();
        let server = Server::start(move |request| match (is_listing(request), list, file) {
            (true, 200, _) => listing(&[("sub/m.gguf", &weights())]),
            (true, status, _) | (false, _, status) => Reply::status(status),
        });
        let error = asking(&home, &server).resolve(&spec("hf:o/r/sub/m.gguf"), &Silent).unwrap_err();
        assert!(is_right(&error), "{error}");
    }
    check(401, 200, |error| matches!(error, StoreError::HubDenied { status: 401, .. }));
    check(404, 200, |error| matches!(error, StoreError::HubNotFound { .. }));
    check(500, 200, |error| matches!(error, StoreError::HubFailed { status: 500, .. }));
    check(200, 401, |error| matches!(error, StoreError::HubDenied { status: 401, .. }));
    check(200, 403, |error| matches!(error, StoreError::HubDenied { status: 403, .. }));
    check(200, 404, |error| matches!(error, StoreError::HubNotFound { .. }));
    check(
        200,
        503,
        |error| matches!(error, StoreError::HubUnreachable { detail, .. } if detail == "HTTP 503"),
    );
}

#[test]
fn a_file_that_is_not_listed_is_named_with_one_like_it() {
    let home = TempDir::new().unwrap();
    let server = one_file(|_| Reply::status(500));
    let error = asking(&home, &server).resolve(&spec("hf:o/r/m.gguf"), &Silent).unwrap_err();
    assert!(error.to_string().contains("file `m.gguf` in `o/r`; did you mean sub/m.gguf?"), "{error}");
}

#[test]
fn no_hub_is_named_by_its_address() {
    let home = TempDir::new().unwrap();
    let error = store(&home).resolve(&spec("hf:o/r/m.gguf"), &Silent).unwrap_err();
    assert!(
        matches!(&error, StoreError::HubUnreachable { endpoint, .. } if endpoint == "http://127.0.0.1:9"),
        "{error}"
    );
}

#[test]
fn a_broken_transfer_goes_on_where_it_stopped() {
    let home = TempDir::new().unwrap();
    let transfers = AtomicUsize::new(0);
    let server = one_file(move |request| {
        let cut = (transfers.fetch_add(1, Ordering::Relaxed) == 0).then_some(500_000);
        Reply { cut, ..Reply::ranged(request, &weights()) }
    });
    let resolved = asking(&home, &server).resolve(&spec("hf:o/r/sub/m.gguf"), &Silent).unwrap();
    assert_eq!(fs::read(&resolved.path).unwrap(), weights());
    let starts: Vec<_> = server.requests()[1..].iter().map(Request::range_start).collect();
    assert_eq!(starts, [None, Some(500_000)]);
}

#[test]
fn a_later_run_goes_on_with_what_an_earlier_one_left() {
    let home = TempDir::new().unwrap();
    let dying = one_file(|request| match request.range_start() {
        None => Reply { cut: Some(500_000), ..Reply::ranged(request, &weights()) },
        Some(_) => Reply::status(502),
    });
    let error = asking(&home, &dying).resolve(&spec("hf:o/r/sub/m.gguf"), &Silent).unwrap_err();
    assert!(matches!(error, StoreError::HubUnreachable { .. }), "{error}");
    let asked = spec("hf:o/r/sub/m.gguf");
    assert!(matches!(asking(&home, &dying).path(&asked), Err(StoreError::NotCached { .. })));

    let server = one_file(|request| Reply::ranged(request, &weights()));
    let resolved = asking(&home, &server).resolve(&asked, &Silent).unwrap();
    assert_eq!(fs::read(&resolved.path).unwrap(), weights());
    assert_eq!(server.requests()[1].range_start(), Some(500_000));
}

/// Leaves half a file of `bytes` behind, as a run that was killed would.
fn leave_part(home: &TempDir, bytes: &[u8]) {
    let dying = one_file(|request| match request.range_start() {
        None => Reply { cut: Some(500_000), ..Reply::ranged(request, &weights()) },
        Some(_) => Reply::status(403),
    });
    asking(home, &dying).resolve(&spec("hf:o/r/sub/m.gguf"), &Silent).unwrap_err();
    let part = tree(home.path()).into_iter().find(|file| file.ends_with(".part")).unwrap();
    fs::write(home.path().join(part), bytes).unwrap();
}

#[test]
fn a_damaged_part_is_dropped_and_the_whole_fetched() {
    #[track_caller]
    fn check(part: &[u8]) {
        let home = TempDir::new().unwrap();
        leave_part(&home, part);
        let server = one_file(|request| Reply::ranged(request, &weights()));
        let resolved = asking(&home, &server).resolve(&spec("hf:o/r/sub/m.gguf"), &Silent).unwrap();
        assert_eq!(fs::read(&resolved.path).unwrap(), weights());
    }
    check(&vec![0; 500_000]);
    check(&vec![0; weights().len()]);
    check(&vec![0; weights().len() + 1]);
}

#[test]
fn a_server_that_ignores_ranges_is_read_from_the_start() {
    let home = TempDir::new().unwrap();
    leave_part(&home, &weights()[..500_000]);
    let server = one_file(|_| Reply::ok(weights()));
    let resolved = asking(&home, &server).resolve(&spec("hf:o/r/sub/m.gguf"), &Silent).unwrap();
    assert_eq!(fs::read(&resolved.path).unwrap(), weights());
    // The listing and one transfer: nothing had to be mended afterwards.
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_file_that_breaks_its_promise_is_removed() {
    let home = TempDir::new().unwrap();
    let server = one_file(|_| Reply::ok(vec![7; weights().len()]));
    let error = asking(&home, &server).resolve(&spec("hf:o/r/sub/m.gguf"), &Silent).unwrap_err();
    assert!(
        matches!(&error, StoreError::WrongHash { expected, .. } if *expected == sha256(&weights())),
        "{error}"
    );
    let left = tree(home.path());
    assert!(left.iter().all(|file| file.starts_with("locks/")), "{left:?}");
}

#[test]
fn the_second_source_serves_where_the_first_fails() {
    let home = TempDir::new().unwrap();
    let server = one_file(|request| Reply::ranged(request, &weights()));
    let sources = ["hf:gone/r/m.gguf", "hf:o/r/sub/m.gguf"];
    let progress = Recorder::default();
    let resolved = asking(&home, &server)
        .with_registry(registry(&sha256(&weights()), &sources))
        .resolve(&spec("tiny"), &progress)
        .unwrap();
    assert_eq!(resolved.source, "hf:o/r/sub/m.gguf");
    let notes = progress.notes.lock().unwrap().join("\n");
    assert!(
        notes.contains("no file `m.gguf` in `gone/r`") && notes.contains("trying hf:o/r/sub/m.gguf"),
        "{notes}"
    );

    let home = TempDir::new().unwrap();
    let error = asking(&home, &server)
        .with_registry(registry(&sha256(b"another"), &sources))
        .resolve(&spec("tiny"), &Silent)
        .unwrap_err();
    let StoreError::AllSourcesFailed { attempts, .. } = &error else { panic!("{error}") };
    assert!(matches!(attempts[0].1, StoreError::HubNotFound { .. }));
    assert!(matches!(attempts[1].1, StoreError::WrongSize { .. } | StoreError::WrongHash { .. }));
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_where_it_redirects() {
    let home = TempDir::new().unwrap();
    let storage = Server::start(|request| Reply::ranged(request, &weights()));
    let elsewhere = format!("{}/blob", storage.other_host_url());
    let server =
        one_file(move |_| Reply { headers: vec![("location", elsewhere.clone())], ..Reply::status(302) });
    let hub = Hub { endpoint: Some(server.url()), token: Some(TOKEN.into()) };
    store(&home).with_hub(hub).resolve(&spec("hf:o/r/sub/m.gguf"), &Silent).unwrap();
    let bearer = format!("Bearer {TOKEN}");
    assert!(server.requests().iter().all(|request| request.header("authorization") == Some(&bearer)));
    assert_eq!(storage.requests()[0].header("authorization"), None);
}

#[test]
fn endpoint_and_token_come_from_the_environment() {
    let home = TempDir::new().unwrap();
    let server = one_file(|request| Reply::ranged(request, &weights()));
    let output = resolving_process(home.path(), "hf:o/r/sub/m.gguf")
        .env("HF_ENDPOINT", format!("{}/", server.url()))
        .env("HF_TOKEN", TOKEN)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let requests = server.requests();
    assert!(
        requests.iter().all(|request| request.header("authorization") == Some(&format!("Bearer {TOKEN}")))
    );
    assert_eq!(requests.len(), 2);
}
