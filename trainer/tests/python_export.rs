//! What Python's peft and transformers, and llama.cpp, make of exports of the tiny models.
//!
//! torch is too large to install for a test: what transformers and peft said is in `golden/export.json`, with the
//! hashes of the files that they read. llama.cpp is asked live.
#![allow(clippy::unwrap_used)] // Helpers of tests are not inside of `#[test]`.

#[path = "support/export.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use forethought_core::generate::ChatMessage;
use forethought_core::model::{
    Adapter, Checkpoint, Decoder, LoadOptions, Precision, Sequence, Want, sampler::argmax,
};
use forethought_core::store::sha256_file;
use forethought_trainer::export::{Dtype, Export, Quant};
use serde::Deserialize;
use serde_json::json;
use support::{MODELS, source, tiny, tuned};

/// The files a tiny model is read from.
const BASES: [(&str, &str); 2] = [("folder", ""), ("gguf", "model-q8_0.gguf")];
/// Those of `golden/make_export.py`.
const TEXTS: [&str; 4] = [
    "the cat sat on the mat",
    "  The user's 12345 cats aren't HERE!\n\n",
    "naïve café — 猫が2匹 👩‍💻",
    "Verdict: benign",
];

fn write(model: &str, base: &str, export: &Export, folder: &Path) -> PathBuf {
    let file = BASES.iter().find(|(name, _)| *name == base).unwrap().1;
    let base = Checkpoint::open(&tiny(model).join(file)).unwrap();
    source(&base, &tuned(&base)).write(export, folder).unwrap()
}

/// Logits of every position.
fn logits(model: &Checkpoint, adapter: Option<&Adapter>, ids: &[u32]) -> Vec<Vec<f32>> {
    let options =
        LoadOptions { precision: Precision::Dense, adapter, keep_adapter_apart: true, ..Default::default() };
    let decoder = Decoder::load(model, &options).unwrap();
    let mut cache = decoder.new_cache().unwrap();
    let sequence = Sequence { tokens: ids, cache: &mut cache, want: Want::All };
    decoder.forward(&mut [sequence], &[]).unwrap().logits[0].to_vec2().unwrap()
}

#[derive(Deserialize)]
struct Golden {
    ids: Vec<Vec<u32>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    model: String,
    base: String,
    merged: Read,
    peft: Option<Read>,
    texts: Vec<Vec<u32>>,
    chat: Vec<u32>,
}

/// What Python read, and what came of it.
#[derive(Deserialize)]
struct Read {
    files: BTreeMap<String, String>,
    logits: Vec<Vec<f32>>,
}

impl Read {
    fn check(&self, folder: &Path, ids: &[Vec<u32>], model: &Checkpoint, adapter: Option<&Adapter>) {
        let names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "model.safetensors")
            .collect();
        assert_eq!(names.len(), self.files.len(), "{names:?}");
        for (name, sha256) in &self.files {
            let again = "its bytes are no longer those that Python has read: make golden/export.json again";
            assert_eq!(&sha256_file(&folder.join(name)).unwrap(), sha256, "{}: {again}", name);
        }
        for (ids, expected) in ids.iter().zip(&self.logits) {
            let found = logits(model, adapter, ids).pop().unwrap();
            assert_eq!(argmax(&found), argmax(expected));
            let scale = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-4 * scale, "{found} {expected}");
            }
        }
    }
}

#[test]
fn transformers_and_peft_agree() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/export.json");
    let golden: Golden = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
    assert_eq!(golden.cases.len(), MODELS.len() * BASES.len());
    for Case { model, base, merged, peft, texts, chat } in golden.cases {
        let folder = tempfile::tempdir().unwrap();
        let path = write(&model, &base, &Export::Safetensors(Dtype::F32), folder.path());
        let export = Checkpoint::open(&path).unwrap();
        merged.check(&path, &golden.ids, &export, None);
        if let Some(peft) = peft {
            let path = write(&model, &base, &Export::Peft(Dtype::F32), folder.path());
            let base = Checkpoint::open(&tiny(&model)).unwrap();
            peft.check(&path, &golden.ids, &base, Some(&Adapter::open(&path).unwrap()));
        }
        let tokenizer = export.tokenizer().unwrap();
        for (text, ids) in TEXTS.iter().zip(texts) {
            assert_eq!(tokenizer.encode_text(text).unwrap(), ids, "{model} {base} {text:?}");
        }
        let message = |role: &str, content: &str| ChatMessage { role: role.into(), content: content.into() };
        let messages = [message("system", "S"), message("user", "the cat")];
        let pieces = export.chat_template().unwrap().render(&messages).unwrap();
        assert_eq!(tokenizer.encode_pieces(&pieces).unwrap(), chat, "{model} {base}");
    }
}

/// Writes what `golden/make_export.py` reads.
#[test]
#[ignore = "writes the files for golden/make_export.py"]
fn exports_for_python() {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("exports");
    for (model, (base, _)) in MODELS.into_iter().flat_map(|model| BASES.map(|base| (model, base))) {
        let folder = all.join(format!("{model}-{base}"));
        for export in [Export::Safetensors(Dtype::F32), Export::Peft(Dtype::F32)] {
            write(model, base, &export, &folder);
        }
    }
    println!("{}", all.display());
}

/// A folder with the packages of `python/requirements.txt`, installed once for each state of that file.
fn packages() -> PathBuf {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/requirements.txt");
    let wanted = fs::read_to_string(&requirements).unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-llama-cpp");
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
            .expect("this test needs python3 (3.10 or newer): install it and run the tests again");
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

#[derive(Debug, Deserialize)]
struct LlamaCpp {
    other_ids: usize,
    same: usize,
    positions: usize,
    /// Norm of the difference over that of the logits around their mean, at the worst position.
    worst: f64,
}

#[test]
fn llama_cpp_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let (mut names, mut asked) = (Vec::new(), Vec::new());
    for (model, (base, _)) in MODELS.into_iter().flat_map(|model| BASES.map(|base| (model, base))) {
        for quant in [Quant::F16, Quant::Q8_0, Quant::Q4_1, Quant::Q4_0] {
            let path =
                write(model, base, &Export::Gguf(quant), &folder.path().join(format!("{model}-{base}")));
            let export = Checkpoint::open(&path).unwrap();
            let tokenizer = export.tokenizer().unwrap();
            let text = |text: &&str| json!({"text": text, "ids": tokenizer.encode_text(text).unwrap()});
            let case = |length: u32| {
                let ids: Vec<u32> = (0..length).map(|i| (i * 53 + 7 * length) % 320).collect();
                json!({"ids": ids, "logits": logits(&export, None, &ids)})
            };
            let (texts, cases) = (TEXTS.each_ref().map(text), [5, 33].map(case));
            asked.push(json!({"path": path, "texts": texts, "cases": cases}));
            names.push((format!("{model} from {base} as {quant}"), quant));
        }
    }
    let questions = folder.path().join("questions.json");
    fs::write(&questions, serde_json::to_vec(&asked).unwrap()).unwrap();
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let run = Command::new("python3")
        .arg(tests.join("python/llama_cpp_export.py"))
        .arg(tests.join("../../core/tests/golden"))
        .arg(&questions)
        .env("PYTHONPATH", packages())
        .output()
        .expect("python3 runs");
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{out}\n{err}");
    let results: Vec<LlamaCpp> = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!(results.len(), names.len());
    for ((name, quant), result) in names.iter().zip(results) {
        println!("{name}: {result:?}");
        // llama.cpp holds keys and values in f16, and quantises what goes into a quantised matrix as well.
        let (worst, same) = if *quant == Quant::F16 { (0.01, 0.99) } else { (0.1, 0.8) };
        assert_eq!(result.other_ids, 0, "{name}");
        assert!(result.worst < worst, "{name}: {result:?}");
        assert!(result.same as f64 >= same * result.positions as f64, "{name}: {result:?}");
    }
}
