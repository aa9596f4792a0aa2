//! Text to token ids, with control tokens kept out of reach of user text.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use serde_json::{Value as Json, json};

use super::{ModelError, Piece, Result};

/// A model's tokenizer, twice: once as it is, for the text of templates, and once with no control tokens at all, for
/// everything that users write. `<|im_end|>` in a prompt is thus ten harmless tokens of text.
pub struct Tokenizer {
    control: tokenizers::Tokenizer,
    plain: tokenizers::Tokenizer,
    ends: Vec<u32>,
}

/// Tokens that end a turn or a text, in the supported families.
const END_TOKENS: [&str; 6] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
];

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub(super) fn from_json(mut json: Json) -> Result<Self, String> {
        let build = |json: &Json| {
            let bytes = serde_json::to_vec(json).map_err(|e| e.to_string())?;
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| format!("tokenizer: {e}"))
        };
        // No BOS from a post-processor, no cutting: templates and windows take care of both.
        for key in ["post_processor", "truncation", "padding"] {
            json[key] = Json::Null;
        }
        let control = build(&json)?;
        let added = json["added_tokens"].as_array().into_iter().flatten();
        let ends = added
            .filter_map(|t| Some((t["content"].as_str()?, t["id"].as_u64()? as u32)))
            .filter_map(|(content, id)| END_TOKENS.contains(&content).then_some(id))
            .collect();
        json["added_tokens"] = json!([]);
        Ok(Self { control, plain: build(&json)?, ends })
    }

    /// Ids of user text: whatever it says, no id is a control token's.
    ///
    /// # Errors
    /// The tokenizer has no token for a piece of the text.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        encode(&self.plain, text)
    }

    /// Ids of a template's own text, where control tokens count as such.
    ///
    /// # Errors
    /// The tokenizer has no token for a piece of the text.
    pub fn encode_control(&self, text: &str) -> Result<Vec<u32>> {
        encode(&self.control, text)
    }

    /// Ids of a rendered template.
    ///
    /// # Errors
    /// The tokenizer has no token for a piece of the text.
    pub fn encode_pieces(&self, pieces: &[Piece]) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for piece in pieces {
            ids.extend(match piece {
                Piece::Control(text) => self.encode_control(text)?,
                Piece::Text(text) => self.encode_text(text)?,
            });
        }
        Ok(ids)
    }

    /// The text of `ids`, control tokens included.
    ///
    /// # Errors
    /// An id is unknown.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.control.decode(ids, false).map_err(|e| ModelError::Tokenizer(e.to_string()))
    }

    /// Whether the token ends a turn or a text.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// All tokens that end a turn or a text.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }
}

fn encode(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode_fast(text, false).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
    Ok(encoding.get_ids().to_vec())
}

/// The `tokenizer.json` of the tokenizer in a GGUF file's metadata: byte-level BPE only.
pub(super) fn json_of_gguf(meta: &HashMap<String, Value>) -> Result<Json, String> {
    let get = |key: &str| meta.get(key).ok_or_else(|| format!("metadata key `{key}` is missing"));
    let text = |key: &str| get(key)?.to_string().map_err(|e| format!("metadata key `{key}`: {e}"));
    let strings = |key: &str| {
        let list = get(key)?.to_vec().map_err(|e| format!("metadata key `{key}`: {e}"))?;
        let strings = list.iter().map(|v| v.to_string().map_err(|e| format!("metadata key `{key}`: {e}")));
        strings.collect::<Result<Vec<&String>, String>>()
    };
    let kind = text("tokenizer.ggml.model")?;
    if kind != "gpt2" {
        return Err(format!(
            "GGUF tokenizer `{kind}` is not supported: use the model's folder with its tokenizer.json"
        ));
    }
    let pre = meta.get("tokenizer.ggml.pre").and_then(|v| v.to_string().ok()).map_or("default", |s| s);
    let rules = PreTokenizer::named(pre)?;
    let tokens = strings("tokenizer.ggml.tokens")?;
    let merges = strings("tokenizer.ggml.merges")?;
    let types = get("tokenizer.ggml.token_type")?.to_vec().map_err(|e| e.to_string())?;
    let vocab: serde_json::Map<String, Json> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).clone(), json!(id))).collect();
    let added: Vec<Json> = tokens
        .iter()
        .zip(types)
        .enumerate()
        .filter_map(|(id, (token, kind))| {
            let kind = kind.to_i32().ok().filter(|k| [CONTROL, USER_DEFINED].contains(k))?;
            Some(json!({
                "id": id, "content": token, "special": kind == CONTROL,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            }))
        })
        .collect();
    let merges: Vec<Json> = merges.iter().filter_map(|m| m.split_once(' ')).map(|m| json!(m)).collect();
    Ok(json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": rules.normalizer,
        "pre_tokenizer": rules.pre_tokenizer,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": rules.ignore_merges, "vocab": vocab, "merges": merges,
        },
    }))
}

const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// How text is cut before BPE, by llama.cpp's name for it.
struct PreTokenizer {
    normalizer: Json,
    pre_tokenizer: Json,
    ignore_merges: bool,
}

impl PreTokenizer {
    fn named(name: &str) -> Result<Self, String> {
        let byte_level = |regex| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let sequence =
            |first: Json, regex| json!({"type": "Sequence", "pretokenizers": [first, byte_level(regex)]});
        // The two differ in how many digits make a piece.
        let split = |digits: &str| {
            let pattern = format!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            );
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
        };
        Ok(match name {
            "smollm" => Self {
                normalizer: Json::Null,
                pre_tokenizer: sequence(json!({"type": "Digits", "individual_digits": true}), true),
                ignore_merges: false,
            },
            "default" | "gpt-2" => {
                Self { normalizer: Json::Null, pre_tokenizer: byte_level(true), ignore_merges: false }
            }
            "llama-bpe" => Self {
                normalizer: Json::Null,
                pre_tokenizer: sequence(split(r"\p{N}{1,3}"), false),
                ignore_merges: true,
            },
            "qwen2" | "deepseek-r1-qwen" => Self {
                normalizer: json!({"type": "NFC"}),
                pre_tokenizer: sequence(split(r"\p{N}"), false),
                ignore_merges: false,
            },
            other => {
                return Err(format!(
                    "GGUF pre-tokenizer `{other}` is not supported: use the model's folder with its tokenizer.json"
                ));
            }
        })
    }
}

/// llama.cpp's name for how this `tokenizer.json` cuts text before BPE; `None` where it is none of those known here.
pub fn gguf_pre_tokenizer(tokenizer: &Json) -> Option<&'static str> {
    // Offsets are of no interest to ids.
    fn without_offsets(mut rules: Json) -> Json {
        if let Some(rules) = rules.as_object_mut() {
            rules.remove("trim_offsets");
            for part in rules.get_mut("pretokenizers").and_then(Json::as_array_mut).into_iter().flatten() {
                *part = without_offsets(part.take());
            }
        }
        rules
    }
    let cuts = without_offsets(tokenizer["pre_tokenizer"].clone());
    let same = |name: &&str| {
        PreTokenizer::named(name).is_ok_and(|rules| without_offsets(rules.pre_tokenizer) == cuts)
    };
    ["smollm", "gpt-2", "llama-bpe", "qwen2"].into_iter().find(same)
}

/// Turns ids into text as they come, holding back incomplete characters.
#[derive(Default)]
pub struct TextStream {
    ids: Vec<u32>,
    sent: usize, // bytes of the text of `ids` already given out
}

impl TextStream {
    /// Adds an id; returns the text that is new and complete.
    ///
    /// # Errors
    /// The id is unknown.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = tokenizer.decode(&self.ids)?;
        // A cut character decodes to U+FFFD until the rest of it has come.
        if text.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        let new = text.get(self.sent..).unwrap_or_default().to_owned();
        self.sent = text.len();
        // At the end of a line nothing before it can change the text after it: start anew, so that each id costs
        // the same however long the text.
        if text.ends_with('\n') {
            *self = Self::default();
        }
        Ok(new)
    }

    /// What was held back and will not be completed.
    ///
    /// # Errors
    /// An id is unknown.
    pub fn finish(self, tokenizer: &Tokenizer) -> Result<String> {
        let text = tokenizer.decode(&self.ids)?;
        Ok(text.get(self.sent..).unwrap_or_default().to_owned())
    }
}
