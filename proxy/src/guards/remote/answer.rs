//! What servers answer on `/v1/completions`, in the shapes that there are.

use serde_json::Value;

/// The text that was written.
pub(super) fn text(answer: &Value) -> Option<&str> {
    answer.pointer("/choices/0/text")?.as_str()
}

/// Whether the model ended by itself, and not by the cap on its tokens.
pub(super) fn is_complete(answer: &Value) -> bool {
    answer.pointer("/choices/0/finish_reason").and_then(Value::as_str) != Some("length")
}

/// Tokens that were written, by the server's count.
pub(super) fn written(answer: &Value) -> usize {
    let count = answer.pointer("/usage/completion_tokens").and_then(Value::as_u64);
    count.and_then(|count| usize::try_from(count).ok()).unwrap_or_default()
}

/// Whether the server tells log-probabilities at all, in whatever shape.
pub(super) fn tells(answer: &Value) -> bool {
    answer.pointer("/choices/0/logprobs").is_some_and(|logprobs| !logprobs.is_null())
}

/// The likeliest first tokens and their log-probabilities; `None` where the server tells none. There are two shapes: lists
/// of objects, as in the chat API, and one map from text to number, as in the older one. Entries that are not whole are
/// left out: a server may have no number for a token that can't come.
pub(super) fn first_tokens(answer: &Value) -> Option<Vec<(Token<'_>, f64)>> {
    let logprobs = answer.pointer("/choices/0/logprobs")?;
    if let Some(top) = logprobs.pointer("/content/0/top_logprobs").and_then(Value::as_array) {
        return Some(top.iter().filter_map(token).collect());
    }
    let top = logprobs.pointer("/top_logprobs/0")?.as_object()?;
    Some(
        top.iter()
            .filter_map(|(text, logprob)| Some((Token { id: None, text }, logprob.as_f64()?)))
            .collect(),
    )
}

fn token(entry: &Value) -> Option<(Token<'_>, f64)> {
    let id = entry.get("id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
    let text = entry.get("token").and_then(Value::as_str)?;
    Some((Token { id, text }, entry.get("logprob")?.as_f64()?))
}

/// A token as a server names it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    id: Option<u32>,
    text: &'a str,
}

impl Token<'_> {
    /// Whether it is the token `id`, whose text is `text`.
    pub(super) fn is(&self, id: u32, text: &str) -> bool {
        match (self.id, self.text.strip_prefix("token_id:")) {
            (Some(own), _) => own == id,
            (None, Some(own)) => own.parse() == Ok(id),
            (None, None) => self.text == text,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_shapes_of_probabilities() {
        let check = |logprobs: Value, expected: Option<f64>| {
            let answer = json!({"choices": [{"text": " a", "logprobs": logprobs}]});
            let found = first_tokens(&answer)
                .and_then(|all| all.into_iter().find(|(token, _)| token.is(7, " a")).map(|(_, p)| p));
            assert_eq!(found, expected);
        };
        let chat = |top: Value| json!({"content": [{"token": " a", "top_logprobs": top}]});
        check(chat(json!([{"id": 7, "token": "?", "logprob": -0.5}])), Some(-0.5));
        check(chat(json!([{"token": " a", "logprob": -0.5}, {"token": " b", "logprob": -1}])), Some(-0.5));
        check(chat(json!([{"id": 8, "token": " a", "logprob": -0.5}])), None);
        check(json!({"top_logprobs": [{" a": -0.25, " b": -2}]}), Some(-0.25));
        check(json!({"top_logprobs": [{"token_id:7": -0.25}]}), Some(-0.25));
        check(chat(json!([{"token": "x", "logprob": null}, {"token": " a", "logprob": -0.5}])), Some(-0.5));
        check(json!({"top_logprobs": [{"x": null, " a": -0.25}]}), Some(-0.25));
        check(Value::Null, None);
        check(json!({"top_logprobs": null}), None);
    }
}
