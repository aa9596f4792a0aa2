//! A hub on loopback: answers scripted by the test, requests kept for it to look at.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Path and query.
    pub(crate) target: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    /// The first byte of a `Range: bytes=N-`.
    pub(crate) fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// An answer; the connection is closed after it.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// Close after this many bytes of the body, although all are promised.
    pub(crate) cut: Option<usize>,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Reply { status, headers: Vec::new(), body: b"{}".to_vec(), cut: None }
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Reply { status: 200, headers: Vec::new(), body: body.into(), cut: None }
    }

    /// The body, or the range of it that is asked for.
    pub(crate) fn ranged(request: &Request, body: &[u8]) -> Self {
        match request.range_start() {
            None => Reply::ok(body),
            Some(start) if start < body.len() => {
                let range = format!("bytes {start}-{}/{}", body.len() - 1, body.len());
                Reply { status: 206, headers: vec![("content-range", range)], ..Reply::ok(&body[start..]) }
            }
            Some(_) => Reply::status(416),
        }
    }
}

pub(crate) struct Server {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Serves until the test process ends.
    pub(crate) fn start(handler: impl Fn(&Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let seen = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(request) = read(&stream) else { continue };
                seen.lock().unwrap().push(request.clone());
                // A client that has left is part of some tests.
                let _ = write(&mut stream, &handler(&request));
            }
        });
        Server { port, requests }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The same server under another host name.
    pub(crate) fn other_host_url(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let target = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    Some(Request { target, headers })
}

fn write(stream: &mut TcpStream, reply: &Reply) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status)?;
    for (name, value) in &reply.headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    write!(stream, "content-length: {}\r\n\r\n", reply.body.len())?;
    stream.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len())])
}
