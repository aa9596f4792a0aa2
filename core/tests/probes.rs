//! Probes on a tiny random model: what they read, what the guard makes of it, and what does not fit together.

#[path = "support/onnx.rs"]
mod onnx;

use std::{path::PathBuf, sync::Arc};

use forethought_core::{
    conversation::Conversation,
    engine::Limits,
    evidence::{Evidence, Path},
    guard::{
        Bundle, Cascade, Combination, Event, Examination, Guard, LocalGuard, LocalOptions, Mode, Options,
        Windows,
        bundle::Band,
        prompt::Prompt,
        trace::{Part, TracedToken},
        transcript,
    },
    model::{Checkpoint, Sequence, Tokenizer, Want},
    probe::{
        self, Made, Position, Probe, ProbeError, ProbeSource, Runtime, RuntimeOptions, onnx::GuardParts,
    },
    store::{Console, Store},
};
use onnx::Onnx;

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

const WIDTH: usize = 32;
const LAYERS: usize = 3;
const TEMPLATE: &str = "r1act 1";

fn tiny() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny/llama")
}

fn runtime() -> TestResult<Runtime> {
    Ok(Runtime::load(None, &Store::open_default()?, &Console::stderr())?)
}

fn bundle() -> TestResult<Bundle> {
    let mut bundle = Bundle::builtin("base")?;
    let manifest = &mut bundle.manifest;
    manifest.base.sha256 = None;
    manifest.template.name = "r1act".into();
    manifest.template.version = 1;
    // The tiny tokenizer cuts both labels of the real template after the same letter.
    manifest.template.harmful = "H".into();
    manifest.template.benign = "B".into();
    manifest.template.system = "S".into();
    manifest.template.user = "R {conversation}".into();
    manifest.limits.understanding_tokens = 12;
    manifest.limits.assessment_tokens = 16;
    manifest.adapter = None;
    manifest.probes = vec![];
    manifest.cascade = Some(Band { benign_below: 0.2, harmful_from: 0.8 });
    manifest.combine = vec![];
    Ok(bundle)
}

fn options(probes: Vec<Arc<Probe>>) -> LocalOptions {
    LocalOptions {
        windows: Windows { window: 64, overlap: 8, max: 256 },
        // Prompts are read in several steps.
        limits: Limits { chunk: 7, ..Limits::default() },
        probes,
        ..LocalOptions::default()
    }
}

fn start(probes: Vec<Arc<Probe>>) -> TestResult<LocalGuard> {
    Ok(LocalGuard::start(&bundle()?, &tiny(), "", options(probes))?)
}

fn source(file: &str, onnx: &Onnx) -> ProbeSource {
    ProbeSource { file: file.into(), bytes: onnx.bytes().into(), made: Made::default(), own: false }
}

fn open(onnx: &Onnx) -> TestResult<Arc<Probe>> {
    Ok(Arc::new(Probe::open(&runtime()?, source("test.onnx", onnx), &[])?))
}

/// A probe that says the same of everything.
fn constant(name: &str, probability: f32) -> TestResult<Arc<Probe>> {
    let bias = (probability / (1.0 - probability)).ln();
    open(&Onnx::exported(name, (1, "last"), TEMPLATE, vec![0.0; WIDTH], bias))
}

/// Weights without a pattern, the same in every run.
fn weights(seed: usize) -> Vec<f32> {
    (0..WIDTH).map(|i| ((i * 37 + seed * 101) % 19) as f32 / 9.0 - 1.0).collect()
}

async fn examine(guard: &LocalGuard, text: &str, mode: Mode) -> TestResult<Evidence> {
    Ok(ask(guard, text, mode).evidence().await?)
}

fn ask(guard: &LocalGuard, text: &str, mode: Mode) -> Examination {
    guard.examine(Arc::new(Conversation::from_user(text)), Options { mode, deadline: None })
}

/// A window's number of tokens, and the states `[tokens][layer][width]` of all that is read behind the prefix.
type WindowStates = (usize, Vec<Vec<Vec<f32>>>);

/// The states of each window, got in the plainest way there is.
fn states(guard: &LocalGuard, text: &str) -> TestResult<Vec<WindowStates>> {
    let checkpoint = Checkpoint::open(&tiny())?;
    let tokenizer: Tokenizer = checkpoint.tokenizer()?;
    let prompt = Prompt::new(&bundle()?.manifest, &tokenizer, &checkpoint.chat_template()?)?;
    let ids = tokenizer.encode_text(&transcript::render(&Conversation::from_user(text)))?;
    let taps: Vec<usize> = (0..=LAYERS).collect();
    let mut windows = Vec::new();
    for window in options(vec![]).windows.split(ids.len()) {
        let mut tokens = prompt.prefix.clone();
        tokens.extend(&ids[window.clone()]);
        tokens.extend(prompt.suffix.iter().chain(&prompt.direct_verdict));
        let mut cache = guard.decoder().new_cache()?;
        let sequence = Sequence { tokens: &tokens, cache: &mut cache, want: Want::Nothing };
        let output = guard.decoder().forward(&mut [sequence], &taps)?;
        let layers = output.hidden.iter().map(|t| t.to_vec2::<f32>()).collect::<Result<Vec<_>, _>>()?;
        let rows = prompt.prefix.len()..tokens.len();
        let tokens = rows.map(|row| layers.iter().map(|layer| layer[row].clone()).collect()).collect();
        windows.push((window.len(), tokens));
    }
    Ok(windows)
}

fn score(weights: &[f32], state: &[f32]) -> f64 {
    let sum: f32 = weights.iter().zip(state).map(|(w, x)| w * x).sum();
    1.0 / (1.0 + f64::from(-sum).exp())
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-5, "{a} {b}");
}

#[tokio::test]
async fn readings_are_those_of_the_states_in_the_prefill() -> TestResult {
    let mut probes = Vec::new();
    for layer in 0..=LAYERS {
        for position in Position::ALL {
            let name = format!("{position}-{layer}");
            let at = (layer, position.as_str());
            probes.push(open(&Onnx::exported(&name, at, TEMPLATE, weights(layer), 0.0))?);
        }
    }
    let guard = start(probes)?;
    // One window, several, and none: the last token then stands for it.
    for text in ["hello", &"all sorts of words, ".repeat(12)] {
        let expected = states(&guard, text)?;
        let mut examinations: Vec<_> = (0..3).map(|_| ask(&guard, text, Mode::Probe)).collect();
        examinations.push(ask(&guard, "somebody else's words", Mode::Direct));
        let evidence = examinations.remove(1).evidence().await?;
        assert_eq!(evidence.coverage.windows, expected.len());
        assert_eq!(evidence.probes.len(), (LAYERS + 1) * 3);
        for reading in &evidence.probes {
            let one = |(window, tokens): &WindowStates| {
                let at = |token: usize| &tokens[token][reading.layer];
                let column = |i: usize| (0..*window).map(move |token| at(token)[i]);
                let state: Vec<f32> = match reading.position {
                    Position::Last => at(tokens.len() - 1).clone(),
                    Position::Mean => (0..WIDTH).map(|i| column(i).sum::<f32>() / *window as f32).collect(),
                    Position::Max => (0..WIDTH).map(|i| column(i).fold(f32::MIN, f32::max)).collect(),
                };
                score(&weights(reading.layer), &state)
            };
            let highest = expected.iter().map(one).fold(0.0, f64::max);
            close(reading.score, highest);
        }
        let highest = evidence.probes.iter().map(|reading| reading.score).fold(0.0, f64::max);
        assert_eq!((evidence.path, evidence.score), (Path::Probe, highest));
        assert_eq!((evidence.probe_score, evidence.assessment.is_none()), (Some(highest), true));
    }
    let empty = guard.examine(Arc::default(), Options { mode: Mode::Probe, deadline: None });
    let empty = empty.evidence().await?;
    for layer in empty.probes.chunks(3) {
        assert_eq!(layer[0].score, layer[1].score);
        assert_eq!(layer[0].score, layer[2].score);
    }
    Ok(())
}

#[tokio::test]
async fn probes_change_nothing_of_the_other_modes() -> TestResult {
    let (bare, probed) = (start(vec![])?, start(vec![constant("certain", 0.99)?])?);
    for text in ["hello", &"all sorts of words, ".repeat(12)] {
        for mode in [Mode::Direct, Mode::Reason] {
            let (mut bare, mut probed) =
                (examine(&bare, text, mode).await?, examine(&probed, text, mode).await?);
            let said = probed.assessment.as_ref().map_or(probed.direct_score, |a| Some(a.score));
            close(probed.activation_gap().ok_or("no gap")?, 0.99 - said.ok_or("nothing was said")?);
            assert_eq!(probed.probes.len(), 1);
            assert_eq!(bare.activation_gap(), None);
            (probed.probes, probed.probe_score) = (vec![], None);
            (probed.timings, bare.timings) = Default::default();
            assert_eq!(probed, bare);
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_cascade_reasons_only_where_it_is_not_clear() -> TestResult {
    async fn check(says: f32, cascade: Cascade, path: Path, is_reasoned: bool) -> TestResult {
        let options = LocalOptions { cascade, ..options(vec![constant("one", says)?]) };
        let guard = LocalGuard::start(&bundle()?, &tiny(), "", options)?;
        let evidence = examine(&guard, "hello", Mode::Cascade).await?;
        assert_eq!((evidence.path, evidence.assessment.is_some()), (path, is_reasoned), "{says} {cascade:?}");
        let reasoned = evidence.assessment.as_ref().map(|a| a.score);
        match path {
            Path::Probe => close(evidence.score, f64::from(says)),
            _ => assert_eq!(Some(evidence.score), reasoned),
        }
        assert_eq!(is_reasoned, evidence.timings.generated_tokens > 0);
        let said = reasoned.or(evidence.direct_score).ok_or("nothing was said")?;
        close(evidence.activation_gap().ok_or("no gap")?, f64::from(says) - said);
        Ok(())
    }
    let bundles = Cascade::default();
    check(0.1, bundles, Path::Probe, false).await?;
    check(0.3, bundles, Path::Reason, true).await?;
    check(0.7, bundles, Path::Reason, true).await?;
    check(0.9, bundles, Path::Probe, false).await?;
    let own = Cascade { benign_below: Some(0.5), harmful_from: None, reason_on_refuse: false };
    check(0.3, own, Path::Probe, false).await?;
    check(0.7, own, Path::Reason, true).await?;
    let explained = Cascade { reason_on_refuse: true, ..bundles };
    check(0.1, explained, Path::Probe, false).await?;
    check(0.3, explained, Path::Reason, true).await?;
    check(0.9, explained, Path::Probe, true).await
}

#[tokio::test]
async fn signals_are_combined_as_the_bundle_says() -> TestResult {
    let mut bundle = bundle()?;
    let one = |weights: &[(&str, f64)]| Combination {
        bias: 0.0,
        weights: weights.iter().map(|&(name, weight)| (name.to_owned(), weight)).collect(),
    };
    bundle.manifest.combine = vec![
        one(&[("a", 1.0), ("b", 1.0)]),
        one(&[("a", 1.0), ("direct", 0.0)]),
        one(&[("a", 0.0), ("direct", 0.0), ("reason", 0.0)]),
    ];
    let logit = |p: f64| (p / (1.0 - p)).ln();
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let guard = |a: f32, own: Option<f32>| -> TestResult<LocalGuard> {
        let mut probes = vec![constant("a", a)?, constant("b", 0.6)?];
        if let Some(own) = own {
            let bias = (own / (1.0 - own)).ln();
            let onnx = Onnx::exported("mine", (1, "last"), TEMPLATE, vec![0.0; WIDTH], bias);
            let source = ProbeSource { own: true, ..source("mine.onnx", &onnx) };
            probes.push(Arc::new(Probe::open(&runtime()?, source, &[])?));
        }
        Ok(LocalGuard::start(&bundle, &tiny(), "", options(probes))?)
    };
    // Probes alone.
    let evidence = examine(&guard(0.7, None)?, "hello", Mode::Probe).await?;
    close(evidence.score, sigmoid(logit(0.7) + logit(0.6)));
    assert_eq!((Some(evidence.score), Some(evidence.score)), (evidence.probe_score, evidence.combined_score));
    // With the direct verdict, by which nothing is clear: 0.5 it is, by the third combination.
    let evidence = examine(&guard(0.7, None)?, "hello", Mode::Cascade).await?;
    close(evidence.score, 0.5);
    assert_eq!((evidence.path, evidence.combined_score), (Path::Reason, Some(evidence.score)));
    // Clear before reasoning.
    let evidence = examine(&guard(0.9, None)?, "hello", Mode::Cascade).await?;
    close(evidence.score, 0.9);
    assert_eq!((evidence.path, evidence.combined_score), (Path::Probe, Some(evidence.score)));
    // A probe that the combination does not know speaks for itself.
    let evidence = examine(&guard(0.1, Some(0.95))?, "hello", Mode::Cascade).await?;
    close(evidence.score, 0.95);
    assert_eq!(evidence.guard.own_probes.keys().collect::<Vec<_>>(), ["mine"]);
    let evidence = examine(&guard(0.9, Some(0.05))?, "hello", Mode::Cascade).await?;
    close(evidence.score, 0.9);
    // The other modes have their own scores.
    for mode in [Mode::Direct, Mode::Reason] {
        let evidence = examine(&guard(0.9, None)?, "hello", mode).await?;
        let said = evidence.assessment.as_ref().map_or(evidence.direct_score, |a| Some(a.score));
        assert_eq!((Some(evidence.score), evidence.combined_score), (said, None));
    }
    Ok(())
}

#[tokio::test]
async fn a_trace_has_every_token_in_order() -> TestResult {
    let probes = vec![
        open(&Onnx::exported("two", (2, "last"), TEMPLATE, weights(2), 0.0))?,
        open(&Onnx::exported("zero", (0, "mean"), TEMPLATE, weights(0), 0.0))?,
    ];
    let guard = start(probes)?;
    for (text, mode) in [("a <b> c", Mode::Reason), (&*"all sorts of words, ".repeat(8), Mode::Probe)] {
        let expected = states(&guard, text)?;
        let options = Options { mode, deadline: None };
        let mut examination = guard.trace(Arc::new(Conversation::from_user(text)), options);
        let mut traced: Vec<TracedToken> = Vec::new();
        let evidence = loop {
            match examination.next().await.ok_or("the events ended early")? {
                Event::Traced(tokens) => traced.extend(tokens),
                Event::Done(evidence) => break evidence,
                Event::Failed(error) => return Err(error.into()),
                _ => {}
            }
        };
        let parts = |part: Part| traced.iter().filter(move |token| token.part == part);
        let mut number = 0;
        for (window, (length, tokens)) in expected.iter().enumerate() {
            assert_eq!(parts(Part::Window(window)).count(), *length);
            for token in tokens {
                close(traced[number].scores[0], score(&weights(2), &token[2]));
                close(traced[number].scores[1], score(&weights(0), &token[0]));
                number += 1;
            }
        }
        let read: String = parts(Part::Window(0)).map(|token| token.text.as_str()).collect();
        assert!(format!("User: {text}").starts_with(&read), "{read}");
        let written: String = parts(Part::Written).map(|token| token.text.as_str()).collect();
        match &evidence.assessment {
            Some(assessment) => {
                let heading = "Problem understanding:";
                assert!(
                    written.starts_with(heading) && written.contains("Harmfulness assessment:"),
                    "{written}"
                );
                assert!(written.contains(&assessment.understanding));
            }
            // The hazard, which is asked for without phases too.
            None => assert!(!written.contains("understanding:"), "{written}"),
        }
        // What is watched is judged as it would be.
        let unwatched = examine(&guard, text, mode).await?;
        assert_eq!((evidence.score, &evidence.probes), (unwatched.score, &unwatched.probes));
    }
    Ok(())
}

#[tokio::test]
async fn modes_that_need_probes_say_so() -> TestResult {
    let guard = start(vec![])?;
    for mode in [Mode::Probe, Mode::Cascade] {
        let error = guard.check_mode(mode).err().ok_or("no error")?.to_string();
        assert!(error.contains(&format!("`guard.mode` is `{}`, but bundle `", mode.as_str())), "{error}");
        assert!(error.contains("has no probes") && error.contains("`guard.probes`"), "{error}");
        assert!(examine(&guard, "hello", mode).await.is_err());
    }
    let mut bundle = bundle()?;
    bundle.manifest.cascade = None;
    let guard = LocalGuard::start(&bundle, &tiny(), "", options(vec![constant("one", 0.5)?]))?;
    guard.check_mode(Mode::Probe)?;
    let error = guard.check_mode(Mode::Cascade).err().ok_or("no error")?.to_string();
    assert!(error.contains("`guard.cascade.benign_below`"), "{error}");

    let cascade = Cascade { benign_below: Some(0.9), ..Cascade::default() };
    bundle.manifest.cascade = Some(Band { benign_below: 0.1, harmful_from: 0.5 });
    let wrong = LocalOptions { cascade, ..options(vec![]) };
    let error = LocalGuard::start(&bundle, &tiny(), "", wrong).err().ok_or("no error")?.to_string();
    assert!(error.contains("benign_below is 0.9 and harmful_from 0.5"), "{error}");

    bundle.manifest.combine = vec![Combination { bias: 0.0, weights: [("ghost".to_owned(), 1.0)].into() }];
    let error = LocalGuard::start(&bundle, &tiny(), "", options(vec![])).err().ok_or("no error")?.to_string();
    assert!(error.contains("combines a signal `ghost`"), "{error}");
    Ok(())
}

#[test]
fn files_that_are_no_probes_are_refused() -> TestResult {
    #[track_caller]
    fn check(bytes: Vec<u8>, made: Made, expected: &str) -> TestResult {
        let source = ProbeSource { file: "p/x.onnx".into(), bytes: bytes.into(), made, own: true };
        let error = Probe::open(&runtime()?, source, &[]).err().ok_or("it was opened")?.to_string();
        assert!(error.contains(expected) && error.contains("the probe p/x.onnx "), "{expected}\n{error}");
        Ok(())
    }
    let good = Onnx::exported("good", (1, "last"), TEMPLATE, vec![0.0; WIDTH], 0.0);
    let foreign = Onnx::foreign(vec![0.0; WIDTH], 0.0);
    let made = Made::default();
    let mut cut = good.bytes();
    cut.truncate(cut.len() / 2);
    check(cut, made.clone(), "is damaged, or no ONNX file")?;
    check(b"no probe".to_vec(), made.clone(), "is damaged, or no ONNX file")?;
    check(vec![], made.clone(), "is damaged, or no ONNX file")?;
    let other = Onnx { input: "x", ..good.clone() };
    check(other.bytes(), made.clone(), "must have one input, `hidden`, and has `x`")?;
    let other = Onnx { output: "y", ..good.clone() };
    check(other.bytes(), made.clone(), "must have an output `probability`, and has `y`")?;
    let single = Onnx { batch: Some(1), ..good.clone() };
    check(single.bytes(), made.clone(), "must take any number of states")?;
    for (key, value, expected) in [
        ("forethought.format", "2", "is of format 2, and this program reads 1"),
        ("forethought.layer", "first", "says `first` for `forethought.layer`"),
        ("forethought.layer", "", "does not say `forethought.layer`"),
        ("forethought.position", "middle", "says `middle` for `forethought.position`"),
        ("forethought.threshold", "1.5", "has the threshold 1.5, which is no probability"),
        ("forethought.width", "33", "says that it reads 33 values, but reads 32"),
        ("forethought.name", "direct", "can't be called `direct`"),
    ] {
        check(good.clone().saying(key, value).bytes(), made.clone(), expected)?;
    }
    check(foreign.bytes(), made.clone(), "does not say which layer it reads: add `layer`")?;
    let layer = Made { layer: Some(1), ..made.clone() };
    check(foreign.bytes(), layer.clone(), "does not say which position it reads: add `position`")?;
    let two = Made { layer: Some(2), ..made };
    check(good.bytes(), two, "says that its layer is 1, but the configuration says 2")?;

    // What the file does not say, the configuration can.
    let made = Made { position: Some(Position::Max), threshold: Some(0.7), ..layer };
    let source = ProbeSource { file: "p/x.onnx".into(), bytes: foreign.bytes().into(), made, own: true };
    let probe = Probe::open(&runtime()?, source, &[])?;
    let info = probe.info();
    assert_eq!((info.name.as_str(), info.layer, info.threshold), ("x", 1, 0.7));
    Ok(())
}

#[test]
fn probes_of_other_guards_are_refused() -> TestResult {
    let good = Onnx::exported("good", (LAYERS, "last"), TEMPLATE, vec![0.0; WIDTH], 0.0);
    let parts = GuardParts { template: TEMPLATE.into(), ..GuardParts::default() };
    let check = |onnx: &Onnx, expected: &str| -> TestResult {
        let fits = open(onnx)?.check_fits(&parts, LAYERS, WIDTH).map_err(|error| error.to_string());
        match expected {
            "" => fits?,
            _ => assert!(fits.as_ref().is_err_and(|e| e.contains(expected)), "{expected}\n{fits:?}"),
        }
        Ok(())
    };
    check(&good, "")?;
    let with = |key, value| good.clone().saying(key, value);
    check(
        &with("forethought.base_sha256", "ab"),
        "made for another base model: ab, but this guard has none",
    )?;
    check(
        &with("forethought.adapter_sha256", "cd"),
        "made for another adapter: cd, but this guard has none",
    )?;
    check(&with("forethought.template", "r1act 2"), "another template: r1act 2, but this guard has r1act 1")?;
    check(&with("forethought.layer", "4"), "reads layer 4, but the model has only 3")?;
    let wide = Onnx::exported("wide", (1, "last"), TEMPLATE, vec![0.0; 33], 0.0);
    check(&wide, "reads 33 values, but the model's states have 32")?;
    let logits = Onnx { sigmoid: false, bias: 3.0, ..good.clone() };
    check(&logits, "it gives 3, which is no probability")?;
    // A guard says so too, before it reads anything.
    let wide = open(&wide)?;
    let error = start(vec![wide]).err().ok_or("no error")?.to_string();
    assert!(error.contains("test.onnx reads 33 values"), "{error}");
    Ok(())
}

#[test]
fn a_bundle_brings_its_probes() -> TestResult {
    let folder = tempfile::tempdir()?;
    let toml = include_str!("../bundles/base/guard.toml");
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes);
    let entries = "[[probes]]\nfile = \"a.onnx\"\n[[probes]]\nfile = \"b.onnx\"\n[cascade]\nbenign_below = 0.1\nharmful_from = 0.9\n";
    write("guard.toml", format!("{toml}\n{entries}").as_bytes())?;
    let probe = |name: &str| Onnx::exported(name, (1, "mean"), TEMPLATE, vec![0.0; WIDTH], 0.0).bytes();
    write("a.onnx", &probe("a"))?;
    let name = folder.path().display().to_string();
    let (store, options) = (Store::open_default()?, RuntimeOptions::default());
    let opened = |own| -> TestResult<Result<Vec<Arc<Probe>>, ProbeError>> {
        Ok(probe::open(&Bundle::open(&name)?, own, &options, &store, &Console::stderr()))
    };
    let error = opened(vec![])?.err().ok_or("no error")?.to_string();
    assert!(error.contains("b.onnx"), "{error}");
    write("b.onnx", &probe("b"))?;
    let before = Bundle::open(&name)?.sha256;
    let own = ProbeSource {
        own: true,
        ..source("c.onnx", &Onnx::exported("c", (0, "max"), TEMPLATE, vec![0.0; WIDTH], 0.0))
    };
    let all = opened(vec![own])??;
    let names: Vec<&str> = all.iter().map(|probe| probe.info().name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    write("b.onnx", &probe("a"))?;
    assert_ne!(Bundle::open(&name)?.sha256, before);
    let error = opened(vec![])?.err().ok_or("no error")?.to_string();
    assert!(error.contains("two probes are called `a`") && error.contains("b.onnx"), "{error}");

    let missing = ProbeSource::read(&folder.path().join("none.onnx"), Made::default());
    assert!(missing.err().ok_or("no error")?.to_string().contains("can't read the probe"));
    // Without probes, nothing is loaded or fetched.
    let wrong = RuntimeOptions { library: Some("/nowhere/lib.so".into()), ..RuntimeOptions::default() };
    assert!(probe::open(&bundle()?, vec![], &wrong, &store, &Console::stderr())?.is_empty());
    Ok(())
}
