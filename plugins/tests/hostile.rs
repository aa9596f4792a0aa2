//! Plugins that misbehave: each call fails in time and by name, and the next call of another plugin is as ever.

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

use forethought_core::policy::{
    Case, Decision, LazyFacts, OnPolicyFailure, Policy, PolicyChain, Thresholds, TokenScore,
};
use forethought_plugins::{Engine, Failure, Limits, LoadError, Plugin, PluginOptions};

use self::guest::{Guest, hostile};

const TIME: Duration = Duration::from_millis(200);
/// Far more than any of these calls takes beyond its deadline, on however busy a machine.
const MARGIN: Duration = Duration::from_secs(5);

fn options() -> PluginOptions {
    PluginOptions { limits: Limits { time: TIME, ..Limits::default() }, ..PluginOptions::default() }
}

fn load(engine: &Engine, guest: &Guest) -> Result<Plugin, LoadError> {
    Plugin::of_bytes(engine, Path::new("by-hand.wasm"), &guest.component(), options())
}

/// Facts that take their time, whatever the deadline.
struct Slow;

impl LazyFacts for Slow {
    fn probe_trace(&self, _: &str, _: Instant) -> Option<Vec<TokenScore>> {
        std::thread::sleep(Duration::from_secs(20));
        None
    }
}

#[test]
fn every_hostile_call_fails_in_time_and_by_name() {
    let engine = Engine::new(None).unwrap();
    let good = load(&engine, &Guest::default()).unwrap();
    let (facts, conversation, evidence) = case::case();
    let slow: Arc<dyn LazyFacts> = Arc::new(Slow);
    let case = Case { facts: &facts, conversation: &conversation, evidence: &evidence, lazy: Some(&slow) };
    println!("{:<24} {:<10} {:>9}", "guest", "failure", "ms");
    for (name, kind, guest) in hostile() {
        let plugin = load(&engine, &guest).unwrap_or_else(|error| panic!("{name}: {error}"));
        for _ in 0..2 {
            let begun = Instant::now();
            let failure = plugin.decide_request(&case, &[]).expect_err(name);
            let took = begun.elapsed();
            println!("{name:<24} {:<10} {:>9.1}", failure.kind(), took.as_secs_f64() * 1e3);
            assert_eq!(failure.kind(), kind, "{name}: {failure}");
            assert!(took < TIME + MARGIN, "{name}: {took:?}");
        }
        let (said, _) = good.decide_request(&case, &[]).unwrap();
        assert_eq!(said.decision, Some(Decision::Refuse { message: "no".into() }), "after {name}");
    }
}

#[test]
fn a_hostile_init_does_not_load() {
    let engine = Engine::new(None).unwrap();
    let check = |init, expected: fn(&Failure) -> bool| {
        let begun = Instant::now();
        match load(&engine, &Guest { init, ..Guest::default() }) {
            Err(LoadError::Init { failure, .. }) => assert!(expected(&failure), "{init}: {failure}"),
            other => panic!("{init}: {other:?}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(5) + MARGIN);
    };
    // The error of a result: its text is the "no" of 211.
    check(
        "(i32.store8 (i32.const 16) (i32.const 1)) (i32.store (i32.const 20) (i32.const 211))
        (i32.store (i32.const 24) (i32.const 2))",
        |failure| *failure == Failure::Rejects("no".into()),
    );
    check("unreachable", |failure| failure.kind() == "trap");
    check("(loop $l (br $l))", |failure| failure.kind() == "deadline");
    check("(drop (memory.grow (i32.const 60000)))", |failure| failure.kind() == "memory");
    // What runs when a module starts is no way around the limits.
    let start = Guest { fields: "(start $s) (func $s (loop $l (br $l)))", ..Guest::default() };
    assert!(
        matches!(load(&engine, &start), Err(LoadError::Init { failure, .. }) if failure.kind() == "deadline")
    );
    let large = Guest { fields: "(table 100000000 funcref)", ..Guest::default() };
    assert!(load(&engine, &large).is_err());
}

#[test]
fn what_a_stateful_instance_was_when_it_failed_is_not_used_again() {
    let engine = Engine::new(None).unwrap();
    // Traps at its second call.
    let decide = "(if (i32.eq (global.get $calls) (i32.const 2)) (then unreachable))";
    let (facts, conversation, evidence) = case::case();
    let case = Case { facts: &facts, conversation: &conversation, evidence: &evidence, lazy: None };
    for (stateful, expected) in [(true, [true, false, true, false]), (false, [true; 4])] {
        let plugin = load(&engine, &Guest { decide, stateful, ..Guest::default() }).unwrap();
        let went = [(); 4].map(|()| plugin.decide_request(&case, &[]).is_ok());
        assert_eq!(went, expected, "stateful: {stateful}");
    }
}

/// As engines do that collect garbage late: no request pays for what those before it have left.
#[test]
fn a_stateful_instance_that_grows_is_replaced_in_time() {
    let engine = Engine::new(None).unwrap();
    // A MiB more at every call, out of 64.
    let decide = "(drop (memory.grow (i32.const 16)))";
    let (facts, conversation, evidence) = case::case();
    let case = Case { facts: &facts, conversation: &conversation, evidence: &evidence, lazy: None };
    let plugin = load(&engine, &Guest { decide, stateful: true, ..Guest::default() }).unwrap();
    let mut most = 0;
    for call in 0..200 {
        plugin.decide_request(&case, &[]).unwrap_or_else(|error| panic!("call {call}: {error}"));
        most = most.max(plugin.idle_memory().unwrap_or_default());
    }
    assert!((16 << 20..=33 << 20).contains(&most), "it kept up to {most} bytes");
}

#[test]
fn a_failure_closes_or_opens_the_chain() {
    let engine = Engine::new(None).unwrap();
    let (facts, conversation, evidence) = case::case();
    let case = Case { facts: &facts, conversation: &conversation, evidence: &evidence, lazy: None };
    let chain = |on_failure| {
        let guest = Guest { decide: "unreachable", ..Guest::default() }.component();
        let options = PluginOptions { on_failure, name: Some("bad".into()), ..options() };
        let plugin = Plugin::of_bytes(&engine, Path::new("bad.wasm"), &guest, options).unwrap();
        let thresholds = Thresholds { score: 2.0, hazards: [].into(), message: "no".into() };
        PolicyChain::new(vec![Box::new(plugin) as Box<dyn Policy>], thresholds)
    };
    let failure = chain(OnPolicyFailure::Closed).decide(&case).unwrap_err();
    assert_eq!((failure.policy.as_str(), failure.kind), ("bad", "trap"));
    let ruling = chain(OnPolicyFailure::Open).decide(&case).unwrap();
    assert_eq!((ruling.by.as_str(), ruling.decision), ("thresholds", Decision::Allow));
    assert_eq!(ruling.flags, ["failed:bad"]);
}

#[test]
fn many_threads_may_call_at_once() {
    let engine = Engine::new(None).unwrap();
    let (facts, conversation, evidence) = case::case();
    let case = Case { facts: &facts, conversation: &conversation, evidence: &evidence, lazy: None };
    for stateful in [false, true] {
        let plugin = load(&engine, &Guest { stateful, ..Guest::default() }).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        plugin.decide_request(&case, &[]).unwrap();
                    }
                });
            }
        });
    }
}
