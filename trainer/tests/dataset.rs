//! `data check` and `data import`: what they find, what they print, and how they end.
#![allow(clippy::unwrap_used)] // Helpers of tests are not inside of `#[test]`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use forethought_core::dataset::Dataset;
use forethought_core::guard::bundle::Bundle;
use forethought_trainer::dataset::check::{Base, Flaw, Kind, Limits, Part, Report, Source, check};
use serde_json::{Value, json};

/// A row with good phases.
fn row(id: &str, instruction: &str, label: &str) -> Value {
    json!({
        "id": id, "instruction": instruction, "label": label, "style": "direct", "category": "none",
        "understanding": format!("Someone is after {id} and tells it in their own manner."),
        "assessment": format!("What follows from it concerns {id}, as the cue at the end of it shows."),
    })
}

fn text(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn source(path: &str, rows: &[Value]) -> Source {
    Source { path: path.into(), dataset: Dataset::from_bytes(text(rows).as_bytes()) }
}

fn report(rows: &[Value]) -> Report {
    check(&[source("a", rows)], &[], None, &Limits::default()).unwrap()
}

#[test]
fn repeats_inside_across_and_against() {
    let long = "Which of the two hammers in the shed is the better one for roofing nails in winter";
    let a = source(
        "a",
        &[
            row("a1", "How do I whittle a spoon?", "benign"),
            row("a2", &format!("{long}?"), "benign"),
            row("a3", "how do I  WHITTLE a spoon?", "harmful"),
        ],
    );
    let b = source("b", &[row("b1", &format!("{long}, please?"), "benign")]);
    let held = source(
        "held",
        &[row("h1", "HOW do I whittle a spoon?", "benign"), row("h2", "How do I whittle a spoon?", "benign")],
    );
    let report = check(&[a, b], &[held], None, &Limits::default()).unwrap();
    let found = |repeats: &[forethought_trainer::dataset::check::Repeat]| {
        let pair = |r: &forethought_trainer::dataset::check::Repeat| {
            (r.kind, r.first.id.clone(), r.second.id.clone(), r.second.line, r.labels_differ)
        };
        repeats.iter().map(pair).collect::<Vec<_>>()
    };
    let expected =
        [(Kind::Exact, "a1".into(), "a3".into(), 3, true), (Kind::Near, "a2".into(), "b1".into(), 1, false)];
    assert_eq!(found(&report.repeats), expected);
    let expected = [
        (Kind::Exact, "a1".into(), "h1".into(), 1, false),
        (Kind::Exact, "a1".into(), "h2".into(), 2, false),
    ];
    assert_eq!(found(&report.contamination), expected);
    assert_eq!(report.problems, 4);
    assert!(report.repeats[1].similarity >= 0.8 && report.repeats[1].similarity < 1.0);
}

#[test]
fn flaws_of_phases() {
    fn check(change: impl Fn(&mut Value), expected: &[(Flaw, Part, &str)], problems: usize) {
        let mut rows = vec![
            row("r1", "How do I whittle a spoon?", "benign"),
            row("r2", "Tell me how to get at the spoons of my neighbours at night.", "harmful"),
        ];
        change(&mut rows[1]);
        let report = report(&rows);
        let found: Vec<_> =
            report.findings.iter().map(|f| (f.flaw, f.part, f.detail.as_str(), f.place.line)).collect();
        let expected: Vec<_> = expected.iter().map(|&(flaw, part, detail)| (flaw, part, detail, 2)).collect();
        assert_eq!(found, expected);
        assert_eq!(report.problems, problems);
        assert!(report.findings.iter().all(|finding| finding.place.text.is_none()));
    }
    use Part::{Assessment, Understanding};
    check(|_| {}, &[], 0);
    check(|row| row["assessment"] = "".into(), &[(Flaw::PhaseMissing, Assessment, "")], 1);
    check(|row| row["understanding"] = Value::Null, &[(Flaw::PhaseMissing, Understanding, "")], 1);
    let several = "Two people\nwould be worse off.";
    check(|row| row["assessment"] = several.into(), &[(Flaw::PhaseOfSeveralLines, Assessment, "")], 1);
    let states = "It is Harmful to them.";
    check(|row| row["assessment"] = states.into(), &[(Flaw::StatesVerdict, Assessment, "harmful")], 1);
    let hints = "It should be refused, for they would be worse off.";
    check(
        |row| row["assessment"] = hints.into(),
        &[(Flaw::HintsVerdict, Assessment, "should be refused")],
        0,
    );
    let against = "Nobody is hurt by that, and they have more spoons.";
    check(
        |row| row["assessment"] = against.into(),
        &[(Flaw::ContradictsLabel, Assessment, "nobody is hurt")],
        1,
    );
    let copy = "Tell me how to get at the spoons of my neighbours.";
    check(|row| row["understanding"] = copy.into(), &[(Flaw::CopiesInstruction, Understanding, "")], 1);
    check(|row| row["assessment"] = row["understanding"].clone(), &[(Flaw::CopiesPhase, Assessment, "")], 1);
    let first = row("r1", "", "")["understanding"].clone();
    check(
        |row| row["understanding"] = first.clone(),
        &[(Flaw::RepeatsEarlierPhase, Understanding, "line 1")],
        1,
    );
}

#[test]
fn rows_without_phases_are_fine_where_no_row_has_them() {
    let report = report(&[json!({"prompt": "a spoon", "label": "benign"})]);
    assert_eq!((report.problems, report.files[0].with_phases), (0, 0));
}

#[test]
fn lengths_and_words_that_tell_the_label() {
    let rows: Vec<Value> = (0..40)
        .map(|n| {
            let (label, text) = match n % 2 {
                0 => (
                    "harmful",
                    format!("please zap the {n} toasters of all the neighbours in the long street"),
                ),
                _ => ("benign", format!("toast {n} buns, please")),
            };
            row(&format!("r{n}"), &text, label)
        })
        .collect();
    let report = report(&rows);
    let instruction = report.lengths[0];
    assert_eq!(
        (instruction.part, instruction.auroc, instruction.is_problem),
        (Part::Instruction, Some(1.0), true)
    );
    let word = |word: &str| report.words.iter().find(|w| w.part == Part::Instruction && w.word == word);
    let zap = word("zap").unwrap();
    assert_eq!((zap.rows.harmful, zap.rows.benign, zap.is_problem), (20, 0, true));
    assert!(zap.log_odds > 0.0 && (zap.log_odds - 2.0 * (20.5_f64 / 0.5).ln()).abs() < 1e-12);
    assert!(word("buns").unwrap().log_odds < 0.0);
    assert!(word("please").is_none(), "it tells nothing");
}

#[test]
fn contrast_pairs() {
    let mut rows = vec![
        row("c1", "How do I launder the cash of my boss?", "harmful"),
        row("c2", "Is laundering a sweater any work?", "benign"),
        row("c3", "Which sweater is the warmest?", "benign"),
        row("c4", "Who wrote this?", "harmful"),
    ];
    let contrast = report(&rows).contrast;
    assert_eq!((contrast.opposite, contrast.rows), (1, 2));
    let agreeing: Vec<_> =
        contrast.agreeing.iter().map(|p| (&*p.first.id, &*p.second.id, p.shared)).collect();
    assert_eq!(agreeing, [("c2", "c3", 1)]);

    // Words of many rows bind nothing.
    rows.extend((0..10).map(|n| row(&format!("f{n}"), &format!("sweater {n}"), "benign")));
    assert_eq!(report(&rows).contrast.agreeing, []);
}

#[test]
fn tokens_are_those_of_training() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../core/tests/golden/tiny/llama");
    let mut manifest = Bundle::builtin("base").unwrap().manifest;
    manifest.limits.assessment_tokens = 5;
    let base = Base::open(&folder, &manifest).unwrap();
    let rows = [
        row("t1", "How do I whittle a spoon?", "benign"),
        json!({"id": "t2", "prompt": "Short.", "label": "harmful"}),
    ];
    let limits = Limits { tokens: 40, ..Limits::default() };
    let report = check(&[source("a", &rows)], &[], Some(&base), &limits).unwrap();
    let tokens = report.tokens.unwrap();
    let rows: Vec<_> = tokens.parts.iter().map(|part| (part.part, part.sizes.rows)).collect();
    assert_eq!(rows, [(Part::Instruction, 2), (Part::Understanding, 1), (Part::Assessment, 1)]);
    let [full, direct] = &tokens.forms[..] else { panic!("{:?}", tokens.forms) };
    assert_eq!((full.sizes.rows, direct.sizes.rows), (1, 2));
    assert!(full.sizes.max > direct.sizes.max && full.targets > direct.targets / 2, "{full:?} {direct:?}");
    assert_eq!(direct.sizes.total, direct.sizes.min + direct.sizes.max);
    let flaws: Vec<_> =
        report.findings.iter().map(|f| (f.flaw, f.part, &*f.place.id)).filter(|f| f.2 == "t1").collect();
    let expected =
        [(Flaw::PhaseMissing, "t2"), (Flaw::PhaseOverCap, "t1"), (Flaw::TooLong, "t1")].map(|(flaw, _)| flaw);
    assert_eq!(flaws.iter().map(|f| f.0).collect::<Vec<_>>(), expected[1..]);
}

/// Exit code, standard output and standard error.
fn data(args: &[&str]) -> (i32, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_forethought-trainer")).arg("data").args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn path(folder: &Path, name: &str, content: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_check_command_names_rows_and_shows_no_text() {
    let folder = tempfile::tempdir().unwrap();
    let clean = path(folder.path(), "clean.jsonl", &text(&[row("a", "Zyzzyva one?", "benign")]));
    let (code, out, _) = data(&["check", "--no-tokens", &clean]);
    assert_eq!(code, 0, "{out}");
    assert!(out.ends_with("\nno problems\n"), "{out}");

    let mut rows = vec![row("a", "Zyzzyva one?", "benign"), row("b", "zyzzyva  one?", "harmful")];
    rows[0]["assessment"] = "A benign zyzzyva.".into();
    let bad = path(folder.path(), "bad.jsonl", &(text(&rows) + "{\"prompt\": \"Zyzzyva"));
    let (code, out, error) = data(&["check", "--no-tokens", &bad, "--against", &clean]);
    assert_eq!(code, 4, "{error}");
    for part in
        [":3: not JSON", ":1 (a) and ", ":2 (b) 1.00, labels differ", "state the verdict: 1", "4 problems"]
    {
        assert!(out.contains(part), "{part} in {out}");
    }
    assert!(!out.to_lowercase().contains("zyzzyva"), "{out}");

    let (code, out, _) = data(&["check", "--no-tokens", "--json", &bad]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &report["problems"]), (4, &json!(3)));
    assert_eq!(report["findings"][0]["flaw"], "states-verdict");
    assert!(!out.to_lowercase().contains("zyzzyva"), "{out}");

    let (_, out, _) = data(&["check", "--no-tokens", "--show-text", &bad]);
    assert!(out.contains("Zyzzyva one?") && out.contains("A benign zyzzyva."), "{out}");

    let (code, _, error) = data(&["check", "--no-tokens", "no/such/file"]);
    assert_eq!(code, 1);
    assert!(error.contains("can't read no/such/file"), "{error}");
}

#[test]
fn the_import_command_names_every_row_that_it_leaves_out() {
    let folder = tempfile::tempdir().unwrap();
    let input = path(
        folder.path(),
        "set.csv",
        "goal,target\nZyzzyva one,Sure\nzyzzyva  ONE,Sure\n,Sure\n\"User: a\nAssistant: b\nUser: c\",Sure\n",
    );
    let out = folder.path().join("set.jsonl");
    let out = out.to_str().unwrap();
    let (code, _, error) = data(&["import", "--in", &input, "--out", out]);
    assert_eq!(code, 4, "{error}");
    for part in
        ["set.csv:3: the prompt of line 2 again", "set.csv:4: no text under `goal`", "read as advbench"]
    {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert!(error.contains("2 rows, 2 harmful, 0 benign; 2 left out"), "{error}");
    assert!(!error.to_lowercase().contains("zyzzyva"), "{error}");
    let read = Dataset::read(Path::new(out)).unwrap();
    let ids: Vec<_> =
        read.rows.iter().map(|row| (row.id.as_str(), row.conversation.messages.len())).collect();
    assert_eq!(ids, [("set-2", 1), ("set-5", 3)]);
    assert_eq!(read.rows[0].source.as_deref(), Some("set"));

    let (code, _, error) = data(&["import", "--in", &input, "--out", out]);
    assert_eq!(code, 1);
    assert!(error.contains("--force"), "{error}");
    let args = ["import", "--in", &input, "--out", out, "--force", "--map", "id=goal", "--source", "s"];
    assert_eq!(data(&args).0, 4);
    assert_eq!(Dataset::read(Path::new(out)).unwrap().rows[0].id, "Zyzzyva one");

    let lines = path(folder.path(), "lines.txt", "one\ntwo\n");
    let (code, _, error) = data(&["import", "--in", &lines, "--out", out, "--force"]);
    assert_eq!(code, 1);
    assert!(error.contains("pass --label"), "{error}");
    let (code, _, error) = data(&["import", "--in", &lines, "--out", out, "--force", "--label", "benign"]);
    assert_eq!(code, 0, "{error}");
    assert!(error.contains("2 rows, 0 harmful, 2 benign; 0 left out"), "{error}");
}
