//! The dialogues in which harm builds up: their three files show the guard the same conversations, cut differently, and a
//! proxy shows it all turns of each.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::path::Path;

use forethought_core::{
    conversation::{Conversation, Role},
    dataset::{Dataset, Row},
    evidence::Verdict,
};
use forethought_tests::{FakeGuard, FakeUpstream, TestProxy};
use serde_json::{Value, json};

fn rows(name: &str) -> Vec<Row> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/dialogues");
    let data = Dataset::read(&folder.join(name)).unwrap();
    assert_eq!(data.bad, []);
    data.rows
}

/// Each message as its role and its text.
fn turns(conversation: &Conversation) -> Vec<(Role, &str)> {
    conversation.messages.iter().map(|message| (message.role, message.parts[0].text().unwrap())).collect()
}

#[test]
fn the_files_are_the_same_conversations() {
    let (whole, last, replied) = (rows("whole.jsonl"), rows("last.jsonl"), rows("replied.jsonl"));
    assert_eq!((whole.len(), last.len(), replied.len()), (24, 24, 24));
    for ((whole, last), replied) in whole.iter().zip(&last).zip(&replied) {
        assert_eq!((&whole.id, whole.label), (&last.id, last.label));
        assert_eq!((&whole.id, whole.label), (&replied.id, replied.label));
        let (whole, last, replied) =
            (turns(&whole.conversation), turns(&last.conversation), turns(&replied.conversation));
        assert!(whole.len() >= 5 && whole.last().unwrap().0 == Role::User);
        assert_eq!(last, whole[whole.len() - 1..]);
        assert_eq!(replied[..whole.len()], whole[..]);
        assert_eq!((replied.len(), replied[whole.len()].0), (whole.len() + 1, Role::Assistant));
    }
    assert_eq!(whole.iter().filter(|row| row.label == Verdict::Harmful).count(), 12);
}

#[tokio::test]
async fn the_guard_is_shown_all_turns() {
    let upstream = FakeUpstream::answering("{}").await;
    let guard = FakeGuard::scoring(0.0);
    let proxy = TestProxy::start(&guard, &upstream.url(), "").await;
    for row in rows("whole.jsonl") {
        let messages: Vec<Value> = turns(&row.conversation)
            .into_iter()
            .map(|(role, text)| json!({"role": if role == Role::User { "user" } else { "assistant" }, "content": text}))
            .collect();
        proxy.client().chat(&json!({"model": "m", "messages": messages})).await;
        assert!(*guard.seen().pop().unwrap() == row.conversation, "{}", row.id);
    }
}
