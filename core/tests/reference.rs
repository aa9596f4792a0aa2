//! The decoder and tokenizer against reference implementations, on the real SmolLM2 weights.
//!
//! `tests/golden/README.md` says how the reference files were made.

use std::{path::PathBuf, sync::OnceLock};

use candle_core::{IndexOp, Tensor};
use forethought_core::{
    model::{
        Checkpoint, Decoder, DeviceChoice, LoadOptions, Precision, Sequence, Tokenizer, Want, sampler::argmax,
    },
    store::{Console, DEFAULT_MODEL, Store},
};
use serde::Deserialize;

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn golden<T: for<'a> Deserialize<'a>>(name: &str) -> TestResult<T> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
}

fn checkpoint() -> &'static Checkpoint {
    static CHECKPOINT: OnceLock<Checkpoint> = OnceLock::new();
    CHECKPOINT.get_or_init(|| {
        let open = || -> TestResult<Checkpoint> {
            let model = Store::open_default()?.resolve(&DEFAULT_MODEL.parse()?, &Console::stderr())?;
            Ok(Checkpoint::open(&model.path)?)
        };
        open().expect("the default model")
    })
}

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| checkpoint().tokenizer().expect("a tokenizer"))
}

fn decoder(precision: Precision, device: DeviceChoice) -> TestResult<Decoder> {
    Ok(Decoder::load(checkpoint(), &LoadOptions { precision, device, ..Default::default() })?)
}

#[derive(Deserialize)]
struct Tokens {
    plain: Vec<TokenCase>,
    special: Vec<TokenCase>,
}

#[derive(Deserialize)]
struct TokenCase {
    text: String,
    ids: Vec<u32>,
}

#[test]
fn token_ids_equal_transformers() -> TestResult {
    let cases: Tokens = golden("tokens.json")?;
    assert!(cases.plain.len() > 200);
    for case in &cases.plain {
        assert_eq!(tokenizer().encode_text(&case.text)?, case.ids, "plain {:?}", case.text);
    }
    for case in &cases.special {
        assert_eq!(tokenizer().encode_control(&case.text)?, case.ids, "special {:?}", case.text);
    }
    Ok(())
}

#[derive(Deserialize)]
struct Reference {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    name: String,
    ids: Vec<u32>,
    argmax: Vec<u32>,
    logits: Vec<Logits>,
    hidden: Vec<Hidden>,
    greedy: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct Logits {
    position: usize,
    top_ids: Vec<u32>,
    top_logits: Vec<f32>,
    std: f32,
    norm: f32,
}

#[derive(Deserialize)]
struct Hidden {
    layer: usize,
    first: Vec<f32>,
    norm: f32,
}

/// Largest difference of the reference's top logits, in standard deviations of its logits at that position.
fn worst_difference(logits: &Tensor, prompt: &Prompt) -> TestResult<f32> {
    let mut worst = 0f32;
    for reference in &prompt.logits {
        let row: Vec<f32> = logits.i(reference.position)?.to_vec1()?;
        for (&id, &expected) in reference.top_ids.iter().zip(&reference.top_logits) {
            worst = worst.max((row[id as usize] - expected).abs() / reference.std);
        }
        let norm = row.iter().map(|l| f64::from(*l).powi(2)).sum::<f64>().sqrt() as f32;
        worst = worst.max((norm / reference.norm - 1.0).abs());
    }
    Ok(worst)
}

#[test]
fn dense_logits_agree_with_transformers() -> TestResult {
    let reference: Reference = golden("smollm2_logits.json")?;
    let decoder = decoder(Precision::Dense, DeviceChoice::Cpu)?;
    let taps: Vec<usize> = reference.prompts[0].hidden.iter().map(|h| h.layer).collect();
    let mut worst = 0f32;
    for prompt in &reference.prompts {
        let mut cache = decoder.new_cache()?;
        let sequence = Sequence { tokens: &prompt.ids, cache: &mut cache, want: Want::All };
        let output = decoder.forward(&mut [sequence], &taps)?;
        let got: Vec<u32> = output.logits[0].to_vec2::<f32>()?.iter().map(|row| argmax(row)).collect();
        assert_eq!(got, prompt.argmax, "{}", prompt.name);
        worst = worst.max(worst_difference(&output.logits[0], prompt)?);
        for (reference, states) in prompt.hidden.iter().zip(&output.hidden) {
            let state: Vec<f32> = states.i(prompt.ids.len() - 1)?.to_vec1()?;
            for (got, expected) in state.iter().zip(&reference.first) {
                assert!(
                    (got - expected).abs() < 1e-3 * reference.norm,
                    "{} layer {}",
                    prompt.name,
                    reference.layer
                );
            }
        }
    }
    println!("dense: every argmax equal; largest difference of a top logit {worst:.1e} standard deviations");
    assert!(worst < 2e-3, "{worst}");
    Ok(())
}

#[test]
fn int8_logits_stay_close() -> TestResult {
    stays_close("int8", &decoder(Precision::Int8, DeviceChoice::Cpu)?)
}

/// In bf16, which keeps eight bits of a number.
#[cfg(feature = "cuda")]
#[test]
fn logits_of_the_gpu_stay_close() -> TestResult {
    stays_close("dense, cuda", &decoder(Precision::Dense, DeviceChoice::Cuda(0))?)?;
    stays_close("int8, cuda", &decoder(Precision::Int8, DeviceChoice::Cuda(0))?)
}

fn stays_close(name: &str, decoder: &Decoder) -> TestResult {
    let reference: Reference = golden("smollm2_logits.json")?;
    let (mut worst, mut gap, mut same, mut all) = (0f32, 0f32, 0, 0);
    for prompt in &reference.prompts {
        let mut cache = decoder.new_cache()?;
        let sequence = Sequence { tokens: &prompt.ids, cache: &mut cache, want: Want::All };
        let output = decoder.forward(&mut [sequence], &[])?;
        worst = worst.max(worst_difference(&output.logits[0], prompt)?);
        for (row, &expected) in output.logits[0].to_vec2::<f32>()?.iter().zip(&prompt.argmax) {
            let got = argmax(row);
            same += usize::from(got == expected);
            all += 1;
            gap = gap.max((row[got as usize] - row[expected as usize]) / prompt.logits[0].std);
        }
    }
    println!(
        "{name}: {same} of {all} argmax equal; largest difference of a top logit {worst:.2}, of a lost argmax {gap:.2} \
         standard deviations"
    );
    // Rounding decides near ties, so some argmax differ; the right token is then never far behind.
    assert!(worst < 0.5 && gap < 0.25, "{name}: {worst} {gap}");
    assert!(same * 100 >= all * 92, "{name}: {same} of {all}");
    Ok(())
}

#[test]
fn greedy_decoding_agrees_with_transformers() -> TestResult {
    let reference: Reference = golden("smollm2_logits.json")?;
    let decoder = decoder(Precision::Dense, DeviceChoice::Cpu)?;
    let mut checked = 0;
    for prompt in &reference.prompts {
        let Some(expected) = &prompt.greedy else { continue };
        let mut cache = decoder.new_cache()?;
        let (mut next, mut got) = (prompt.ids.clone(), Vec::new());
        while got.len() < expected.len() {
            let sequence = Sequence { tokens: &next, cache: &mut cache, want: Want::Last };
            let logits = decoder.forward(&mut [sequence], &[])?.logits[0].flatten_all()?.to_vec1::<f32>()?;
            got.push(argmax(&logits));
            next = vec![argmax(&logits)];
        }
        assert_eq!(&got, expected, "{}", prompt.name);
        checked += 1;
    }
    assert!(checked > 0);
    Ok(())
}
