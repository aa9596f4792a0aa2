//! Having the guard read a conversation, or finding what it said of the same one before.

use std::{sync::Arc, time::Duration};

use forethought_core::{
    conversation::Conversation,
    evidence::Evidence,
    guard::{Event, GuardError, Options},
    policy::RequestFacts,
};
use tokio::time::timeout;

use crate::{audit::Exit, cache::Failed, config::OnUnread, live::Route, reply::Error};

impl Route {
    /// What the guard finds of a conversation.
    pub(super) async fn examine(
        &self,
        exit: &mut Exit,
        conversation: Arc<Conversation>,
        facts: &RequestFacts,
    ) -> Result<Evidence, Error> {
        let found = match &self.cache {
            None => self.ask_guard(conversation).await,
            Some(cache) => {
                let (tenant, guard) = (facts.tenant.as_deref(), self.guard.version());
                match cache.key(tenant, &guard, &self.policies.sha256, &conversation) {
                    None => self.ask_guard(conversation).await,
                    Some(key) => {
                        // A request that waits for another one's examination has a deadline of its own.
                        let found = cache.find(key, &guard, self.ask_guard(conversation));
                        let found = timeout(self.patience(), found).await;
                        found.unwrap_or_else(|_| Err(self.hung())).map(|(evidence, origin)| {
                            exit.cached(origin);
                            evidence
                        })
                    }
                }
            }
        };
        let evidence = found.map_err(|failed| match failed {
            Failed::Guard(error) => {
                if let GuardError::Unreachable(steps) = &error {
                    exit.record.steps.clone_from(steps);
                }
                Error::Guard(error)
            }
            Failed::Truncated { read, tokens } => Error::Truncated { read, tokens },
        })?;
        let coverage = &evidence.coverage;
        let (read, tokens) = (coverage.tokens_read, coverage.tokens);
        let all_read = coverage.tokens_unread() == 0;
        self.unread_is(exit, "truncated", self.config.policy.on_truncated, all_read, || Error::Truncated {
            read,
            tokens,
        })?;
        Ok(evidence)
    }

    /// A request that is too long to be read in whole, and denied for that, is known before the work begins.
    async fn ask_guard(&self, conversation: Arc<Conversation>) -> Result<Evidence, Failed> {
        let deadline = self.config.guard.deadline;
        let options = Options { mode: self.config.guard.mode, deadline: Some(deadline) };
        let mut examination = self.guard.examine(conversation, options);
        let events = async {
            loop {
                match examination.next().await {
                    Some(Event::Coverage(coverage))
                        if coverage.tokens_unread() > 0
                            && self.config.policy.on_truncated == OnUnread::Deny =>
                    {
                        let (read, tokens) = (coverage.tokens_read, coverage.tokens);
                        return Err(Failed::Truncated { read, tokens });
                    }
                    Some(Event::Done(evidence)) => return Ok(*evidence),
                    Some(Event::Failed(error)) => return Err(Failed::Guard(error)),
                    Some(_) => {}
                    None => return Err(Failed::Guard(GuardError::Stopped)),
                }
            }
        };
        timeout(self.patience(), events).await.unwrap_or_else(|_| Err(self.hung()))
    }

    /// The guard keeps its deadline itself, and may need a moment to score what it has; this is for one that hangs.
    fn patience(&self) -> Duration {
        2 * self.config.guard.deadline
    }

    fn hung(&self) -> Failed {
        Failed::Guard(GuardError::Deadline { after: self.config.guard.deadline })
    }
}
