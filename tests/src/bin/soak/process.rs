//! The processes of a soak: proxies, each with its own memory to look at, and wrk.

use std::{
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::RunArgs;

/// A proxy in a process of its own.
pub(crate) struct Running {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    pub(crate) folder: PathBuf,
    pub(crate) process: Child,
    pub(crate) panics: Arc<AtomicUsize>,
    /// Resident memory in MiB, again and again.
    pub(crate) memory: Vec<f64>,
}

pub(crate) fn start(name: &'static str, toml: &str, upstream: &str, folder: &Path) -> Result<Running> {
    std::fs::create_dir_all(folder)?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?; // free a moment ago
    let file = folder.join("forethought.toml");
    let audit = folder.join("audit.jsonl");
    let text = format!(
        "listen = \"{address}\"\naudit = {{ path = \"{}\", max_bytes = 100000000000 }}\nlog.level = \"error\"\n\
         upstream = {{ url = \"{upstream}\", idle_timeout_ms = 500 }}\n{toml}",
        audit.display()
    );
    std::fs::write(&file, text)?;
    let mut process = Command::new(std::env::current_exe()?)
        .args(["serve", "--config"])
        .arg(&file)
        .stderr(Stdio::piped())
        .spawn()?;
    let panics = Arc::new(AtomicUsize::new(0));
    let stderr = process.stderr.take().context("no standard error")?;
    std::thread::spawn({
        let panics = panics.clone();
        move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                panics.fetch_add(usize::from(line.contains("panicked")), Relaxed);
                eprintln!("{name}: {line}");
            }
        }
    });
    let since = Instant::now();
    while std::net::TcpStream::connect(address).is_err() {
        ensure!(since.elapsed() < Duration::from_secs(30), "the proxy does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(Running { name, address, folder: folder.to_owned(), process, panics, memory: vec![] })
}

/// Resident memory of a process, in MiB.
pub(crate) fn memory(process: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

/// Runs wrk against a proxy; gives what it counted.
pub(crate) fn wrk(proxy: &Running, args: &RunArgs) -> Result<Child> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("soak/mixed.lua");
    let mut command = Command::new("wrk");
    command.args(["--threads", "2", "--timeout", "30s"]);
    command.args([
        "--connections",
        &args.connections.to_string(),
        "--duration",
        &format!("{}s", args.seconds),
    ]);
    command.arg("--script").arg(script).arg(format!("http://{}", proxy.address)).arg("--").arg(&proxy.folder);
    command.stdout(Stdio::piped()).spawn().context("can't run wrk: install it (apt-get install wrk)")
}
