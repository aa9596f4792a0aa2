//! What the host checks when it loads a plugin, and what a plugin gets from it.

#![allow(clippy::unwrap_used)] // helpers of tests

#[path = "support/case.rs"]
mod case;
#[path = "support/guest.rs"]
mod guest;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use forethought_core::policy::{Case, LazyFacts, Policy as _, TokenScore};
use forethought_plugins::{Engine, Grant, Limits, LogLevel, Plugin, PluginOptions, ResponseDecision, Window};
use sha2::{Digest as _, Sha256};

use self::guest::Guest;

fn error(bytes: &[u8], grants: &[Grant]) -> String {
    let engine = Engine::new(None).unwrap();
    let options = PluginOptions { grants: grants.to_vec(), ..PluginOptions::default() };
    Plugin::of_bytes(&engine, Path::new("x.wasm"), bytes, options).unwrap_err().to_string()
}

/// A component of these imports and exports, with nothing behind them.
fn component(wat: &str) -> Vec<u8> {
    wat::parse_str(format!("(component {wat})")).unwrap()
}

const ENVIRONMENT: &str = r#"(import "wasi:cli/environment@0.2.3" (instance (export "get-arguments" (func (result (list string))))))"#;

#[test]
fn what_is_no_plugin_is_named() {
    fn check(bytes: &[u8], grants: &[Grant], expected: &str) {
        let error = error(bytes, grants);
        assert!(error.contains("x.wasm") && error.contains(expected), "{error}");
    }
    check(b"#!/bin/sh", &[], "it is not WebAssembly");
    check(b"\0asm", &[], "is not a policy plugin");
    let module = |fields: &str| wat::parse_str(format!("(module {fields})")).unwrap();
    check(
        &module(""),
        &[],
        "failed to find export of interface `forethought:policy/policy@0.1.0` function `init`",
    );
    check(&module(r#"(import "a:b/c" "d" (func))"#), &[], "requires an import interface named `a:b/c`");
    check(&component(""), &[], "it must export `forethought:policy/policy@0.1.0`, and exports nothing");
    check(&component(r#"(instance $i) (export "a:b/c" (instance $i))"#), &[], "exports `a:b/c`");
    check(
        &component(r#"(instance $i) (export "forethought:policy/policy@0.9.0" (instance $i))"#),
        &[],
        "made for version 0.9.0 of the interface, and this program knows 0.1.0",
    );
    check(
        &component(r#"(instance $i) (export "forethought:policy/policy@0.1.0" (instance $i))"#),
        &[],
        "init",
    );
    check(
        &component(ENVIRONMENT),
        &[],
        "imports `wasi:cli/environment@0.2.3`, which is not granted: add `grants = [\"wasi\"]`",
    );
    check(&component(ENVIRONMENT), &[Grant::Wasi], "it must export");
    check(&component(r#"(import "a:b/c" (instance))"#), &[Grant::Wasi], "no grant gives it");
    check(
        &component(r#"(import "forethought:policy/log@0.2.0" (instance))"#),
        &[],
        "this program has `types`, `log`, `facts` of version 0.1.0",
    );
}

#[test]
fn an_empty_wasi_is_empty() {
    let world = "package test:other;
        world other {
            import wasi:cli/environment@0.2.0;
            import wasi:random/random@0.2.0;
            import wasi:filesystem/preopens@0.2.0;
            include forethought:policy/plugin@0.1.0;
        }
        package wasi:cli@0.2.0 { interface environment { get-environment: func() -> list<tuple<string, string>>; } }
        package wasi:random@0.2.0 { interface random { get-random-u64: func() -> u64; } }
        package wasi:filesystem@0.2.0 { interface preopens { get-directories: func() -> list<u32>; } }";
    let imports = r#"
        (import "wasi:cli/environment@0.2.0" "get-environment" (func $environment (param i32)))
        (import "wasi:random/random@0.2.0" "get-random-u64" (func $random (result i64)))
        (import "wasi:filesystem/preopens@0.2.0" "get-directories" (func $directories (param i32)))"#;
    let engine = Engine::new(None).unwrap();
    let (facts, conversation, evidence) = case::case();
    let case = Case { facts: &facts, conversation: &conversation, evidence: &evidence, lazy: None };
    let call = |decide| {
        let guest = Guest { fields: imports, decide, world: Some(world), ..Guest::default() };
        let options = PluginOptions { grants: vec![Grant::Wasi], ..PluginOptions::default() };
        let plugin = Plugin::of_bytes(&engine, Path::new("x.wasm"), &guest.component(), options).unwrap();
        plugin.decide_request(&case, &[]).map(|(said, _)| said.reason)
    };
    // Traps unless the list is empty.
    let environment =
        "(call $environment (i32.const 1024)) (if (i32.load (i32.const 1028)) (then unreachable))";
    assert_eq!(call(environment).unwrap(), "rule");
    // The same numbers in every instance: the first of SplitMix64.
    let random = "(if (i64.ne (call $random) (i64.const 0xe220a8397b1dcdaf)) (then unreachable))";
    assert_eq!(call(random).unwrap(), "rule");
    assert_eq!(call(random).unwrap(), "rule");
    assert!(call("(call $directories (i32.const 1024))").is_err());
}

#[test]
fn a_plugin_says_who_it_is() {
    let engine = Engine::new(None).unwrap();
    let bytes = Guest { stateful: true, ..Guest::default() }.component();
    let plugin = Plugin::of_bytes(&engine, Path::new("x.wasm"), &bytes, PluginOptions::default()).unwrap();
    assert_eq!((plugin.name(), plugin.manifest().stateful), ("by-hand.", true));
    let version = plugin.version().unwrap();
    assert_eq!((version.name.as_str(), version.version.as_str()), ("by-hand.", "1.0"));
    assert_eq!(version.sha256, hex::encode(Sha256::digest(&bytes)));
    let named = PluginOptions { name: Some("mine".into()), ..PluginOptions::default() };
    assert_eq!(Plugin::of_bytes(&engine, Path::new("x.wasm"), &bytes, named).unwrap().name(), "mine");
}

#[test]
fn logs_and_lazy_facts() {
    struct Trace;
    impl LazyFacts for Trace {
        fn probe_trace(&self, probe: &str, deadline: Instant) -> Option<Vec<TokenScore>> {
            assert!(deadline > Instant::now() && probe == "by-hand");
            Some(vec![TokenScore { token: "t".into(), score: 0.5 }; 3])
        }
    }
    let engine = Engine::new(None).unwrap();
    // Logs "rule" as a warning as often as the trace has tokens, and then too much.
    let decide = "(call $trace (i32.const 200) (i32.const 7) (i32.const 1024))
        (if (i32.load8_u (i32.const 1024)) (then
            (loop $l
                (call $log (i32.const 2) (i32.const 213) (i32.const 4))
                (i32.store (i32.const 1032) (i32.sub (i32.load (i32.const 1032)) (i32.const 1)))
                (br_if $l (i32.load (i32.const 1032))))
            (call $log (i32.const 0) (i32.const 2048) (i32.const 2000))))";
    let limits = Limits { log_bytes: 1000, time: Duration::from_secs(5), ..Limits::default() };
    let options = PluginOptions { limits, ..PluginOptions::default() };
    let guest = Guest { decide, ..Guest::default() };
    let plugin = Plugin::of_bytes(&engine, Path::new("x.wasm"), &guest.component(), options).unwrap();
    let (facts, conversation, evidence) = case::case();
    let lazy: Arc<dyn LazyFacts> = Arc::new(Trace);
    let mut case =
        Case { facts: &facts, conversation: &conversation, evidence: &evidence, lazy: Some(&lazy) };
    let (_, lines) = plugin.decide_request(&case, &[]).unwrap();
    let lines: Vec<_> = lines.iter().map(|line| (line.level, line.message.as_str())).collect();
    assert_eq!(lines, [(LogLevel::Warn, "rule"); 3]);
    case.lazy = None;
    assert!(plugin.decide_request(&case, &[]).unwrap().1.is_empty());
}

#[test]
fn answers_are_decided_on_too() {
    let engine = Engine::new(None).unwrap();
    let (facts, conversation, evidence) = case::case();
    let case = Case { facts: &facts, conversation: &conversation, evidence: &evidence, lazy: None };
    let window = Window { choice: 1, before: "a", held: "b", last: true, score: Some(0.5) };
    let load = |guest: Guest| {
        Plugin::of_bytes(&engine, Path::new("x.wasm"), &guest.component(), PluginOptions::default()).unwrap()
    };
    let (ruling, _) = load(Guest::default()).decide_response(&case, &window).unwrap();
    assert_eq!((ruling.decision, ruling.reason.as_str()), (ResponseDecision::Release, "rule"));
    let cut = "(i32.store8 (i32.const 96) (i32.const 3)) (i32.store (i32.const 100) (i32.const 211))
        (i32.store (i32.const 104) (i32.const 2))";
    let (ruling, _) =
        load(Guest { decide: cut, ..Guest::default() }).decide_response(&case, &window).unwrap();
    assert_eq!(ruling.decision, ResponseDecision::Cut("no".into()));
    let failure = load(Guest { decide: "unreachable", ..Guest::default() }).decide_response(&case, &window);
    assert_eq!(failure.unwrap_err().kind(), "trap");
}

/// What was released never changes: a plugin that was built for it must go on working. A new version is a new folder, and
/// a new line here.
#[test]
fn released_interfaces_are_frozen() {
    const RELEASED: [(&str, &str); 1] =
        [("0.1.0", "7bc4c9989a1a86554f4d0002d009f3e49c1a862366d7516486a8513b0dda9623")];
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit");
    let folders = std::fs::read_dir(&wit).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = folders.filter(|path| path.is_dir()).collect();
    folders.sort();
    let found: Vec<_> = folders
        .iter()
        .map(|folder| {
            let mut files: Vec<_> =
                std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            files.sort();
            let mut hasher = Sha256::new();
            for file in files {
                // Each name and text, with its length before it.
                let text = std::fs::read(&file).unwrap();
                let name = file.file_name().unwrap().to_str().unwrap();
                hasher.update(format!("{} {name} {} ", name.len(), text.len()));
                hasher.update(text);
            }
            (folder.file_name().unwrap().to_str().unwrap().to_owned(), hex::encode(hasher.finalize()))
        })
        .collect();
    let released: Vec<_> =
        RELEASED.iter().map(|&(version, sha256)| (version.to_owned(), sha256.to_owned())).collect();
    assert_eq!(found, released);
}
