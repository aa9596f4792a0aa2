//! A plain HTTP client.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};

/// A client of one server.
#[derive(Clone)]
pub struct Client {
    base: String,
    inner: legacy::Client<HttpConnector, Full<Bytes>>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Reply {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("visible ASCII"))
    }

    /// The code of an error in OpenAI's shape.
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The data of a stream's events, in order, `[DONE]` as the string of that name.
    pub fn events(&self) -> Vec<Value> {
        let text = std::str::from_utf8(&self.body).expect("UTF-8");
        let data = text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").expect("data: "));
        data.map(|data| serde_json::from_str(data).unwrap_or_else(|_| data.into())).collect()
    }
}

impl Client {
    /// A client over HTTP/1.1.
    pub fn new(base: String) -> Self {
        Self { base, inner: legacy::Client::builder(TokioExecutor::new()).build_http() }
    }

    /// A client over HTTP/2 with prior knowledge.
    pub fn http2(base: String) -> Self {
        Self { base, inner: legacy::Client::builder(TokioExecutor::new()).http2_only(true).build_http() }
    }

    /// Sends a request and gives the answer's head, its body still to come.
    ///
    /// # Errors
    /// The connection's.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: impl Into<Bytes>,
    ) -> Result<Response<Incoming>, legacy::Error> {
        let mut request = Request::new(Full::new(body.into()));
        *request.method_mut() = method;
        *request.uri_mut() = format!("{}{path}", self.base).parse().expect("a URI");
        *request.headers_mut() = headers;
        self.inner.request(request).await
    }

    /// Sends a request and reads the whole answer.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: impl Into<Bytes>,
    ) -> Reply {
        let response = self.open(method, path, headers, body).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        Reply { status: parts.status, headers: parts.headers, body }
    }

    /// Posts to the chat API and reads the whole answer.
    pub async fn chat(&self, body: &Value) -> Reply {
        self.send(Method::POST, "/v1/chat/completions", json_headers(), body.to_string()).await
    }
}

/// Headers of a JSON request.
pub fn json_headers() -> HeaderMap {
    HeaderMap::from_iter([(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"))])
}

/// A chat request of one user message, with `more` fields.
pub fn chat(text: &str, more: Value) -> Value {
    let mut body = json!({"model": "some-model", "messages": [{"role": "user", "content": text}]});
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    body
}
