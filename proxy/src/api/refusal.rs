//! Refusals: answers of our own that say no, in the caller's format.

use bytes::Bytes;
use forethought_core::evidence::Evidence;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{
    Framer, Request, WireFormat,
    answer::{Answer, End, Envelope, Usage},
};
use crate::{
    Body,
    config::RefusalConfig,
    reply::{self, ErrorBody},
};

/// The answer to a refused request.
pub(crate) fn refuse(
    format: &dyn WireFormat,
    request: &Request,
    id: impl std::fmt::Display,
    text: &str,
    evidence: &Evidence,
    config: &RefusalConfig,
) -> Response<Body> {
    let details = config.expose_assessment.then(|| details(evidence));
    let mut envelope = Envelope {
        choices: request.choices,
        include_usage: request.include_usage,
        refusal: true,
        finish: config.finish_reason,
        field: config.field,
        details,
        ..Envelope::new(id, &request.model)
    };
    if config.as_error {
        let error = ErrorBody {
            status: StatusCode::FORBIDDEN,
            message: text.to_owned(),
            kind: "permission_error",
            param: Some(format.voice().input.to_owned()),
            code: "content_filter",
        };
        let mut body = format.voice().error(&error);
        envelope.expose(&mut body);
        let mut response = reply::json(StatusCode::FORBIDDEN, &body);
        reply::never_retry(&mut response);
        return response;
    }
    let mut answer = format.answer(envelope);
    if request.stream {
        let bytes = stream(&mut *answer, request, text);
        reply::stream(request.framing.content_type(), reply::full(bytes))
    } else {
        reply::json(StatusCode::OK, &answer.whole(text, End::Refused, Usage::default()))
    }
}

fn stream(answer: &mut dyn Answer, request: &Request, text: &str) -> Bytes {
    let mut values = Vec::new();
    for choice in 0..request.choices {
        values.extend(answer.open(choice));
        values.extend(answer.text(choice, text));
        values.extend(answer.close(choice, End::Refused));
    }
    values.extend(answer.done(End::Refused, Usage::default()));
    let mut framer = Framer::new(request.framing);
    [framer.pieces(&values), framer.end()].concat().into()
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
