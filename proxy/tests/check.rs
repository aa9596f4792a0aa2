//! What `check` shows and returns.

#![allow(clippy::unwrap_used)] // helpers of tests are tests too

#[path = "support/fake_guard.rs"]
mod fake_guard;

use std::collections::BTreeMap;

use anstream::StripStream;
use fake_guard::FakeGuard;
use forethought_core::{
    conversation::Conversation,
    evidence::Verdict,
    guard::{Mode, Options},
    policy::{PolicyChain, Thresholds},
};
use forethought_proxy::cli::check::{self, Checked};

fn policy(score: f64) -> PolicyChain {
    PolicyChain::new(vec![], Thresholds { score, hazards: BTreeMap::new(), message: "no".into() })
}

async fn shown(prompt: &str, mode: Mode) -> anyhow::Result<(Checked, String)> {
    let mut out = StripStream::new(Vec::new());
    let options = Options { mode, deadline: None };
    let conversation = Conversation::from_user(prompt);
    let guard = FakeGuard::new();
    let checked = check::aloud(&*guard, &policy(0.5), conversation, options, 0.5, &mut out).await?;
    Ok((checked, String::from_utf8(out.into_inner()).unwrap()))
}

#[tokio::test]
async fn shows_phases_and_findings() {
    let (checked, text) = shown("something 0.75", Mode::Reason).await.unwrap();
    assert_eq!(checked.verdict, Verdict::Harmful);
    // The guard's text can't drive the terminal.
    assert_eq!(
        text,
        "understanding They ask\\u{1b}[2J.\n\
         assessment    Hard to ... (cut at its token cap)\n\
         verdict       harmful\n\
         score         0.750 (harmful from 0.5 on)\n\
         category      cyber\n\
         policy        refuse: score 0.750 at or above the threshold 0.5\n\
         read          all 14 tokens\n\
         time          25 ms: waiting 5, reading 7 tokens 0, writing 4 tokens 0\n\
         guard         fake 1 on none\n"
    );
}

#[tokio::test]
async fn says_what_was_not_read() {
    let (_, text) = shown(&format!("{} 0.1", "x".repeat(146)), Mode::Direct).await.unwrap();
    assert!(text.starts_with("not read: 50 tokens\nverdict       benign\n"), "{text}");
    assert!(text.contains("read          100 of 150 tokens; not read: 50 tokens\n"), "{text}");
    assert!(text.contains("category      cyber (if it were harmful)\n"), "{text}");
}

#[tokio::test]
async fn an_empty_prompt_is_examined() {
    let (checked, text) = shown("", Mode::Reason).await.unwrap();
    assert_eq!(checked.verdict, Verdict::Benign);
    assert!(text.starts_with("The prompt is empty.\nunderstanding"), "{text}");
}

#[tokio::test]
async fn the_verdict_goes_by_the_threshold() {
    for (score, threshold, verdict) in [
        ("0.75", 0.8, Verdict::Benign),
        ("0.8", 0.8, Verdict::Harmful),
        ("NaN", 0.8, Verdict::Harmful),
        ("0", 0.0, Verdict::Harmful),
    ] {
        let (guard, conversation) = (FakeGuard::new(), Conversation::from_user(score));
        let checked =
            check::quietly(&*guard, &policy(threshold), conversation, Options::default(), threshold).await;
        assert_eq!(checked.unwrap().verdict, verdict, "{score} at {threshold}");
    }
}

#[tokio::test]
async fn json_holds_evidence_verdict_and_policy() {
    let (checked, _) = shown("something 0.75", Mode::Reason).await.unwrap();
    let object = checked.to_json().unwrap();
    for (pointer, expected) in [
        ("/score", serde_json::json!(0.75)),
        ("/verdict", "harmful".into()),
        ("/threshold", 0.5.into()),
        ("/hazard", "cyber".into()),
        ("/assessment/assessment", "Hard to".into()),
        ("/coverage/tokens_read", 14.into()),
        ("/policy/decision", "refuse".into()),
        ("/policy/by", "thresholds".into()),
        ("/guard/bundle", "fake 1".into()),
    ] {
        assert_eq!(object.pointer(pointer), Some(&expected), "{pointer}");
    }
}

#[tokio::test]
async fn a_failing_guard_is_an_error() {
    let error = shown("please fail", Mode::Reason).await.unwrap_err().to_string();
    assert!(error.contains("overloaded"), "{error}");
}
