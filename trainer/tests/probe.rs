//! A whole run of `probe` on a tiny model: what is read, what is written, that it repeats, and that Python agrees.
#![allow(clippy::unwrap_used)] // Helpers of tests are not inside of `#[test]`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use forethought_core::{
    conversation::Conversation,
    guard::{Bundle, prompt::Prompt, transcript},
    model::{Checkpoint, Decoder, DeviceChoice, LoadOptions, Sequence, Want},
    probe::Position,
    store::Silent,
};
use forethought_trainer::probe::{
    Config, Report, config::Curve, config::ScoreSet, config::Search, reader::Reader, rows::DataFile, run,
};

fn tiny() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../core/tests/golden/tiny/llama").canonicalize().unwrap()
}

/// A bundle over the tiny model, with its adapter if that is wanted.
fn bundle(folder: &Path, adapter: bool) -> PathBuf {
    let mut manifest = Bundle::builtin("base").unwrap().manifest;
    manifest.base.model = tiny().display().to_string();
    manifest.base.sha256 = None;
    // The tiny tokenizer cuts both labels of the real template after the same letter.
    manifest.template.harmful = "H".into();
    manifest.template.benign = "B".into();
    manifest.template.system = "S".into();
    manifest.template.user = "R {conversation}".into();
    if adapter {
        manifest.adapter = Some("adapter".into());
        fs::create_dir_all(folder.join("adapter")).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(tiny().join("lora").join(file), folder.join("adapter").join(file)).unwrap();
        }
    }
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("guard.toml"), toml::to_string(&manifest).unwrap()).unwrap();
    folder.to_owned()
}

/// Rows that even a random model's states tell apart: by their words.
fn data(path: &Path, rows: usize, seed: usize) {
    let line = |i: usize| {
        let harmful = i * i % 7 < 3;
        let word = if harmful { "zzz xx" } else { "aaa bb" };
        let style = if i.is_multiple_of(5) { "everyday" } else { "direct" };
        let label = if harmful { "harmful" } else { "benign" };
        let letter = if i < rows / 2 { "a" } else { "b" };
        let text = format!("{word} {} {word} {}", (i + seed) * 31 % 17, "w".repeat((i + seed) % 9));
        format!(r#"{{"id": "{letter}{i}", "prompt": "{text}", "label": "{label}", "style": "{style}"}}"#)
            + "\n"
    };
    fs::write(path, (0..rows).map(line).collect::<String>()).unwrap();
}

fn config(folder: &Path, out: &str, hold_out: Option<usize>) -> Config {
    let (fit, scored) = (folder.join("fit.jsonl"), folder.join("scored.jsonl"));
    data(&fit, 160, 0);
    data(&scored, 60, 1000);
    Config {
        bundle: bundle(&folder.join("bundle"), false).display().to_string(),
        out: folder.join(out),
        cache: Some(folder.join("states")),
        device: DeviceChoice::Cpu,
        seed: 1,
        threads: 2,
        layers: None,
        positions: Position::ALL.to_vec(),
        search: Search { hidden: 4, hidden_c: vec![0.1], c: vec![1e-2, 1.0], ..Search::default() },
        threshold: Default::default(),
        learning_curve: Some(Curve { sizes: vec![40, 80], draws: 2, block: 10 }),
        fit: vec![DataFile { hold_out, ..DataFile::all(fit) }],
        unseen: Vec::new(),
        score: vec![ScoreSet { name: "scored".into(), files: vec![DataFile::all(scored)] }],
    }
}

/// One run for all tests that only look at what it made.
fn made() -> &'static (tempfile::TempDir, Config, Report) {
    static MADE: OnceLock<(tempfile::TempDir, Config, Report)> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), "out", None);
        let report = run(&config, &Silent, &mut |_, _, _| {}).unwrap();
        (folder, config, report)
    })
}

#[test]
fn a_run_finds_what_is_there() {
    let (_, config, report) = made();
    assert!((1..=3).contains(&report.probes.len()));
    for probe in &report.probes {
        assert!(probe.auroc.unwrap() > 0.9, "{}: {:?}", probe.name, probe.auroc);
        let set = &probe.sets[0];
        assert!(set.auroc.unwrap().value > 0.9);
        assert_eq!(set.harmful + set.benign + set.left_out, 60);
        let threshold = &probe.threshold;
        assert!(threshold.flagged as f64 <= 0.02 * threshold.rows as f64);
        assert!(config.out.join(&probe.file).is_file());
        let sources: Vec<&str> = probe.left_out[0].groups.iter().map(|g| g.name.as_str()).collect();
        assert_eq!(sources, ["fit/a", "fit/b"]);
    }
    let sizes: Vec<usize> = report.learning_curve.iter().flatten().map(|p| p.size).collect();
    assert_eq!(sizes, [40, 80, 160]);
    for file in ["probe.md", "probe.json", "layers.svg", "learning-curve.svg"] {
        assert!(fs::metadata(config.out.join(file)).unwrap().len() > 500, "{file}");
    }
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(config.out.join("probe.json")).unwrap()).unwrap();
    assert_eq!(json["probes"][0]["name"], report.probes[0].name);
}

#[test]
fn rows_held_out_choose_and_are_never_fitted_on() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "out", Some(4));
    let report = run(&config, &Silent, &mut |_, _, _| {}).unwrap();
    let names: Vec<&str> = report.score.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((report.chosen_by, names), (1, vec!["fit held out", "scored"]));
    let fitted = &report.fit[0];
    assert_eq!(fitted.harmful + fitted.benign, 120);
    for probe in &report.probes {
        let held_out = &probe.sets[0];
        assert_eq!(held_out.harmful + held_out.benign + held_out.left_out, 40);
        assert_eq!(probe.threshold.rows, held_out.benign);
        assert!(held_out.auroc.unwrap().value > 0.9);
    }
}

#[test]
fn a_run_repeats_bit_for_bit() {
    let (folder, first, report) = made();
    let second = Config { out: folder.path().join("again"), ..first.clone() };
    run(&second, &Silent, &mut |what, _, _| assert_ne!(what, "reading", "the states are there")).unwrap();
    let files = report.probes.iter().map(|p| p.file.as_str()).chain(["probe.json", "probe.md", "layers.svg"]);
    for file in files {
        assert!(
            fs::read(first.out.join(file)).unwrap() == fs::read(second.out.join(file)).unwrap(),
            "{file}"
        );
    }
}

#[test]
fn states_are_those_of_the_guards_forward_pass() {
    for adapter in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let bundle = Bundle::open(&bundle(folder.path(), adapter).display().to_string()).unwrap();
        let mut reader =
            Reader::over(&bundle, &tiny(), String::new(), None, DeviceChoice::Cpu, &folder.path().join("s"))
                .unwrap();
        let texts = ["", "hello", "a rather longer text, so that lengths differ", "hello"];
        let conversations = texts.map(Conversation::from_user);
        let readings = conversations.each_ref().map(|c| reader.prepare(c).unwrap());
        let mut seen = 0;
        reader.read(&readings.iter().collect::<Vec<_>>(), &mut |done, _| seen = done).unwrap();
        assert_eq!(seen, 3, "what is there twice is read once");

        // The same by hand, all in one piece and with nothing shared.
        let checkpoint = Checkpoint::open(&tiny()).unwrap();
        let tokenizer = checkpoint.tokenizer().unwrap();
        let prompt = Prompt::new(&bundle.manifest, &tokenizer, &checkpoint.chat_template().unwrap()).unwrap();
        let lora = bundle.adapter().unwrap();
        let options = LoadOptions { adapter: lora.as_ref(), ..LoadOptions::default() };
        let decoder = Decoder::load(&checkpoint, &options).unwrap();
        for (conversation, reading) in conversations.iter().zip(&readings) {
            let ids = tokenizer.encode_text(&transcript::render(conversation)).unwrap();
            let tokens = [&prompt.prefix[..], &ids, &prompt.suffix, &prompt.direct_verdict].concat();
            let mut cache = decoder.new_cache().unwrap();
            let sequence = Sequence { tokens: &tokens, cache: &mut cache, want: Want::Last };
            let layers = reader.layers().to_vec();
            let hidden = decoder.forward(&mut [sequence], &layers).unwrap().hidden;
            for (&layer, states) in layers.iter().zip(hidden) {
                let rows = states.to_vec2::<f32>().unwrap();
                let own = &rows[prompt.prefix.len()..prompt.prefix.len() + ids.len()];
                let column = |j: usize| own.iter().map(move |row| row[j]);
                for position in Position::ALL {
                    let found = reader.states(&reading.keys(), layer, position).unwrap();
                    for (j, found) in found.iter().enumerate() {
                        let expected = match position {
                            Position::Last => rows[rows.len() - 1][j],
                            Position::Mean => column(j).sum::<f32>() / own.len() as f32,
                            Position::Max => column(j).fold(f32::NEG_INFINITY, f32::max),
                        };
                        assert!(
                            (found - expected).abs() < 1e-3,
                            "{layer} {position} {j}: {found} {expected}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn another_base_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut bundle = Bundle::builtin("base").unwrap();
    bundle.manifest.base.sha256 = Some("0".repeat(64));
    let opened =
        Reader::over(&bundle, &tiny(), "1".repeat(64), None, DeviceChoice::Cpu, &folder.path().join("s"));
    let error = opened.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("was made for a base model"), "{error}");
}

/// A folder with the packages of `python/onnx_requirements.txt`, installed once for each state of that file.
fn packages() -> PathBuf {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/onnx_requirements.txt");
    let wanted = fs::read_to_string(&requirements).unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-onnx");
    fs::create_dir_all(&folder).unwrap();
    let lock = File::create(folder.join(".lock")).unwrap();
    lock.lock().unwrap();
    let installed = folder.join(".installed");
    if fs::read_to_string(&installed).ok().as_ref() != Some(&wanted) {
        let pip = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "--target"])
            .arg(&folder)
            .arg("-r")
            .arg(&requirements)
            .output()
            .expect("this test needs python3 (3.9 or newer): install it and run the tests again");
        assert!(
            pip.status.success(),
            "this test needs pip and the packages in {}: {}",
            requirements.display(),
            String::from_utf8_lossy(&pip.stderr)
        );
        fs::write(installed, wanted).unwrap();
    }
    folder
}

#[test]
fn onnx_and_onnxruntime_accept_and_agree() {
    use forethought_core::evidence::Verdict;
    use forethought_trainer::probe::{
        classifier::{FitSettings, Problem},
        onnx::{Metadata, encode},
        reader::Identity,
    };
    let folder = tempfile::tempdir().unwrap();
    let width = 24;
    // Columns on scales from a thousandth to ten thousand, as real states have them.
    let value = |i: usize, j: usize| {
        (((i * (7 + 2 * j) + i * i * (3 + j)) % 101) as f32 / 50.0 - 1.0) * 10f32.powi(j as i32 % 8 - 3)
            + j as f32
    };
    let states: Vec<f32> = (0..300).flat_map(|i| (0..width).map(move |j| value(i, j))).collect();
    let label = |i: usize| if value(i, 3) > 3.2 { Verdict::Harmful } else { Verdict::Benign };
    let labels: Vec<Verdict> = (0..300).map(label).collect();
    for hidden in [0, 6] {
        let classifier = Problem::new(&states, &labels).fit(&FitSettings { hidden, c: 0.1, seed: 2 });
        let classifier = classifier.calibrated(1.3, 0.2);
        let metadata = Metadata {
            name: format!("hidden-{hidden}"),
            layer: 7,
            position: Position::Max,
            made_for: Identity {
                base_sha256: "a".repeat(64),
                adapter_sha256: String::new(),
                template: "r1act 1".into(),
                width,
            },
            threshold: 0.625,
            training: "{}".into(),
        };
        let name = folder.path().join(&metadata.name);
        fs::write(name.with_extension("onnx"), encode(&classifier, &metadata)).unwrap();
        let expected = serde_json::json!({
            "width": width,
            "metadata": metadata.entries(),
            "states": states,
            "probabilities": classifier.probabilities(&states),
        });
        fs::write(name.with_extension("json"), expected.to_string()).unwrap();
    }
    let run = Command::new("python3")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/onnx_probe.py"))
        .arg(folder.path().join("hidden-0"))
        .arg(folder.path().join("hidden-6"))
        .env("PYTHONPATH", packages())
        .output()
        .expect("python3 runs");
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{out}\n{err}");
    println!("{out}");
}
