//! Base and adapter as one folder in Hugging Face's form: `model.safetensors`, `config.json` and the tokenizer's files.

mod config;

use std::fs;
use std::path::Path;

use forethought_core::model::{Checkpoint, checkpoint::ChatSource};
use serde_json::{Value as Json, json};

use super::{Dtype, copy, create_folder, file_error, merged::Merged, tensors::write_safetensors, write_json};
use crate::error::Result;
use crate::state;

/// What a folder may hold beside weights and `config.json`.
const TOKENIZER_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
];

/// Writes the folder.
///
/// # Errors
/// When the base model's files are damaged or can't be described by a `config.json`, a number does not fit into
/// `dtype`, or a file can't be written.
pub fn write(folder: &Path, merged: &Merged<'_>, dtype: Dtype) -> Result<()> {
    create_folder(folder)?;
    write_json(&folder.join("config.json"), &config::config(merged, dtype)?)?;
    let base = merged.base();
    if base.gguf_metadata().is_some() {
        write_tokenizer(folder, base)?;
    } else {
        for name in TOKENIZER_FILES.iter().filter(|name| base.path().join(name).is_file()) {
            copy(&base.path().join(name), &folder.join(name))?;
        }
    }
    let values = |name: &str, shape: &[usize]| Ok(merged.get(name, shape)?.flatten_all()?.to_vec1()?);
    write_safetensors(&folder.join("model.safetensors"), dtype, merged.tensors()?, &values)?;
    merged.check_all_used()
}

/// Writes the tokenizer of a GGUF file as transformers has it.
fn write_tokenizer(folder: &Path, base: &Checkpoint) -> Result<()> {
    let mut tokenizer = base.tokenizer_json()?;
    let ChatSource { template, bos, eos } = base.chat_source()?;
    let meta = |key: &str| base.gguf_metadata().and_then(|meta| meta.get(&format!("tokenizer.ggml.{key}")));
    // Where the key is missing llama.cpp goes by the family.
    let llama3 = meta("pre").and_then(|v| v.to_string().ok()).is_some_and(|pre| pre == "llama-bpe");
    let adds = meta("add_bos_token").and_then(|v| v.to_bool().ok()).unwrap_or(llama3);
    if let Some(bos) = bos.as_deref().filter(|_| adds) {
        tokenizer["post_processor"] = begin_with(bos, token_id(&tokenizer, bos));
    }
    write_json(&folder.join("tokenizer.json"), &tokenizer)?;
    let pad = meta("padding_token_id").and_then(|v| v.to_u32().ok());
    let pad = pad.and_then(|id| meta("tokens")?.to_vec().ok()?.get(id as usize)?.to_string().ok());
    let settings = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "add_bos_token": adds,
        "clean_up_tokenization_spaces": false,
        "model_max_length": base.config().context,
        "chat_template": template,
    });
    write_json(&folder.join("tokenizer_config.json"), &settings)?;
    // Newer versions of transformers read it from here, and prefer that.
    state::write_file(&folder.join("chat_template.jinja"), template.as_bytes())
}

/// A post-processor that sets a token before every text.
fn begin_with(token: &str, id: Option<u32>) -> Json {
    let bos = |kind: u32| json!({"SpecialToken": {"id": token, "type_id": kind}});
    let text = |name: &str, kind: u32| json!({"Sequence": {"id": name, "type_id": kind}});
    json!({
        "type": "TemplateProcessing",
        "single": [bos(0), text("A", 0)],
        "pair": [bos(0), text("A", 0), bos(1), text("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}

/// Whether a tokenizer sets its first token before every text.
pub(super) fn adds_bos(tokenizer: &Json, settings: &Json, bos: Option<&str>) -> bool {
    fn begins_with(processor: &Json, bos: &str) -> bool {
        let parts = processor["processors"].as_array().into_iter().flatten();
        processor["single"][0]["SpecialToken"]["id"] == bos || parts.into_iter().any(|p| begins_with(p, bos))
    }
    let by_template = || bos.is_some_and(|bos| begins_with(&tokenizer["post_processor"], bos));
    settings["add_bos_token"].as_bool().unwrap_or_else(by_template)
}

/// A token's id in a `tokenizer.json`.
pub(super) fn token_id(tokenizer: &Json, token: &str) -> Option<u32> {
    let added = tokenizer["added_tokens"].as_array()?.iter().find(|added| added["content"] == token);
    let id = added.map_or(&tokenizer["model"]["vocab"][token], |added| &added["id"]);
    id.as_u64().and_then(|id| id.try_into().ok())
}

/// Reads a JSON file.
pub(super) fn read_json(path: &Path) -> Result<Json> {
    let bytes = fs::read(path).map_err(|error| file_error(path, error))?;
    serde_json::from_slice(&bytes).map_err(|error| file_error(path, error.into()))
}
