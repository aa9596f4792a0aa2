//! Refusals in the shape of the OpenAI chat API.
//!
//! Usage counts are zero: the upstream read and wrote nothing, so there is nothing to bill.

use bytes::Bytes;
use forethought_core::evidence::Evidence;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{
    Request,
    answer::{Answer, DONE, Usage, event},
};
use crate::{
    Body,
    config::{FinishReason, RefusalConfig, RefusalField},
    reply::{self, ErrorBody},
};

/// The answer to a refused request.
pub(crate) fn refuse(
    request: &Request,
    id: impl std::fmt::Display,
    text: &str,
    evidence: &Evidence,
    config: &RefusalConfig,
) -> Response<Body> {
    let details = config.expose_assessment.then(|| details(evidence));
    if config.as_error {
        let error = ErrorBody {
            message: text.to_owned(),
            kind: "permission_error",
            param: Some("messages".to_owned()),
            code: "content_filter",
        };
        let mut body = error.json();
        expose(&mut body, details);
        let mut response = reply::json(StatusCode::FORBIDDEN, &body);
        reply::never_retry(&mut response);
        return response;
    }
    let answer = Answer::new(id, &request.model);
    let finish = match config.finish_reason {
        FinishReason::ContentFilter => "content_filter",
        FinishReason::Stop => "stop",
    };
    if request.stream {
        reply::events(reply::full(stream(&answer, request, text, finish, config.field, details)))
    } else {
        let message = match config.field {
            RefusalField::Content => json!({"role": "assistant", "content": text, "refusal": null}),
            RefusalField::Refusal => json!({"role": "assistant", "content": null, "refusal": text}),
        };
        let mut body = answer.completion(vec![message; request.n], finish, Usage::default());
        expose(&mut body, details);
        reply::json(StatusCode::OK, &body)
    }
}

/// A role chunk, a content chunk and a finish chunk for each choice, the usage if it was asked for, `[DONE]`.
fn stream(
    answer: &Answer,
    request: &Request,
    text: &str,
    finish: &str,
    field: RefusalField,
    mut details: Option<Value>,
) -> Bytes {
    let mut chunks = Vec::new();
    for index in 0..request.n {
        let (first, second) = match field {
            RefusalField::Content => {
                (json!({"role": "assistant", "content": "", "refusal": null}), json!({"content": text}))
            }
            RefusalField::Refusal => {
                (json!({"role": "assistant", "content": null, "refusal": ""}), json!({"refusal": text}))
            }
        };
        chunks.push(answer.chunk(index, first, None));
        chunks.push(answer.chunk(index, second, None));
        let mut last = answer.chunk(index, json!({}), Some(finish));
        expose(&mut last, details.take());
        chunks.push(last);
    }
    if request.include_usage {
        for chunk in &mut chunks {
            chunk["usage"] = Value::Null;
        }
        chunks.push(answer.usage_chunk(Usage::default()));
    }
    let mut bytes: Vec<u8> = chunks.iter().flat_map(event).collect();
    bytes.extend_from_slice(&DONE);
    bytes.into()
}

fn expose(body: &mut Value, details: Option<Value>) {
    if let Some(details) = details {
        body["forethought"] = details;
    }
}

/// What the caller sees of the evidence where the configuration says so.
fn details(evidence: &Evidence) -> Value {
    let assessment = evidence.assessment.as_ref();
    json!({
        "score": evidence.score,
        "verdict": evidence.verdict(),
        "hazard": evidence.hazard,
        "understanding": assessment.map(|a| &a.understanding),
        "assessment": assessment.map(|a| &a.assessment),
    })
}
