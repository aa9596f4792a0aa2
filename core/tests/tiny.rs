//! The decoder on tiny random models of every family, against transformers, peft and GGUF files.
//!
//! `tests/golden/README.md` says how the reference files were made.

use std::path::{Path, PathBuf};

use candle_core::{IndexOp, Tensor};
use forethought_core::model::{
    Adapter, Checkpoint, Decoder, LoadOptions, Precision, Sequence, Want, decoder::Output, sampler::argmax,
};
use serde::Deserialize;

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

#[derive(Deserialize)]
struct Expected {
    cases: Vec<Case>,
    #[serde(default)]
    gguf: std::collections::BTreeMap<String, Vec<Case>>,
    #[serde(default)]
    tokens: Vec<Tokens>,
}

#[derive(Deserialize)]
struct Case {
    ids: Vec<u32>,
    argmax: Vec<u32>,
    logits: Vec<f32>,
    hidden: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct Tokens {
    text: String,
    ids: Vec<u32>,
    ids_special: Vec<u32>,
}

const FAMILIES: [&str; 4] = ["llama", "llama3", "qwen2", "qwen3"];

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny").join(family)
}

fn expected(path: &Path) -> TestResult<Expected> {
    Ok(serde_json::from_str(&std::fs::read_to_string(path.join("expected.json"))?)?)
}

fn load(path: &Path, adapter: Option<&Adapter>, keep_adapter_apart: bool) -> TestResult<Decoder> {
    let options =
        LoadOptions { precision: Precision::Dense, adapter, keep_adapter_apart, ..Default::default() };
    Ok(Decoder::load(&Checkpoint::open(path)?, &options)?)
}

fn read(decoder: &Decoder, ids: &[u32]) -> TestResult<Output> {
    let mut cache = decoder.new_cache()?;
    let taps: Vec<usize> = (0..=decoder.config().layers).collect();
    Ok(decoder.forward(&mut [Sequence { tokens: ids, cache: &mut cache, want: Want::All }], &taps)?)
}

fn rows(logits: &Tensor) -> TestResult<Vec<Vec<f32>>> {
    Ok(logits.to_vec2()?)
}

/// Largest difference, relative to the largest expected value.
fn difference(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let scale = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
    got.iter().zip(expected).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / scale
}

fn check(name: &str, decoder: &Decoder, cases: &[Case]) -> TestResult {
    assert!(!cases.is_empty());
    for case in cases {
        let output = read(decoder, &case.ids)?;
        let rows = rows(&output.logits[0])?;
        let got: Vec<u32> = rows.iter().map(|row| argmax(row)).collect();
        assert_eq!(got, case.argmax, "{name}");
        let last = case.ids.len() - 1;
        let logits = difference(&rows[last], &case.logits);
        assert!(logits < 1e-4, "{name}: logits differ by {logits}");
        for (layer, (hidden, expected)) in output.hidden.iter().zip(&case.hidden).enumerate() {
            let state = difference(&hidden.i(last)?.to_vec1()?, expected);
            assert!(state < 1e-4, "{name}: hidden states of layer {layer} differ by {state}");
        }
    }
    Ok(())
}

#[test]
fn families_agree_with_transformers() -> TestResult {
    for family in FAMILIES {
        let path = folder(family);
        let expected = expected(&path)?;
        check(family, &load(&path, None, false)?, &expected.cases)?;
        for (file, cases) in &expected.gguf {
            check(&format!("{family}/{file}"), &load(&path.join(file), None, false)?, cases)?;
        }
    }
    Ok(())
}

#[test]
fn tokenizers_of_both_kinds_agree() -> TestResult {
    for family in FAMILIES {
        let path = folder(family);
        let expected = expected(&path)?;
        assert!(!expected.tokens.is_empty());
        for file in ["", "model-q8_0.gguf"] {
            let tokenizer = Checkpoint::open(&path.join(file))?.tokenizer()?;
            for case in &expected.tokens {
                assert_eq!(tokenizer.encode_text(&case.text)?, case.ids, "{family}/{file} {:?}", case.text);
                assert_eq!(
                    tokenizer.encode_control(&case.text)?,
                    case.ids_special,
                    "{family}/{file} {:?}",
                    case.text
                );
            }
        }
    }
    Ok(())
}

#[test]
fn an_adapter_agrees_with_peft_apart_and_merged() -> TestResult {
    let path = folder("llama");
    let expected = expected(&path.join("lora"))?;
    for keep_apart in [true, false] {
        let adapter = Adapter::open(&path.join("lora"))?;
        check("lora", &load(&path, Some(&adapter), keep_apart)?, &expected.cases)?;
    }
    Ok(())
}

#[test]
fn an_adapter_for_another_model_is_refused() -> TestResult {
    let adapter = Adapter::open(&folder("llama").join("lora"))?;
    let error = load(&folder("qwen2"), Some(&adapter), false).err().ok_or("no error")?;
    assert!(error.to_string().contains("made for another model"), "{error}");
    Ok(())
}

#[test]
fn a_ragged_batch_equals_single_sequences() -> TestResult {
    for family in FAMILIES {
        let path = folder(family);
        let cases = expected(&path)?.cases;
        let decoder = load(&path, None, false)?;
        // First all but the last two tokens of each, then one by one, all sequences in one batch.
        let mut caches = cases.iter().map(|_| decoder.new_cache()).collect::<Result<Vec<_>, _>>()?;
        let split = |case: &Case, step: usize| {
            let cut = case.ids.len().saturating_sub(2).max(1);
            match step {
                0 => 0..cut,
                step => (cut + step - 1).min(case.ids.len())..(cut + step).min(case.ids.len()),
            }
        };
        for step in 0..3 {
            let mut sequences = Vec::new();
            let mut ends = Vec::new();
            for (case, cache) in cases.iter().zip(&mut caches) {
                let part = split(case, step);
                if !part.is_empty() {
                    ends.push((part.end, case));
                    sequences.push(Sequence { tokens: &case.ids[part], cache, want: Want::Last });
                }
            }
            let output = decoder.forward(&mut sequences, &[])?;
            for ((end, case), logits) in ends.into_iter().zip(&output.logits) {
                let row = rows(logits)?.remove(0);
                assert_eq!(argmax(&row), case.argmax[end - 1], "{family} step {step}");
                if end == case.ids.len() {
                    assert!(difference(&row, &case.logits) < 1e-4, "{family}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_fork_and_a_way_back_change_nothing() -> TestResult {
    let path = folder("llama");
    let cases = expected(&path)?.cases;
    let case = cases.last().ok_or("no case")?;
    let decoder = load(&path, None, false)?;
    let mut prefix = decoder.new_cache()?;
    let half = case.ids.len() / 2;
    let sequence = Sequence { tokens: &case.ids[..half], cache: &mut prefix, want: Want::Nothing };
    let output = decoder.forward(&mut [sequence], &[])?;
    assert_eq!(output.logits[0].dims(), [0, decoder.config().vocab_size]);
    for extra in [0, 3, 100] {
        let mut fork = prefix.fork(extra)?;
        // A wrong turn, taken back.
        decoder
            .forward(&mut [Sequence { tokens: &[5, 6, 7], cache: &mut fork, want: Want::Nothing }], &[])?;
        fork.truncate(half);
        let sequence = Sequence { tokens: &case.ids[half..], cache: &mut fork, want: Want::Last };
        let output = decoder.forward(&mut [sequence], &[])?;
        assert!(difference(&rows(&output.logits[0])?[0], &case.logits) < 1e-4);
    }
    assert_eq!(prefix.len(), half);
    Ok(())
}

#[test]
fn bad_input_is_an_error() -> TestResult {
    let decoder = load(&folder("llama"), None, false)?;
    let vocab = decoder.config().vocab_size as u32;
    for (tokens, taps) in [(vec![], vec![]), (vec![vocab], vec![]), (vec![1], vec![99])] {
        let mut cache = decoder.new_cache()?;
        let sequence = Sequence { tokens: &tokens, cache: &mut cache, want: Want::Last };
        assert!(decoder.forward(&mut [sequence], &taps).is_err(), "{tokens:?} {taps:?}");
    }
    Ok(())
}
