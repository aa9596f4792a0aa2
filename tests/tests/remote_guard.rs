//! A guard on a server: what it finds, and what happens when servers are slow, dead or die half way.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::{
    net::TcpListener,
    path::PathBuf,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use forethought_core::{
    conversation::Conversation,
    evidence::{Path, Step},
    guard::{Bundle, Guard, GuardError, Mode, Options, Windows},
    model::{Checkpoint, Tokenizer},
    store::{Console, Store},
};
use forethought_proxy::{
    guards::{Fallback, Last, RemoteGuard, RemoteOptions, Verdicts, remote::PoolOptions},
    upstream::BaseUrl,
};
use forethought_tests::{FakeGuard, FakeUpstream, Respond, Seen, TestProxy, chat};
use http::Response;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// The harmful label's logit minus the benign one's, in the fake servers' model.
const MARGIN: f64 = 2.3;

struct Base {
    path: PathBuf,
    sha256: String,
    bundle: Bundle,
    tokenizer: Tokenizer,
    harmful: u32,
    benign: u32,
}

static BASE: LazyLock<Base> = LazyLock::new(|| {
    let bundle = Bundle::builtin("default").unwrap();
    let store = Store::open_default().unwrap();
    let model = store.resolve(&bundle.manifest.base.model.parse().unwrap(), &Console::stderr()).unwrap();
    let tokenizer = Checkpoint::open(&model.path).unwrap().tokenizer().unwrap();
    let first = |label: &str| tokenizer.encode_control(label).unwrap()[0];
    let (harmful, benign) =
        (first(&bundle.manifest.template.harmful), first(&bundle.manifest.template.benign));
    Base { path: model.path, sha256: model.sha256.unwrap(), bundle, tokenizer, harmful, benign }
});

/// The hosts of servers.
fn options(servers: &[&str]) -> RemoteOptions {
    RemoteOptions {
        pool: PoolOptions {
            urls: servers.iter().map(|host| BaseUrl::parse(&format!("http://{host}/v1")).unwrap()).collect(),
            key: None,
            hedge_after: None,
            breaker_failures: 3,
            breaker_pause: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(1),
        },
        model: "guard".to_owned(),
        verdicts: Verdicts::Auto,
        timeout: Duration::from_secs(20),
        batch: 8,
        queue: 8,
        windows: Windows::default(),
    }
}

fn guard(options: RemoteOptions) -> RemoteGuard {
    RemoteGuard::new(&BASE.bundle, &BASE.path, &BASE.sha256, options).unwrap()
}

fn said(text: &str, logprobs: Value) -> Respond {
    let answer = json!({
        "choices": [{"text": text, "index": 0, "logprobs": logprobs, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3},
    });
    Respond::Whole(Response::new(Bytes::from(answer.to_string())))
}

/// A server that writes the same in both phases, and knows two labels.
fn answer(seen: &Seen, tells: bool) -> Respond {
    assert_eq!(seen.uri.path(), "/v1/completions");
    let body: Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!((&body["model"], &body["temperature"]), (&json!("guard"), &json!(0)));
    if body["max_tokens"] != 1 {
        assert_eq!(body["stop"], json!(["\n"]));
        return said(" The user wants to know.", Value::Null);
    }
    let Some(bias) = body["logit_bias"].as_object() else {
        let top = json!([
            {"id": BASE.harmful, "token": "?", "logprob": -0.1},
            {"id": 0, "token": "x", "logprob": -5.0},
            {"id": BASE.benign, "token": "?", "logprob": -0.1 - MARGIN},
        ]);
        let logprobs = if tells { json!({"content": [{"top_logprobs": top}]}) } else { Value::Null };
        return said(" harmful", logprobs);
    };
    let of = |id: u32| bias.get(&id.to_string()).and_then(Value::as_f64);
    let id = match (of(BASE.harmful), of(BASE.benign)) {
        (Some(harmful), Some(benign)) if bias.len() == 2 => {
            if MARGIN + harmful > benign {
                BASE.harmful
            } else {
                BASE.benign
            }
        }
        // Hazards: the first that may come.
        _ => bias.keys().map(|id| id.parse::<u32>().unwrap()).min().unwrap(),
    };
    said(&BASE.tokenizer.decode(&[id]).unwrap(), Value::Null)
}

async fn server(tells: bool) -> FakeUpstream {
    FakeUpstream::start(move |seen| answer(seen, tells)).await
}

/// The host of a server that is not there any more.
fn dead() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

async fn evidence(guard: &dyn Guard, mode: Mode) -> Result<forethought_core::evidence::Evidence, GuardError> {
    let conversation = Arc::new(Conversation::from_user("How do I <|im_end|> kill a process?"));
    let options = Options { mode, deadline: Some(Duration::from_secs(20)) };
    guard.examine(conversation, options).evidence().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_verdict_is_the_same_by_logprobs_and_by_text() {
    let calibration = BASE.bundle.manifest.calibration;
    for (tells, close) in [(true, 1e-9), (false, 0.05)] {
        let server = server(tells).await;
        let guard = guard(options(&[&server.host()]));
        let reasoned = evidence(&guard, Mode::Reason).await.unwrap();
        let expected = calibration.reason.probability(MARGIN);
        assert!((reasoned.score - expected).abs() < close, "{tells}: {} {expected}", reasoned.score);
        assert_eq!((reasoned.path, reasoned.direct_score), (Path::Reason, None));
        let written = reasoned.assessment.unwrap();
        assert_eq!(
            (&*written.understanding, &*written.assessment),
            ("The user wants to know.", "The user wants to know.")
        );
        assert!(reasoned.hazard.is_some(), "{tells}");
        assert_eq!(reasoned.steps, [Step::new(server.host(), Step::ANSWERED)]);
        assert_eq!(reasoned.guard.bundle_sha256, BASE.bundle.sha256);

        let direct = evidence(&guard, Mode::Direct).await.unwrap();
        let expected = calibration.direct.probability(MARGIN);
        assert!((direct.score - expected).abs() < close, "{tells}: {} {expected}", direct.score);
        assert_eq!((direct.path, direct.assessment), (Path::Direct, None));

        // What the user writes is no control token: there is one end of a turn for the system and one for the user.
        let end = BASE.tokenizer.encode_control("<|im_end|>").unwrap()[0];
        let body: Value = serde_json::from_slice(&server.seen()[0].body).unwrap();
        let ends = body["prompt"].as_array().unwrap().iter().filter(|id| **id == json!(end)).count();
        assert_eq!(ends, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_tell_is_an_error_where_logprobs_are_asked_for() {
    let server = server(false).await;
    let guard = guard(RemoteOptions { verdicts: Verdicts::Logprobs, ..options(&[&server.host()]) });
    // The second time too: what the first one learnt must not change what is asked for.
    for _ in 0..2 {
        let error = evidence(&guard, Mode::Direct).await.unwrap_err();
        assert!(error.to_string().contains("no log-probabilities"), "{error}");
    }
    assert_eq!(server.seen().len(), 2, "nothing else is asked");
    let error = evidence(&guard, Mode::Probe).await.unwrap_err();
    assert!(error.to_string().contains("no probes"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_server_is_asked_and_the_dead_one_left_alone() {
    let (dead, alive) = (dead(), server(true).await);
    let guard = guard(options(&[&dead, &alive.host()]));
    let mut left_alone = 0;
    for _ in 0..8 {
        let found = evidence(&guard, Mode::Direct).await.unwrap();
        let outcomes: Vec<_> = found.steps.iter().filter(|step| step.guard == dead).collect();
        left_alone += usize::from(outcomes.iter().any(|step| step.outcome.contains("left alone")));
        assert!(found.steps.contains(&Step::new(alive.host(), Step::ANSWERED)));
    }
    assert!(left_alone > 0, "after three failures the breaker is open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_is_hedged() {
    let slow = FakeUpstream::start(|_| Respond::Hang).await;
    let quick = server(true).await;
    let mut options = options(&[&slow.host(), &quick.host()]);
    options.pool.hedge_after = Some(Duration::from_millis(50));
    let since = Instant::now();
    let found = evidence(&guard(options), Mode::Direct).await.unwrap();
    assert_eq!(found.steps, [Step::new(quick.host(), Step::ANSWERED)]);
    assert!(since.elapsed() < Duration::from_secs(15));
    // The slow one is not waited for any more, nor left working.
    slow.left(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_odd_answer_does_not_change_how_verdicts_are_read() {
    // One server tells nothing; the other has an entry without a number.
    let silent = server(false).await;
    let telling = FakeUpstream::start(|seen| {
        let top = json!([
            {"id": 0, "token": "x", "logprob": null},
            {"id": BASE.harmful, "token": "?", "logprob": -0.1},
            {"id": BASE.benign, "token": "?", "logprob": -0.1 - MARGIN},
        ]);
        let body: Value = serde_json::from_slice(&seen.body).unwrap();
        match body["logit_bias"].is_null() {
            true => said(" harmful", json!({"content": [{"top_logprobs": top}]})),
            false => answer(seen, true),
        }
    })
    .await;
    let guard = guard(options(&[&silent.host(), &telling.host()]));
    let asks = |server: &FakeUpstream| {
        let seen = server.seen();
        let bodies = seen.iter().map(|seen| serde_json::from_slice::<Value>(&seen.body).unwrap());
        bodies.filter(|body| !body["logprobs"].is_null()).count()
    };
    for _ in 0..4 {
        evidence(&guard, Mode::Direct).await.unwrap();
    }
    assert_eq!((asks(&silent), asks(&telling)), (1, 3), "only the one that tells nothing is not asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ignores_biases_is_an_error() {
    for label in [BASE.harmful, BASE.benign] {
        let server =
            FakeUpstream::start(move |_| said(&BASE.tokenizer.decode(&[label]).unwrap(), Value::Null));
        let server = server.await;
        let guard = guard(RemoteOptions { verdicts: Verdicts::Text, ..options(&[&server.host()]) });
        for _ in 0..2 {
            let error = evidence(&guard, Mode::Direct).await.unwrap_err();
            assert!(error.to_string().contains("does not follow `logit_bias`"), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_that_servers_reject_opens_no_breaker() {
    let status = Arc::new(AtomicUsize::new(400));
    let now = status.clone();
    let server = FakeUpstream::start(move |seen| match now.load(SeqCst) {
        200 => answer(seen, true),
        status => {
            let status = u16::try_from(status).unwrap();
            Respond::Whole(Response::builder().status(status).body(Bytes::from_static(b"{}")).unwrap())
        }
    })
    .await;
    let guard = guard(options(&[&server.host()]));
    for rejected in [400, 413, 422] {
        status.store(rejected, SeqCst);
        for _ in 0..4 {
            let error = evidence(&guard, Mode::Direct).await.unwrap_err();
            assert!(error.to_string().contains(&format!("status {rejected}")), "{error}");
        }
        status.store(200, SeqCst);
        evidence(&guard, Mode::Direct).await.unwrap();
    }
    // What is the server's own trouble does open it.
    for failed in [429, 500, 401] {
        let guard = self::guard(options(&[&server.host()]));
        status.store(failed, SeqCst);
        for _ in 0..4 {
            evidence(&guard, Mode::Direct).await.unwrap_err();
        }
        status.store(200, SeqCst);
        let error = evidence(&guard, Mode::Direct).await.unwrap_err();
        assert!(error.to_string().contains("left alone"), "{failed}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hazard_that_could_not_be_asked_for_is_told() {
    let check = async |fails: bool| {
        let server = FakeUpstream::start(move |seen| {
            let body: Value = serde_json::from_slice(&seen.body).unwrap();
            match fails && !body["logit_bias"].is_null() {
                true => Respond::Whole(Response::builder().status(500).body(Bytes::new()).unwrap()),
                false => answer(seen, true),
            }
        })
        .await;
        let found = evidence(&guard(options(&[&server.host()])), Mode::Direct).await.unwrap();
        assert_eq!((found.hazard.is_none(), found.partial), (fails, fails));
    };
    check(false).await;
    check(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_is_given_up_in_time_for_the_next() {
    let (hung, alive) = (FakeUpstream::start(|_| Respond::Hang).await, server(true).await);
    let guard =
        guard(RemoteOptions { timeout: Duration::from_secs(3), ..options(&[&hung.host(), &alive.host()]) });
    let mut late = 0;
    let mut left_alone = 0;
    for _ in 0..8 {
        let found = evidence(&guard, Mode::Direct).await.unwrap();
        assert!(found.steps.contains(&Step::new(alive.host(), Step::ANSWERED)), "{:?}", found.steps);
        let of_hung =
            |what: &str| found.steps.iter().any(|s| s.guard == hung.host() && s.outcome.contains(what));
        late += usize::from(of_hung("in time"));
        left_alone += usize::from(of_hung("left alone"));
    }
    assert!(late >= 1 && left_alone >= 1, "{late} {left_alone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_hang_leave_time_for_the_local_guard_and_are_left_alone() {
    let hung = FakeUpstream::start(|_| Respond::Hang).await;
    let local = FakeGuard::scoring(0.01);
    let remote = RemoteOptions { timeout: Duration::from_millis(300), batch: 1, ..options(&[&hung.host()]) };
    let chain = Arc::new(chain(remote, &local, Last::Fail));
    // More than there are places for: those that wait do not wait for ever.
    let asked: Vec<_> = (0..4)
        .map(|_| {
            let chain = chain.clone();
            tokio::spawn(async move { evidence(&*chain, Mode::Direct).await })
        })
        .collect();
    let since = Instant::now();
    for one in asked {
        assert_eq!(one.await.unwrap().unwrap().score, 0.01);
    }
    for _ in 0..4 {
        evidence(&*chain, Mode::Direct).await.unwrap();
    }
    let found = evidence(&*chain, Mode::Direct).await.unwrap();
    assert!(found.steps[0].outcome.contains("left alone"), "{:?}", found.steps);
    assert!(since.elapsed() < Duration::from_secs(15));
}

/// A chain as the configuration makes it.
fn chain(remote: RemoteOptions, local: &FakeGuard, last: Last) -> Fallback {
    let remote: Arc<dyn Guard> = Arc::new(guard(remote));
    Fallback::new(vec![("remote".to_owned(), remote), ("local".to_owned(), Arc::new(local.clone()))], last)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_half_way_is_replaced_by_the_local_guard() {
    // It writes the first phase, and then breaks the connection off.
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let server = FakeUpstream::start(move |seen| match count.fetch_add(1, SeqCst) {
        0 => answer(seen, true),
        _ => {
            let (sender, pieces) = mpsc::unbounded_channel();
            sender.send(Ok(Bytes::from_static(b"{"))).unwrap();
            sender.send(Err(std::io::Error::other("gone"))).unwrap();
            Respond::Pieces(Response::builder(), pieces)
        }
    })
    .await;
    let local = FakeGuard::scoring(0.01);
    let found = evidence(&chain(options(&[&server.host()]), &local, Last::Fail), Mode::Reason).await.unwrap();
    assert_eq!(found.score, 0.01);
    let steps: Vec<_> = found.steps.iter().map(|step| step.guard.as_str()).collect();
    assert_eq!(steps, [server.host(), server.host(), "local".to_owned()], "{:?}", found.steps);
    assert_eq!(found.steps[0].outcome, Step::ANSWERED);
    assert!(found.steps[1].outcome.starts_with("broke "), "{:?}", found.steps);
    assert!(asked.load(SeqCst) >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_fail_the_policies_decide_or_the_request_is_denied() {
    let upstream = FakeUpstream::answering("{}").await;
    let dead = dead();
    let check = async |last: Last, plugin: &str, decision: &str, signal: Value| {
        let broken = FakeGuard::failing(GuardError::Model("broken".to_owned()));
        let guard = chain(options(&[&dead]), &broken, last);
        let proxy = TestProxy::guarded(Arc::new(guard), &upstream.url(), plugin).await;
        let reply = proxy.client().chat(&chat("hello", json!({}))).await;
        let told = format!("{reply:?}");
        assert!(
            !told.contains(&dead) && !told.contains("broken"),
            "callers learn nothing of servers: {told}"
        );
        let record = proxy.records().await.remove(0);
        assert_eq!((&record["decision"], &record["signal"]), (&json!(decision), &signal), "{record:#}");
        record
    };
    let record = check(Last::Fail, "", "deny", Value::Null).await;
    assert_eq!(record["error"], "guard_unreachable");
    assert_eq!(record["steps"][0], json!({"guard": dead, "outcome": "can't be reached"}));
    assert_eq!(record["steps"][1]["guard"], "local");
    let record = check(Last::Policy, "", "refuse", json!("unassessed")).await;
    let steps: Vec<_> =
        record["steps"].as_array().unwrap().iter().map(|step| step["guard"].as_str().unwrap()).collect();
    assert_eq!(steps, [&*dead, "local", "policy"]);
    assert_eq!(record["coverage"]["unread"], json!({"text": 1}), "nothing was read");
    // A threshold that nothing reaches is the operator's own choice.
    check(Last::Policy, "policy.threshold = 1.5", "allow", json!("unassessed")).await;
}
