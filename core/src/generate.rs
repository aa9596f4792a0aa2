//! Text generation as a service: what the embedded upstream asks of a local model.

pub mod local;

pub use local::LocalChat;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// One message of a chat, as a chat template takes it.
#[derive(Clone, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Zero is greedy.
    pub temperature: f64,
    /// Keep the most likely tokens up to this mass; 1 keeps all.
    pub top_p: f64,
    /// Seed of this generation's random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, seed: 0 }
    }
}

/// A chat to be continued.
#[derive(Clone)]
pub struct ChatRequest {
    /// The messages, oldest first.
    pub messages: Vec<ChatMessage>,
    /// Most tokens to write.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Strings that end the answer; they are not part of it.
    pub stop: Vec<String>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or a stop string did.
    Stop,
    /// The token limit, or the model's context, is used up.
    Length,
}

/// What happens while an answer is written, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum ChatEvent {
    /// More text; always whole characters.
    Text(String),
    /// The answer is complete. Nothing follows.
    Done {
        /// Why it ended.
        finish: Finish,
        /// Tokens read.
        prompt_tokens: usize,
        /// Tokens written.
        completion_tokens: usize,
    },
    /// There is no (further) answer. Nothing follows.
    Failed(GenerateError),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    /// The queue is full.
    #[error("the embedded model is overloaded: {waiting} requests are waiting already")]
    Overloaded {
        /// Length of the queue.
        waiting: usize,
    },
    /// The messages do not fit the model's context.
    #[error("the messages take {tokens} tokens, and the embedded model's context holds {context}")]
    TooLong {
        /// Tokens of the rendered messages.
        tokens: usize,
        /// Tokens the model can hold.
        context: usize,
    },
    /// The chat template rejects the messages.
    #[error("the chat template of the embedded model rejects these messages: {0}")]
    Template(String),
    /// The model failed.
    #[error("the embedded model failed: {0}")]
    Model(String),
    /// The engine is gone, as during shutdown.
    #[error("the embedded model has stopped")]
    Stopped,
}

/// A running answer. Dropping it stops the work on it.
#[derive(Debug)]
pub struct ChatStream {
    events: mpsc::UnboundedReceiver<ChatEvent>,
}

impl ChatStream {
    /// A stream and the sender of its events; bounded by the request's token limit.
    pub fn channel() -> (mpsc::UnboundedSender<ChatEvent>, Self) {
        let (sender, events) = mpsc::unbounded_channel();
        (sender, Self { events })
    }

    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<ChatEvent> {
        self.events.recv().await
    }
}

/// A model that continues chats.
pub trait ChatModel: Send + Sync + 'static {
    /// Starts an answer; never blocks. All failures arrive as [`ChatEvent::Failed`].
    fn chat(&self, request: ChatRequest) -> ChatStream;
}
