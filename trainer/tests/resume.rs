//! A run that is stopped and resumed ends in the same bits as one that is not.
#![allow(clippy::unwrap_used)] // Helpers of tests are not inside of `#[test]`.

use std::sync::Arc;

use forethought_trainer::TrainError;
use forethought_trainer::adapter::{LoraConfig, Projection};
use forethought_trainer::cpu::CpuSettings;
use forethought_trainer::data::Example;
use forethought_trainer::model::{Dimensions, FrozenModel, random};
use forethought_trainer::state::State;
use forethought_trainer::train::{Source, TrainConfig, Trainer};

fn config() -> TrainConfig {
    TrainConfig {
        lora: LoraConfig { rank: 4, ..LoraConfig::default() },
        rate: 1e-2,
        warmup: 2,
        epochs: 3,
        batch: 3,
        cpu: CpuSettings { workers: 2, tokens: 32, recompute: false },
        ..TrainConfig::default()
    }
}

/// Ten sequences, each a repeated word: something that can be learnt.
fn examples() -> Vec<Source> {
    let sequence = |i: u32| Example {
        tokens: (0..12 + i).map(|t| if t < 4 { i } else { (i * 5 + t % 3) % 53 }).collect(),
        weights: (0..12 + i).map(|t| if t < 4 { 0.0 } else { 1.0 }).collect(),
    };
    vec![Source { items: (0..10).map(|i| vec![sequence(i)]).collect(), draws: 10 }]
}

fn trainer(config: TrainConfig) -> Trainer {
    let model: Arc<FrozenModel> = Arc::new(random::model(Dimensions::tiny(), false, 1));
    Trainer::new(model, examples(), config).unwrap()
}

#[test]
fn resuming_is_exact() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("step-5");
    let mut whole = trainer(config());
    let mut reports = Vec::new();
    while let Some(report) = whole.step().unwrap() {
        reports.push(report);
        if report.step == 4 {
            whole.save(&checkpoint).unwrap();
        }
    }
    assert_eq!(reports.len(), 12);
    assert!(reports[11].batch.loss < 0.8 * reports[0].batch.loss, "nothing was learnt");

    let mut resumed = trainer(config());
    resumed.resume(&checkpoint).unwrap();
    for expected in &reports[5..] {
        assert_eq!(resumed.step().unwrap().as_ref(), Some(expected));
    }
    assert_eq!(resumed.step().unwrap(), None);
    let bits = |state: &State| -> Vec<u32> {
        [&state.values, &state.optimizer.mean, &state.optimizer.square]
            .into_iter()
            .flatten()
            .map(|v| v.to_bits())
            .collect()
    };
    assert_eq!(bits(resumed.state()), bits(whole.state()));
}

#[test]
fn other_runs_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("state");
    trainer(config()).save(&checkpoint).unwrap();
    let resume = |config: TrainConfig| trainer(config).resume(&checkpoint).map_err(|e| e.to_string());
    assert_eq!(resume(config()), Ok(()));
    let fails = |config, expected: &str| {
        let error = resume(config).unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    fails(TrainConfig { seed: 7, ..config() }, "seed: 42");
    let lora = LoraConfig { rank: 2, ..config().lora };
    fails(TrainConfig { lora, ..config() }, "this run's is F32 [2, 40]");
    let lora = LoraConfig { targets: vec![Projection::QProj], ..config().lora };
    fails(TrainConfig { lora, ..config() }, "it has 28 tensors, this run has 4");
    std::fs::write(checkpoint.join("adapter_model.safetensors"), b"torn").unwrap();
    fails(config(), "can't be resumed from");
}

#[test]
fn a_failed_write_keeps_the_old_state() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("state");
    let mut run = trainer(config());
    run.save(&checkpoint).unwrap();
    let before = run.state().clone();
    run.step().unwrap();
    // A file where the partial folder should go.
    std::fs::write(folder.path().join("state.partial"), b"").unwrap();
    assert!(matches!(run.save(&checkpoint), Err(TrainError::File { .. })));
    assert_eq!(State::load(&checkpoint, run.layout()).unwrap(), before);
}

#[test]
fn divergence_stops_and_changes_nothing() {
    let mut run = trainer(TrainConfig { rate: 1e30, warmup: 0, clip: None, ..config() });
    run.step().unwrap();
    let before = run.state().clone();
    let error = run.step().unwrap_err().to_string();
    assert!(error.contains("diverged at step 1"), "{error}");
    assert_eq!(run.state(), &before);
}
