//! Which path belongs to which wire format.

use super::{
    WireFormat, anthropic_messages::AnthropicMessages, gemini::Gemini, ollama_chat::OllamaChat,
    ollama_generate::OllamaGenerate, openai_chat::OpenAiChat, openai_completions::OpenAiCompletions,
    openai_responses::OpenAiResponses,
};
use crate::config::is_plain;

const FIXED: [(&str, &dyn WireFormat); 6] = [
    ("/v1/chat/completions", &OpenAiChat),
    ("/v1/completions", &OpenAiCompletions),
    ("/v1/responses", &OpenAiResponses),
    ("/v1/messages", &AnthropicMessages),
    ("/api/chat", &OllamaChat),
    ("/api/generate", &OllamaGenerate),
];

/// The format of requests that are posted to this path.
pub(crate) fn find(path: &str) -> Option<&'static dyn WireFormat> {
    let fixed = FIXED.iter().find(|(own, _)| *own == path).map(|(_, format)| *format);
    fixed.or_else(|| {
        let gemini = is_plain(path) && Gemini::target(path).is_some();
        gemini.then_some(&Gemini as &dyn WireFormat)
    })
}

/// Whether a server might take this path for one that [`find`] knows, or serve the same API there.
pub(crate) fn resembles(path: &str) -> bool {
    const TAILS: [&str; 8] = [
        "/completions",
        "chat/completions",
        "/responses",
        "/v1/messages",
        "/api/chat",
        "/api/generate",
        ":generatecontent",
        ":streamgeneratecontent",
    ];
    let folded = path.to_ascii_lowercase().replace("%3a", ":");
    let folded = folded.trim_end_matches('/');
    TAILS.iter().any(|tail| folded.ends_with(tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_their_formats() {
        fn check(path: &str, expected: Option<&str>) {
            assert_eq!(find(path).map(WireFormat::name), expected, "{path}");
        }
        check("/v1/chat/completions", Some("openai-chat"));
        check("/v1/completions", Some("openai-completions"));
        check("/v1/responses", Some("openai-responses"));
        check("/v1/messages", Some("anthropic-messages"));
        check("/api/chat", Some("ollama-chat"));
        check("/api/generate", Some("ollama-generate"));
        check("/v1beta/models/gemini-2:generateContent", Some("gemini"));
        check("/v1/models/gemini-2:streamGenerateContent", Some("gemini"));
        check("/v1beta/tunedModels/x:generateContent", Some("gemini"));
        check("/v1beta/models/gemini-2:countTokens", None);
        check("/v1beta/models/:generateContent", None);
        check("/v1beta/models/a/b:generateContent", None);
        check("/v1beta/models/%67:generateContent", None);
        check("/v1/messages/count_tokens", None);
        check("/v1/responses/resp_1", None);
    }

    #[test]
    fn lookalikes() {
        for path in [
            "/chat/completions",
            "/V1/Completions/",
            "/openai/v1/responses",
            "/anthropic/v1/messages",
            "/ollama/api/chat",
            "/v1beta/models/m%3AgenerateContent",
            "/v1beta/models/m%3astreamgeneratecontent",
            "/v2/models/m:generateContent",
        ] {
            assert!(resembles(path) && find(path).is_none(), "{path}");
        }
        for path in
            ["/v1/embeddings", "/v1/chat/completions/chatcmpl-1", "/v1/threads/t/messages", "/api/tags"]
        {
            assert!(!resembles(path), "{path}");
        }
    }
}
