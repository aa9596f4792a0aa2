//! Configuration: layers, origins, mistakes.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::path::{Path, PathBuf};

use forethought_core::{
    guard::Mode as GuardMode,
    probe::{ExecutionProvider, Made, Position},
};
use forethought_proxy::config::{CheckedConfig, Flag, Merged, Mode, Problem, Raw, Sources, UpstreamConfig};

fn file(toml: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("forethought.toml");
    std::fs::write(&path, toml).unwrap();
    (folder, path)
}

fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn flags(pairs: &[(&str, &str)]) -> Vec<Flag> {
    let flag = |&(key, value): &(&str, &str)| Flag {
        name: format!("--{key}"),
        key: key.to_owned(),
        value: value.to_owned(),
    };
    pairs.iter().map(flag).collect()
}

#[test]
fn later_layers_win_and_are_named() {
    let (_folder, path) =
        file("listen = \"127.0.0.1:1\"\n[guard]\nqueue = 1\nbatch = 1\n[policy]\nthreshold = 1\n");
    let sources = Sources {
        file: Some(path.clone()),
        environment: environment(&[
            ("FORETHOUGHT__LISTEN", "127.0.0.1:2"),
            ("FORETHOUGHT__GUARD__QUEUE", "2"),
            ("FORETHOUGHT__PATHS__PASS", "GET /a, POST /b/*"),
            ("FORETHOUGHT__POLICY__HAZARDS__SELF_HARM", "0.25"),
            ("FORETHOUGHT__UPSTREAM__URL", "http://llm.example"),
            ("FORETHOUGHT_HOME", "not a key"),
            ("PATH", "not a key"),
        ]),
        flags: flags(&[("guard.queue", "3"), ("policy.mode", "monitor")]),
    };
    let config = CheckedConfig::load(&sources).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:2");
    assert_eq!((config.guard.batch, config.guard.queue), (1, 3));
    assert_eq!(config.paths.pass.len(), 2);
    assert_eq!(config.policy.thresholds.hazards["self-harm"], 0.25);
    assert_eq!((config.policy.mode, config.policy.thresholds.score), (Mode::Monitor, 1.0));
    assert!(
        matches!(config.upstream, UpstreamConfig::Url(url) if url.base.to_string() == "http://llm.example/v1")
    );

    let settings = Merged::read(&sources).settings();
    let origin =
        |key: &str| settings.iter().find(|s| s.key == key).map(|s| s.origin.as_str()).unwrap().to_owned();
    assert_eq!(origin("listen"), "environment variable FORETHOUGHT__LISTEN");
    assert!(Path::new(&origin("guard.batch")).ends_with(path.file_name().unwrap()));
    assert_eq!(origin("guard.queue"), "flag --guard.queue");
    assert_eq!(origin("guard.bundle"), "default");
    assert_eq!(
        origin("policy.hazards.self_harm"),
        "environment variable FORETHOUGHT__POLICY__HAZARDS__SELF_HARM"
    );
}

#[test]
fn every_mistake_is_reported_with_its_key_and_origin() {
    let (_folder, path) = file(
        "lisen = \"127.0.0.1:1\"\nthreshold = 0.5\n[guard]\nmode = \"guess\"\nwindow_overlap = 4096\n\
         [paths]\npass = [\"models\", \"GET /v1/models\"]\n[nonsense]\nx = 1\n",
    );
    let sources = Sources {
        file: Some(path),
        environment: environment(&[
            ("FORETHOUGHT__GUARD__QUEUE", "many"),
            ("FORETHOUGHT__UPSTREAM__API_KEY", "sk-hunter2"),
            ("FORETHOUGHT__UPSTREAM__API_KEY_ENV", "FORETHOUGHT_TEST_NO_SUCH_VARIABLE"),
            ("FORETHOUGHT__LOG", "json"),
        ]),
        flags: flags(&[("listen", "everywhere"), ("policy.threshold", "nan"), ("refusal.status", "65736")]),
    };
    let problems = CheckedConfig::load(&sources).unwrap_err();
    let text = problems.to_string();
    for expected in [
        "`lisen` (",
        "did you mean `listen`?",
        "did you mean `policy.threshold`?",
        "`guard.mode` (",
        "unknown variant `guess`, expected one of `reason`, `direct`, `probe`, `cascade`",
        "`guard.window_overlap` (",
        "the rule `models` needs a method",
        "`nonsense",
        "`guard.queue` (environment variable FORETHOUGHT__GUARD__QUEUE)",
        "`upstream.api_key` (environment variable FORETHOUGHT__UPSTREAM__API_KEY): there is no such key; did you mean `upstream.api_key_",
        "`FORETHOUGHT_TEST_NO_SUCH_VARIABLE` is not set",
        "`log` (environment variable FORETHOUGHT__LOG): is a section",
        "`listen` (flag --listen): must be an IP address and a port",
        "`policy.threshold` (flag --policy.threshold): must be a probability",
        "`refusal.status` (flag --refusal.status): must be 200 or 403, not 65736",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    assert_eq!(problems.0.len(), 13, "{text}");
    assert!(!text.contains("hunter2"));
}

#[test]
fn probes_and_what_is_clear() {
    let load = |toml: &str, environment: &[(&str, &str)]| {
        let (_folder, path) = file(toml);
        let sources =
            Sources { file: Some(path), environment: self::environment(environment), ..Sources::default() };
        CheckedConfig::load(&sources)
    };
    let toml = "[guard.cascade]\nbenign_below = 0.2\n[[guard.probes]]\nfile = \"a.onnx\"\nthreshold = 0.7\n\
                [[guard.probes]]\nfile = \"b.onnx\"\nlayer = 18\nposition = \"mean\"\nname = \"b\"\n";
    let environment = [
        ("FORETHOUGHT__GUARD__EXECUTION_PROVIDERS", "cuda, cpu"),
        ("FORETHOUGHT__GUARD__MODE", "cascade"),
        ("FORETHOUGHT__GUARD__CASCADE__HARMFUL_FROM", "0.9"),
        ("FORETHOUGHT__GUARD__ONNXRUNTIME", "/lib/x.so"),
    ];
    let guard = load(toml, &environment).unwrap().guard;
    assert_eq!((guard.cascade.benign_below, guard.cascade.harmful_from), (Some(0.2), Some(0.9)));
    assert_eq!(guard.mode, GuardMode::Cascade);
    assert_eq!(guard.runtime.library, Some("/lib/x.so".into()));
    assert_eq!(guard.runtime.providers, [ExecutionProvider::Cuda, ExecutionProvider::Cpu]);
    let [a, b] = &guard.probes[..] else { panic!("{:?}", guard.probes) };
    assert_eq!((a.file.as_path(), a.made.threshold, a.made.layer), (Path::new("a.onnx"), Some(0.7), None));
    let made =
        Made { name: Some("b".into()), layer: Some(18), position: Some(Position::Mean), threshold: None };
    assert_eq!(b.made, made);

    for (toml, expected) in [
        ("[[guard.probes]]\nthreshold = 0.7", "missing configuration field"),
        ("[[guard.probes]]\nfile = \"a.onnx\"\nthreshhold = 0.7", "unknown field `threshhold`"),
        (
            "[[guard.probes]]\nfile = \"a.onnx\"\nthreshold = 1.5",
            "the threshold of a.onnx must be a probability",
        ),
        ("[[guard.probes]]\nfile = \"\"", "`file` must not be empty"),
        ("guard.execution_providers = [\"gpu\"]", "gpu"),
        ("guard.cascade.benign_below = -0.1", "`guard.cascade.benign_below` ("),
        (
            "guard.cascade = { benign_below = 0.9, harmful_from = 0.1 }",
            "at most `guard.cascade.harmful_from`",
        ),
        ("guard.cascade.harmful_form = 0.1", "did you mean `guard.cascade.harmful_from`?"),
        ("policy.disagreement_gap = 0", "must be above 0 and at most 1, not 0"),
        ("policy.on_disagreement = \"deny\"", "expected one of `refuse`, `flag`, `allow`"),
    ] {
        let problems = load(toml, &[]).unwrap_err();
        assert!(problems.to_string().contains(expected), "{expected}\n{problems}");
        assert_eq!(problems.0.len(), 1, "{problems}");
    }
}

#[test]
fn files_that_cannot_be_read() {
    fn check(path: PathBuf, expected: &str) {
        let error =
            CheckedConfig::load(&Sources { file: Some(path), ..Sources::default() }).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    check(PathBuf::from("/nowhere/forethought.toml"), "/nowhere/forethought.toml: can't read");
    let (_folder, path) = file("listen = \n");
    check(path, "line 1, column");
}

#[test]
fn the_example_file_is_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/configs/forethought.toml");
    let sources = Sources { file: Some(path.clone()), ..Sources::default() };
    let merged = Merged::read(&sources);
    assert_eq!(*merged.raw(), Raw::default());
    let text = std::fs::read_to_string(path).unwrap();
    for setting in merged.settings() {
        let (section, key) = setting.key.rsplit_once('.').unwrap_or(("", &setting.key));
        // A key that has a default stands there with it; one that has none, commented out.
        let written = setting.origin != "default";
        let named = text.contains(&format!("\n# {key} = ")) || text.contains(&format!("[{}]", setting.key));
        assert!(written || named, "{section} {key}");
        assert!(
            written || setting.value.is_null() || setting.value == serde_json::json!({}),
            "{}",
            setting.key
        );
    }
    merged.check().unwrap();
}

#[test]
fn the_same_values_have_the_same_hash() {
    let load = |pairs: &[(&str, &str)]| {
        CheckedConfig::load(&Sources { flags: flags(pairs), ..Sources::default() }).unwrap().sha256
    };
    assert_eq!(load(&[]), load(&[("policy.threshold", "0.5")]));
    assert_ne!(load(&[]), load(&[("policy.threshold", "0.6")]));
}

#[test]
fn mistakes_in_routes_are_named_with_their_place() {
    /// One mistake for each of `expected`, which all of its words tell of.
    fn check(toml: &str, expected: &[&[&str]]) {
        let (_folder, path) = file(toml);
        let problems = CheckedConfig::load(&Sources { file: Some(path), ..Sources::default() }).unwrap_err();
        let text = problems.to_string();
        for words in expected {
            let told = |problem: &Problem| words.iter().all(|word| problem.to_string().contains(word));
            assert!(problems.0.iter().any(told), "{words:?}\n{text}");
        }
        assert_eq!(problems.0.len(), expected.len(), "{text}");
    }
    let route = "[[routes]]\nname = \"a\"\npath_prefix = \"/a\"\n[[routes]]\nname = \"b\"\n";
    check(&format!("{route}upstream = [\"x\"]"), &[&["`routes[1]", "unknown field `upstream`"]]);
    check(
        &format!("{route}upstreams = [\"x\"]"),
        &[&["`routes[1].upstreams` (", "there is no upstream `x`; add `[upstreams.x]`"]],
    );
    check(&format!("{route}policy = {{ threshold = \"high\" }}"), &[&["`routes[1].policy.threshold` ("]]);
    check(&format!("{route}policy = {{ threshold = -1.0 }}"), &[&["`routes[1].policy.threshold` ("]]);
    check(&format!("{route}policy = {{ mode = \"on\" }}"), &[&["`routes[1].policy.mode` ("]]);
    check(&format!("{route}guard = {{ deadline_ms = 0 }}"), &[&["`routes[1].guard.deadline_ms` ("]]);
    check(&format!("{route}tenants = [\"t\"]"), &[&["there is no tenant `t`; add `[tenants.t]`"]]);
    check(&format!("{route}headers = {{ \"x y\" = \"z\" }}"), &[&["`x y` is not the name of a header"]]);
    check(&format!("{route}path_prefix = \"a/../b\""), &[&["must be a path such as /team-a"]]);
    check(&format!("{route}path_prefix = \"/v1\""), &[&["no API has a path without `/v1`"]]);
    check(
        &format!("{route}[[routes]]\nname = \"b\""),
        &[&["has the name `b` too"], &["never reached: the route `b`"]],
    );
    check(&format!("{route}[[routes]]"), &[&["`routes[2]"]]);
    // What is wrong everywhere is told once.
    check(&format!("policy.threshold = -1.0\n{route}"), &[&["`policy.threshold` ("]]);
    check("[upstreams.default]\nurl = \"http://x\"", &[&["`upstreams.default` ("]]);
    check(
        "[upstreams.x]\nurl = \"http://x\"\nhealth = { path = \"models\" }",
        &[&["`upstreams.x.health.path` ("]],
    );
    check("[upstreams.x]\nurl = \"http://x\"\nhealth = { fall = 0 }", &[&["`upstreams.x.health.fall` ("]]);
    check(
        "[upstreams.x]\nurl = \"http://x\"\ntls = { cert_file = \"/nowhere\" }",
        &[&["`upstreams.x.tls.key_file` ("], &["`upstreams.x.tls.cert_file` ("]],
    );
    check("upstream.http = \"3\"", &[&["`upstream.http` ("]]);
}
