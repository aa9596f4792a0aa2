//! A GGUF file's metadata: copied from a GGUF base, or written from a folder's configuration and tokenizer.

use std::collections::BTreeMap;

use candle_core::quantized::gguf_file::Value;
use forethought_core::model::{
    Architecture, Checkpoint, checkpoint::ChatSource, config::RopeScaling, tokenizer::gguf_pre_tokenizer,
};
use serde_json::Value as Json;

use super::Quant;
use crate::error::Result;
use crate::export::folder::{adds_bos, read_json, token_id};
use crate::export::merged::Merged;

type Metadata = BTreeMap<String, Value>;

/// Kinds of tokens (`llama_token_type`).
mod kind {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const UNUSED: i32 = 5;
}

/// All metadata, in the order of the keys.
pub(super) fn metadata(merged: &Merged<'_>, quant: Quant) -> Result<Metadata> {
    let mut metadata = match merged.base().gguf_metadata() {
        Some(own) => {
            // What is about the old file and not about the model.
            let stale = |key: &str| {
                key == "general.alignment" || key.starts_with("quantize.") || key.starts_with("split.")
            };
            own.iter().filter(|(key, _)| !stale(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
        }
        None => {
            let mut metadata = of_config(merged.base());
            tokenizer(merged, &mut metadata)?;
            metadata
        }
    };
    metadata.insert("general.file_type".to_owned(), Value::U32(quant.file_type()));
    metadata.insert("general.quantization_version".to_owned(), Value::U32(2));
    Ok(metadata)
}

fn of_config(base: &Checkpoint) -> Metadata {
    let config = base.config();
    let arch = config.architecture.as_str();
    let int = |n: usize| Value::U32(n as u32);
    let float = |x: f64| Value::F32(x as f32);
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture".to_owned(), Value::String(arch.to_owned()));
    if let Some(name) = base.path().file_name() {
        metadata.insert("general.name".to_owned(), Value::String(name.to_string_lossy().into_owned()));
    }
    let mut set = |key: &str, value| metadata.insert(format!("{arch}.{key}"), value);
    set("block_count", int(config.layers));
    set("context_length", int(config.context));
    set("embedding_length", int(config.hidden_size));
    set("feed_forward_length", int(config.intermediate_size));
    set("attention.head_count", int(config.heads));
    set("attention.head_count_kv", int(config.kv_heads));
    set("attention.key_length", int(config.head_dim));
    set("attention.value_length", int(config.head_dim));
    set("attention.layer_norm_rms_epsilon", float(config.rms_eps));
    set("rope.freq_base", float(config.rope_theta));
    if config.architecture == Architecture::Llama {
        set("vocab_size", int(config.vocab_size));
        set("rope.dimension_count", int(config.head_dim));
    }
    if let RopeScaling::Linear(factor) = config.rope_scaling {
        set("rope.scaling.type", Value::String("linear".to_owned()));
        set("rope.scaling.factor", float(factor));
    }
    metadata
}

fn tokenizer(merged: &Merged<'_>, metadata: &mut Metadata) -> Result<()> {
    let base = merged.base();
    let json = base.tokenizer_json()?;
    let settings = read_json(&base.path().join("tokenizer_config.json"))?;
    let ChatSource { template, bos, eos } = base.chat_source()?;
    let model = &json["model"];
    let known =
        gguf_pre_tokenizer(&json).filter(|_| model["type"] == "BPE" && model["byte_fallback"] != true);
    let pre = known.ok_or_else(|| {
        merged.cannot(
            "its tokenizer is none that GGUF files are written for here (byte-level BPE as SmolLM, Llama 3 and Qwen \
             have it): export safetensors, and convert that folder with llama.cpp's own script",
        )
    })?;
    let (tokens, kinds) = vocabulary(merged, &json)?;
    let merges = model["merges"].as_array().into_iter().flatten().filter_map(|merge| match merge {
        Json::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
        other => other.as_str().map(str::to_owned),
    });
    let mut set = |key: &str, value| metadata.insert(format!("tokenizer.{key}"), value);
    set("ggml.model", Value::String("gpt2".to_owned()));
    set("ggml.pre", Value::String(pre.to_owned()));
    set("ggml.tokens", Value::Array(tokens.into_iter().map(Value::String).collect()));
    set("ggml.token_type", Value::Array(kinds.into_iter().map(Value::I32).collect()));
    set("ggml.merges", Value::Array(merges.map(Value::String).collect()));
    set("ggml.add_bos_token", Value::Bool(adds_bos(&json, &settings, bos.as_deref())));
    set("chat_template", Value::String(template));
    let pad = settings["pad_token"].as_str().or_else(|| settings["pad_token"]["content"].as_str());
    for (key, token) in [("bos", bos.as_deref()), ("eos", eos.as_deref()), ("padding", pad)] {
        if let Some(id) = token.and_then(|token| token_id(&json, token)) {
            set(&format!("ggml.{key}_token_id"), Value::U32(id));
        }
    }
    Ok(())
}

/// Every id's token and its kind. Ids that the embedding has and the tokenizer has not are named and never used.
fn vocabulary(merged: &Merged<'_>, tokenizer: &Json) -> Result<(Vec<String>, Vec<i32>)> {
    let size = merged.base().config().vocab_size;
    let mut tokens: Vec<String> = (0..size).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![kind::UNUSED; size];
    let words = tokenizer["model"]["vocab"].as_object().into_iter().flatten();
    let words = words.filter_map(|(token, id)| Some((id.as_u64()?, token.as_str(), kind::NORMAL)));
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten().filter_map(|token| {
        let kind = if token["special"] == true { kind::CONTROL } else { kind::USER_DEFINED };
        Some((token["id"].as_u64()?, token["content"].as_str()?, kind))
    });
    for (id, token, kind) in words.chain(added) {
        let slot = usize::try_from(id).ok().filter(|&id| id < size).ok_or_else(|| {
            merged.cannot(format!("its tokenizer has an id {id}, but its embedding has {size} rows"))
        })?;
        token.clone_into(&mut tokens[slot]);
        kinds[slot] = kind;
    }
    Ok((tokens, kinds))
}
