//! A local model that continues chats: the embedded upstream's engine.

use std::{ops::ControlFlow, path::Path, sync::Arc};

use tokio::sync::mpsc::UnboundedSender;

use super::{ChatEvent, ChatModel, ChatRequest, ChatStream, Finish, GenerateError};
use crate::{
    engine::{Engine, Lane, Limits, Rejected, Task},
    model::{
        ChatTemplate, Checkpoint, Decoder, LoadOptions, Result, Tokenizer, sampler::Sampler,
        tokenizer::TextStream,
    },
};

/// A model in this process, on a thread of its own.
pub struct LocalChat {
    shared: Arc<Shared>,
    engine: Engine<ChatTask>,
}

struct Shared {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    context: usize,
}

impl LocalChat {
    /// Starts a worker for the model at `path`. `decoder` spares a second copy of the weights where they are loaded
    /// already.
    ///
    /// # Errors
    /// The model can't be loaded, or the system gives no thread.
    pub fn start(
        path: &Path,
        decoder: Option<Arc<Decoder>>,
        load: &LoadOptions<'_>,
        limits: Limits,
    ) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let (tokenizer, template) = (checkpoint.tokenizer()?, checkpoint.chat_template()?);
        let decoder = match decoder {
            Some(decoder) => decoder,
            None => Arc::new(Decoder::load(&checkpoint, load)?),
        };
        let shared = Shared { tokenizer, template, context: checkpoint.config().context };
        let engine = Engine::start("embedded-upstream", decoder, limits)
            .map_err(|e| crate::model::ModelError::io(path, e))?;
        Ok(Self { shared: Arc::new(shared), engine })
    }
}

impl ChatModel for LocalChat {
    fn chat(&self, request: ChatRequest) -> ChatStream {
        let (events, stream) = ChatStream::channel();
        let task = ChatTask::new(self.shared.clone(), request, events.clone());
        let rejected = match task {
            Ok(task) => self.engine.submit(task).err().map(|rejected| match rejected {
                Rejected::Full(waiting) => GenerateError::Overloaded { waiting },
                Rejected::Stopped => GenerateError::Stopped,
            }),
            Err(error) => Some(error),
        };
        if let Some(error) = rejected {
            // A send fails only where nobody listens any more.
            let _ = events.send(ChatEvent::Failed(error));
        }
        stream
    }
}

struct ChatTask {
    shared: Arc<Shared>,
    events: UnboundedSender<ChatEvent>,
    sampler: Sampler,
    prompt: Vec<u32>,
    prompt_tokens: usize,
    max_tokens: usize,
    written: usize,
    stream: TextStream,
    stop: StopFilter,
}

impl ChatTask {
    fn new(
        shared: Arc<Shared>,
        request: ChatRequest,
        events: UnboundedSender<ChatEvent>,
    ) -> Result<Self, GenerateError> {
        let pieces =
            shared.template.render(&request.messages).map_err(|e| GenerateError::Template(e.to_string()))?;
        let prompt =
            shared.tokenizer.encode_pieces(&pieces).map_err(|e| GenerateError::Model(e.to_string()))?;
        let (tokens, context) = (prompt.len(), shared.context);
        if tokens >= context {
            return Err(GenerateError::TooLong { tokens, context });
        }
        Ok(Self {
            events,
            sampler: Sampler::new(request.sampling),
            prompt_tokens: tokens,
            prompt,
            max_tokens: request.max_tokens.clamp(1, context - tokens),
            written: 0,
            stream: TextStream::default(),
            stop: StopFilter::new(request.stop),
            shared,
        })
    }

    fn next(&mut self, lane: &mut Lane, logits: &[f32]) -> Result<ControlFlow<()>> {
        let id = self.sampler.next(logits);
        self.written += 1;
        if self.shared.tokenizer.is_end(id) {
            return self.finish(Finish::Stop);
        }
        let text = self.stream.push(&self.shared.tokenizer, id)?;
        let (text, stopped) = self.stop.push(&text);
        self.send_text(text);
        if stopped {
            self.done(Finish::Stop);
            return Ok(ControlFlow::Break(()));
        }
        if self.written >= self.max_tokens {
            return self.finish(Finish::Length);
        }
        lane.pending = vec![id];
        Ok(ControlFlow::Continue(()))
    }

    fn finish(&mut self, finish: Finish) -> Result<ControlFlow<()>> {
        let rest = std::mem::take(&mut self.stream).finish(&self.shared.tokenizer)?;
        let (text, stopped) = self.stop.push(&rest);
        let held = if stopped { String::new() } else { std::mem::take(&mut self.stop.held) };
        self.send_text(text + &held);
        self.done(if stopped { Finish::Stop } else { finish });
        Ok(ControlFlow::Break(()))
    }

    fn send_text(&self, text: String) {
        if !text.is_empty() {
            // A send fails only where the caller has left; `is_over` sees that before the next step.
            let _ = self.events.send(ChatEvent::Text(text));
        }
    }

    fn done(&self, finish: Finish) {
        let (prompt_tokens, completion_tokens) = (self.prompt_tokens, self.written);
        let _ = self.events.send(ChatEvent::Done { finish, prompt_tokens, completion_tokens });
    }
}

impl Task for ChatTask {
    fn start(&mut self, decoder: &Decoder) -> Option<Lane> {
        let room = self.prompt.len() + self.max_tokens.min(256);
        match decoder.new_cache().and_then(|cache| cache.fork(room)) {
            Ok(cache) => Some(Lane { pending: std::mem::take(&mut self.prompt), cache }),
            Err(error) => {
                let _ = self.events.send(ChatEvent::Failed(GenerateError::Model(error.to_string())));
                None
            }
        }
    }

    fn advance(&mut self, lane: &mut Lane, logits: &[f32]) -> ControlFlow<()> {
        self.next(lane, logits).unwrap_or_else(|error| {
            let _ = self.events.send(ChatEvent::Failed(GenerateError::Model(error.to_string())));
            ControlFlow::Break(())
        })
    }

    fn is_over(&mut self) -> bool {
        self.events.is_closed()
    }

    fn fail(self, error: &str) {
        let _ = self.events.send(ChatEvent::Failed(GenerateError::Model(error.to_owned())));
    }
}

/// Cuts a stream of text at the first stop string, and holds back what may be the beginning of one.
#[derive(Default)]
struct StopFilter {
    stops: Vec<String>,
    held: String,
}

impl StopFilter {
    fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|s| !s.is_empty());
        Self { stops, held: String::new() }
    }

    /// Adds text; returns what may be given out, and whether a stop string has come.
    fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let begins = |at: usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..]));
        let keep = self.held.char_indices().map(|(at, _)| at).find(|&at| begins(at));
        let rest = self.held.split_off(keep.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, rest), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_strings_are_found_wherever_the_text_is_cut() {
        fn check(stops: &[&str], text: &str, expected: &str, stopped: bool) {
            let cuts: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
            for cut in cuts {
                let mut filter = StopFilter::new(stops.iter().map(|s| (*s).to_owned()).collect());
                let (mut got, mut found) = (String::new(), false);
                for part in [&text[..cut], &text[cut..]] {
                    if !found {
                        let (new, stop) = filter.push(part);
                        got += &new;
                        found = stop;
                    }
                }
                if !found {
                    got += &filter.held;
                }
                assert_eq!((got.as_str(), found), (expected, stopped), "{text:?} cut at {cut}");
            }
        }
        check(&[], "abc", "abc", false);
        check(&["END"], "one END two", "one ", true);
        check(&["END"], "one EN", "one EN", false);
        check(&["b", "ab"], "xxab", "xx", true);
        check(&["é!"], "caf é!", "caf ", true);
        check(&["aab"], "aaab", "a", true);
    }
}
