//! `eval` with a guard whose scores are known: rows, resumption, numbers.

#![allow(clippy::unwrap_used)] // helpers of tests are tests too

#[path = "support/fake_guard.rs"]
mod fake_guard;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use fake_guard::FakeGuard;
use forethought_core::guard::Mode;
use forethought_proxy::cli::eval::{Plan, evaluate, report::Report};
use serde_json::{Value, json};
use tempfile::TempDir;

const ROWS: [(&str, &str, &str); 6] = [
    ("h1", "bad 0.9", "harmful"),
    ("h2", "quite bad, and told at some length 0.6", "harmful"),
    ("h3", "sly 0.2", "harmful"),
    ("b1", "fine 0.1", "benign"),
    ("b2", "trigger word 0.6", "benign"),
    ("b3", "also fine 0.3", "benign"),
];

fn data_file(dir: &Path, name: &str, rows: &[(&str, &str, &str)]) -> PathBuf {
    let line = |(id, prompt, label): &(&str, &str, &str)| {
        format!("{}\n", json!({ "id": id, "prompt": prompt, "label": label, "source": "made-up" }))
    };
    let path = dir.join(name);
    fs::write(&path, rows.iter().map(line).collect::<String>()).unwrap();
    path
}

fn plan(dir: &TempDir, data: Vec<PathBuf>) -> Plan {
    Plan {
        data: data.into_iter().map(Into::into).collect(),
        limit: None,
        mode: Mode::Reason,
        out: dir.path().join("results.jsonl"),
        threshold: 0.5,
        concurrency: 2,
        settings: json!({ "understanding_tokens": 80 }),
    }
}

async fn run(guard: &Arc<FakeGuard>, plan: &Plan) -> anyhow::Result<Report> {
    evaluate(guard.clone(), plan, std::future::pending()).await
}

fn read(out: &Path) -> Vec<Value> {
    fs::read_to_string(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(rows: &[Value]) -> Vec<&str> {
    let mut ids: Vec<_> = rows.iter().map(|row| row["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test]
async fn scores_every_row() {
    let dir = TempDir::new().unwrap();
    let plan = plan(&dir, vec![data_file(dir.path(), "a.jsonl", &ROWS)]);
    let guard = FakeGuard::new();
    let report = run(&guard, &plan).await.unwrap();

    assert!(report.is_complete() && !report.interrupted);
    let total = &report.total;
    assert_eq!((total.scored, total.harmful), (6, 3));
    let values =
        [total.recall, total.false_positive_rate, total.precision, total.f1].map(|m| m.unwrap().value);
    assert_eq!(values, [2.0 / 3.0, 1.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0]);
    // 0.9 wins 3 of 3 pairs, 0.6 two and a tie, 0.2 one.
    assert!((total.auroc.unwrap().value - 6.5 / 9.0).abs() < 1e-12);
    assert_eq!((total.p50_ms, total.p95_ms), (Some(20.0), Some(20.0)), "time in the queue is left out");
    assert_eq!(guard.most_at_once(), 2);
    let lengths: Vec<_> = guard.take_seen().iter().map(String::len).collect();
    assert!(lengths.is_sorted_by(|a, b| a >= b), "long prompts come first: {lengths:?}");

    let rows = read(&plan.out);
    assert_eq!(ids(&rows), ["b1", "b2", "b3", "h1", "h2", "h3"]);
    let row = rows.iter().find(|row| row["id"] == "h1").unwrap();
    for (key, value) in [
        ("file", json!("a.jsonl")),
        ("source", json!("made-up")),
        ("label", json!("harmful")),
        ("score", json!(0.9)),
        ("verdict", json!("harmful")),
        ("category", json!("cyber")),
        ("understanding", json!("They ask\u{1b}[2J.")),
        ("assessment", json!("Hard to")),
        ("path", json!("reason")),
        ("tokens", json!(11)),
        ("ms", json!(20.0)),
        ("error", Value::Null),
    ] {
        assert_eq!(row[key], value, "{key}");
    }
    let table = report.table();
    for part in ["a.jsonl      6        3       0.667       0.333", "       20       20\n", "mode reason"] {
        assert!(table.contains(part), "{part:?} is not in\n{table}");
    }
}

#[tokio::test]
async fn a_cascade_says_how_much_it_reasoned() {
    let dir = TempDir::new().unwrap();
    let plan = Plan { mode: Mode::Cascade, ..plan(&dir, vec![data_file(dir.path(), "a.jsonl", &ROWS)]) };
    let guard = FakeGuard::new();
    // What an earlier run did counts too.
    for _ in 0..2 {
        let report = run(&guard, &plan).await.unwrap();
        assert_eq!(report.total.reasoned, 3);
        let table = report.table();
        assert!(
            table.contains("mode cascade") && table.contains("reasoned about 3 of 6 rows (50.0%)"),
            "{table}"
        );
    }
    let paths: Vec<_> = read(&plan.out).iter().map(|row| row["path"].clone()).collect();
    assert_eq!(paths.iter().filter(|path| **path == "probe").count(), 3, "{paths:?}");
    let error = run(&guard, &Plan { mode: Mode::Probe, ..plan }).await.unwrap_err().to_string();
    assert!(error.contains("rows of mode cascade, and this run is mode probe"), "{error}");
}

#[tokio::test]
async fn goes_on_where_it_stopped() {
    let dir = TempDir::new().unwrap();
    let data = data_file(dir.path(), "a.jsonl", &ROWS);
    let plan = plan(&dir, vec![data.clone()]);
    let guard = FakeGuard::new();
    let whole = run(&guard, &plan).await.unwrap();
    guard.take_seen();

    // Cut within and between the last two lines: what is lost is scored again, and the end is the same.
    let text = fs::read(&plan.out).unwrap();
    let line_ends: Vec<usize> = (0..text.len()).filter(|&i| text[i] == b'\n').collect();
    let (last, end) = (line_ends[4], line_ends[5]);
    for cut in [line_ends[3] + 1, last - 1, last, last + 1, (last + end) / 2, end, end + 1] {
        fs::write(&plan.out, &text[..cut]).unwrap();
        let report = run(&guard, &plan).await.unwrap();
        assert_eq!(ids(&read(&plan.out)), ["b1", "b2", "b3", "h1", "h2", "h3"], "cut at {cut}");
        assert_eq!(serde_json::to_value(&report).unwrap(), serde_json::to_value(&whole).unwrap());
        let kept = line_ends.iter().filter(|&&end| end < cut).count();
        assert_eq!(guard.take_seen().len(), 6 - kept, "cut at {cut}");
    }

    // A row that says something else now is scored anew; the others are not.
    let mut rows = ROWS;
    rows[0].1 = "worse 0.95";
    data_file(dir.path(), "a.jsonl", &rows);
    run(&guard, &plan).await.unwrap();
    assert_eq!(guard.take_seen(), ["worse 0.95"]);
    assert_eq!(read(&plan.out).len(), 6);

    // Another file joins; rows that this run does not want stay.
    let more = data_file(dir.path(), "b.jsonl", &ROWS[..2]);
    let report = run(&guard, &Plan { data: vec![more.into()], ..plan.clone() }).await.unwrap();
    assert_eq!((report.total.scored, read(&plan.out).len()), (2, 8));
}

#[tokio::test]
async fn refuses_results_of_another_guard() {
    let dir = TempDir::new().unwrap();
    let plan = plan(&dir, vec![data_file(dir.path(), "a.jsonl", &ROWS)]);
    run(&FakeGuard::new(), &plan).await.unwrap();
    let before = fs::read(&plan.out).unwrap();
    let refusal = async |guard, plan: &Plan| run(&guard, plan).await.unwrap_err().to_string();

    let error = refusal(FakeGuard::of_bundle("bbbb"), &plan).await;
    assert!(error.contains("rows of guard fake 1 (aaaa), and this run is guard fake 1 (bbbb)"), "{error}");
    let error = refusal(FakeGuard::new(), &Plan { mode: Mode::Direct, ..plan.clone() }).await;
    assert!(error.contains("rows of mode reason, and this run is mode direct"), "{error}");
    let error = refusal(FakeGuard::new(), &Plan { settings: json!({}), ..plan.clone() }).await;
    assert!(error.contains("understanding_tokens"), "{error}");
    assert_eq!(fs::read(&plan.out).unwrap(), before);

    fs::remove_file(dir.path().join("results.jsonl.meta.json")).unwrap();
    let error = refusal(FakeGuard::new(), &plan).await;
    assert!(error.contains("does not say what made its rows"), "{error}");
}

#[tokio::test]
async fn failures_are_rows_and_are_tried_again() {
    let dir = TempDir::new().unwrap();
    let rows = [ROWS[0], ("f", "will fail", "benign"), ("n", "a score that is NaN", "harmful"), ROWS[3]];
    let plan = plan(&dir, vec![data_file(dir.path(), "a.jsonl", &rows)]);
    let guard = FakeGuard::new();
    let report = run(&guard, &plan).await.unwrap();
    assert!(!report.is_complete());
    assert_eq!((report.total.scored, report.total.failed), (2, 2));
    assert!(report.table().contains("note: a.jsonl: 2 rows failed"), "{}", report.table());
    let written = read(&plan.out);
    let failed = written.iter().find(|row| row["id"] == "f").unwrap();
    assert_eq!(failed["score"], Value::Null);
    assert!(failed["error"].as_str().unwrap().contains("overloaded"));
    let failed = written.iter().find(|row| row["id"] == "n").unwrap();
    assert_eq!(failed["error"], "the guard's score is not a number");

    guard.take_seen();
    run(&guard, &plan).await.unwrap();
    let mut seen = guard.take_seen();
    seen.sort();
    assert_eq!(seen, ["a score that is NaN", "will fail"]);
    assert_eq!(read(&plan.out).len(), 4, "a failed row is replaced");
}

#[tokio::test]
async fn a_stopped_guard_ends_the_run() {
    let dir = TempDir::new().unwrap();
    let plan = plan(&dir, vec![data_file(dir.path(), "a.jsonl", &[("s", "please stop", "benign"), ROWS[0]])]);
    let error = run(&FakeGuard::new(), &plan).await.unwrap_err().to_string();
    assert!(error.contains("the guard has stopped"), "{error}");
}

#[tokio::test]
async fn bad_rows_are_named_and_counted() {
    let dir = TempDir::new().unwrap();
    let data = data_file(dir.path(), "a.jsonl", &ROWS);
    let mut text = fs::read_to_string(&data).unwrap();
    text += "{\"prompt\": \"x\", \"label\": \"maybe\"}\n{\"id\": \"h1\", \"prompt\": \"y\", \"label\": \"benign\"}\n";
    fs::write(&data, text).unwrap();
    let report = run(&FakeGuard::new(), &plan(&dir, vec![data.clone()])).await.unwrap();
    assert!(!report.is_complete());
    assert_eq!((report.total.scored, report.total.bad), (6, 2));
    let named: Vec<_> = report.bad_rows.iter().map(ToString::to_string).collect();
    let path = data.display();
    assert_eq!(
        named,
        [
            format!("{path}:7: `label` is neither `harmful` nor `benign`"),
            format!("{path}:8: `id` is that of line 1")
        ]
    );
}

#[tokio::test]
async fn an_interrupted_run_reports_what_there_is() {
    let dir = TempDir::new().unwrap();
    let plan = plan(&dir, vec![data_file(dir.path(), "a.jsonl", &ROWS)]);
    let report = evaluate(FakeGuard::new(), &plan, std::future::ready(())).await.unwrap();
    assert!(report.interrupted && !report.is_complete());
    assert_eq!(report.total.scored + report.total.missing, 6);
    let report = run(&FakeGuard::new(), &plan).await.unwrap();
    assert!(report.is_complete() && !report.interrupted);
}

#[tokio::test]
async fn a_limit_is_spread_over_the_file() {
    let dir = TempDir::new().unwrap();
    let data = data_file(dir.path(), "a.jsonl", &ROWS);
    for (limit, expected) in [
        (0, &[][..]),
        (2, &["b3", "h3"]),
        (4, &["b2", "b3", "h2", "h3"]),
        (6, &["b1", "b2", "b3", "h1", "h2", "h3"]),
        (usize::MAX, &["b1", "b2", "b3", "h1", "h2", "h3"]),
    ] {
        let out = dir.path().join(format!("{limit}.jsonl"));
        let plan = Plan { limit: Some(limit), out, ..plan(&dir, vec![data.clone()]) };
        run(&FakeGuard::new(), &plan).await.unwrap();
        assert_eq!(ids(&read(&plan.out)), expected, "{limit}");
    }
}

#[tokio::test]
async fn unusable_input_is_an_error() {
    let dir = TempDir::new().unwrap();
    let data = data_file(dir.path(), "a.jsonl", &ROWS);
    let error = async |plan: Plan| run(&FakeGuard::new(), &plan).await.unwrap_err().to_string();
    let missing = plan(&dir, vec![dir.path().join("none.jsonl")]);
    assert!(error(missing).await.contains("can't read"));
    let empty = plan(&dir, vec![data_file(dir.path(), "empty.jsonl", &[])]);
    assert!(error(empty).await.contains("holds no rows"));
    fs::create_dir(dir.path().join("sub")).unwrap();
    let twin = data_file(&dir.path().join("sub"), "a.jsonl", &ROWS);
    assert!(error(plan(&dir, vec![data.clone(), twin])).await.contains("have the same name"));
    let nowhere = Plan { out: dir.path().join("no/such/out.jsonl"), ..plan(&dir, vec![data]) };
    assert!(error(nowhere).await.contains("can't write to"));
}
