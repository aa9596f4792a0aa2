//! What a GGUF file holds otherwise than a Hugging Face checkpoint: names, and the order of a llama's query and key
//! rows.

use candle_core::Tensor;

use super::{Architecture, ModelConfig};

/// The GGUF name of a Hugging Face tensor name; `None` for a tensor that no supported model has.
pub fn tensor_name(name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    let fixed = match stem {
        "model.embed_tokens" => Some("token_embd"),
        "model.norm" => Some("output_norm"),
        "lm_head" => Some("output"),
        _ => None,
    };
    if let Some(fixed) = fixed {
        return Some(format!("{fixed}.{kind}"));
    }
    let (layer, part) = stem.strip_prefix("model.layers.")?.split_once('.')?;
    let part = match part {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{part}.{kind}"))
}

/// A tensor's rows as the GGUF file of this model holds them, from Hugging Face's order.
///
/// Files of llama models hold the rows of q and k in pairs `(x0, x_half), (x1, x_half+1), ...`; everything else here
/// rotates halves, as Hugging Face checkpoints and PEFT adapters do.
///
/// # Errors
/// The tensor has no shape that the model's heads divide.
pub fn rows_in_pairs(config: &ModelConfig, name: &str, tensor: Tensor) -> candle_core::Result<Tensor> {
    reorder(config, name, tensor, |heads, half| (heads, 2, half))
}

/// Undoes [`rows_in_pairs`].
pub(super) fn rows_in_halves(
    config: &ModelConfig,
    name: &str,
    tensor: Tensor,
) -> candle_core::Result<Tensor> {
    reorder(config, name, tensor, |heads, half| (heads, half, 2))
}

/// Reads the rows of q or k as `[heads, outer, inner]` and swaps the last two.
fn reorder(
    config: &ModelConfig,
    name: &str,
    tensor: Tensor,
    split: impl Fn(usize, usize) -> (usize, usize, usize),
) -> candle_core::Result<Tensor> {
    let heads = match config.architecture {
        Architecture::Llama if name.contains(".q_proj.") => config.heads,
        Architecture::Llama if name.contains(".k_proj.") => config.kv_heads,
        _ => return Ok(tensor),
    };
    let shape = tensor.shape().clone();
    let (rows, columns) = (shape.dims()[0], shape.elem_count() / shape.dims()[0]);
    let (heads, outer, inner) = split(heads, rows / heads / 2);
    tensor.reshape((heads, outer, inner, columns))?.transpose(1, 2)?.contiguous()?.reshape(shape)
}
