//! Probes from the outside: the command with a tiny guard, and the page that shows what they say.

#![allow(clippy::unwrap_used)] // helpers of tests are tests too

#[path = "../../core/tests/support/onnx.rs"]
mod onnx;

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Output},
};

use forethought_core::{
    evidence::{Coverage, Evidence, GuardVersion, Path as ScorePath, ProbeReading, Timings, Verdict},
    guard::trace::{Part, TracedToken},
    policy::{Decision, Ruling},
    probe::Position,
};
use forethought_proxy::cli::{
    check::Checked,
    trace::{Trace, TracedProbe},
};
use onnx::Onnx;
use serde_json::Value;
use tempfile::TempDir;

/// A bundle on the tiny random model.
const BUNDLE: &str = r#"
name = "tiny"
version = "1"
[base]
model = MODEL
[template]
name = "tiny"
version = 3
system = "S"
user = "R {conversation}"
open = "<think>\n"
understanding = "U:"
assessment = "\nA:"
verdict = "\nV:"
direct_verdict = "V:"
harmful = "H"
benign = "B"
category = "\nC:"
[limits]
understanding_tokens = 4
assessment_tokens = 4
[hazards]
names = []
from = 2.0
"#;

/// A folder with that bundle, a probe `p.onnx` that was made for it and says 0.9 of everything, and a configuration.
fn folder(config: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/tests/golden/tiny/llama");
    let bundle = BUNDLE.replace("MODEL", &toml::Value::from(model.to_str().unwrap()).to_string());
    std::fs::write(folder.path().join("guard.toml"), bundle).unwrap();
    let probe = Onnx::exported("sure", (2, "mean"), "tiny 3", vec![0.0; 32], 9f32.ln());
    std::fs::write(folder.path().join("p.onnx"), probe.bytes()).unwrap();
    let config = format!("[guard]\nbundle = \".\"\nwindow_tokens = 64\nwindow_overlap = 8\n{config}\n");
    std::fs::write(folder.path().join("forethought.toml"), config).unwrap();
    folder
}

fn check(folder: &TempDir, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forethought"));
    command.current_dir(folder.path()).arg("check").args(arguments);
    for name in ["ORT_DYLIB_PATH", "FORETHOUGHT__GUARD__MODE"] {
        command.env_remove(name);
    }
    command.envs(environment.iter().copied()).output().unwrap()
}

const PROBE: &str = "probes = [{ file = \"p.onnx\", threshold = 0.7 }]";

#[test]
fn readings_are_shown() {
    let folder = folder(PROBE);
    let done = check(&folder, &["--mode", "probe", "hello"], &[]);
    let (out, said) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert_eq!(done.status.code(), Some(3), "{out}\n{said}");
    for line in [
        "score         0.900 (harmful from 0.5 on)",
        "probe         0.900 (harmful from 0.7 on; sure, layer 2, mean)",
        "decided by    the probes",
        "(probes minus verdict)",
    ] {
        assert!(out.contains(line), "{line}\n{out}");
    }
    let done = check(&folder, &["--mode", "probe", "--json", "hello"], &[]);
    let found: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&found["path"], &found["probes"][0]["name"]), (&"probe".into(), &"sure".into()));
    assert_eq!(found["guard"]["own_probes"]["sure"].as_str().unwrap().len(), 64);
    let gap = found["probe_score"].as_f64().unwrap() - found["direct_score"].as_f64().unwrap();
    assert_eq!(found["activation_gap"].as_f64().unwrap(), gap);
    // Probes say harmful, the tiny model says whatever it says.
    let settings = ["--set", "policy.on_disagreement=refuse", "--set", "policy.disagreement_gap=0.01"];
    let done = check(&folder, &[&settings[..], &["--mode", "direct", "hello"]].concat(), &[]);
    let out = String::from_utf8_lossy(&done.stdout);
    assert!(out.contains("policy        refuse: probes and verdict are "), "{out}");
}

#[test]
fn a_trace_is_written() {
    let folder = folder(PROBE);
    let done = check(&folder, &["--mode", "reason", "--trace", "out.html", "a <b> & \"c\""], &[]);
    let out = String::from_utf8_lossy(&done.stdout);
    assert!(matches!(done.status.code(), Some(0 | 3)), "{out}{}", String::from_utf8_lossy(&done.stderr));
    let page = std::fs::read_to_string(folder.path().join("out.html")).unwrap();
    assert!(page.contains(">&lt;</span>") && !page.contains("<b>"), "{page}");
    assert!(page.contains("title=\"0.900 (token 1)\"") && page.contains("What the guard wrote"), "{page}");
    check(&folder, &["--mode", "probe", "--trace", "out.json", "hello"], &[]);
    let trace: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.path().join("out.json")).unwrap()).unwrap();
    assert_eq!(trace["probes"][0]["name"], "sure");
    let tokens = trace["tokens"].as_array().unwrap();
    let text = |part: Value| -> String {
        let of = tokens.iter().filter(|token| token["part"] == part);
        of.map(|token| token["text"].as_str().unwrap()).collect()
    };
    assert_eq!(text(serde_json::json!({ "window": 0 })), "User: hello");
    assert!(text("question".into()).ends_with("<think>\nV:"), "{trace}");
    assert_eq!(trace["result"]["path"], "probe");
}

#[test]
fn what_keeps_a_guard_from_starting_is_said() {
    #[track_caller]
    fn fails(config: &str, arguments: &[&str], environment: &[(&str, &str)], expected: &str) {
        let done = check(&folder(config), arguments, environment);
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(matches!(done.status.code(), Some(1 | 2)), "{said}");
        assert!(said.contains(expected), "{expected}\n{said}");
    }
    let nowhere = [("ORT_DYLIB_PATH", "/nowhere/lib.so")];
    fails(
        &format!("{PROBE}\nonnxruntime = \"/else/lib.so\""),
        &["hello"],
        &nowhere,
        "there is no ONNX Runtime at /nowhere/lib.so (named by ORT_DYLIB_PATH)",
    );
    fails(
        &format!("{PROBE}\nonnxruntime = \"/else/lib.so\""),
        &["hello"],
        &[],
        "there is no ONNX Runtime at /else/lib.so (named by guard.onnxruntime)",
    );
    fails(
        "",
        &["--mode", "probe", "hello"],
        &nowhere,
        "`guard.mode` is `probe`, but bundle `tiny` has no probes",
    );
    fails(
        "",
        &["--mode", "cascade", "hello"],
        &[],
        "`guard.mode` is `cascade`, but bundle `tiny` has no probes",
    );
    fails(PROBE, &["--mode", "cascade", "hello"], &[], "does not say which scores are clear");
    fails("", &["--trace", "out.html", "hello"], &[], "--trace needs probes, and bundle `tiny 1` has none");
    fails(PROBE, &["--trace", "out.txt", "hello"], &[], "must end in .html or .json");
    fails("probes = [{ file = \"none.onnx\" }]", &["hello"], &[], "can't read the probe none.onnx");
    fails("probes = [{ file = \"guard.toml\" }]", &["hello"], &[], "the probe guard.toml is damaged");
    fails(
        "probes = [{ file = \"p.onnx\" }, { file = \"p.onnx\" }]",
        &["hello"],
        &[],
        "two probes are called `sure`",
    );
    fails(
        &format!("{PROBE}\nexecution_providers = [\"cpu\", \"directml\"]"),
        &["hello"],
        &[],
        "`guard.execution_providers` asks for `directml`",
    );
}

/// A trace of a text that would like to be more than text.
fn hostile() -> (Trace, Checked) {
    let probe = TracedProbe {
        name: "</h2><img src=x>".to_owned(),
        layer: 1,
        position: Position::Last,
        threshold: 0.25,
    };
    let token = |part, text: &str, score| TracedToken { part, text: text.to_owned(), scores: vec![score] };
    let tokens = vec![
        token(Part::Window(0), "<script>alert(1)</script>", 0.0),
        token(Part::Window(1), "\" onmouseover='x'", 0.5),
        token(Part::Question, "\u{202e}&amp;\n", 0.2504),
        token(Part::Written, "https://llm.example", 1.0),
    ];
    let evidence = Evidence {
        score: 0.5,
        path: ScorePath::Probe,
        hazard: None,
        assessment: None,
        direct_score: Some(0.1),
        probe_score: Some(0.5),
        combined_score: None,
        probes: vec![ProbeReading {
            name: probe.name.clone(),
            layer: 1,
            position: Position::Last,
            score: 0.5,
            threshold: 0.25,
        }],
        partial: false,
        coverage: Coverage::default(),
        timings: Timings::default(),
        guard: GuardVersion { bundle: "<i>".to_owned(), ..GuardVersion::default() },
        steps: vec![],
    };
    let decision = Decision::Refuse { message: "no".to_owned() };
    let ruling = Ruling { decision, by: "x".to_owned(), reason: "<u>".to_owned(), flags: vec![] };
    let checked = Checked { evidence, verdict: Verdict::Harmful, threshold: 0.5, ruling };
    (Trace { probes: vec![probe], tokens }, checked)
}

#[test]
fn the_page_holds_text_as_text_and_nothing_from_elsewhere() {
    let (trace, checked) = hostile();
    let page = trace.html(&checked);
    // Only what the page itself is made of.
    let mut tags = BTreeMap::new();
    for tag in page.split('<').skip(1) {
        let name: String =
            tag.chars().take_while(|c| c.is_ascii_alphanumeric() || "/!".contains(*c)).collect();
        *tags.entry(name).or_insert(0) += 1;
    }
    for tag in ["script", "img", "u", "/script"] {
        assert!(!tags.contains_key(tag), "{tag}\n{page}");
    }
    assert_eq!((tags["span"], tags["rect"], tags["svg"]), (5, 4, 1), "{tags:?}");
    assert_eq!(tags.get("i"), Some(&1), "the legend's only");
    for outside in ["src=", "href=", "url(", "@import", "http://"] {
        assert!(!page.replace("src=x", "").contains(outside), "{outside}");
    }
    for expected in [
        "default-src 'none'",
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "&quot; onmouseover=&#39;x&#39;",
        "\\u{202e}&amp;amp;\u{21b5}\n",
        "prefers-color-scheme: dark",
        "title=\"0.250 (token 3)\"",
        "<title>1.000 (token 4: https://llm.example)</title>",
        "<h3>The conversation, window 2</h3>",
        "y1=\"75.0\" y2=\"75.0\"",
        "It judged: 0.500.",
    ] {
        assert!(page.contains(expected), "{expected}\n{page}");
    }
}

#[test]
fn the_data_holds_all_of_it() {
    let (trace, checked) = hostile();
    let data = trace.json(&checked).unwrap();
    assert_eq!(data["probes"][0]["threshold"], 0.25);
    assert_eq!(data["tokens"][1]["part"]["window"], 1);
    assert_eq!(data["tokens"][2]["scores"][0], 0.2504);
    assert_eq!(data["tokens"][3]["part"], "written");
    assert_eq!(data["result"]["verdict"], "harmful");
    assert_eq!(data["result"]["activation_gap"], 0.4);
}
