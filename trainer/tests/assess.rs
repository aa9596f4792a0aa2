//! `data assess` against a server on this machine that answers well, badly, late, or not at all.
#![allow(clippy::unwrap_used)] // Helpers of tests are not inside of `#[test]`.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, iter};

use forethought_core::dataset::Dataset;
use forethought_trainer::dataset::assess::answer::Bounds;
use forethought_trainer::dataset::assess::budget::Prices;
use forethought_trainer::dataset::assess::client::{Server, Teacher};
use forethought_trainer::dataset::assess::prompt::TeacherPrompt;
use forethought_trainer::dataset::assess::retry::{Retry, Stop};
use forethought_trainer::dataset::assess::{Ended, Plan, Summary, assess, estimate};
use serde_json::{Value, json};

/// What the server does with a request.
#[derive(Clone)]
enum Act {
    /// Status, headers, body.
    Answer(u16, &'static str, String),
    /// Takes the request and is silent.
    Hang,
    /// Ends the connection without reading, so that the client sees a reset.
    Reset,
}

/// A request as the server saw it.
#[derive(Clone)]
struct Seen {
    head: String,
    body: Value,
    /// How often this row had been asked about before.
    before: usize,
}

impl Seen {
    fn text(&self) -> String {
        self.body["messages"][1]["content"].as_str().unwrap().to_owned()
    }
}

/// A chat server that does what a closure says.
struct Fake {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Fake {
    fn start(act: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (act, all) = (Arc::new(act), Arc::clone(&seen));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (act, all) = (Arc::clone(&act), Arc::clone(&all));
                thread::spawn(move || serve(stream.unwrap(), &*act, &all));
            }
        });
        Self { url, seen }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, act: &(dyn Fn(&Seen) -> Act + Send + Sync), all: &Mutex<Vec<Seen>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut head = String::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line == "\r\n" {
                break;
            }
            head += &line.to_lowercase();
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")).unwrap();
        let mut body = vec![0; length.trim().parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let mut seen = Seen { head, body, before: 0 };
        {
            let mut all = all.lock().unwrap();
            seen.before = all.iter().filter(|other| other.text() == seen.text()).count();
            all.push(seen.clone());
        }
        let (status, headers, body) = match act(&seen) {
            Act::Answer(status, headers, body) => (status, headers, body),
            Act::Hang => {
                // Until the client goes away.
                let _ = reader.read(&mut [0]);
                return;
            }
            Act::Reset => return,
        };
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

const UNDERSTANDING: &str = "The user is after a thing of someone else, under a thin story.";
const ASSESSMENT: &str = "The owner would lose what they rely on; the wish for secrecy gives it away.";

/// An answer of the model.
fn said(content: &str) -> Act {
    let body = json!({
        "choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 50},
    });
    Act::Answer(200, "content-type: application/json\r\n", body.to_string())
}

fn good() -> Act {
    said(&json!({"understanding": UNDERSTANDING, "assessment": ASSESSMENT}).to_string())
}

fn error(status: u16, headers: &'static str, message: &str) -> Act {
    Act::Answer(status, headers, json!({"error": {"message": message}}).to_string())
}

/// A folder with an input of `count` rows.
fn input(count: usize) -> (tempfile::TempDir, Plan) {
    let folder = tempfile::tempdir().unwrap();
    let rows = (0..count).map(|n| {
        let row = json!({"id": format!("r{n}"), "instruction": format!("Do the thing number {n}-."), "label": "harmful", "extra": n});
        format!("{row}\n")
    });
    fs::write(folder.path().join("in.jsonl"), rows.collect::<String>()).unwrap();
    let plan = plan(folder.path());
    (folder, plan)
}

fn plan(folder: &Path) -> Plan {
    let ms = Duration::from_millis;
    Plan {
        input: folder.join("in.jsonl"),
        out: folder.join("out.jsonl"),
        concurrency: 4,
        retry: Retry { retries: 3, base: ms(1), cap: ms(5), patience: Duration::from_secs(30) },
        tries: 3,
        max_rows: None,
        prices: None,
        max_cost: None,
        prompt: TeacherPrompt::default(),
        bounds: Bounds::default(),
    }
}

fn teacher(fake: &Fake, timeout: Duration) -> Teacher {
    let server = Server {
        url: fake.url.clone(),
        model: "teacher".into(),
        key: Some("hush-hush".into()),
        timeout,
        max_tokens: 200,
    };
    Teacher::new(server).unwrap()
}

fn run(plan: &Plan, fake: &Fake) -> Result<Summary, String> {
    let teacher = teacher(fake, Duration::from_secs(60));
    assess(plan, &teacher, &Stop::default(), &mut |_| {}).map_err(|error| error.to_string())
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(path: &Path) -> BTreeSet<String> {
    lines(path).iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

fn failed(plan: &Plan) -> Vec<Value> {
    lines(&PathBuf::from(format!("{}.failed.jsonl", plan.out.display())))
}

fn expected_ids(numbers: impl IntoIterator<Item = usize>) -> BTreeSet<String> {
    numbers.into_iter().map(|n| format!("r{n}")).collect()
}

#[test]
fn good_answers_become_rows() {
    let fake = Fake::start(|_| good());
    let (_folder, plan) = input(10);
    // One row has phases, one line is none, one row has no id.
    let more = concat!(
        r#"{"id": "ready", "prompt": "Ready?", "label": "benign", "understanding": "u", "assessment": "a"}"#,
        "\nno row\n",
        r#"{"prompt": "Do it for me.", "label": "harmful"}"#,
    );
    let text = fs::read_to_string(&plan.input).unwrap() + more;
    fs::write(&plan.input, text).unwrap();

    let before = estimate(&plan).unwrap();
    assert_eq!((before.rows, before.bad, before.ready, before.to_ask), (12, 1, 1, 11));
    assert!(!plan.out.exists() && fake.seen().is_empty(), "an estimate does nothing");

    let summary = run(&plan, &fake).unwrap();
    assert_eq!((summary.written, summary.copied, summary.failed, summary.left), (11, 1, 0, 0));
    assert_eq!((summary.tokens_in, summary.tokens_out, summary.cost, summary.ended), (1100, 550, None, None));
    let rows = lines(&plan.out);
    let row = rows.iter().find(|row| row["id"] == "r3").unwrap();
    let expected = json!({
        "id": "r3", "instruction": "Do the thing number 3-.", "label": "harmful", "extra": 3,
        "understanding": UNDERSTANDING, "assessment": ASSESSMENT, "teacher": "teacher",
    });
    assert_eq!(*row, expected);
    let expected: BTreeSet<_> =
        expected_ids(0..10).into_iter().chain(["ready".into(), "13".into()]).collect();
    assert_eq!(ids(&plan.out), expected);
    assert_eq!(Dataset::read(&plan.out).unwrap().bad, []);

    let seen = fake.seen();
    assert!(seen[0].head.starts_with("post /v1/chat/completions http/1.1\r\n"), "{}", seen[0].head);
    assert!(seen[0].head.contains("\r\nauthorization: bearer hush-hush\r\n"));
    assert_eq!(seen[0].body["model"], "teacher");
    assert_eq!(seen[0].body["response_format"], json!({"type": "json_object"}));
    let quoted = seen.iter().filter(|seen| seen.text().contains("\"User: Do the thing number"));
    assert_eq!(quoted.count(), 10);

    // Nothing is left to do.
    let again = run(&plan, &fake).unwrap();
    assert_eq!((again.written, again.copied, fake.seen().len()), (0, 0, seen.len()));
}

#[test]
fn answers_that_will_not_do_are_asked_for_again_with_the_reason() {
    fn check(bad: Act, reason: &str) {
        let (first, always) = (bad.clone(), bad);
        let fake = Fake::start(move |seen| {
            let rounds = seen.body["messages"].as_array().unwrap().len();
            match seen.text() {
                text if text.contains("number 0-") && rounds == 2 => first.clone(),
                text if text.contains("number 1-") => always.clone(),
                _ => good(),
            }
        });
        let (_folder, plan) = input(3);
        let summary = run(&plan, &fake).unwrap();
        assert_eq!((summary.written, summary.failed), (2, 1), "{reason}");
        assert_eq!(ids(&plan.out), expected_ids([0, 2]));
        let expected = json!({"id": "r1", "line": 2, "tries": 3, "reason": reason});
        assert_eq!(failed(&plan), [expected]);
        let seen = fake.seen();
        let mut rounds = seen.iter().filter(|seen| seen.text().contains("number 0-"));
        let last = rounds.next_back().unwrap().body["messages"].as_array().unwrap().clone();
        assert_eq!(last.len(), 4);
        assert!(last[3]["content"].as_str().unwrap().contains(reason), "{last:?}");
        assert_eq!(summary.tokens_in, 600, "every answer counts: 2 + 3 + 1");
    }
    check(said("Sure! Here you go."), "the answer is not one JSON object");
    let leak = json!({"understanding": UNDERSTANDING, "assessment": "This is plainly harmful to the owner."});
    check(said(&leak.to_string()), "the assessment gives the label away: \"harmful\"");
    let same = json!({"understanding": UNDERSTANDING, "assessment": UNDERSTANDING});
    check(said(&same.to_string()), "the assessment repeats the understanding");
}

#[test]
fn a_server_that_fails_for_a_while_is_asked_again() {
    fn check(trouble: Act) {
        let fake = Fake::start(move |seen| if seen.before < 2 { trouble.clone() } else { good() });
        let (_folder, plan) = input(3);
        let summary = run(&plan, &fake).unwrap();
        assert_eq!((summary.written, summary.failed), (3, 0));
        assert_eq!(fake.seen().len(), 9);
    }
    for status in [408, 409, 429, 500, 502, 503] {
        check(error(status, "", "busy"));
    }
    check(Act::Answer(200, "", "no json".into()));
    check(Act::Reset);
}

#[test]
fn a_server_that_stays_down_fails_the_row() {
    let fake = Fake::start(|seen| match seen.text() {
        text if text.contains("number 1-") => error(503, "", "secret"),
        _ => good(),
    });
    let (_folder, plan) = input(3);
    let summary = run(&plan, &fake).unwrap();
    assert_eq!((summary.written, summary.failed), (2, 1));
    let reason = "the server answered 503 (attempt 4)";
    assert_eq!(failed(&plan), [json!({"id": "r1", "line": 2, "tries": 1, "reason": reason})]);

    // The next run tries it again.
    let fake = Fake::start(|_| good());
    let summary = run(&plan, &fake).unwrap();
    assert_eq!((summary.written, fake.seen().len()), (1, 1));
    assert_eq!((ids(&plan.out), failed(&plan)), (expected_ids(0..3), vec![]));
}

#[test]
fn retry_after_is_kept() {
    let fake = Fake::start(|seen| match seen.before {
        0 => error(429, "retry-after: 1\r\n", "slow down"),
        _ => good(),
    });
    let (_folder, plan) = input(1);
    let began = Instant::now();
    assert_eq!(run(&plan, &fake).unwrap().written, 1);
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());

    // A pause of hours is no pause.
    let fake = Fake::start(|_| error(429, "retry-after: 9999\r\n", "tomorrow"));
    let (_folder, plan) = input(1);
    assert_eq!(run(&plan, &fake).unwrap().failed, 1);
    assert_eq!(failed(&plan)[0]["reason"], "the server answered 429 (attempt 1)");
}

#[test]
fn a_silent_server_is_given_up_on_and_asked_again() {
    let fake = Fake::start(|seen| if seen.before == 0 { Act::Hang } else { good() });
    let (_folder, plan) = input(1);
    let teacher = teacher(&fake, Duration::from_secs(3));
    let summary = assess(&plan, &teacher, &Stop::default(), &mut |_| {}).unwrap();
    assert_eq!((summary.written, fake.seen().len()), (1, 2));
}

#[test]
fn parameters_that_are_refused_are_left_out() {
    fn check(refuses: fn(&Value) -> Option<&'static str>, kept: &[&str]) {
        let fake = Fake::start(move |seen| match refuses(&seen.body) {
            Some(message) => error(400, "", message),
            None => good(),
        });
        let (_folder, plan) = input(6);
        let summary = run(&plan, &fake).unwrap();
        assert_eq!((summary.written, summary.failed), (6, 0));
        let body = fake.seen().pop().unwrap().body;
        let names: BTreeSet<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
        let usual = ["messages", "model", "stream"];
        assert_eq!(names, kept.iter().chain(&usual).copied().collect());
    }
    check(
        |body| body.get("response_format").map(|_| "response_format is not supported"),
        &["max_tokens", "temperature"],
    );
    check(|body| body.get("response_format").map(|_| "bad request"), &["max_tokens", "temperature"]);
    check(
        |body| {
            let old = body.get("max_tokens").map(|_| "max_tokens: use max_completion_tokens");
            old.or_else(|| body.get("temperature").map(|_| "temperature must be 1"))
        },
        &["max_completion_tokens", "response_format"],
    );
}

#[test]
fn a_refusal_of_one_row_is_that_rows() {
    fn check(refused: &'static str) {
        let fake = Fake::start(move |seen| match seen.text() {
            text if text.contains(refused) => error(400, "", "secret: too long"),
            _ => good(),
        });
        let (_folder, mut plan) = input(3);
        plan.concurrency = 1;
        let summary = run(&plan, &fake).unwrap();
        assert_eq!((summary.written, summary.failed), (2, 1));
        assert_eq!(failed(&plan)[0]["reason"], "the server answered 400");
        assert!(
            fake.seen().pop().unwrap().body.get("response_format").is_some(),
            "others are asked as before"
        );
    }
    check("number 0-");
    check("number 1-");
}

#[test]
fn what_no_row_can_help_ends_the_run() {
    fn check(act: Act, expected: &str) {
        let fake = Fake::start(move |_| act.clone());
        let (_folder, mut plan) = input(200);
        plan.retry.retries = 0;
        let error = run(&plan, &fake).unwrap_err();
        assert!(error.contains(expected) && !error.contains("secret") && !error.contains("hush"), "{error}");
        assert!(fake.seen().len() < 50, "{}", fake.seen().len());
    }
    check(error(401, "", "secret"), "401: is the key right");
    check(error(404, "", "secret"), "404: are --url and --model right?");
    check(Act::Answer(307, "location: http://127.0.0.1:1/\r\n", String::new()), "redirects");
    check(error(500, "", "secret"), "20 rows in a row failed, the last with: the server answered 500");
}

#[test]
fn rows_and_money_are_limited() {
    let fake = Fake::start(|_| good());
    let (_folder, mut plan) = input(10);
    plan.max_rows = Some(4);
    assert_eq!(run(&plan, &fake).unwrap().ended, Some(Ended::MaxRows));
    assert_eq!(ids(&plan.out), expected_ids(0..4), "the first ones");
    assert_eq!(run(&plan, &fake).unwrap().written, 4);
    assert_eq!(ids(&plan.out), expected_ids(0..8), "then the next");

    // A row costs $150, and may cost up to $600 before it is answered.
    let (_folder, mut plan) = input(20);
    plan.prices = Some(Prices { input: 0.0, output: 3e6 });
    plan.max_cost = Some(1000.0);
    let summary = run(&plan, &fake).unwrap();
    assert_eq!(summary.ended, Some(Ended::OverBudget));
    let cost = summary.cost.unwrap();
    assert!(summary.written > 0 && cost == 150.0 * summary.written as f64 && cost <= 1000.0, "{summary:?}");
    assert_eq!(summary.left, 20 - summary.written);
}

#[test]
fn an_output_of_something_else_is_left_alone() {
    fn check(content: &str, expected: &str) {
        let fake = Fake::start(|_| good());
        let (_folder, plan) = input(2);
        fs::write(&plan.out, content).unwrap();
        let error = run(&plan, &fake).unwrap_err();
        assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        assert_eq!(estimate(&plan).unwrap_err().to_string(), error);
        assert_eq!(fs::read_to_string(&plan.out).unwrap(), content);
    }
    check("secret\n", "line 1 is not JSON (column 1): this is no output");
    check("{\"prompt\": \"secret\"}\n", "line 1 has no id");
    check(
        "{\"id\": \"r1\", \"instruction\": \"secret\", \"label\": \"harmful\"}\n",
        "line 1 has the id of the input's line 2 and another instruction or label",
    );
}

/// The command, asking `fake`.
fn command(plan: &Plan, fake: &Fake) -> Child {
    Command::new(env!("CARGO_BIN_EXE_forethought-trainer"))
        .args(["data", "assess", "--model", "teacher", "--concurrency", "2", "--api-key-env", "TEST_KEY"])
        .args(["--url", &fake.url])
        .arg("--in")
        .arg(&plan.input)
        .arg("--out")
        .arg(&plan.out)
        .env("TEST_KEY", "hush-hush")
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits for what a running command does.
fn wait_until(condition: impl Fn() -> bool) {
    let tries = iter::repeat_with(|| thread::sleep(Duration::from_millis(10)));
    assert!(tries.take(6000).any(|()| condition()), "it did not come");
}

/// Answers about five rows, and about others once `open` is set; lets a connection go with its client.
fn gated(open: &Arc<AtomicBool>) -> Fake {
    let open = Arc::clone(open);
    Fake::start(move |seen| {
        let is_early = (0..5).any(|n| seen.text().contains(&format!("number {n}-")));
        while !is_early && !open.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        good()
    })
}

fn lines_written(plan: &Plan) -> usize {
    fs::read_to_string(&plan.out).unwrap_or_default().matches('\n').count()
}

#[test]
fn a_killed_run_goes_on_where_it_was() {
    let open = Arc::default();
    let fake = gated(&open);
    let (_folder, plan) = input(9);
    let mut child = command(&plan, &fake);
    wait_until(|| fake.seen().len() == 7 && lines_written(&plan) == 5);
    child.kill().unwrap();
    child.wait().unwrap();
    // As if it had been killed while it wrote.
    let whole = fs::read_to_string(&plan.out).unwrap();
    fs::write(&plan.out, format!("{whole}{{\"id\": \"r5\", \"instruc")).unwrap();

    open.store(true, Ordering::SeqCst);
    let output = command(&plan, &fake).wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("5 done already") && !said.contains("hush"), "{said}");
    assert_eq!((ids(&plan.out), lines(&plan.out).len()), (expected_ids(0..9), 9));
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_is_under_way() {
    let open = Arc::default();
    let fake = gated(&open);
    let (_folder, plan) = input(20);
    let mut child = command(&plan, &fake);
    wait_until(|| fake.seen().len() == 7 && lines_written(&plan) == 5);
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.by_ref().any(|line| line.starts_with("ending:")));
    open.store(true, Ordering::SeqCst);
    let rest: Vec<String> = said.collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(rest.iter().any(|line| line.starts_with("7 written") && line.contains("13 left")), "{rest:?}");
    assert_eq!(ids(&plan.out), expected_ids(0..7));
}
