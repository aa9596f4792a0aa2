//! Tokens a second and peak memory of training steps (forward, backward, AdamW) on a base model's real weights:
//!
//! ```sh
//! cargo bench -p forethought-trainer --bench step -- [--precision f32|bf16|q8_0|q4_1|nf4] [--recompute] [--steps N] \
//!     [--device cuda]
//! ```
//!
//! It prints one JSON object. A device other than the processor wants its feature (`--features cuda`). `compare.py` beside it
//! runs this and the same steps of torch and peft in turns.
#![allow(clippy::unwrap_used)] // A benchmark may stop where it stands.

use std::sync::Arc;
use std::time::Instant;

use forethought_core::model::{Checkpoint, DeviceChoice};
use forethought_core::store::{Console, DEFAULT_MODEL, Store};
use forethought_trainer::adapter::LoraConfig;
use forethought_trainer::cpu::CpuSettings;
use forethought_trainer::data::Example;
use forethought_trainer::model::FrozenModel;
use forethought_trainer::ops::weight::Precision;
use forethought_trainer::train::{Source, TrainConfig, Trainer};

const BATCH: usize = 4;
const LENGTH: usize = 171;
/// Tokens at a sequence's end that are learnt.
const LEARNT: usize = 80;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |flag: &str| args.iter().position(|arg| arg == flag).and_then(|at| args.get(at + 1));
    let precision: Precision = value("--precision")
        .map_or(Precision::F32, |name| serde_json::from_value(name.as_str().into()).unwrap());
    let steps: usize = value("--steps").map_or(6, |text| text.parse().unwrap());
    let device = value("--device").map_or(DeviceChoice::Cpu, |name| name.parse().unwrap());
    let recompute = args.iter().any(|arg| arg == "--recompute");

    let path = Store::open_default().unwrap().resolve(&DEFAULT_MODEL.parse().unwrap(), &Console::stderr());
    let checkpoint = Checkpoint::open(&path.unwrap().path).unwrap();
    let model = Arc::new(FrozenModel::load(&checkpoint, precision).unwrap());
    drop(checkpoint);
    let config = TrainConfig {
        lora: LoraConfig { alpha: 32.0, ..LoraConfig::default() },
        rate: 2e-4,
        warmup: 0,
        steps: Some(steps + 1),
        batch: BATCH,
        clip: None,
        device,
        cpu: CpuSettings { workers: 2, tokens: BATCH * LENGTH, recompute },
        ..TrainConfig::default()
    };
    let items: Vec<Vec<Example>> = (0..BATCH).map(|i| vec![example(i)]).collect();
    let mut trainer = Trainer::new(model, vec![Source { draws: items.len(), items }], config).unwrap();
    // The first step grows the buffers; its loss is the base model's.
    let loss = trainer.step().unwrap().unwrap().batch.loss;
    let began = Instant::now();
    let mut tokens = 0;
    for _ in 0..steps {
        tokens += trainer.step().unwrap().unwrap().batch.tokens + BATCH; // each sequence's last token, too
    }
    let speed = tokens as f64 / began.elapsed().as_secs_f64();
    println!("{}", serde_json::json!({"loss": loss, "tokens_per_second": speed, "peak_mib": peak_mib()}));
}

/// Tokens that `torch_step.py` makes too; no two sequences begin alike, so nothing is shared.
fn example(index: usize) -> Example {
    let token = |at: usize| (1000 + (index * 7919 + at * 104_729 + at * at * 31) % 40_000) as u32;
    Example {
        tokens: (0..LENGTH).map(token).collect(),
        weights: (0..LENGTH).map(|at| f32::from(u8::from(at >= LENGTH - LEARNT))).collect(),
    }
}

/// Highest resident memory of this process so far, on Linux.
fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}
