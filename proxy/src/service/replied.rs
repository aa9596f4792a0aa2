//! What the upstream answers to an allowed request, on its way to the caller.

use forethought_core::guard::Options;
use http::{Response, request};

use super::{Judged, early::Outgoing};
use crate::{
    Body,
    api::{self, answer::Envelope},
    audit::{Disposition, Exit},
    config::Mode,
    live::Route,
    reply::Error,
    response::{Cut, Reader, Whole},
};

impl Route {
    /// Sends an allowed request on; where the setting `response_guard` is on, the guard reads the answer too.
    pub(super) async fn read_reply(
        &self,
        exit: &mut Exit,
        head: &request::Parts,
        outgoing: Outgoing<'_>,
        judged: Judged,
    ) -> Result<Response<Body>, Error> {
        let Some(config) = self.config.response_guard else {
            return self.forward(exit, head, outgoing).await;
        };
        let response = self.forward(exit, head, outgoing).await?;
        let Judged { format, request, conversation, facts, .. } = judged;
        let reader = Reader {
            format,
            guard: self.guard.clone(),
            gate: self.gate.clone(),
            policies: self.policies.clone(),
            options: Options { mode: self.config.guard.mode, deadline: Some(self.config.guard.deadline) },
            deadline: self.config.guard.deadline,
            policy: self.config.policy.clone(),
            config,
            conversation,
            facts,
            monitor: self.config.policy.mode == Mode::Monitor,
            noted: exit.reply.clone(),
        };
        let cut = match reader.cut(&response) {
            Ok(cut) => cut,
            Err(error) => return Err(denied(exit, error)),
        };
        match cut {
            None => Ok(response),
            Some(Cut::Whole) => match reader.whole(response).await {
                Err(error) => Err(denied(exit, error)),
                Ok(Whole::Sent(response)) => Ok(response),
                Ok(Whole::Refused(text, evidence)) => {
                    exit.decided(Disposition::Refuse, "response_guard", "the answer was refused");
                    let config = &self.config.refusal;
                    Ok(api::refusal::refuse(format, &request, exit.id, &text, &evidence, config))
                }
            },
            Some(cut) => {
                let envelope = Envelope {
                    choices: request.choices,
                    refusal: true,
                    finish: self.config.refusal.finish_reason,
                    field: self.config.refusal.field,
                    ..Envelope::new(exit.id, &request.model)
                };
                Ok(reader.streamed(response, cut, format.tail(envelope), request.framing))
            }
        }
    }
}

/// Notes that an answer is not passed on for this error.
fn denied(exit: &mut Exit, error: Error) -> Error {
    exit.decided(Disposition::Deny, "response_guard", error.to_string());
    error
}
