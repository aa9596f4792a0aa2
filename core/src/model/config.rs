//! A model's shape, read from GGUF metadata or a `config.json`.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use serde::Deserialize;

/// The supported families. They differ in details only: biases on q/k/v (qwen2), norms on q/k (qwen3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// Llama and those shaped like it (SmolLM2, R1-Distill-Llama).
    Llama,
    /// Qwen2 and 2.5 (R1-Distill-Qwen).
    Qwen2,
    /// Qwen3 (dense).
    Qwen3,
}

impl Architecture {
    pub(super) fn parse(name: &str) -> Result<Self, String> {
        match name {
            "llama" => Ok(Self::Llama),
            "qwen2" => Ok(Self::Qwen2),
            "qwen3" => Ok(Self::Qwen3),
            other => {
                Err(format!("architecture `{other}` is not supported: use a llama, qwen2 or qwen3 model"))
            }
        }
    }

    /// The name in GGUF metadata and in `model_type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

/// How rotary frequencies are stretched for long contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As they are.
    None,
    /// Every frequency divided by this.
    Linear(f64),
    /// Llama 3.1's rule.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Lower bound of the blend.
        low_freq_factor: f64,
        /// Upper bound of the blend.
        high_freq_factor: f64,
        /// Context length of the original model, in tokens.
        original_context: f64,
    },
    /// A divisor for each frequency, as GGUF files carry it; length `head_dim / 2`.
    Factors(Vec<f32>),
}

/// A decoder's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Epsilon of the RMS norms.
    pub rms_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Most tokens that the model was made for.
    pub context: usize,
}

impl ModelConfig {
    /// Width of all keys (or values) of a token.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Reads GGUF metadata; `vocab_size` comes from the embedding's shape.
    pub(super) fn from_gguf(meta: &HashMap<String, Value>, vocab_size: usize) -> Result<Self, String> {
        let get = |key: &str| meta.get(key).ok_or_else(|| format!("metadata key `{key}` is missing"));
        let text = |key: &str| get(key)?.to_string().map_err(|e| format!("metadata key `{key}`: {e}"));
        let architecture = Architecture::parse(text("general.architecture")?)?;
        let arch = architecture.as_str();
        let key = |name: &str| format!("{arch}.{name}");
        let int = |name: &str| {
            let key = key(name);
            get(&key)?.to_u64().map(|n| n as usize).map_err(|e| format!("metadata key `{key}`: {e}"))
        };
        let float = |name: &str| {
            let key = key(name);
            get(&key)?.to_f32().map(f64::from).map_err(|e| format!("metadata key `{key}`: {e}"))
        };
        let has = |name: &str| meta.contains_key(&key(name));

        let hidden_size = int("embedding_length")?;
        let heads = int("attention.head_count")?;
        let rope_scaling = if has("rope.scaling.type") {
            match text(&key("rope.scaling.type"))?.as_str() {
                "none" => RopeScaling::None,
                "linear" => RopeScaling::Linear(float("rope.scaling.factor")?),
                other => return Err(format!("rope scaling `{other}` is not supported")),
            }
        } else {
            RopeScaling::None
        };
        Self {
            architecture,
            hidden_size,
            intermediate_size: int("feed_forward_length")?,
            layers: int("block_count")?,
            heads,
            kv_heads: if has("attention.head_count_kv") { int("attention.head_count_kv")? } else { heads },
            head_dim: if has("attention.key_length") {
                int("attention.key_length")?
            } else {
                hidden_size.checked_div(heads).unwrap_or(0)
            },
            vocab_size,
            rms_eps: float("attention.layer_norm_rms_epsilon")?,
            rope_theta: if has("rope.freq_base") { float("rope.freq_base")? } else { 10_000.0 },
            rope_scaling,
            context: int("context_length")?,
        }
        .checked()
    }

    /// Reads the text of a `config.json`.
    pub(super) fn from_json(text: &str) -> Result<Self, String> {
        let raw: RawConfig = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let architecture = Architecture::parse(&raw.model_type)?;
        if raw.use_sliding_window {
            return Err("`use_sliding_window` is not supported".into());
        }
        if let Some(act) = raw.hidden_act.as_deref().filter(|&act| act != "silu") {
            return Err(format!("`hidden_act` `{act}` is not supported: only `silu` is"));
        }
        // transformers 5 moved the rotary settings into `rope_parameters`.
        let rope = raw.rope_parameters.or(raw.rope_scaling).unwrap_or_default();
        let need = |value: Option<f64>, key: &str| value.ok_or_else(|| format!("rope scaling lacks `{key}`"));
        let rope_scaling = match rope.kind.as_deref().unwrap_or("default") {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear(need(rope.factor, "factor")?),
            "llama3" => RopeScaling::Llama3 {
                factor: need(rope.factor, "factor")?,
                low_freq_factor: need(rope.low_freq_factor, "low_freq_factor")?,
                high_freq_factor: need(rope.high_freq_factor, "high_freq_factor")?,
                original_context: need(
                    rope.original_max_position_embeddings,
                    "original_max_position_embeddings",
                )?,
            },
            other => return Err(format!("rope scaling `{other}` is not supported")),
        };
        Self {
            architecture,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            kv_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head_dim: raw
                .head_dim
                .unwrap_or_else(|| raw.hidden_size.checked_div(raw.num_attention_heads).unwrap_or(0)),
            vocab_size: raw.vocab_size,
            rms_eps: raw.rms_norm_eps,
            rope_theta: rope.rope_theta.or(raw.rope_theta).unwrap_or(10_000.0),
            rope_scaling,
            context: raw.max_position_embeddings,
        }
        .checked()
    }

    fn checked(self) -> Result<Self, String> {
        let sizes = [self.hidden_size, self.intermediate_size, self.layers, self.vocab_size, self.context];
        if sizes.contains(&0) || self.heads == 0 || self.kv_heads == 0 || self.head_dim == 0 {
            return Err("a size of zero in the model's configuration".into());
        }
        if !self.heads.is_multiple_of(self.kv_heads) || !self.head_dim.is_multiple_of(2) {
            return Err(format!(
                "{} heads, {} key/value heads of width {}: the second must divide the first, the width must be even",
                self.heads, self.kv_heads, self.head_dim
            ));
        }
        Ok(self)
    }
}

#[derive(Deserialize)]
struct RawConfig {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    max_position_embeddings: usize,
    #[serde(default)]
    use_sliding_window: bool,
    hidden_act: Option<String>,
}

#[derive(Default, Deserialize)]
struct RawRope {
    #[serde(rename = "rope_type", alias = "type")]
    kind: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}
