//! An axum app that answers chats itself, with the guard before it:
//!
//! ```sh
//! cargo run --release -p forethought-examples --example axum_middleware
//! curl http://127.0.0.1:3000/v1/chat/completions -H 'content-type: application/json' \
//!     -d '{"model": "echo", "messages": [{"role": "user", "content": "What is a llama?"}]}'
//! ```
//!
//! Settings come from `forethought.toml` and the environment, as for `forethought serve`.

use anyhow::Result;
use axum::{
    Router,
    body::Bytes,
    http::header,
    response::IntoResponse,
    routing::{get, post},
};
use forethought_proxy::{CheckedConfig, cli::models, config::Sources, layer::GuardLayer};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// The app's own model; it only repeats what it is told.
async fn chat(request: Bytes) -> impl IntoResponse {
    // The guard has read it: it is JSON.
    let request: Value = serde_json::from_slice(&request).unwrap_or_default();
    let said = request["messages"].as_array().and_then(|messages| messages.last()?["content"].as_str());
    let message = json!({"role": "assistant", "content": said.unwrap_or_default()});
    let answer = json!({
        "id": "echo",
        "object": "chat.completion",
        "model": "echo",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    });
    ([(header::CONTENT_TYPE, "application/json")], answer.to_string())
}

fn main() -> Result<()> {
    let config = CheckedConfig::load(&Sources::of_process(None, vec![]))?;
    // Fetches the model where it is not there; this blocks.
    let (guard, _) = models::load_any(&config.guard)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let guarded =
            Router::new().route("/v1/chat/completions", post(chat)).layer(GuardLayer::new(config, guard)?);
        // What lies outside of the layer is not looked at.
        let app = guarded.route("/", get(async || "ask me at /v1/chat/completions"));
        let listener = TcpListener::bind("127.0.0.1:3000").await?;
        println!("http://{}", listener.local_addr()?);
        axum::serve(listener, app).await?;
        Ok(())
    })
}
