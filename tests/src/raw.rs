//! An upstream that speaks HTTP/1.1 byte by byte, so that it can do what no server does: break off anywhere, contradict
//! itself, and never end.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

/// What is done with a connection, in order. At the end the next request is read from it.
#[derive(Clone, Debug)]
pub enum Step {
    /// Sends these bytes as they are.
    Send(Bytes),
    /// Sends these bytes again and again, until the other side leaves.
    Repeat(Bytes),
    /// Pauses.
    Wait(Duration),
    /// Receives the rest of the request, where [`RawUpstream::hasty`] has not waited for it.
    Receive,
    /// Says nothing more, until the other side leaves.
    Hang,
    /// Closes the connection.
    Close,
    /// Resets the connection.
    Reset,
}

/// A request as it came over the wire.
#[derive(Clone, Debug)]
pub struct RawRequest {
    /// From the first line to the empty one.
    pub head: String,
    /// As its framing says; empty where nobody waited for it.
    pub body: Vec<u8>,
}

type Script = dyn Fn(&RawRequest) -> Vec<Step> + Send + Sync;

/// A server that stands for an LLM API, and keeps to no rules.
pub struct RawUpstream {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    left: watch::Sender<usize>,
    server: JoinHandle<()>,
}

impl RawUpstream {
    /// A server that does what `script` says, once it has received a request in whole.
    pub async fn start(script: impl Fn(&RawRequest) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::with(script, false).await
    }

    /// A server that does what `script` says as soon as it has received a request's head.
    pub async fn hasty(script: impl Fn(&RawRequest) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::with(script, true).await
    }

    async fn with(script: impl Fn(&RawRequest) -> Vec<Step> + Send + Sync + 'static, hasty: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (requests, left) = (Arc::new(AtomicUsize::new(0)), watch::Sender::new(0));
        let script: Arc<Script> = Arc::new(script);
        let server = tokio::spawn({
            let (requests, left) = (requests.clone(), left.clone());
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let _ = stream.set_nodelay(true);
                    let connection = Connection { stream, buffer: Vec::new(), left: left.clone() };
                    tokio::spawn(connection.serve(script.clone(), requests.clone(), hasty));
                }
            }
        });
        Self { address, requests, left, server }
    }

    /// Its base URL, as clients take it.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// How many requests have arrived.
    pub fn requests(&self) -> usize {
        self.requests.load(Relaxed)
    }

    /// Waits until the callers of this many answers without an end have left.
    pub async fn left(&self, count: usize) {
        self.left.subscribe().wait_for(|left| *left >= count).await.expect("the server lives");
    }
}

impl Drop for RawUpstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Connection {
    stream: TcpStream,
    /// What was received and not yet used.
    buffer: Vec<u8>,
    left: watch::Sender<usize>,
}

impl Connection {
    async fn serve(mut self, script: Arc<Script>, requests: Arc<AtomicUsize>, hasty: bool) -> Option<()> {
        loop {
            let end = self.until(0, b"\r\n\r\n").await?;
            let head = String::from_utf8_lossy(&self.take(end)).into_owned();
            let body = if hasty { Vec::new() } else { self.body(&head).await? };
            requests.fetch_add(1, Relaxed);
            let request = RawRequest { head, body };
            for step in script(&request) {
                match step {
                    Step::Send(bytes) => self.stream.write_all(&bytes).await.ok()?,
                    Step::Repeat(bytes) => {
                        while self.stream.write_all(&bytes).await.is_ok() {}
                        self.left.send_modify(|left| *left += 1);
                        return None;
                    }
                    Step::Wait(time) => sleep(time).await,
                    Step::Receive => drop(self.body(&request.head).await?),
                    Step::Hang => {
                        while self.stream.read(&mut [0; 1_024]).await.is_ok_and(|read| read > 0) {}
                        self.left.send_modify(|left| *left += 1);
                        return None;
                    }
                    Step::Close => return None,
                    Step::Reset => return self.stream.set_zero_linger().ok(),
                }
            }
        }
    }

    async fn body(&mut self, head: &str) -> Option<Vec<u8>> {
        let head = head.to_ascii_lowercase();
        if head.contains("transfer-encoding:") {
            let mut body = Vec::new();
            loop {
                let end = self.until(0, b"\r\n").await?;
                let line = String::from_utf8(self.take(end)).ok()?;
                let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
                self.fill(size + 2).await?;
                body.extend_from_slice(&self.take(size + 2)[..size]);
                if size == 0 {
                    return Some(body);
                }
            }
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length = length.map_or(Ok(0), |length| length.trim().parse()).ok()?;
        self.fill(length).await?;
        Some(self.take(length))
    }

    /// Receives until the buffer, from `from` on, holds `mark`; gives the place after it.
    async fn until(&mut self, from: usize, mark: &[u8]) -> Option<usize> {
        loop {
            let found = self.buffer[from..].windows(mark.len()).position(|bytes| bytes == mark);
            if let Some(found) = found {
                return Some(from + found + mark.len());
            }
            self.more().await?;
        }
    }

    async fn fill(&mut self, length: usize) -> Option<()> {
        while self.buffer.len() < length {
            self.more().await?;
        }
        Some(())
    }

    async fn more(&mut self) -> Option<()> {
        let read = self.stream.read_buf(&mut self.buffer).await.ok()?;
        (read > 0).then_some(())
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        self.buffer.drain(..length).collect()
    }
}
