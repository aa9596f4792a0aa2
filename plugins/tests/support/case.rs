//! A request and its evidence.

use forethought_core::{
    conversation::{Conversation, Message, Part, Role},
    evidence::{Assessment, Coverage, Evidence, GuardVersion, Hazard, Path, PhaseEnd, ProbeReading, Timings},
    policy::RequestFacts,
    probe::Position,
};

/// One of everything.
pub(crate) fn case() -> (RequestFacts, Conversation, Evidence) {
    let facts = RequestFacts {
        model: "some-model".into(),
        path: "/v1/chat/completions".into(),
        api: "openai-chat".into(),
        stream: true,
        tenant: Some("school".into()),
        languages: vec!["de-ch".into(), "en".into()],
    };
    let call = Part::ToolCall { name: "f".into(), arguments: "{}".into() };
    let conversation = Conversation {
        messages: vec![
            Message::text(Role::System, "Be brief."),
            Message {
                role: Role::User,
                parts: vec![
                    Part::Text { text: "h\u{e4}?".into() },
                    Part::Unread { kind: "image_url".into() },
                ],
            },
            Message { role: Role::Assistant, parts: vec![Part::Reasoning { text: "hm".into() }, call] },
            Message { role: Role::Tool, parts: vec![Part::ToolResult { text: "42".into() }] },
        ],
    };
    let evidence = Evidence {
        score: 0.75,
        path: Path::Reason,
        hazard: Some(Hazard::new("cyber")),
        assessment: Some(Assessment {
            understanding: "u".into(),
            assessment: "a".into(),
            ends: [PhaseEnd::Complete, PhaseEnd::Cap],
            score: 0.75,
        }),
        direct_score: Some(0.5),
        probe_score: Some(1.0),
        combined_score: None,
        probes: vec![ProbeReading {
            name: "p".into(),
            layer: 18,
            position: Position::Mean,
            score: 1.0,
            threshold: 0.5,
        }],
        partial: false,
        coverage: Coverage {
            roles: [(Role::User, 1)].into(),
            unread: [("image_url".to_owned(), 1)].into(),
            tokens: 10,
            tokens_read: 9,
            windows: 1,
            ..Coverage::default()
        },
        timings: Timings::default(),
        guard: GuardVersion { bundle: "b 1".into(), ..GuardVersion::default() },
        steps: vec![],
    };
    (facts, conversation, evidence)
}
