//! The Grafana dashboard asks for metrics that there are, in queries that Prometheus understands.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::{collections::BTreeSet, path::Path, process::Command};

use forethought_proxy::metrics::Metrics;
use serde_json::Value;

fn dashboard() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/deploy/grafana/forethought.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn queries(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

/// The names of metrics in a query.
fn names(query: &str) -> BTreeSet<String> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter(|word| word.starts_with("forethought_"));
    // A histogram's series have names of their own.
    let plain = |name: &str| {
        let name = name.strip_suffix("_bucket").or(name.strip_suffix("_count")).unwrap_or(name);
        name.to_owned()
    };
    names.map(plain).collect()
}

#[test]
fn every_metric_exists_and_is_shown() {
    let dashboard = dashboard();
    let asked: BTreeSet<String> = queries(&dashboard).iter().flat_map(|query| names(query)).collect();
    let there: BTreeSet<String> = Metrics::new().names().into_iter().collect();
    let unknown: Vec<_> = asked.difference(&there).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    // Those are for alerts and for people who look closer.
    let silent = [
        "forethought_answer_bytes_total",
        "forethought_build_info",
        "forethought_cache_bytes",
        "forethought_cache_entries",
        "forethought_coverage_windows_total",
        "forethought_requests_in_flight",
    ];
    let unseen: Vec<_> = there.difference(&asked).filter(|name| !silent.contains(&name.as_str())).collect();
    assert!(unseen.is_empty(), "{unseen:?}");
}

#[test]
fn every_panel_has_a_place_of_its_own() {
    let dashboard = dashboard();
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}", panel["title"]);
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{}", panel["title"]);
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{} lies over another", panel["title"]);
            }
        }
    }
}

#[test]
fn promtool_understands_every_query() {
    let rules: Vec<String> = queries(&dashboard())
        .iter()
        .enumerate()
        .map(|(i, query)| {
            // What Grafana puts in place of its variables.
            let query = query.replace("$__rate_interval", "1m").replace('$', "");
            format!("      - record: dashboard:query_{i}\n        expr: {}\n", Value::from(query))
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.yaml");
    std::fs::write(&file, format!("groups:\n  - name: dashboard\n    rules:\n{}", rules.concat())).unwrap();
    let Ok(done) = Command::new("promtool").args(["check", "rules"]).arg(&file).output() else {
        return println!("skipped: promtool is not installed (Debian's package `prometheus` has it)");
    };
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains(&format!("{} rules found", rules.len())), "{said}");
}
