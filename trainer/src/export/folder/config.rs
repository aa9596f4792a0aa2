//! `config.json`: a folder's own, or one that describes a GGUF file.

use forethought_core::model::{Architecture, ModelConfig, config::RopeScaling};
use serde_json::{Value as Json, json};

use super::{read_json, token_id};
use crate::error::Result;
use crate::export::{Dtype, merged::Merged};

/// The merged model's `config.json`.
pub(super) fn config(merged: &Merged<'_>, dtype: Dtype) -> Result<Json> {
    let base = merged.base();
    let mut config = if base.gguf_metadata().is_some() {
        described(merged)?
    } else {
        read_json(&base.path().join("config.json"))?
    };
    // transformers 5 renamed the key, and reads both.
    let key = if config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    config[key] = dtype.torch_name().into();
    config["tie_word_embeddings"] = base.ties_embeddings().into();
    Ok(config)
}

fn described(merged: &Merged<'_>) -> Result<Json> {
    let base = merged.base();
    let config = base.config();
    let class = match config.architecture {
        Architecture::Llama => "LlamaForCausalLM",
        Architecture::Qwen2 => "Qwen2ForCausalLM",
        Architecture::Qwen3 => "Qwen3ForCausalLM",
    };
    let biased =
        |part: &str| Ok::<_, crate::TrainError>(base.get(&format!("model.layers.0.{part}.bias"))?.is_some());
    let mut json = json!({
        "architectures": [class],
        "model_type": config.architecture.as_str(),
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "rms_norm_eps": shortest(config.rms_eps),
        "rope_theta": shortest(config.rope_theta),
        "rope_scaling": rope_scaling(merged)?,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": true,
    });
    if config.architecture != Architecture::Qwen2 {
        json["attention_bias"] = biased("self_attn.q_proj")?.into();
        json["mlp_bias"] = biased("mlp.gate_proj")?.into();
    }
    let tokenizer = base.tokenizer_json()?;
    let chat = base.chat_source()?;
    for (key, token) in [("bos_token_id", chat.bos), ("eos_token_id", chat.eos)] {
        json[key] = token.and_then(|token| token_id(&tokenizer, &token)).into();
    }
    Ok(json)
}

/// The number that GGUF's f32 was made of: 1e-5 and not 0.000009999999747378752.
fn shortest(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}

/// `rope_scaling`, `null` for none.
fn rope_scaling(merged: &Merged<'_>) -> Result<Json> {
    let config = merged.base().config();
    Ok(match &config.rope_scaling {
        RopeScaling::None => Json::Null,
        RopeScaling::Linear(factor) => json!({"rope_type": "linear", "factor": shortest(*factor)}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": *original_context as u64,
        }),
        RopeScaling::Factors(factors) => {
            let (factor, original) = llama3_rule(config, factors).ok_or_else(|| {
                merged
                    .cannot("its rope factors follow no rule that config.json can name: export GGUF instead")
            })?;
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": LOW,
                "high_freq_factor": HIGH,
                "original_max_position_embeddings": original,
            })
        }
    })
}

// What every published model with Llama 3's rule has.
const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;

/// GGUF files hold the outcome of Llama 3's rule, a divisor for every frequency. Finds what it was made from: the
/// factor is the largest divisor, and the original context a power of two.
fn llama3_rule(config: &ModelConfig, factors: &[f32]) -> Option<(f64, u64)> {
    let factor = factors.iter().copied().fold(1.0f32, f32::max).round();
    let given = config.rope_frequencies();
    (5..21).map(|bits| 1u64 << bits).find_map(|original| {
        let rope_scaling = RopeScaling::Llama3 {
            factor: factor.into(),
            low_freq_factor: LOW,
            high_freq_factor: HIGH,
            original_context: original as f64,
        };
        let made = ModelConfig { rope_scaling, ..config.clone() }.rope_frequencies();
        let same = made.iter().zip(&given).all(|(a, b)| (a / b - 1.0).abs() < 1e-4);
        same.then_some((factor.into(), original))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama(rope_scaling: RopeScaling) -> ModelConfig {
        ModelConfig {
            architecture: Architecture::Llama,
            hidden_size: 4096,
            intermediate_size: 14336,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            vocab_size: 128_256,
            rms_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling,
            context: 131_072,
        }
    }

    #[test]
    fn the_rule_behind_rope_factors_is_found() {
        fn check(factor: f64, original: u64) {
            let rule = RopeScaling::Llama3 {
                factor,
                low_freq_factor: LOW,
                high_freq_factor: HIGH,
                original_context: original as f64,
            };
            let plain = llama(RopeScaling::None).rope_frequencies();
            let factors: Vec<f32> = plain
                .iter()
                .zip(llama(rule).rope_frequencies())
                .map(|(plain, scaled)| plain / scaled)
                .collect();
            let config = llama(RopeScaling::Factors(factors.clone()));
            assert_eq!(llama3_rule(&config, &factors), Some((factor, original)));
        }
        check(8.0, 8192); // Llama 3.1
        check(32.0, 8192); // Llama 3.2
        check(8.0, 4096);
        let other: Vec<f32> = (0..64).map(|i| 1.0 + i as f32).collect();
        assert_eq!(llama3_rule(&llama(RopeScaling::Factors(other.clone())), &other), None);
    }

    #[test]
    fn numbers_lose_the_digits_of_f32() {
        assert_eq!(shortest(f64::from(1e-5f32)), 1e-5);
        assert_eq!(shortest(f64::from(500_000f32)), 500_000.0);
    }
}
