//! The trainer's forward pass against transformers and peft, on the tiny models of the decoder's own tests.

use std::path::PathBuf;
use std::sync::Arc;

use forethought_core::model::Checkpoint;
use forethought_trainer::adapter::{Layout, LoraConfig};
use forethought_trainer::cpu::{CpuEngine, CpuSettings};
use forethought_trainer::model::FrozenModel;
use forethought_trainer::ops::weight::Precision;
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    ids: Vec<u32>,
    /// Of the last token.
    logits: Vec<f32>,
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../core/tests/golden/tiny").join(name)
}

fn cases(name: &str) -> Vec<Case> {
    let text = std::fs::read_to_string(folder(name).join("expected.json")).unwrap();
    serde_json::from_str::<Expected>(&text).unwrap().cases
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    logits.iter().map(|&l| f64::from(l) - sum.ln()).collect()
}

fn check(
    model: &str,
    file: &str,
    expected: &str,
    adapter: Option<&str>,
    precision: Precision,
    tolerance: f64,
) {
    let checkpoint = Checkpoint::open(&folder(model).join(file)).unwrap();
    let model = Arc::new(FrozenModel::load(&checkpoint, precision).unwrap());
    let layout = Arc::new(Layout::new(
        &model.dimensions,
        &LoraConfig { rank: 4, alpha: 8.0, ..LoraConfig::default() },
    ));
    let mut values = layout.init(0);
    if let Some(adapter) = adapter {
        let bytes = std::fs::read(folder(adapter).join("adapter_model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for factor in &layout.factors {
            let tensor = tensors.tensor(&factor.name).unwrap();
            assert_eq!(tensor.shape(), factor.shape);
            let numbers = tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
            values[factor.range.clone()].iter_mut().zip(numbers).for_each(|(v, n)| *v = n);
        }
        assert_eq!(tensors.len(), layout.factors.len());
    }
    let vocabulary: Vec<u32> = (0..model.dimensions.vocabulary as u32).collect();
    let mut engine =
        CpuEngine::new(model, layout, CpuSettings { workers: 2, ..CpuSettings::default() }).unwrap();
    let cases = cases(expected);
    let prompts: Vec<&[u32]> = cases.iter().map(|case| case.ids.as_slice()).collect();
    let found = engine.log_probabilities(&values, &prompts, &vocabulary).unwrap();
    for (case, found) in cases.iter().zip(found) {
        let expected = log_softmax(&case.logits);
        let mean = expected.iter().sum::<f64>() / expected.len() as f64;
        let spread: f64 = expected.iter().map(|e| (e - mean).powi(2)).sum();
        let off: f64 = expected.iter().zip(&found).map(|(e, &f)| (e - f64::from(f)).powi(2)).sum();
        let off = (off / spread).sqrt();
        assert!(off < tolerance, "{off} of the log-probabilities' spread");
    }
}

#[test]
fn every_architecture_agrees() {
    for name in ["llama", "llama3", "qwen2", "qwen3"] {
        check(name, "", name, None, Precision::F32, 1e-5);
    }
}

#[test]
fn gguf_agrees() {
    check("llama", "model-f32.gguf", "llama", None, Precision::F32, 1e-5);
}

#[test]
fn a_peft_adapter_agrees() {
    check("llama", "", "llama/lora", Some("llama/lora"), Precision::F32, 1e-5);
}

#[test]
fn fewer_bits_stay_close() {
    check("llama", "model-q8_0.gguf", "llama", None, Precision::Q8_0, 0.02);
    check("llama", "", "llama", None, Precision::Bf16, 0.02);
}
