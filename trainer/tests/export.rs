//! Every export of every architecture agrees with the adapter on its base, and one that does not is found out.
#![allow(clippy::unwrap_used)] // Helpers of tests are not inside of `#[test]`.

#[path = "support/export.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::quantized::gguf_file::Value;
use forethought_core::conversation::Conversation;
use forethought_core::guard::bundle::Manifest;
use forethought_core::guard::{Bundle, LocalGuard, LocalOptions, Windows};
use forethought_core::model::Checkpoint;
use forethought_trainer::TrainError;
use forethought_trainer::export::check::{Check, Figures, conversations};
use forethought_trainer::export::report::{Row, export};
use forethought_trainer::export::{BundleParts, Dtype, Export, Quant, Tuned};
use forethought_trainer::optim::AdamW;
use forethought_trainer::state::{Progress, State};
use support::{MODELS, manifest, source, tiny, tuned};

/// Everything that can be written, the bundle without `EVAL.md`.
fn all() -> Vec<Export> {
    let dtypes = [Dtype::F32, Dtype::F16, Dtype::Bf16];
    let quants = [Quant::F16, Quant::Q8_0, Quant::Q4_1, Quant::Q4_0];
    let bundle = |dtype| Export::Bundle(dtype, Box::new(BundleParts { manifest: manifest(), eval: None }));
    let quants = quants.map(Export::Gguf);
    dtypes
        .into_iter()
        .flat_map(|dtype| [Export::Peft(dtype), Export::Safetensors(dtype), bundle(dtype)])
        .chain(quants)
        .collect()
}

/// Writes each export into a folder of its own, as one folder holds one of a kind.
fn figures(base: &Checkpoint, tuned: &Tuned, exports: &[Export]) -> Vec<(String, f64, Figures)> {
    let (manifest, conversations) = (manifest(), conversations(None, 6).unwrap());
    let check = Check::new(base, tuned, &manifest, &conversations).unwrap();
    let untuned = check.untuned().unwrap();
    assert!(untuned.logits > 0.5 && untuned.same_argmax < 1.0, "the adapter does nothing: {untuned:?}");
    let one = |export: &Export| {
        let folder = tempfile::tempdir().unwrap();
        let path = source(base, tuned).write(export, folder.path()).unwrap();
        (export.label(), export.tolerance(), check.compare(export, &path).unwrap())
    };
    exports.iter().map(one).collect()
}

#[test]
fn every_export_agrees() {
    for (model, file) in MODELS
        .into_iter()
        .flat_map(|model| [(model, ""), (model, "model-q8_0.gguf")])
        .chain([("llama", "model-f32.gguf")])
    {
        let base = Checkpoint::open(&tiny(model).join(file)).unwrap();
        for (name, tolerance, found) in figures(&base, &tuned(&base), &all()) {
            println!("{model} {file} {name}: {found:?}");
            assert!(found.logits <= tolerance, "{model} {file} {name}: {found:?}");
            if ["peft f32", "bundle f32"].contains(&name.as_str()) {
                assert_eq!(found, Figures { same_argmax: 1.0, ..Figures::default() });
            }
            // Rounding must show: what shows nothing was not rounded.
            assert!(name.ends_with("f32") || found.logits > 1e-6, "{model} {file} {name}: {found:?}");
        }
    }
}

/// An export of the tiny llama in f32 and its check, damaged in between.
fn damaged(export: &Export, damage: impl FnOnce(&Path)) -> Result<(), TrainError> {
    let base = Checkpoint::open(&tiny("llama")).unwrap();
    let tuned = tuned(&base);
    let (manifest, conversations) = (manifest(), conversations(None, 3).unwrap());
    let check = Check::new(&base, &tuned, &manifest, &conversations).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = source(&base, &tuned).write(export, folder.path()).unwrap();
    damage(&path);
    let (figures, tolerance) = (check.compare(export, &path)?, export.tolerance());
    Row { export: export.label(), path: export.file_name(), bytes: 0, figures, tolerance }.check()
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from));
    fs::write(path, text.replace(from, to)).unwrap();
}

/// Overwrites the last bytes: a weight of the last tensor.
fn overwrite_end(path: &Path, bytes: &[u8]) {
    let mut content = fs::read(path).unwrap();
    let at = content.len() - bytes.len();
    content[at..].copy_from_slice(bytes);
    fs::write(path, content).unwrap();
}

#[test]
fn a_damaged_export_is_found_out() {
    let fails = |export: Export, expected: &str, damage: &dyn Fn(&Path)| {
        damaged(&export, |_| {}).unwrap();
        let error = damaged(&export, damage).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    fails(Export::Peft(Dtype::F32), "the peft f32 export disagrees with the adapter", &|path| {
        replace(&path.join("adapter_config.json"), "\"lora_alpha\": 8", "\"lora_alpha\": 9");
    });
    fails(Export::Peft(Dtype::F16), "the peft f16 export disagrees with the adapter", &|path| {
        overwrite_end(&path.join("adapter_model.safetensors"), &half::f16::from_f32(3.0).to_le_bytes());
    });
    fails(Export::Safetensors(Dtype::F32), "and 0.001 are tolerated", &|path| {
        overwrite_end(&path.join("model.safetensors"), &2f32.to_le_bytes());
    });
    // A number that is none is no difference to a careless maximum.
    fails(Export::Safetensors(Dtype::F32), "its worst logit is inf", &|path| {
        overwrite_end(&path.join("model.safetensors"), &f32::NAN.to_le_bytes());
    });
    fails(Export::Safetensors(Dtype::F32), "reads the same prompts as other tokens", &|path| {
        replace(&path.join("tokenizer.json"), "\"individual_digits\": true", "\"individual_digits\": false");
    });
    fails(Export::Gguf(Quant::Q8_0), "the gguf q8_0 export disagrees", &|path| {
        let mut content = fs::read(path).unwrap();
        let at = content.len() - 2000;
        content[at..].fill(0x7b);
        fs::write(path, content).unwrap();
    });
    let bundle = BundleParts { manifest: manifest(), eval: None };
    fails(Export::Bundle(Dtype::F16, Box::new(bundle)), "the bundle f16 export disagrees", &|path| {
        replace(&path.join("adapter/adapter_config.json"), "\"lora_alpha\": 8", "\"lora_alpha\": 9");
    });
}

#[test]
fn what_can_not_be_written_leaves_nothing_behind() {
    let base = Checkpoint::open(&tiny("llama")).unwrap();
    let (manifest, conversations) = (manifest(), conversations(None, 2).unwrap());
    let fails = |tuned: Tuned, exports: &[Export], tolerance: Option<f64>, expected: &[&str]| {
        let check = Check::new(&base, &tuned, &manifest, &conversations).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let error = export(&source(&base, &tuned), exports, &check, (&out, false), tolerance, &mut |_| {})
            .unwrap_err();
        let error = error.to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    };
    let with = |value: f32| {
        let mut tuned = tuned(&base);
        let last = tuned.layout.factors.last().unwrap().range.start;
        tuned.values[last] = value;
        tuned
    };
    let last = "model.layers.2.mlp.down_proj";
    let [peft, merged] = [Export::Peft(Dtype::F16), Export::Safetensors(Dtype::F16)];
    fails(with(7e4), &[peft], None, &[last, "70000, which f16 can't: choose bf16 or f32"]);
    fails(with(1e6), &[Export::Peft(Dtype::F32), merged], None, &[last, "which f16 can't"]);
    fails(with(1e6), &[Export::Gguf(Quant::F16)], None, &["blk.2.ffn_down.weight", "which F16 can't"]);
    fails(with(1e9), &[Export::Gguf(Quant::Q4_0)], None, &["blk.2.ffn_down.weight", "which Q4_0 can't"]);
    let both = [Export::Peft(Dtype::F32), Export::Gguf(Quant::Q8_0)];
    fails(tuned(&base), &both, Some(1e-9), &["gguf q8_0", "standard deviations off", "1e-9", "--tolerance"]);
}

#[test]
fn a_tokenizer_survives_both_ways() {
    for model in MODELS {
        let path = tiny(model).join("model-q8_0.gguf");
        let base = Checkpoint::open(&path).unwrap();
        let tuned = tuned(&base);
        let folder = tempfile::tempdir().unwrap();
        let merged = source(&base, &tuned).write(&Export::Safetensors(Dtype::F32), folder.path()).unwrap();
        let merged = Checkpoint::open(&merged).unwrap();
        let gguf = source(&merged, &tuned).write(&Export::Gguf(Quant::Q8_0), folder.path()).unwrap();
        let gguf = Checkpoint::open(&gguf).unwrap();
        let [before, after] = [&base, &gguf].map(|checkpoint| checkpoint.gguf_metadata().unwrap());
        let text = |value: &Value| format!("{value:?}");
        let loose = ["general.name", "general.file_type", "general.quantization_version"];
        for (key, value) in before.iter().filter(|(key, _)| !loose.contains(&key.as_str())) {
            assert_eq!(after.get(key).map(text), Some(text(value)), "{model} {key}");
        }
        assert_eq!(merged.chat_source().unwrap(), base.chat_source().unwrap());
        // The rule of the tiny llama3's rope factors was found, too.
        let same = |a: &Checkpoint, b: &Checkpoint| {
            let [a, b] = [a, b].map(|checkpoint| checkpoint.config().rope_frequencies());
            a.iter().zip(b).all(|(a, b)| (a / b - 1.0).abs() < 1e-5)
        };
        assert!(same(&base, &merged) && same(&base, &gguf), "{model}");
    }
}

/// A checkpoint as training leaves it, and a manifest, in `folder`.
fn prepared(folder: &Path) -> (PathBuf, PathBuf) {
    let base = Checkpoint::open(&tiny("llama")).unwrap();
    let Tuned { lora, layout, values } = tuned(&base);
    let optimizer = AdamW::new(layout.len);
    let progress = Progress { step: 12, lora, seed: 1, workers: 2 };
    let (checkpoint, toml) = (folder.join("checkpoint"), folder.join("guard.toml"));
    State { progress, values, optimizer }.save(&checkpoint, &layout).unwrap();
    fs::write(&toml, toml::to_string(&manifest()).unwrap()).unwrap();
    (checkpoint, toml)
}

fn run(base: &Path, checkpoint: &Path, out: &Path, flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forethought-trainer"));
    command.arg("export").arg("--checkpoint").arg(checkpoint).arg("--base").arg(base);
    command.arg("--out").arg(out).args(flags).output().unwrap()
}

#[tokio::test]
async fn the_command_writes_a_guard_that_starts() {
    let scratch = tempfile::tempdir().unwrap();
    let (checkpoint, toml) = prepared(scratch.path());
    let (out, eval, data) =
        (scratch.path().join("out"), scratch.path().join("scores.md"), scratch.path().join("rows.jsonl"));
    fs::write(&eval, "# Scores\n").unwrap();
    fs::write(&data, "{\"prompt\": \"the cat\", \"label\": \"benign\"}\n").unwrap();
    let base = tiny("llama").join("model-f32.gguf");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (toml, eval, data) = (text(&toml), text(&eval), text(&data));
    let formats = "peft,safetensors,gguf,bundle";
    let flags = ["--format", formats, "--quant", "f16,q4_0", "--manifest", &toml, "--eval", &eval];
    let run = |more: &[&str]| run(&base, &checkpoint, &out, &[&flags[..], more].concat());

    let done = run(&["--data", &data, "--prompts", "1"]);
    let table = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{table}\n{}", String::from_utf8_lossy(&done.stderr));
    let report: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(out.join("export.json")).unwrap()).unwrap();
    let names = ["peft f32", "safetensors f32", "gguf f16", "gguf q4_0", "bundle f16"];
    let rows = report["exports"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["export"].as_str().unwrap()).collect::<Vec<_>>(), names);
    for row in rows {
        assert!(table.contains(row["export"].as_str().unwrap()), "{table}");
        assert!(out.join(row["path"].as_str().unwrap()).exists());
        assert!(row["logits"].as_f64().unwrap() <= row["tolerance"].as_f64().unwrap());
    }
    assert_eq!((report["prompts"].as_u64(), report["lora"]["rank"].as_u64()), (Some(1), Some(4)));

    // The bundle is what the proxy starts from.
    let bundle = Bundle::open(out.join("bundle").to_str().unwrap()).unwrap();
    let expected =
        Manifest { base: bundle.manifest.base.clone(), adapter: Some("adapter".into()), ..manifest() };
    assert_eq!(bundle.manifest, expected);
    let sha256 = bundle.manifest.base.sha256.clone().unwrap();
    assert_eq!(sha256, forethought_core::store::sha256_file(&base).unwrap());
    assert_eq!(fs::read_to_string(out.join("bundle/EVAL.md")).unwrap(), "# Scores\n");
    let windows = Windows { window: 64, overlap: 8, max: 256 };
    let options = LocalOptions { windows, ..LocalOptions::default() };
    LocalGuard::start(&bundle, &base, &sha256, options).unwrap();

    // A second run replaces nothing unasked, and is too strict for 4 bits.
    let fails = |more: &[&str], expected: &[&str]| {
        let done = run(more);
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(1), "{error}");
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
        assert!(out.join("export.json").exists());
    };
    fails(&[], &["out is there already", "--force"]);
    fails(&["--force", "--prompts", "2", "--tolerance", "0.02"], &["gguf q4_0", "and 0.02 are tolerated"]);
    fails(&["--force", "--prompts", "17"], &["17 prompts", "--data"]);
    let done = run(&["--force", "--prompts", "2", "--tolerance", "9"]);
    assert!(done.status.success());
}

#[test]
fn flags_and_folders_that_do_not_fit_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let (checkpoint, toml) = prepared(scratch.path());
    let out = scratch.path().join("out");
    let fails = |base: &str, checkpoint: &Path, flags: &[&str], expected: &str| {
        let done = run(&tiny(base), checkpoint, &out, flags);
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(1), "{error}");
        assert!(error.contains(expected), "{error}");
        assert!(!out.exists());
    };
    let toml = toml.to_str().unwrap();
    fails("llama", &checkpoint, &["--format", "bundle"], "--manifest");
    fails("llama", &checkpoint, &["--manifest", toml, "--eval", toml], "--format bundle");
    fails("llama", &checkpoint, &["--tolerance", "-1", "--manifest", toml], "--tolerance");
    fails("llama", &scratch.path().join("none"), &["--manifest", toml], "none/state.json");
    // Made for three blocks of width 32; this one has two of 64.
    fails("qwen2", &checkpoint, &["--manifest", toml], "adapter_model.safetensors can't be");
    fails("none", &checkpoint, &["--manifest", toml], "tiny/none");
    // The tiny tokenizer cuts both labels of the real template after the same letter.
    fails("llama", &checkpoint, &[], "begin with the same token");
}

#[test]
fn prompts_are_what_the_guard_reads() {
    // The figures would be worth nothing on a text that no guard sees: another transcript must give others.
    let base = Checkpoint::open(&tiny("llama")).unwrap();
    let (tuned, manifest) = (tuned(&base), manifest());
    let of = |text: &str| {
        let conversations = [Conversation::from_user(text)];
        Check::new(&base, &tuned, &manifest, &conversations).unwrap().untuned().unwrap()
    };
    assert_eq!(of("the cat"), of("the cat"));
    assert_ne!(of("the cat"), of("the rat"));
}
