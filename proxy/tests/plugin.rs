//! `forethought plugin` and `forethought replay`, as their users run them.
//!
//! New plugins in each language are built and tested by `plugins/guests.sh`: `FORETHOUGHT_GUEST_TOOLS` then names a folder
//! with `venv/bin/componentize-py` and `node_modules/`, and there is a compiler of Rust for WebAssembly.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};

fn forethought(home: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_forethought"))
        .args(args)
        .current_dir(home)
        .env("FORETHOUGHT_HOME", home)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn policies() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/policies")
}

const SAMPLES: [&str; 6] =
    ["allowlist", "annotate", "escalate", "pii-redact", "safe-completion", "thresholds"];

fn built(sample: &str) -> PathBuf {
    policies().join("built").join(format!("{}.wasm", sample.replace('-', "_")))
}

#[test]
fn samples_pass_their_cases() {
    let home = tempfile::tempdir().unwrap();
    for sample in SAMPLES {
        let out = forethought(home.path(), &["plugin", "test", policies().join(sample).to_str().unwrap()]);
        let (shown, errors) = (text(&out.stdout), text(&out.stderr));
        assert!(out.status.success() && shown.contains(", 0 failed"), "{sample}:\n{shown}{errors}");
    }
}

#[test]
fn a_case_that_fails_shows_what_differs() {
    let home = tempfile::tempdir().unwrap();
    let cases = home.path().join("cases.toml");
    let toml = format!(
        "component = {:?}
        [[case]]
        name = \"wrong\"
        evidence = {{ score = 0.9 }}
        expect = {{ decision = \"allow\", contains = [\"never\"] }}
        [[case]]
        name = \"right\"
        evidence = {{ score = 0.1 }}
        expect = {{ decision = \"allow\" }}",
        built("thresholds")
    );
    fs::write(&cases, toml).unwrap();
    let out = forethought(home.path(), &["plugin", "test", cases.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(
        text(&out.stdout),
        "FAILED  wrong
        decision
          expected  \"allow\"
          found     \"refuse\"
        text
          expected  something with \"never\" in it
          found     \"I can't help with that.\"
ok      right
1 passed, 1 failed
"
    );
    fs::write(&cases, "[[case]]\nname = \"x\"\nevidense = {}").unwrap();
    let out = forethought(home.path(), &["plugin", "test", "."]);
    assert!(text(&out.stderr).contains("evidense"), "{}", text(&out.stderr));
}

#[test]
fn cases_may_be_yaml() {
    let home = tempfile::tempdir().unwrap();
    let yaml = format!(
        "component: {:?}
config:
  threshold: 0.5
  hazards: {{ self-harm: 0.2 }}
case:
  - name: the hazard's own threshold
    evidence: {{ score: 0.3, hazard: self-harm }}
    expect: {{ decision: refuse, reason: score 0.300 at or above 0.2 }}
  - name: a configuration of its own
    config: {{ threshold: 0.2 }}
    request: {{ user: hi, languages: [en] }}
    evidence: {{ score: 0.3 }}
    expect:
      decision: refuse
      contains: [\"can't\"]
",
        built("thresholds")
    );
    fs::write(home.path().join("cases.yaml"), yaml).unwrap();
    let out = forethought(home.path(), &["plugin", "test", "."]);
    assert!(
        text(&out.stdout).ends_with("2 passed, 0 failed\n"),
        "{}{}",
        text(&out.stdout),
        text(&out.stderr)
    );

    // Of two files one would silently not be run.
    fs::write(home.path().join("cases.toml"), "case = []").unwrap();
    let out = forethought(home.path(), &["plugin", "test", "."]);
    assert!(text(&out.stderr).contains("both hold cases"), "{}", text(&out.stderr));
    fs::remove_file(home.path().join("cases.toml")).unwrap();
    fs::write(home.path().join("cases.yaml"), "case:\n  - name: x\n    evidense: {}").unwrap();
    let out = forethought(home.path(), &["plugin", "test", "."]);
    assert!(text(&out.stderr).contains("evidense"), "{}", text(&out.stderr));
}

#[test]
fn check_shows_what_a_plugin_is() {
    let home = tempfile::tempdir().unwrap();
    let file = built("allowlist");
    let out = forethought(home.path(), &["plugin", "check", file.to_str().unwrap()]);
    let shown = text(&out.stdout);
    assert!(out.status.success(), "{}", text(&out.stderr));
    for expected in [
        "name       allowlist 0.1.0\n",
        "interface  forethought:policy/policy@0.1.0\n",
        "instances  new for every call\n",
        "request    a harmful one, score 0.93: pass (",
        "response   Pass\n",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    assert!(!shown.contains("wasi:"), "{shown}");
    // What was compiled is kept where the models are.
    assert_eq!(fs::read_dir(home.path().join("plugins")).unwrap().count(), 1);

    let with = ["plugin", "check", file.to_str().unwrap(), "--with", "{\"tenant\": 1}"];
    let out = forethought(home.path(), &with);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("unknown field `tenant`"), "{}", text(&out.stderr));
}

#[test]
fn bench_and_list() {
    let home = tempfile::tempdir().unwrap();
    let file = built("thresholds");
    let args = ["plugin", "bench", file.to_str().unwrap(), "--seconds", "0.05", "--threads", "1,3", "--json"];
    let out = forethought(home.path(), &args);
    let measured: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(measured["plugin"], "thresholds");
    let threads: Vec<_> = measured["runs"].as_array().unwrap().iter().map(|run| &run["threads"]).collect();
    assert_eq!(threads, [1, 3]);
    assert!(measured["runs"][0]["decisions"].as_u64().unwrap() > 0);

    let toml = format!("[[policy.plugins]]\npath = {file:?}\nname = \"mine\"\non_failure = \"open\"");
    fs::write(home.path().join("forethought.toml"), toml).unwrap();
    let out = forethought(home.path(), &["plugin", "list", "--json"]);
    let listed: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&listed[0]["name"], &listed[0]["plugin"]), (&json!("mine"), &json!("thresholds")));
    assert_eq!((&listed[0]["on_failure"], &listed[0]["time_ms"]), (&json!("open"), &json!(250)));
    assert!(text(&forethought(home.path(), &["plugin", "list"]).stdout).starts_with("mine "));
}

#[test]
fn replay_shows_what_flips() {
    let home = tempfile::tempdir().unwrap();
    let record = |id: &str, decision: &str, score: f64, hazard: &str| {
        json!({"id": id, "path": "/v1/chat/completions", "decision": decision, "by": "thresholds", "score": score,
            "hazard": hazard, "signal": "reason", "reasoned_score": score, "tenant": "red-team"})
        .to_string()
    };
    let unread = json!({"id": "u", "path": "/v1/models", "decision": "pass", "by": "paths"}).to_string();
    let monitored =
        json!({"id": "m", "path": "/", "decision": "allow-monitored", "ruled": "refuse", "score": 0.6,
        "hazard": "hate", "prompt": {"bytes": 2, "conversation": {"messages": []}}})
        .to_string();
    let lines = [
        record("a", "allow", 0.1, "cyber"),
        record("b", "refuse", 0.9, "cyber"),
        record("c", "allow", 0.4, "hate"),
        unread,
        monitored,
    ];
    fs::write(home.path().join("audit.jsonl"), lines.join("\n")).unwrap();
    let toml = format!(
        "policy.threshold = 0.3\n[[policy.plugins]]\npath = {:?}\nconfig = {{ tenants = {{ red-team = [\"cyber\"] }} }}",
        built("allowlist")
    );
    fs::write(home.path().join("new.toml"), toml).unwrap();
    let replay = ["replay", "audit.jsonl", "--config", "new.toml"];
    let out = forethought(home.path(), &[&replay[..], &["--json"]].concat());
    let replayed: Value =
        serde_json::from_slice(&out.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&out.stderr)));
    assert_eq!(
        (&replayed["decided"], &replayed["skipped"], &replayed["without_text"]),
        (&json!(4), &json!(1), &json!(3))
    );
    let flips: Vec<_> = replayed["flips"]
        .as_array()
        .unwrap()
        .iter()
        .map(|flip| ["id", "was", "is", "by"].map(|key| flip[key].as_str().unwrap().to_owned()).join(" "))
        .collect();
    assert_eq!(flips, ["b refuse allow allowlist", "c allow refuse thresholds"]);
    assert_eq!(replayed["counts"]["refuse"], json!({"allow": 1, "refuse": 1}));
    let shown = text(&forethought(home.path(), &replay).stdout);
    assert!(shown.starts_with("4 decided anew, 2 flipped; 1 that no guard read were skipped\n"), "{shown}");
    assert!(shown.contains("allow -> refuse by thresholds: score 0.400 at or above"), "{shown}");

    fs::write(home.path().join("audit.jsonl"), "{\"id\": \"my secret\"}").unwrap();
    let errors = text(&forethought(home.path(), &replay).stderr);
    assert!(errors.contains("line 1") && !errors.contains("secret"), "{errors}");
}

/// Makes a new plugin, builds it with these commands, and runs its cases.
fn new_plugin(lang: &str, build: impl FnOnce(&Path) -> Command) {
    let home = tempfile::tempdir().unwrap();
    let out = forethought(home.path(), &["plugin", "new", "--lang", lang, "my-policy"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let folder = home.path().join("my-policy");
    let built = build(&folder).current_dir(&folder).output().unwrap();
    assert!(built.status.success(), "{}{}", text(&built.stdout), text(&built.stderr));
    let out = forethought(home.path(), &["plugin", "test", "my-policy"]);
    let shown = text(&out.stdout);
    assert!(shown.ends_with("4 passed, 0 failed\n"), "{shown}{}", text(&out.stderr));
}

fn tools() -> PathBuf {
    PathBuf::from(std::env::var_os("FORETHOUGHT_GUEST_TOOLS").expect("plugins/guests.sh sets it"))
}

#[test]
#[ignore = "needs toolchains for guests: plugins/guests.sh"]
fn a_new_plugin_in_python_builds_and_passes() {
    let tools = tools();
    new_plugin("python", |_| {
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new("sh");
        command.arg("build.sh").env("PATH", format!("{}:{path}", tools.join("venv/bin").display()));
        command
    });
}

#[test]
#[ignore = "needs toolchains for guests: plugins/guests.sh"]
fn a_new_plugin_in_javascript_builds_and_passes() {
    let tools = tools();
    new_plugin("js", |folder| {
        #[cfg(unix)]
        std::os::unix::fs::symlink(tools.join("node_modules"), folder.join("node_modules")).unwrap();
        let mut command = Command::new("node");
        command.arg("build.mjs");
        command
    });
}

#[test]
#[ignore = "needs toolchains for guests: plugins/guests.sh"]
fn a_new_plugin_in_rust_builds_and_passes() {
    // The script of the samples knows which compiler to take.
    new_plugin("rust", |_| {
        let mut command = Command::new("bash");
        command.arg(policies().join("build.sh")).args(["--manifest-path", "Cargo.toml"]);
        command
    });
}

#[test]
fn names_that_can_not_be_are_refused() {
    let home = tempfile::tempdir().unwrap();
    for name in ["My-Policy", "1x", "a_b", "..", "a b"] {
        let out = forethought(home.path(), &["plugin", "new", name]);
        assert_eq!(out.status.code(), Some(1), "{name}");
    }
    assert!(forethought(home.path(), &["plugin", "new", "a/b-2"]).status.success());
    assert!(home.path().join("a/b-2/vendor/forethought-policy/src/lib.rs").exists());
    assert_eq!(forethought(home.path(), &["plugin", "new", "a/b-2"]).status.code(), Some(1));
}
