//! The hand-written training step against the same step under candle's autograd, and against finite differences.
#![allow(clippy::unwrap_used)] // Helpers of tests are not inside of `#[test]`.

use std::sync::Arc;

use candle_core::Device;
use forethought_trainer::adapter::{Layout, LoraConfig, Projection};
use forethought_trainer::cpu::{CpuEngine, CpuSettings};
use forethought_trainer::data::Example;
use forethought_trainer::model::{Dimensions, FrozenModel, random};
use forethought_trainer::stock::StockModel;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Sequences of these lengths; the first third of each is prompt.
fn examples(lengths: &[usize], vocabulary: u32, seed: u64) -> Vec<Example> {
    let mut rng = StdRng::seed_from_u64(seed);
    let example = |&length: &usize| {
        let tokens: Vec<u32> = (0..length).map(|_| rng.random_range(0..vocabulary)).collect();
        let weight = |i| if i < length / 3 { 0.0 } else { 0.5 + (i % 3) as f32 };
        Example { weights: (0..length).map(weight).collect(), tokens }
    };
    lengths.iter().map(example).collect()
}

/// An adapter in mid-training: no factor is zero.
fn adapter(layout: &Layout, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    layout.init(seed).into_iter().map(|v| if v == 0.0 { rng.random_range(-0.2..0.2) } else { v }).collect()
}

fn step(
    model: &Arc<FrozenModel>,
    layout: &Layout,
    values: &[f32],
    examples: &[Example],
    settings: CpuSettings,
) -> (f64, Vec<f32>) {
    let mut engine = CpuEngine::new(model.clone(), Arc::new(layout.clone()), settings).unwrap();
    let mut grads = vec![f32::NAN; layout.len];
    let examples: Vec<&Example> = examples.iter().collect();
    let loss = engine.gradients(values, &examples, &mut grads).unwrap();
    assert_eq!(engine.loss(values, &examples).unwrap().loss, loss.loss);
    (loss.loss, grads)
}

fn stock(model: &FrozenModel, layout: &Layout, values: &[f32], examples: &[Example]) -> (f64, Vec<f32>) {
    let oracle = StockModel::new(model, &Device::Cpu).unwrap();
    let weight: f64 = examples.iter().map(Example::weight).sum();
    let mut grads = vec![0.0; layout.len];
    let examples: Vec<&Example> = examples.iter().collect();
    let sum = oracle.gradients(layout, values, &examples, (1.0 / weight) as f32, &mut grads).unwrap();
    (sum / weight, grads)
}

/// The largest difference, relative to the largest value.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let scale = a.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / scale
}

fn agree(name: &str, layout: &Layout, (loss, grads): &(f64, Vec<f32>), (other, others): &(f64, Vec<f32>)) {
    assert!((loss - other).abs() < 1e-5 * other.abs(), "{name}: loss {loss}, oracle {other}");
    for factor in &layout.factors {
        let distance = distance(&others[factor.range.clone()], &grads[factor.range.clone()]);
        assert!(distance < 2e-4, "{name}: {} differs by {distance}", factor.name);
    }
}

#[test]
fn agrees_with_stock_autograd() {
    let all = Projection::ALL.to_vec();
    let some = vec![Projection::KProj, Projection::UpProj];
    for (name, qwen, targets) in
        [("llama", false, all.clone()), ("qwen", true, all), ("two targets", true, some)]
    {
        let model = Arc::new(random::model(Dimensions::tiny(), qwen, 1));
        let layout = Layout::new(&model.dimensions, &LoraConfig { rank: 4, alpha: 6.0, targets });
        let values = adapter(&layout, 2);
        let examples = examples(&[17, 5, 40, 2, 9], 53, 3);
        let oracle = stock(&model, &layout, &values, &examples);
        for (workers, tokens, recompute) in [(1, 512, false), (2, 20, false), (3, 30, true), (9, 1, true)] {
            let settings = CpuSettings { workers, tokens, recompute };
            let name = format!("{name}, {settings:?}");
            agree(&name, &layout, &step(&model, &layout, &values, &examples, settings), &oracle);
        }
    }
}

#[test]
fn long_sequences_cross_attention_blocks() {
    let model = Arc::new(random::model(Dimensions::tiny(), false, 4));
    let layout = Layout::new(&model.dimensions, &LoraConfig { rank: 3, ..LoraConfig::default() });
    let values = adapter(&layout, 5);
    let examples = examples(&[300, 129], 53, 6);
    let oracle = stock(&model, &layout, &values, &examples);
    let settings = CpuSettings { workers: 2, tokens: 512, recompute: false };
    agree("long", &layout, &step(&model, &layout, &values, &examples, settings), &oracle);
}

#[test]
fn shared_beginnings_change_nothing() {
    let model = Arc::new(random::model(Dimensions::tiny(), true, 18));
    let layout = Layout::new(&model.dimensions, &LoraConfig { rank: 3, ..LoraConfig::default() });
    let values = adapter(&layout, 19);
    // One system prompt, longer than a block of queries; two conversations; two forms of each, one with a loss on
    // what is shared.
    let mut prompt = examples(&[150], 53, 20).remove(0);
    prompt.weights.fill(0.0);
    let mut all = Vec::new();
    for conversation in examples(&[40, 25], 53, 21) {
        for form in examples(&[30, 12], 53, 22) {
            let mut example = prompt.clone();
            example.extend(&conversation.tokens, 0.7);
            example.extend(&form.tokens, 1.0);
            all.push(example);
        }
    }
    let oracle = stock(&model, &layout, &values, &all);
    for (workers, tokens) in [(1, 4096), (2, 4096), (1, 200), (3, 1)] {
        let settings = CpuSettings { workers, tokens, recompute: false };
        agree(
            &format!("{settings:?}"),
            &layout,
            &step(&model, &layout, &values, &all, settings.clone()),
            &oracle,
        );
    }
}

#[test]
fn agrees_with_finite_differences() {
    let model = Arc::new(random::model(Dimensions::tiny(), true, 7));
    let layout = Layout::new(&model.dimensions, &LoraConfig { rank: 2, ..LoraConfig::default() });
    let values = adapter(&layout, 8);
    let examples = examples(&[12, 7], 53, 9);
    let settings = CpuSettings { workers: 1, tokens: 64, recompute: false };
    let (_, grads) = step(&model, &layout, &values, &examples, settings.clone());
    let mut rng = StdRng::seed_from_u64(10);
    for factor in &layout.factors {
        // Along a random direction within one factor.
        let direction: Vec<f32> = factor.range.clone().map(|_| rng.random_range(-1.0..1.0)).collect();
        let moved = |by: f32| {
            let mut values = values.clone();
            values[factor.range.clone()].iter_mut().zip(&direction).for_each(|(v, d)| *v += by * d);
            step(&model, &layout, &values, &examples, settings.clone()).0
        };
        let step = 3e-3;
        let slope = (moved(step) - moved(-step)) / f64::from(2.0 * step);
        let exact: f64 =
            grads[factor.range.clone()].iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
        assert!(
            (slope - exact).abs() < 2e-3 + 1e-2 * exact.abs(),
            "{}: {slope} against {exact}",
            factor.name
        );
    }
}

#[test]
fn packing_changes_nothing() {
    let model = Arc::new(random::model(Dimensions::tiny(), false, 11));
    let layout = Layout::new(&model.dimensions, &LoraConfig::default());
    let values = adapter(&layout, 12);
    let examples = examples(&[20, 31, 8], 53, 13);
    let settings = CpuSettings { workers: 1, tokens: 512, recompute: false };
    let (together, _) = step(&model, &layout, &values, &examples, settings.clone());
    let (mut sum, mut weight) = (0.0, 0.0);
    for example in &examples {
        let (loss, _) = step(&model, &layout, &values, std::slice::from_ref(example), settings.clone());
        sum += loss * example.weight();
        weight += example.weight();
    }
    assert!((together - sum / weight).abs() < 1e-6);
}

#[test]
fn a_step_repeats_bit_for_bit() {
    let model = Arc::new(random::model(Dimensions::tiny(), false, 14));
    let layout = Layout::new(&model.dimensions, &LoraConfig::default());
    let values = adapter(&layout, 15);
    let examples = examples(&[20, 31, 8, 15, 26], 53, 16);
    let settings = CpuSettings { workers: 3, tokens: 40, recompute: true };
    let run = || step(&model, &layout, &values, &examples, settings.clone());
    assert_eq!(run(), run());
}

#[test]
fn bad_batches_are_named() {
    let model = Arc::new(random::model(Dimensions::tiny(), false, 17));
    let layout = Arc::new(Layout::new(&model.dimensions, &LoraConfig::default()));
    let mut engine = CpuEngine::new(model, layout.clone(), CpuSettings::default()).unwrap();
    let values = layout.init(0);
    let mut fails = |tokens: &[u32], weights: &[f32]| {
        let good = Example { tokens: vec![1, 2], weights: vec![0.0, 0.0] };
        let bad = Example { tokens: tokens.into(), weights: weights.into() };
        engine.gradients(&values, &[&good, &bad], &mut vec![0.0; layout.len]).unwrap_err().to_string()
    };
    assert!(fails(&[1, 53], &[0.0, 1.0]).contains("example 1 can't be trained on: token 53"));
    assert!(fails(&[1, 5], &[0.0, 1.0, 1.0]).contains("2 tokens but 3 weights"));
    assert!(fails(&[1, 5], &[0.0, f32::NAN]).contains("not a number"));
    assert!(fails(&[1, 5], &[1.0, 0.0]).contains("no token of this batch"));
}
