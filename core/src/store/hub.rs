//! Models on a Hugging Face hub: one file, or a folder of safetensors.
//!
//! hf-hub knows the hub: endpoint, token, addresses, the listing of a repository. The transfer itself is our own and
//! not hf-hub's, which has no time limits, sends the token to whatever host a download is redirected to, and appends the
//! whole file to a part when a server ignores `Range`.

mod transfer;

use std::env;

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{ApiBuilder, ApiError, ApiRepo},
};
use serde::Deserialize;

use self::transfer::{RemoteFile, call, refused, unreachable};
use super::{
    HubSource, Progress, StoreError,
    cache::{FileRecord, Promise, Stage},
    error::similar,
};

/// Which hub to ask, and as whom.
#[derive(Clone, Default)]
pub struct Hub {
    /// Scheme, host and port; hf-hub's default if absent.
    pub endpoint: Option<String>,
    /// Sent to the endpoint's own host only.
    pub token: Option<String>,
}

impl std::fmt::Debug for Hub {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Hub {
    /// `HF_ENDPOINT`; `HF_TOKEN`, else the token that a log-in to the hub has left under `HF_HOME`.
    pub fn from_env() -> Self {
        let set = |name| env::var(name).ok().filter(|value: &String| !value.trim().is_empty());
        // Without a home folder hf-hub would panic.
        let has_home = set("HF_HOME").is_some() || directories::BaseDirs::new().is_some();
        let logged_in = || has_home.then(|| Cache::from_env().token()).flatten();
        Hub { endpoint: set("HF_ENDPOINT"), token: set("HF_TOKEN").or_else(logged_in) }
    }

    fn repo(&self, source: &HubSource, revision: &str, stage: &Stage) -> Result<ApiRepo, StoreError> {
        let mut builder = ApiBuilder::from_cache(Cache::new(stage.work.clone()))
            .with_progress(false)
            .with_user_agent("forethought", env!("CARGO_PKG_VERSION"))
            .with_token(self.token.as_deref().map(|token| token.trim().to_owned()));
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.trim().trim_end_matches('/').to_owned());
        }
        let api = builder.build().map_err(|error: ApiError| StoreError::HubUnreachable {
            endpoint: self.endpoint.clone().unwrap_or_default(),
            detail: error.to_string(),
        })?;
        Ok(api.repo(Repo::with_revision(source.repo.clone(), RepoType::Model, revision.to_owned())))
    }
}

/// The hub's listing of a repository at a revision. hf-hub's own type leaves sizes and hashes out.
#[derive(Deserialize)]
struct Listing {
    /// The commit that the revision stands for.
    sha: String,
    siblings: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    rfilename: String,
    size: Option<u64>,
    /// For large files only.
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
}

/// Fetches the file or folder into `stage.out`, every file checked.
pub(super) fn fetch(
    hub: &Hub,
    source: &HubSource,
    promise: &Promise,
    stage: &Stage,
    progress: &dyn Progress,
) -> Result<Vec<FileRecord>, StoreError> {
    let repo = hub.repo(source, source.revision.as_deref().unwrap_or("main"), stage)?;
    let listing = list(&repo, source)?;
    // From here on the commit is named, so a push in the middle can't mix two versions.
    let repo = hub.repo(source, &listing.sha, stage)?;
    let mut records = Vec::new();
    for listed in choose(&listing, source)? {
        let name = listed.rfilename.rsplit('/').next().unwrap_or_default();
        let lfs = listed.lfs.as_ref().and_then(|lfs| lfs.sha256.clone());
        let promise = Promise { size: promise.size.or(listed.size), sha256: promise.sha256.clone().or(lfs) };
        let file = RemoteFile { repo: &repo, id: &source.repo, path: &listed.rfilename, name, promise };
        records.push(file.fetch(&listing.sha, stage, progress)?);
    }
    Ok(records)
}

fn list(repo: &ApiRepo, source: &HubSource) -> Result<Listing, StoreError> {
    let request = repo.info_request().query("blobs", "true");
    let mut response = call(request).map_err(|error| unreachable(repo, &error))?;
    refused(response.status(), &source.repo, || match &source.revision {
        Some(revision) => format!("repository or revision `{revision}`"),
        None => "such repository".to_owned(),
    })?;
    response.body_mut().read_json().map_err(|error| unreachable(repo, &error))
}

/// The files meant by the source.
fn choose<'a>(listing: &'a Listing, source: &HubSource) -> Result<Vec<&'a Listed>, StoreError> {
    let missing = |what: String, like: &str| StoreError::HubNotFound {
        repo: source.repo.clone(),
        what,
        similar: similar(like, listing.siblings.iter().map(|file| &file.rfilename)),
    };
    let find = |path: &str| listing.siblings.iter().find(|file| file.rfilename == path);
    if !source.is_folder() {
        let file =
            find(&source.path).ok_or_else(|| missing(format!("file `{}`", source.path), &source.path))?;
        return Ok(vec![file]);
    }
    let wanted = |file: &&Listed| file.rfilename.strip_prefix(&source.path).is_some_and(is_model_file);
    let files: Vec<_> = listing.siblings.iter().filter(wanted).collect();
    let has = |test: &dyn Fn(&str) -> bool| files.iter().any(|file| test(&file.rfilename));
    if !has(&|name| name.ends_with("config.json")) || !has(&|name| name.ends_with(".safetensors")) {
        let folder = if source.path.is_empty() { "root" } else { &source.path };
        let what = format!("model as safetensors in folder `{folder}` (name a file to fetch one)");
        return Err(missing(what, "model.gguf"));
    }
    Ok(files)
}

/// The files of a folder that a model is made of; nothing below it, and no second copy in another format.
fn is_model_file(name: &str) -> bool {
    const NAMED: [&str; 8] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "model.safetensors.index.json",
    ];
    let is_weight = name.starts_with("model") && name.ends_with(".safetensors");
    NAMED.contains(&name) || (is_weight && !name.contains(['/', '\\']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_files_of_a_folder() {
        #[track_caller]
        fn check(name: &str, expected: bool) {
            assert_eq!(is_model_file(name), expected, "{name}");
        }
        check("config.json", true);
        check("model.safetensors", true);
        check("model-00001-of-00002.safetensors", true);
        check("model.safetensors.index.json", true);
        check("model/x.safetensors", false);
        check("onnx/config.json", false);
        check("pytorch_model.bin", false);
        check("adapter.safetensors", false);
        check("README.md", false);
    }

    #[test]
    fn debug_output_holds_no_token() {
        let hub = Hub { endpoint: None, token: Some("hf_secret".into()) };
        assert!(!format!("{hub:?}").contains("secret"));
    }
}
