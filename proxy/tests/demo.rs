//! The demo's three requests through a whole proxy, with a guard and an upstream whose answers are known.

#![allow(clippy::unwrap_used)] // helpers of tests are tests too

#[path = "support/fake_guard.rs"]
mod fake_guard;

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use anstream::StripStream;
use fake_guard::FakeGuard;
use forethought_core::{
    conversation::Conversation,
    evidence::GuardVersion,
    generate::{ChatEvent, ChatModel, ChatRequest, ChatStream, Finish},
    guard::{Event, Examination, Guard, Options},
};
use forethought_proxy::{
    CheckedConfig,
    cli::{
        demo::{self, Watched},
        serve::{self, Models},
    },
    config::{Flag, Sources},
};
use tokio::net::TcpListener;

/// Answers with what it is made of.
struct FakeChat(&'static [&'static str], Finish, Arc<AtomicUsize>);

impl ChatModel for FakeChat {
    fn chat(&self, _: ChatRequest) -> ChatStream {
        self.2.fetch_add(1, SeqCst);
        let (events, stream) = ChatStream::channel();
        for piece in self.0 {
            events.send(ChatEvent::Text((*piece).to_owned())).unwrap();
        }
        events.send(ChatEvent::Done { finish: self.1, prompt_tokens: 3, completion_tokens: 2 }).unwrap();
        stream
    }
}

/// The demo's output at this threshold; the fake guard's score is 0.25 throughout, or what `word` says.
async fn shown(chat: FakeChat, threshold: &str, word: &'static str) -> (anyhow::Result<()>, String) {
    let settings =
        [("policy.threshold", threshold), ("audit.enabled", "false"), ("policy.on_truncated", "allow")];
    let flag = |(key, value): (&str, &str)| Flag {
        name: "test".to_owned(),
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let sources = Sources { flags: settings.map(flag).to_vec(), ..Sources::default() };
    let config = CheckedConfig::load(&sources).unwrap();
    let (guard, watched) = Watched::new(Arc::new(Ends(FakeGuard::new(), word)));
    let models = Models { guard: Arc::new(guard), chat: Some(Arc::new(chat)) };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve::build(config, models).unwrap().serve(listener, pending()));
    let mut out = StripStream::new(Vec::new());
    let result = demo::show(address, watched, &mut out).await;
    (result, String::from_utf8(out.into_inner()).unwrap())
}

/// Puts a word at the end of what the fake guard reads: it goes by that.
struct Ends(Arc<FakeGuard>, &'static str);

impl Guard for Ends {
    fn examine(&self, _: Arc<Conversation>, options: Options) -> Examination {
        self.0.examine(Arc::new(Conversation::from_user(self.1)), options)
    }

    fn version(&self) -> GuardVersion {
        self.0.version()
    }
}

#[tokio::test]
async fn shows_phases_decisions_and_answers() {
    let asked = Arc::new(AtomicUsize::new(0));
    let chat = FakeChat(&["It is ", "Paris.\u{7}"], Finish::Length, asked.clone());
    let (result, text) = shown(chat, "0.5", "0.25").await;
    result.unwrap();
    assert_eq!(
        text.matches("understanding They ask\\u{1b}[2J.\nassessment    Hard to ...").count(),
        3,
        "{text}"
    );
    let end = "score         0.250, after 25 ms\ndecision      allow\nanswer        It is Paris.\\u{7} ... (cut at its token limit)\n";
    assert_eq!(text.matches(end).count(), 3, "{text}");
    assert_eq!(asked.load(SeqCst), 3);
}

#[tokio::test]
async fn refusals_are_answers_too() {
    let asked = Arc::new(AtomicUsize::new(0));
    let (result, text) = shown(FakeChat(&["x"], Finish::Stop, asked.clone()), "0.5", "0.75").await;
    result.unwrap();
    let end = "decision      refuse\nanswer        I can't help with that.\n";
    assert_eq!(text.matches(end).count(), 3, "{text}");
    assert_eq!(asked.load(SeqCst), 0, "refused requests do not reach the upstream");
}

#[tokio::test]
async fn no_answer_is_an_error() {
    let failure = async |chat, word| format!("{:#}", shown(chat, "0.5", word).await.0.unwrap_err());
    let error = failure(FakeChat(&[], Finish::Stop, Arc::default()), "0.25").await;
    assert!(error.contains("request 1 got no answer: the answer is empty"), "{error}");
    let error = failure(FakeChat(&["x"], Finish::Stop, Arc::default()), "fail").await;
    assert!(error.contains("overloaded"), "{error}");
}

#[tokio::test]
async fn a_watched_guard_stops_when_its_caller_leaves() {
    /// Hands its events to the test.
    struct Held(std::sync::Mutex<Option<tokio::sync::mpsc::UnboundedSender<Event>>>);
    impl Guard for Held {
        fn examine(&self, _: Arc<Conversation>, _: Options) -> Examination {
            let (events, examination) = Examination::channel();
            *self.0.lock().unwrap() = Some(events);
            examination
        }
        fn version(&self) -> GuardVersion {
            GuardVersion::default()
        }
    }
    let held = Arc::new(Held(None.into()));
    let (guard, mut watched) = Watched::new(held.clone());
    let examination = guard.examine(Arc::default(), Options::default());
    let copy = watched.recv().await.unwrap();
    let events = held.0.lock().unwrap().take().unwrap();
    drop(copy); // a watcher that leaves changes nothing
    assert!(!events.is_closed());
    drop(examination);
    events.closed().await;
}
