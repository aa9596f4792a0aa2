//! The trainer's forward pass against transformers and peft, on the tiny models of the decoder's own tests.
#![allow(clippy::unwrap_used)] // Helpers of tests are not inside of `#[test]`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use forethought_core::model::Checkpoint;
use forethought_trainer::adapter::{Layout, LoraConfig};
use forethought_trainer::cpu::{CpuEngine, CpuSettings};
use forethought_trainer::data::Example;
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

fn read_adapter(name: &str, layout: &Layout) -> Vec<f32> {
    let bytes = std::fs::read(folder(name).join("adapter_model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut values = vec![f32::NAN; layout.len];
    for factor in &layout.factors {
        let tensor = tensors.tensor(&factor.name).unwrap();
        assert_eq!(tensor.shape(), factor.shape);
        let numbers = tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
        values[factor.range.clone()].iter_mut().zip(numbers).for_each(|(v, n)| *v = n);
    }
    assert_eq!(tensors.len(), layout.factors.len());
    values
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
    let values = adapter.map_or_else(|| layout.init(0), |name| read_adapter(name, &layout));
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
    check("llama", "model-q8_0.gguf", "llama", None, Precision::Q8_0, 0.1);
    check("llama", "", "llama", None, Precision::Bf16, 0.1);
}

#[derive(Deserialize)]
struct Step {
    model: String,
    tokens: Vec<Vec<u32>>,
    weights: Vec<Vec<f32>>,
    loss: f64,
    /// Of every factor's gradient the norm and the product with `probe`.
    grads: HashMap<String, [f64; 2]>,
}

/// The fixed vector of `golden/make_step.py`.
fn probe(i: usize) -> f32 {
    ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0
}

#[test]
fn a_step_agrees_with_torch_and_peft() {
    let steps: Vec<Step> = serde_json::from_str(include_str!("golden/step.json")).unwrap();
    assert_eq!(steps.len(), 4);
    for step in steps {
        let checkpoint = Checkpoint::open(&folder(&step.model)).unwrap();
        let model = Arc::new(FrozenModel::load(&checkpoint, Precision::F32).unwrap());
        let config = LoraConfig { rank: 4, alpha: 8.0, ..LoraConfig::default() };
        let layout = Arc::new(Layout::new(&model.dimensions, &config));
        let values = if step.model == "llama" {
            read_adapter("llama/lora", &layout)
        } else {
            let probes = layout.factors.iter().flat_map(|f| (0..f.range.len()).map(|i| 0.2 * probe(i)));
            probes.collect()
        };
        let pairs = step.tokens.into_iter().zip(step.weights);
        let examples: Vec<Example> = pairs.map(|(tokens, weights)| Example { tokens, weights }).collect();
        let settings = CpuSettings { workers: 1, ..CpuSettings::default() };
        let mut engine = CpuEngine::new(model, layout.clone(), settings).unwrap();
        let mut grads = vec![0.0; layout.len];
        let loss = engine.gradients(&values, &examples.iter().collect::<Vec<_>>(), &mut grads).unwrap().loss;
        assert!((loss - step.loss).abs() < 1e-5 * step.loss, "{}: {loss} against {}", step.model, step.loss);
        assert_eq!(step.grads.len(), layout.factors.len());
        for factor in &layout.factors {
            let gradient = &grads[factor.range.clone()];
            let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
            let product: f64 =
                gradient.iter().enumerate().map(|(i, &g)| f64::from(g) * f64::from(probe(i))).sum();
            for (found, expected) in [norm, product].into_iter().zip(step.grads[&factor.name]) {
                let error = (found - expected).abs() / step.grads[&factor.name][0];
                assert!(error < 1e-4, "{} {}: {found} against {expected}", step.model, factor.name);
            }
        }
    }
}
