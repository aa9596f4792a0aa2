//! Version 0.1.0 of the interface: its types, and how they and the host's own turn into each other.

use forethought_core::{
    conversation::{Part, Role},
    evidence::{Evidence, Path, PhaseEnd},
    policy::{Case, Decision, Edit, Opinion, Said},
    probe::Position,
};
use wasmtime::{
    Store,
    component::{HasSelf, InstancePre, Linker},
};

use self::{
    exports::forethought::policy::policy as wit_policy,
    forethought::policy::{facts, log, types as wit},
};
use crate::{
    call::{Call, LogLevel},
    plugin::{Manifest, ResponseDecision, ResponseRuling, Window},
};

wasmtime::component::bindgen!({
    path: "../wit/0.1.0",
    world: "plugin",
    ownership: Borrowing { duplicate_if_necessary: true },
    imports: { default: trappable },
});

/// The version.
pub const VERSION: &str = "0.1.0";

/// Gives plugins of this version what every one may import.
pub(crate) fn link(linker: &mut Linker<Call>) -> wasmtime::Result<()> {
    Plugin::add_to_linker::<_, HasSelf<_>>(linker, |call| call)
}

/// A component of this version, ready to be instantiated.
///
/// # Errors
/// If its exports are not those of this version.
pub(crate) fn pre(instance: InstancePre<Call>) -> wasmtime::Result<PluginPre<Call>> {
    PluginPre::new(instance)
}

impl wit::Host for Call {}

impl log::Host for Call {
    fn log(&mut self, level: log::Level, message: String) -> wasmtime::Result<()> {
        let level = match level {
            log::Level::Debug => LogLevel::Debug,
            log::Level::Info => LogLevel::Info,
            log::Level::Warn => LogLevel::Warn,
            log::Level::Error => LogLevel::Error,
        };
        Call::log(self, level, message);
        Ok(())
    }
}

impl facts::Host for Call {
    fn probe_trace(&mut self, probe: String) -> wasmtime::Result<Option<Vec<facts::TokenScore>>> {
        let trace = Call::probe_trace(self, probe)?;
        let one = |scored: forethought_core::policy::TokenScore| facts::TokenScore {
            token: scored.token,
            score: scored.score,
        };
        Ok(trace.map(|trace| trace.into_iter().map(one).collect()))
    }
}

impl Plugin {
    /// Calls `init`; the inner error is the plugin's own.
    pub(crate) fn init(
        &self,
        store: &mut Store<Call>,
        config: &str,
    ) -> wasmtime::Result<Result<Manifest, String>> {
        let said = self.forethought_policy_policy().call_init(store, config)?;
        Ok(said.map(|wit::Manifest { name, version, stateful }| Manifest { name, version, stateful }))
    }

    /// Calls `decide-request`.
    pub(crate) fn decide(
        &self,
        store: &mut Store<Call>,
        case: &Case<'_>,
        so_far: &[Opinion],
    ) -> wasmtime::Result<Said> {
        let flags: Vec<Vec<&str>> =
            so_far.iter().map(|o| o.flags.iter().map(String::as_str).collect()).collect();
        let opinions = so_far.iter().zip(&flags).map(|(opinion, flags)| wit::Opinion {
            policy: &opinion.policy,
            flags,
            failed: opinion.failed,
        });
        let opinions: Vec<_> = opinions.collect();
        with_case(case, |request, evidence| {
            let ruling =
                self.forethought_policy_policy().call_decide_request(store, request, evidence, &opinions)?;
            Ok(said(ruling))
        })
    }

    /// Calls `decide-response`.
    pub(crate) fn decide_response(
        &self,
        store: &mut Store<Call>,
        case: &Case<'_>,
        window: &Window<'_>,
    ) -> wasmtime::Result<ResponseRuling> {
        let &Window { choice, before, held, last, score } = window;
        let window = wit::Window { choice, before, held, last, score };
        with_case(case, |request, evidence| {
            let ruling =
                self.forethought_policy_policy().call_decide_response(store, request, evidence, window)?;
            let decision = match ruling.decision {
                wit::ResponseDecision::Pass => ResponseDecision::Pass,
                wit::ResponseDecision::Release => ResponseDecision::Release,
                wit::ResponseDecision::Replace(text) => ResponseDecision::Replace(text),
                wit::ResponseDecision::Cut(text) => ResponseDecision::Cut(text),
            };
            Ok(ResponseRuling { decision, reason: ruling.reason, flags: ruling.flags })
        })
    }
}

fn said(ruling: wit_policy::Ruling) -> Said {
    let edit =
        |edit: wit::Edit| Edit { message: edit.message as usize, part: edit.part as usize, text: edit.text };
    let decision = match ruling.decision {
        wit::Decision::Pass => None,
        wit::Decision::Allow => Some(Decision::Allow),
        wit::Decision::Refuse(message) => Some(Decision::Refuse { message }),
        wit::Decision::Rewrite(edits) => {
            Some(Decision::Rewrite { edits: edits.into_iter().map(edit).collect() })
        }
        wit::Decision::Annotate(text) => Some(Decision::Annotate { text }),
        wit::Decision::Redirect(upstream) => Some(Decision::Redirect { upstream }),
    };
    Said { decision, reason: ruling.reason, flags: ruling.flags }
}

/// Calls `f` with a request and its evidence in the interface's types, which borrow from the host's.
fn with_case<R>(case: &Case<'_>, f: impl FnOnce(wit::Request<'_>, wit::Evidence<'_>) -> R) -> R {
    let facts = case.facts;
    let parts: Vec<Vec<wit::Part<'_>>> =
        case.conversation.messages.iter().map(|message| message.parts.iter().map(part).collect()).collect();
    let messages = case.conversation.messages.iter().zip(&parts).map(|(message, parts)| wit::Message {
        role: match message.role {
            Role::System => wit::Role::System,
            Role::User => wit::Role::User,
            Role::Assistant => wit::Role::Assistant,
            Role::Tool => wit::Role::Tool,
        },
        parts,
    });
    let messages: Vec<_> = messages.collect();
    let languages: Vec<&str> = facts.languages.iter().map(String::as_str).collect();
    let request = wit::Request {
        model: &facts.model,
        path: &facts.path,
        api: &facts.api,
        stream: facts.stream,
        tenant: facts.tenant.as_deref(),
        languages: &languages,
        messages: &messages,
    };
    with_evidence(case.evidence, |evidence| f(request, evidence))
}

fn part(part: &Part) -> wit::Part<'_> {
    match part {
        Part::Text { text } => wit::Part::Text(text),
        Part::Reasoning { text } => wit::Part::Reasoning(text),
        Part::ToolCall { name, arguments } => wit::Part::ToolCall(wit::ToolCall { name, arguments }),
        Part::ToolResult { text } => wit::Part::ToolResult(text),
        Part::Unread { kind } => wit::Part::Unread(kind),
    }
}

fn with_evidence<R>(evidence: &Evidence, f: impl FnOnce(wit::Evidence<'_>) -> R) -> R {
    let probes = evidence.probes.iter().map(|reading| wit::ProbeReading {
        name: &reading.name,
        layer: capped(reading.layer),
        position: match reading.position {
            Position::Last => wit::Position::Last,
            Position::Mean => wit::Position::Mean,
            Position::Max => wit::Position::Max,
        },
        score: reading.score,
        threshold: reading.threshold,
    });
    let probes: Vec<_> = probes.collect();
    let coverage = &evidence.coverage;
    let role = |role: &Role| match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    };
    let roles: Vec<_> = coverage
        .roles
        .iter()
        .map(|(name, &count)| wit::Count { name: role(name), count: capped(count) })
        .collect();
    let unread: Vec<_> =
        coverage.unread.iter().map(|(name, &count)| wit::Count { name, count: capped(count) }).collect();
    let guard = &evidence.guard;
    f(wit::Evidence {
        score: evidence.score,
        signal: match evidence.path {
            Path::Probe => wit::Signal::Probe,
            Path::Reason => wit::Signal::Reason,
            // This version has no word for what no guard has read. There is no direct score then, and all parts are unread.
            Path::Direct | Path::Unassessed => wit::Signal::Direct,
        },
        hazard: evidence.hazard.as_ref().map(|hazard| hazard.as_str()),
        assessment: evidence.assessment.as_ref().map(|written| wit::Assessment {
            understanding: &written.understanding,
            assessment: &written.assessment,
            complete: written.ends.iter().all(|end| *end == PhaseEnd::Complete),
            score: written.score,
        }),
        direct_score: evidence.direct_score,
        probe_score: evidence.probe_score,
        combined_score: evidence.combined_score,
        activation_gap: evidence.activation_gap(),
        probes: &probes,
        coverage: wit::Coverage {
            roles: &roles,
            tool_calls: capped(coverage.tool_calls),
            tool_results: capped(coverage.tool_results),
            reasoning: capped(coverage.reasoning),
            unread: &unread,
            tokens: capped(coverage.tokens),
            tokens_read: capped(coverage.tokens_read),
            windows: capped(coverage.windows),
        },
        guard: wit::GuardVersion {
            bundle: &guard.bundle,
            bundle_sha256: &guard.bundle_sha256,
            base_model: &guard.base_model,
            base_sha256: &guard.base_sha256,
            template: &guard.template,
        },
    })
}

fn capped(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
