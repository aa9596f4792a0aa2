//! The adapter as Python's peft has it: `adapter_config.json` and `adapter_model.safetensors`.

use std::path::Path;

use serde_json::{Value, json};

use super::{Dtype, Tuned, create_folder, tensors::write_safetensors, write_json};
use crate::adapter::LoraConfig;
use crate::error::Result;
use crate::state::ADAPTER_FILE;

/// Writes the folder. `base_name` is where peft looks for the base model: a name of a hub, or a path.
///
/// # Errors
/// When a file can't be written, or `dtype` can't hold a number.
pub fn write(folder: &Path, tuned: &Tuned, base_name: &str, dtype: Dtype) -> Result<()> {
    create_folder(folder)?;
    write_json(&folder.join("adapter_config.json"), &config(&tuned.lora, base_name))?;
    let factors = &tuned.layout.factors;
    let tensors = factors.iter().map(|factor| (factor.name.clone(), factor.shape.to_vec())).collect();
    let values = |name: &str, _: &[usize]| {
        let factor = factors.iter().find(|factor| factor.name == name);
        Ok(factor.map_or_else(Vec::new, |factor| tuned.values[factor.range.clone()].to_vec()))
    };
    write_safetensors(&folder.join(ADAPTER_FILE), dtype, tensors, &values)
}

/// What peft's `LoraConfig` writes for such an adapter, without the settings of methods other than LoRA.
fn config(lora: &LoraConfig, base_name: &str) -> Value {
    // peft's own type for it is a whole number.
    let alpha = if lora.alpha.fract() == 0.0 { json!(lora.alpha as i64) } else { json!(lora.alpha) };
    let targets: Vec<&str> = lora.targets.iter().map(|target| target.name()).collect();
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": null,
        "inference_mode": true,
        "r": lora.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "modules_to_save": null,
        "layers_to_transform": null,
        "layers_pattern": null,
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "use_rslora": false,
        "use_dora": false,
        "auto_mapping": null,
    })
}
