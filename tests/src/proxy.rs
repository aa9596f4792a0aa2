//! A proxy under test, on a free port, with its audit file in a folder of its own.

use std::{net::SocketAddr, sync::Arc};

use forethought_core::{generate::ChatModel, guard::Guard};
use forethought_proxy::{
    Models, Proxy, Reloader,
    admin::Admin,
    cli::serve::build,
    config::{CheckedConfig, Flag, Sources},
    server::Listener,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

use crate::{Client, FakeGuard, FakeModel};

/// A running proxy.
pub struct TestProxy {
    /// Where it listens.
    pub address: SocketAddr,
    /// The proxy itself.
    pub proxy: Arc<Proxy>,
    /// What its configuration was read from.
    pub sources: Sources,
    /// What a reload loads.
    pub models: Models,
    /// Where its admin listener listens, if the configuration has one.
    pub admin: Option<SocketAddr>,
    operators: Option<JoinHandle<()>>,
    folder: TempDir,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<std::io::Result<()>>,
}

impl TestProxy {
    /// A proxy before the API at `upstream`, with a configuration file of this text.
    pub async fn start(guard: &FakeGuard, upstream: &str, toml: &str) -> Self {
        Self::with(Arc::new(guard.clone()), None, upstream, toml).await
    }

    /// A proxy with a model in process.
    pub async fn embedded(guard: &FakeGuard, model: &FakeModel, toml: &str) -> Self {
        Self::with(Arc::new(guard.clone()), Some(Arc::new(model.clone())), "embedded", toml).await
    }

    /// A proxy before the API at `upstream`, with any guard.
    pub async fn guarded(guard: Arc<dyn Guard>, upstream: &str, toml: &str) -> Self {
        Self::with(guard, None, upstream, toml).await
    }

    async fn with(
        guard: Arc<dyn Guard>,
        chat: Option<Arc<dyn ChatModel>>,
        upstream: &str,
        toml: &str,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("forethought.toml");
        std::fs::write(&file, toml).expect("a file");
        let usual = folder.path().join("audit.jsonl").display().to_string();
        let mut flags = vec![("listen", "127.0.0.1:0".to_owned()), ("upstream.url", upstream.to_owned())];
        if !toml.contains("audit = { path = ") {
            flags.push(("audit.path", usual));
        }
        let flag =
            |(key, value): (&str, String)| Flag { name: "test".to_owned(), key: key.to_owned(), value };
        let flags = flags.into_iter().map(flag).collect();
        let sources = Sources { file: Some(file), environment: vec![], flags };
        let config = CheckedConfig::load(&sources).unwrap_or_else(|problems| panic!("{problems}"));
        let listener = Listener::bind(&config.listen).await.expect("a port");
        let address = listener.address().expect("an address");
        let models = Models { guard, chat };
        let proxy = build(config.clone(), models.clone()).expect("a proxy");
        let (admin, operators) = match config.admin.clone() {
            None => (None, None),
            Some(admin) => {
                let listener = TcpListener::bind(admin.listen).await.expect("a port");
                let address = listener.local_addr().expect("an address");
                let admin = Admin::new(admin);
                let load = {
                    let models = models.clone();
                    Box::new(move |_: &CheckedConfig| Ok(models.clone()))
                };
                let reloader = Reloader::new(proxy.clone(), sources.clone(), load);
                admin.started(proxy.clone(), Some(reloader));
                (Some(address), Some(tokio::spawn(admin.serve(listener))))
            }
        };
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(proxy.clone().serve(listener, async {
            let _ = stopped.await;
        }));
        Self { address, proxy, sources, models, admin, operators, folder, stop: Some(stop), server }
    }

    /// Its base URL, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What reloads it.
    pub fn reloader(&self) -> Reloader {
        let models = self.models.clone();
        Reloader::new(self.proxy.clone(), self.sources.clone(), Box::new(move |_| Ok(models.clone())))
    }

    /// Writes another configuration file; it is read at the next reload.
    pub fn rewrite_config(&self, toml: &str) {
        std::fs::write(self.folder.path().join("forethought.toml"), toml).expect("a file");
    }

    /// A client of it over HTTP/1.1.
    pub fn client(&self) -> Client {
        Client::new(self.url())
    }

    /// A client of its admin listener.
    ///
    /// # Panics
    /// If it has none.
    pub fn operator(&self) -> Client {
        Client::new(format!("http://{}", self.admin.expect("an admin listener")))
    }

    /// Opens a connection, sends these bytes and gives the connection.
    pub async fn connect(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.expect("a connection");
        stream.write_all(bytes).await.expect("sent");
        stream
    }

    /// Sends these bytes over a connection of their own, and reads until the proxy closes it.
    pub async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect(bytes).await;
        let mut answer = Vec::new();
        // A reset ends the answer just as well.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Tells the proxy to stop.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Stops the proxy, waits until it has, and gives its audit records.
    pub async fn records(mut self) -> Vec<Value> {
        self.stop();
        (&mut self.server).await.expect("no panic").expect("a clean stop");
        let text = std::fs::read_to_string(self.folder.path().join("audit.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

impl Drop for TestProxy {
    fn drop(&mut self) {
        if let Some(operators) = &self.operators {
            operators.abort();
        }
    }
}
