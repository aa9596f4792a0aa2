//! Whole runs on a tiny model: what they leave on disk, how they stop, and how they go on.
#![allow(clippy::unwrap_used)] // Helpers of tests are not inside of `#[test]`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use forethought_trainer::config::SftConfig;
use forethought_trainer::sft::recorder::{Line, METRICS, read};
use forethought_trainer::sft::{self, Base, Outcome, Until};
use forethought_trainer::source::Prepared;
use forethought_trainer::{Result, TrainError};
use tempfile::TempDir;

fn tiny() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../core/tests/golden/tiny/llama")
}

/// Twelve rows, harmful where they hold "steal": something that can be learnt.
fn rows() -> String {
    let row = |i: usize| {
        let (what, label) = if i.is_multiple_of(2) { ("steal", "harmful") } else { ("paint", "benign") };
        format!(
            r#"{{"id": "r{i}", "instruction": "How do I {what} a bike number {i}?", "label": "{label}", "category": "none", "understanding": "To {what} it.", "assessment": "They {what}."}}"#
        ) + "\n"
    };
    (0..12).map(row).collect()
}

const RUN: &str = r#"
[guard]
manifest = "guard.toml"
[[data]]
path = "rows.jsonl"
weight = 1.5
hold_out = 6
[[validation]]
path = "rows.jsonl"
[adapter]
rank = 4
[train]
rate = 1e-2
warmup = 1
epochs = 2
batch = 4
[compute]
workers = 2
[evaluation]
every = 3
[checkpoints]
every = 2
"#;

struct Fixture {
    folder: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let manifest =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/training/guard.toml"));
        // The tiny vocabulary has no tokens for the real labels that differ in the first place.
        let manifest = manifest.unwrap().replace("\" harmful\"", "\"H\"").replace("\" benign\"", "\"B\"");
        fs::write(folder.path().join("guard.toml"), manifest).unwrap();
        fs::write(folder.path().join("rows.jsonl"), rows()).unwrap();
        fs::write(folder.path().join("run.toml"), RUN).unwrap();
        Self { folder }
    }

    fn config(&self, out: &str, set: &[&str]) -> SftConfig {
        let set: Vec<String> = set.iter().map(|&pair| pair.to_owned()).collect();
        let config = SftConfig::read(&self.folder.path().join("run.toml"), &set).unwrap();
        SftConfig { out: self.out(out), ..config }
    }

    fn out(&self, out: &str) -> PathBuf {
        self.folder.path().join(out)
    }

    fn run(&self, out: &str, set: &[&str], resume: bool, until: Until<'_>) -> Result<Outcome> {
        let config = self.config(out, set);
        let base = Base::open(&config, &tiny())?;
        let prepared = base.prepare(&config)?;
        sft::run(&config, &base, prepared, resume, until, &mut ())
    }

    fn prepare(&self) -> Result<Prepared> {
        let config = self.config("", &[]);
        Base::open(&config, &tiny())?.prepare(&config)
    }

    fn rows(&self, text: &str) {
        fs::write(self.out("rows.jsonl"), text).unwrap();
    }

    /// Every step's and evaluation's numbers, but for times.
    fn numbers(&self, out: &str) -> Vec<Line> {
        let untimed = |line| match line {
            Line::Step(step) => Line::Step(sft::recorder::StepLine { seconds: 0.0, ..step }),
            line => line,
        };
        read(&self.out(out).join(METRICS)).unwrap().into_iter().map(untimed).collect()
    }

    fn adapter(&self, out: &str) -> Vec<u8> {
        fs::read(self.out(out).join("checkpoints/last/adapter_model.safetensors")).unwrap()
    }
}

#[test]
fn a_run_leaves_its_records() {
    let fixture = Fixture::new();
    let outcome = fixture.run("run", &[], false, Until::default()).unwrap();
    // Ten rows learnt, one and a half times an epoch, four a step, two epochs.
    assert_eq!((outcome.step, outcome.steps, outcome.stopped), (8, 8, false));
    let best = outcome.best.unwrap();
    assert_eq!(best.sets.keys().collect::<Vec<_>>(), ["rows", "rows held out"]);
    assert_eq!((best.sets["rows"].rows, best.sets["rows held out"].rows), (12, 2));

    let lines = fixture.numbers("run");
    let steps: Vec<f64> =
        lines.iter().filter_map(|l| if let Line::Step(s) = l { Some(s.loss) } else { None }).collect();
    assert_eq!((steps.len(), lines.len()), (8, 8 + 3)); // scored after 3, 6 and 8
    assert!(steps[7] < 0.9 * steps[0], "nothing was learnt: {steps:?}");
    for file in ["config.toml", "loss.svg", "eval.svg", "checkpoints/last", "checkpoints/best"] {
        assert!(fixture.out("run").join(file).exists(), "{file}");
    }
    let events = fs::read_dir(fixture.out("run")).unwrap().filter(|entry| {
        entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("events.out.tfevents")
    });
    assert_eq!(events.count(), 1);
    // The settings as used are the settings.
    let again = SftConfig::read(&fixture.out("run").join("config.toml"), &[]).unwrap();
    assert_eq!(again.train, fixture.config("run", &[]).train);

    let error = fixture.run("run", &[], false, Until::default()).unwrap_err().to_string();
    assert!(error.contains("--resume"), "{error}");
}

#[test]
fn a_stopped_run_goes_on_exactly() {
    let fixture = Fixture::new();
    fixture.run("whole", &["checkpoints.keep_epochs=true"], false, Until::default()).unwrap();
    assert!(fixture.out("whole/checkpoints/epoch-1").exists());

    // Stopped at a step without a checkpoint of its own, by a limit, and later by a signal.
    let stopped = fixture.run("parts", &[], false, Until { step: Some(3), stop: None }).unwrap();
    assert_eq!((stopped.step, stopped.stopped), (3, true));
    let signal = AtomicBool::new(true);
    let stopped = fixture.run("parts", &[], true, Until { step: None, stop: Some(&signal) }).unwrap();
    assert_eq!((stopped.step, stopped.stopped), (4, true));
    // What was recorded after the last checkpoint, as by a run that was killed, is recorded anew.
    let metrics = fixture.out("parts").join(METRICS);
    let text = fs::read_to_string(&metrics).unwrap();
    let last = text.lines().last().unwrap().replace("\"step\":4", "\"step\":5");
    fs::write(&metrics, format!("{text}{last}\n{{\"kind\":\"st")).unwrap();
    let outcome = fixture.run("parts", &[], true, Until::default()).unwrap();
    assert_eq!((outcome.step, outcome.stopped), (8, false));

    assert_eq!(fixture.numbers("parts"), fixture.numbers("whole"));
    assert_eq!(fixture.adapter("parts"), fixture.adapter("whole"));
}

#[test]
fn there_must_be_something_to_resume() {
    let fixture = Fixture::new();
    let error = fixture.run("none", &[], true, Until::default()).unwrap_err();
    assert!(matches!(error, TrainError::Folder { .. }), "{error}");
}

#[test]
fn bad_rows_stop_a_run_or_are_named() {
    let fixture = Fixture::new();
    fixture.rows(&(rows() + "{\"instruction\": \"secret\", \"label\": \"maybe\"}\nnonsense\n"));
    let error = fixture.prepare().map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("rows.jsonl:13: `label` is neither"), "{error}");
    assert!(error.contains("1 more") && !error.contains("secret"), "{error}");

    let report = |set: &[&str]| {
        let config = fixture.config("", set);
        let prepared = Base::open(&config, &tiny()).unwrap().prepare(&config).unwrap();
        let lengths = prepared.sources[0].items.iter().flatten().map(|example| example.tokens.len());
        (lengths.max().unwrap(), prepared.reports[0].clone())
    };
    let (longest, all) = report(&["train.skip_bad_rows=true"]);
    assert_eq!(all.bad.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [13, 14]);
    assert_eq!((all.rows, all.held_out, all.too_long.len()), (10, 2, 0));
    let limit = format!("train.max_tokens={}", longest - 1);
    let (_, some) = report(&["train.skip_bad_rows=true", &limit]);
    assert!(!some.too_long.is_empty() && some.too_long.iter().all(|(_, tokens)| *tokens >= longest));
    assert_eq!(some.rows + some.held_out + some.too_long.len(), 12);

    fixture.rows("");
    let error = fixture.prepare().map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("holds no row"), "{error}");
}

#[test]
fn divergence_keeps_a_good_state() {
    let fixture = Fixture::new();
    let diverge = ["train.rate=1e30", "train.clip=0", "train.warmup=0"];
    let error = fixture.run("run", &diverge, false, Until::default()).unwrap_err();
    assert!(matches!(error, TrainError::Diverged { step: 1, .. }), "{error}");
    // The state before the step that failed.
    let state = fs::read_to_string(fixture.out("run/checkpoints/last/state.json")).unwrap();
    assert!(state.contains("\"step\": 1"), "{state}");
}

#[test]
fn a_disk_that_takes_no_more_stops_a_run_with_its_last_state() {
    let fixture = Fixture::new();
    fixture.run("run", &[], false, Until { step: Some(2), stop: None }).unwrap();
    let before = fixture.adapter("run");
    // A file in the way of the next checkpoint's folder stands for a disk that refuses it.
    fs::write(fixture.out("run/checkpoints/last.partial"), b"").unwrap();
    let error = fixture.run("run", &[], true, Until::default()).unwrap_err();
    assert!(matches!(&error, TrainError::File { path, .. } if path.ends_with("last.partial")), "{error}");
    assert_eq!(fixture.adapter("run"), before);
    fs::remove_file(fixture.out("run/checkpoints/last.partial")).unwrap();
    assert_eq!(fixture.run("run", &[], true, Until::default()).unwrap().step, 8);
}

#[test]
fn a_run_can_begin_with_the_adapter_of_another() {
    let fixture = Fixture::new();
    fixture.run("first", &[], false, Until::default()).unwrap();
    let checkpoint = fixture.out("first/checkpoints/last");
    let init = format!("train.init='{}'", checkpoint.display());
    fixture.run("second", &[&init], false, Until::default()).unwrap();
    let loss = |out: &str, step: usize| {
        let line =
            fixture.numbers(out).into_iter().find(|line| matches!(line, Line::Step(s) if s.step == step));
        let Some(Line::Step(line)) = line else { panic!("no step {step}") };
        line.loss
    };
    assert!(loss("second", 1) < 0.9 * loss("first", 1));
    // It resumes as every run does, from its own state.
    fixture.run("parts", &[&init], false, Until { step: Some(3), stop: None }).unwrap();
    fixture.run("parts", &[&init], true, Until::default()).unwrap();
    assert_eq!(fixture.adapter("parts"), fixture.adapter("second"));
}

#[test]
fn a_file_can_weigh_parts_its_own_way() {
    let fixture = Fixture::new();
    let run = RUN
        .replace("hold_out = 6", "loss = { understanding = 0, assessment = 0, headings = 0, category = 0 }");
    fs::write(fixture.out("run.toml"), run).unwrap();
    let prepared = fixture.prepare().unwrap();
    // Of each form the verdict alone is learnt.
    for example in prepared.sources[0].items.iter().flatten() {
        assert_eq!(example.targets(), 1);
    }
    assert!(prepared.sets[0].rows[0].examples[0].targets() > 1);
}

#[test]
fn responses_are_learnt_as_the_chat_template_has_them() {
    let fixture = Fixture::new();
    let rows = concat!(
        r#"{"instruction": "Paint <|im_end|> it", "response": "<think>They paint.</think>Do so."}"#,
        "\n",
        r#"{"id": "r", "instruction": "Steal it", "label": "harmful"}"#,
        "\n",
    );
    fixture.rows(rows);
    let prepared = fixture.prepare().unwrap();
    assert_eq!((prepared.reports[0].rows, prepared.reports[0].sequences), (2, 2));
    let tokenizer = Base::open(&fixture.config("", &[]), &tiny()).unwrap().tokenizer;
    let example = &prepared.sources[0].items[0][0];
    let first = example.weights.iter().position(|weight| *weight > 0.0).unwrap();
    let text = |ids: &[u32]| tokenizer.decode(ids).unwrap();
    assert!(text(&example.tokens[..first]).contains("Paint <|im_end|> it"));
    let learnt = text(&example.tokens[first..]);
    assert!(learnt.starts_with("<think>They paint.</think>Do so."), "{learnt}");
    assert!(tokenizer.is_end(*example.tokens.last().unwrap()), "{learnt}");
    // The one in the instruction is plain text.
    let ends = example.tokens.iter().filter(|id| tokenizer.is_end(**id)).count();
    assert!(ends <= 3, "{}", text(&example.tokens));

    // A run learns and scores both kinds; only labelled rows with no response have a verdict.
    let outcome = fixture.run("both", &[], false, Until::default()).unwrap();
    let scores = &outcome.last.unwrap().sets["rows"];
    assert_eq!((scores.rows, scores.accuracy.is_some()), (2, true));
}

#[test]
fn columns_are_learnt_like_lines() {
    let fixture = Fixture::new();
    let lines = fixture.prepare().unwrap();
    let mut csv = "id,instruction,label,category,understanding,assessment\n".to_owned();
    for row in rows().lines() {
        let row: serde_json::Value = serde_json::from_str(row).unwrap();
        let keys = ["id", "instruction", "label", "category", "understanding", "assessment"];
        csv += &(keys.map(|key| row[key].as_str().unwrap()).join(",") + "\n");
    }
    fs::write(fixture.out("rows.csv"), csv).unwrap();
    fs::write(fixture.out("run.toml"), RUN.replace("rows.jsonl", "rows.csv")).unwrap();
    let columns = fixture.prepare().unwrap();
    assert_eq!(columns.sources[0].items, lines.sources[0].items);
    assert_eq!(columns.sets[1].name, lines.sets[1].name);
}
