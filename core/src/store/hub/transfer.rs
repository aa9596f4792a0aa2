//! One file over HTTP: time limits, going on after a break, and errors by status.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use hf_hub::api::sync::ApiRepo;
use ureq::{
    Body, RequestBuilder,
    http::{Response, StatusCode},
    tls::{Certificate, RootCerts, TlsConfig},
    typestate::WithoutBody,
};

use crate::store::{
    Progress, StoreError,
    cache::{FileRecord, Promise, Stage, check_file},
};

/// Tries in a row that may bring no byte.
const FRUITLESS_TRIES: u32 = 3;

/// One file to fetch.
pub(super) struct RemoteFile<'a> {
    /// At the exact commit.
    pub(super) repo: &'a ApiRepo,
    /// `OWNER/REPO`.
    pub(super) id: &'a str,
    pub(super) path: &'a str,
    /// Its last part.
    pub(super) name: &'a str,
    pub(super) promise: Promise,
}

/// Why a transfer stopped.
enum Stop {
    /// Another try may go on from here.
    Broken(String),
    /// Another try would end the same.
    Failed(StoreError),
}

impl RemoteFile<'_> {
    pub(super) fn fetch(
        &self,
        commit: &str,
        stage: &Stage,
        progress: &dyn Progress,
    ) -> Result<FileRecord, StoreError> {
        // The part's name says which content it is part of, so that only the same content goes on from it.
        let content = self.promise.sha256.as_deref().unwrap_or(commit);
        let part = stage.work.join(format!("{}.{}.part", self.name, content.get(..16).unwrap_or(content)));
        let resumed = length(&part) > 0;
        match self.fetch_part(&part, stage, progress) {
            // A part that a crash has damaged must not fail the fetch: once more from the start.
            Err(StoreError::WrongHash { .. } | StoreError::WrongSize { .. }) if resumed => {
                progress
                    .note(&format!("{}: what an earlier run had left was damaged; starting over", self.name));
                self.fetch_part(&part, stage, progress)
            }
            result => result,
        }
    }

    fn fetch_part(
        &self,
        part: &Path,
        stage: &Stage,
        progress: &dyn Progress,
    ) -> Result<FileRecord, StoreError> {
        progress.begin(&format!("{}/{}", self.id, self.path));
        let downloaded = self.download(part, progress);
        progress.end();
        downloaded?;
        let out = stage.out.join(self.name);
        fs::rename(part, &out).map_err(StoreError::io("move a download to", &out))?;
        check_file(&stage.out, self.name, &self.promise, self.id)
    }

    /// Fills `part`, going on after every break that comes with at least some bytes.
    fn download(&self, part: &Path, progress: &dyn Progress) -> Result<(), StoreError> {
        let mut fruitless = 0;
        loop {
            let before = length(part);
            match self.transfer(part, before, progress) {
                Ok(()) => return Ok(()),
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Broken(detail)) => {
                    fruitless = if length(part) > before { 0 } else { fruitless + 1 };
                    if fruitless == FRUITLESS_TRIES {
                        return Err(StoreError::HubUnreachable { endpoint: endpoint(self.repo), detail });
                    }
                    progress.note(&format!("{}: {detail}; going on", self.name));
                    thread::sleep(Duration::from_millis(300) * fruitless);
                }
            }
        }
    }

    /// One request for the bytes from `have` on.
    fn transfer(&self, part: &Path, have: u64, progress: &dyn Progress) -> Result<(), Stop> {
        if self.promise.size.is_some_and(|size| size == have) {
            return Ok(());
        }
        let mut request = self
            .repo
            .info_request()
            .uri(self.repo.url(&escaped(self.path)))
            // Compressed, sizes and ranges would mean something else.
            .header("Accept-Encoding", "identity");
        if have > 0 {
            request = request.header("Range", format!("bytes={have}-"));
        }
        let response = call(request).map_err(|error| Stop::Broken(error.to_string()))?;
        let status = response.status();
        let resumes = status == StatusCode::PARTIAL_CONTENT && starts_at(&response, have);
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(Stop::Broken(format!("HTTP {}", status.as_u16())));
        }
        if status == StatusCode::RANGE_NOT_SATISFIABLE || (status == StatusCode::PARTIAL_CONTENT && !resumes)
        {
            fs::remove_file(part).map_err(|error| Stop::Failed(StoreError::io("remove", part)(error)))?;
            return Err(Stop::Broken("the server can't go on from here".to_owned()));
        }
        refused(status, self.id, || format!("file `{}`", self.path)).map_err(Stop::Failed)?;

        let file = if resumes { File::options().append(true).open(part) } else { File::create(part) };
        let mut file = file.map_err(|error| Stop::Failed(StoreError::io("write", part)(error)))?;
        let mut done = if resumes { have } else { 0 };
        let total = self.promise.size.or_else(|| Some(done + response.body().content_length()?));
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 17];
        progress.update(done, total);
        loop {
            match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    let written = file.write_all(&buffer[..read]);
                    written.map_err(|error| Stop::Failed(StoreError::io("write", part)(error)))?;
                    done += read as u64;
                    progress.update(done, total);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Stop::Broken(error.to_string())),
            }
        }
        match total {
            Some(total) if done < total => Err(Stop::Broken("the connection was closed".to_owned())),
            _ => Ok(()),
        }
    }
}

/// Runs a request of hf-hub's client with time limits and this machine's own certificates; a status is no error.
pub(super) fn call(request: RequestBuilder<WithoutBody>) -> Result<Response<Body>, ureq::Error> {
    request
        .config()
        .http_status_as_error(false)
        .tls_config(TlsConfig::builder().root_certs(roots()).build())
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_per_read(Some(Duration::from_secs(60)))
        .build()
        .call()
}

/// The machine's certificates, as companies with an inspecting proxy need; those built in if it has none.
fn roots() -> RootCerts {
    static ROOTS: OnceLock<RootCerts> = OnceLock::new();
    let load = || {
        let native = rustls_native_certs::load_native_certs().certs;
        let certificates: Vec<_> = native.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        if certificates.is_empty() { RootCerts::WebPki } else { RootCerts::Specific(Arc::new(certificates)) }
    };
    ROOTS.get_or_init(load).clone()
}

/// Turns any status but 2xx into its error; `what` names the thing that a 404 is about.
pub(super) fn refused(
    status: StatusCode,
    repo: &str,
    what: impl FnOnce() -> String,
) -> Result<(), StoreError> {
    let (repo, code) = (repo.to_owned(), status.as_u16());
    match status {
        status if status.is_success() => Ok(()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(StoreError::HubDenied { repo, status: code }),
        StatusCode::NOT_FOUND => Err(StoreError::HubNotFound { repo, what: what(), similar: Vec::new() }),
        _ => Err(StoreError::HubFailed { repo, status: code }),
    }
}

pub(super) fn unreachable(repo: &ApiRepo, error: &ureq::Error) -> StoreError {
    StoreError::HubUnreachable { endpoint: endpoint(repo), detail: error.to_string() }
}

/// Scheme and host of the hub in use.
fn endpoint(repo: &ApiRepo) -> String {
    let url = repo.url("");
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find('/').map_or(url.len(), |at| host + at);
    // An endpoint with a password in it is not shown whole.
    let start = url[host..end].rfind('@').map_or(host, |at| host + at + 1);
    format!("{}{}", &url[..host], &url[start..end])
}

/// Whether `Content-Range` begins at this byte.
fn starts_at(response: &Response<Body>, byte: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
    range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()) == Some(byte)
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

/// A repository path as part of an address.
fn escaped(path: &str) -> String {
    let escape = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' | b'~' => {
            (byte as char).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    path.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped() {
        assert_eq!(escaped("a b/ü#1.gguf"), "a%20b/%C3%BC%231.gguf");
    }
}
