//! A chat model that says what a test wants it to say.

use std::sync::{Arc, Mutex};

use forethought_core::generate::{ChatEvent, ChatModel, ChatRequest, ChatStream, Finish};
use tokio::sync::watch;

/// A chat model without a model.
#[derive(Clone)]
pub struct FakeModel {
    events: Vec<ChatEvent>,
    seen: Arc<Mutex<Vec<ChatRequest>>>,
    left: watch::Sender<usize>,
}

impl FakeModel {
    /// A model for which these events happen. If the last one ends nothing, the answer never ends.
    pub fn telling(events: Vec<ChatEvent>) -> Self {
        Self { events, seen: Arc::default(), left: watch::Sender::new(0) }
    }

    /// A model that answers with these pieces of text.
    pub fn saying(pieces: &[&str]) -> Self {
        let text = pieces.iter().map(|piece| ChatEvent::Text((*piece).to_owned()));
        let done =
            ChatEvent::Done { finish: Finish::Stop, prompt_tokens: 7, completion_tokens: pieces.len() };
        Self::telling(text.chain([done]).collect())
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<ChatRequest> {
        self.seen.lock().expect("no panic").clone()
    }

    /// Waits until the callers of this many endless answers have left.
    pub async fn left(&self, count: usize) {
        self.left.subscribe().wait_for(|left| *left >= count).await.expect("the model lives");
    }
}

impl ChatModel for FakeModel {
    fn chat(&self, request: ChatRequest) -> ChatStream {
        let (sender, stream) = ChatStream::channel();
        self.seen.lock().expect("no panic").push(request);
        self.events.iter().for_each(|event| drop(sender.send(event.clone())));
        if !matches!(self.events.last(), Some(ChatEvent::Done { .. } | ChatEvent::Failed(_))) {
            let left = self.left.clone();
            tokio::spawn(async move {
                sender.closed().await;
                left.send_modify(|left| *left += 1);
            });
        }
        stream
    }
}
