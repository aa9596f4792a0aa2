//! A soak: mixed traffic for a long time, counted from all sides. `soak run` starts an upstream that fails now and then and
//! two proxies in processes of their own, has `wrk` and callers that leave send requests, and then compares what the
//! clients, the audit files and the upstream have seen. It writes `docs/robustness.md`.
//!
//! `cargo run --release -p forethought-tests --bin soak -- run --seconds 600 --out docs/robustness.md`

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
    fs::File,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser};
use forethought_proxy::cli::{
    config::ConfigArgs,
    serve::{Models, ServeArgs, run},
};
use forethought_tests::{FORMATS, FakeGuard, RawRequest, RawUpstream, Step};
use rand::RngExt;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

/// The proxies: name and configuration.
const PROXIES: [(&str, &str); 2] = [
    ("guard-first", ""),
    ("parallel, answers read", "policy.order = \"parallel\"\nresponse_guard.enabled = true\n"),
];
/// Callers that leave, for each proxy.
const LEAVERS: usize = 4;
const SAMPLE: Duration = Duration::from_secs(5);

#[derive(Parser)]
enum Cli {
    /// Runs the soak
    Run(RunArgs),
    /// One of its proxies
    Serve {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        serve: ServeArgs,
    },
}

#[derive(Args)]
struct RunArgs {
    /// How long requests are sent
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Connections of wrk to each proxy
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// File for the report, beside standard output
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> Result<()> {
    match Cli::parse() {
        Cli::Run(args) => tokio::runtime::Runtime::new()?.block_on(soak(&args)),
        Cli::Serve { config, serve } => {
            let guard = Arc::new(FakeGuard::reading().taking(Duration::from_millis(3)).forgetful());
            run(&serve, &config, move |_| Ok(Models { guard: guard.clone(), chat: None }))
        }
    }
}

/// How often each id has reached the upstream.
type Arrived = Arc<Mutex<HashMap<String, usize>>>;

async fn upstream(arrived: Arrived) -> RawUpstream {
    RawUpstream::start(move |request| {
        let (id, steps) = answer(request).unwrap_or_else(|| ("unknown".to_owned(), vec![Step::Close]));
        *arrived.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default() += 1;
        steps
    })
    .await
}

/// Who asks, and what is done.
fn answer(request: &RawRequest) -> Option<(String, Vec<Step>)> {
    let target = request.head.split(' ').nth(1)?;
    let body: Value = serde_json::from_slice(&request.body).ok()?;
    let gemini = target.strip_prefix("/v1beta/models/").and_then(|rest| rest.split_once(':'));
    let (id, stream) = match gemini {
        Some((id, method)) => (id, method.starts_with("stream")),
        None => (body["model"].as_str()?, body["stream"] == true),
    };
    let format = match gemini {
        Some(_) => FORMATS.iter().find(|format| format.name == "gemini"),
        None => FORMATS.iter().find(|format| format.path == target),
    }?;
    let (kind, body) = format.answer("A llama is an animal of the Andes. It is kept for its wool.", stream);
    let text = String::from_utf8_lossy(&request.body);
    let fault = text.split("fault: ").nth(1).and_then(|rest| rest.split('"').next());
    Some((id.to_owned(), steps(fault, kind, &body)))
}

fn steps(fault: Option<&str>, kind: &str, body: &str) -> Vec<Step> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n");
    let sized = |body: &str, length: usize| {
        Step::Send(format!("{head}content-length: {length}\r\n\r\n{body}").into())
    };
    let chunked = |body: &str| {
        Step::Send(format!("{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n", body.len()).into())
    };
    let half = &body[..body.len() / 2];
    match fault {
        Some("reset before the head") => vec![Step::Reset],
        Some("reset in the body") => vec![sized(half, body.len()), Step::Reset],
        Some("closed before the last chunk") => vec![chunked(body), Step::Close],
        Some("slow") => {
            let pause = Step::Wait(Duration::from_millis(5));
            let pieces = body.as_bytes().chunks(40).map(|piece| Step::Send(piece.to_vec().into()));
            [sized("", body.len())]
                .into_iter()
                .chain(pieces.flat_map(|piece| [pause.clone(), piece]))
                .collect()
        }
        Some("silent") => vec![chunked(half), Step::Hang],
        Some("an error") => {
            let error = "HTTP/1.1 500 Oh\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
            vec![Step::Send(error.into())]
        }
        _ => vec![sized(body, body.len())],
    }
}

/// A proxy in a process of its own.
struct Running {
    name: &'static str,
    address: SocketAddr,
    folder: PathBuf,
    process: Child,
    panics: Arc<AtomicUsize>,
    /// Resident memory in MiB, every [`SAMPLE`].
    memory: Vec<f64>,
}

fn start(name: &'static str, toml: &str, upstream: &str, folder: &Path) -> Result<Running> {
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
fn memory(process: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

/// What callers that leave have done.
#[derive(Debug, Default)]
struct Left {
    /// By how far they got; only what ends in the middle of the head is no request.
    stages: Mutex<BTreeMap<&'static str, usize>>,
}

/// Sends requests and leaves, until it is told to stop.
async fn leave(address: SocketAddr, caller: usize, left: Arc<Left>, stop: Arc<AtomicBool>) {
    let mut round = 0;
    while !stop.load(Relaxed) {
        round += 1;
        let (stage, cut, pause) = {
            let mut random = rand::rng();
            let stage = ["in the head", "in the body", "at once", "while waiting", "in the answer"]
                [random.random_range(0..5)];
            (stage, random.random_range(0.1..0.9), random.random_range(0..200))
        };
        let format = &FORMATS[round % FORMATS.len()];
        let stream = round % 2 == 0;
        let id = format!("cut-{caller}-{round}");
        let slow = if stage == "in the answer" { "fault: slow" } else { "What is a llama?" };
        let body = format.ask(slow, stream).to_string().replace("embedded", &id);
        let target = format.target(stream).replace("embedded", &id);
        let head = format!(
            "POST {target} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let part = |text: &str| (text.len() as f64 * cut) as usize;
        let sent = match stage {
            "in the head" => head[..part(&head)].to_owned(),
            "in the body" => format!("{head}{}", &body[..part(&body)]),
            _ => head + &body,
        };
        let went = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(sent.as_bytes()).await?;
            match stage {
                "while waiting" => sleep(Duration::from_micros(pause * 5)).await,
                "in the answer" => drop(stream.read(&mut [0; 64]).await?),
                _ => {}
            }
            std::io::Result::Ok(())
        };
        if went.await.is_ok() {
            *left.stages.lock().unwrap_or_else(PoisonError::into_inner).entry(stage).or_default() += 1;
        }
        sleep(Duration::from_millis(pause)).await;
    }
}

/// Runs wrk against a proxy; gives what it counted.
fn wrk(proxy: &Running, args: &RunArgs) -> Result<Child> {
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

async fn soak(args: &RunArgs) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let arrived: [Arrived; 2] = Default::default();
    let mut upstreams = Vec::new();
    let mut proxies = Vec::new();
    for ((name, toml), arrived) in PROXIES.iter().zip(&arrived) {
        let upstream = upstream(arrived.clone()).await;
        proxies.push(start(name, toml, &upstream.url(), &folder.path().join(name.replace(' ', "-")))?);
        upstreams.push(upstream);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let left: Vec<Arc<Left>> = proxies.iter().map(|_| Arc::default()).collect();
    let mut leavers = Vec::new();
    for (proxy, left) in proxies.iter().zip(&left) {
        for caller in 0..LEAVERS {
            leavers.push(tokio::spawn(leave(proxy.address, caller, left.clone(), stop.clone())));
        }
    }
    let mut loads = proxies.iter().map(|proxy| wrk(proxy, args)).collect::<Result<Vec<_>>>()?;
    while loads.iter_mut().any(|load| !matches!(load.try_wait(), Ok(Some(_)))) {
        sleep(SAMPLE).await;
        for proxy in &mut proxies {
            proxy.memory.push(memory(proxy.process.id())?);
        }
    }
    stop.store(true, Relaxed);
    for leaver in leavers {
        leaver.await?;
    }
    let mut report = Report::new(args);
    for (((proxy, load), left), arrived) in proxies.into_iter().zip(loads).zip(left).zip(&arrived) {
        let load = String::from_utf8(load.wait_with_output()?.stdout)?;
        let arrived = std::mem::take(&mut *arrived.lock().unwrap_or_else(PoisonError::into_inner));
        let left = left.stages.lock().unwrap_or_else(PoisonError::into_inner).clone();
        report.add(proxy, &load, &left, &arrived)?;
    }
    print!("{}", report.text());
    if let Some(out) = &args.out {
        std::fs::write(out, report.text())?;
    }
    report.verdict()
}

/// What was counted, a column for each proxy.
struct Report {
    seconds: u64,
    connections: usize,
    names: Vec<&'static str>,
    rows: Vec<(String, Vec<String>)>,
    wrong: Vec<String>,
}

impl Report {
    fn new(args: &RunArgs) -> Self {
        Self {
            seconds: args.seconds,
            connections: args.connections,
            names: vec![],
            rows: vec![],
            wrong: vec![],
        }
    }

    fn row(&mut self, name: &str, value: impl ToString) {
        let column = self.names.len() - 1;
        let at = self.rows.iter().position(|(own, _)| own == name).unwrap_or_else(|| {
            self.rows.push((name.to_owned(), vec![]));
            self.rows.len() - 1
        });
        let values = &mut self.rows[at].1;
        values.resize(column, "0".to_owned());
        values.push(value.to_string());
    }

    /// Counts something that must be none.
    fn none(&mut self, name: &str, count: usize) {
        if count > 0 {
            self.wrong.push(format!("{}: {name}: {count}", self.names[self.names.len() - 1]));
        }
        self.row(name, count);
    }

    fn add(
        &mut self,
        mut proxy: Running,
        load: &str,
        left: &BTreeMap<&'static str, usize>,
        arrived: &HashMap<String, usize>,
    ) -> Result<()> {
        self.names.push(proxy.name);
        Command::new("kill").arg(proxy.process.id().to_string()).status()?;
        let clean = proxy.process.wait()?.success();

        // The clients' side.
        let counted = |name: &str| -> Result<usize> {
            let line = load.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            Ok(line.with_context(|| format!("wrk does not say `{name}`:\n{load}"))?.trim().parse()?)
        };
        let mut answers: HashMap<String, usize> = HashMap::new();
        let mut statuses: BTreeMap<String, usize> = BTreeMap::new();
        for thread in 0..2 {
            let file = File::open(proxy.folder.join(format!("answers-{thread}.txt")))?;
            for line in BufReader::new(file).lines() {
                let line = line?;
                let (id, status) = line.split_once(' ').context("a torn line")?;
                *answers.entry(id.to_owned()).or_default() += 1;
                *statuses.entry(status.to_owned()).or_default() += 1;
            }
        }
        let (issued, broken) = (counted("issued")?, counted("read")? + counted("write")?);
        self.row("requests of wrk", issued);
        for (status, count) in &statuses {
            self.row(&format!("answered with {status}"), count);
        }
        self.row("answers that broke off", broken);
        let in_flight = issued.saturating_sub(answers.values().sum::<usize>() + broken);
        self.row("under way when wrk ended", in_flight);
        let heads: usize =
            left.iter().filter(|(stage, _)| **stage != "in the head").map(|(_, count)| count).sum();
        for (stage, count) in left {
            self.row(&format!("callers that left {stage}"), count);
        }

        // The audit file's side.
        let mut ids = HashSet::new();
        let mut by_model: HashMap<String, usize> = HashMap::new();
        let (mut twice, mut unread, mut of_leavers, mut strays) = (0, 0, 0, 0);
        let mut decisions: BTreeMap<String, usize> = BTreeMap::new();
        let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
        let (mut missing, mut refused_sent) = (0, 0);
        let mut records = 0;
        for line in BufReader::new(File::open(proxy.folder.join("audit.jsonl"))?).lines() {
            let record: Value = serde_json::from_str(&line?)?;
            records += 1;
            let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
            twice += usize::from(!ids.insert(text("id")));
            *decisions.entry(text("decision")).or_default() += 1;
            *outcomes.entry(text("outcome")).or_default() += 1;
            let (model, reached) = (text("model"), record["upstream_contacted"] == true);
            if model.is_empty() {
                unread += 1;
                continue;
            }
            *by_model.entry(model.clone()).or_default() += 1;
            of_leavers += usize::from(model.starts_with("cut-"));
            let came = arrived.get(&model).copied().unwrap_or_default();
            // Whoever left in time may have kept the request from going up.
            missing += usize::from(text("outcome") == "finished" && text("decision") == "allow" && came == 0);
            strays += usize::from(came > 0 && !reached);
            refused_sent += usize::from(text("decision") == "refuse" && came > 0);
        }
        self.row("audit records", records);
        for (decision, count) in &decisions {
            self.row(&format!("records that say `{decision}`"), count);
        }
        for (outcome, count) in &outcomes {
            self.row(&format!("records that end `{outcome}`"), count);
        }
        self.row("requests that reached the upstream", arrived.values().sum::<usize>());

        // One against the other.
        self.none("ids of records seen twice", twice);
        self.none("requests with two records", by_model.values().filter(|count| **count > 1).count());
        self.none("answers without a record", answers.keys().filter(|id| !ids.contains(*id)).count());
        self.none("requests with two answers", answers.values().filter(|count| **count > 1).count());
        let of_wrk = by_model.len() - by_model.keys().filter(|model| model.starts_with("cut-")).count();
        self.none("records of wrk's requests that nobody sent", of_wrk.saturating_sub(issued));
        let open = self.connections + answers.len() + broken;
        self.none(
            "records of wrk's requests beyond answers, breaks and connections",
            of_wrk.saturating_sub(open),
        );
        self.none(
            "wrk's answers and breaks without a record",
            (answers.len() + broken).saturating_sub(of_wrk),
        );
        let difference = heads.abs_diff(of_leavers + unread);
        self.none("requests of callers that left, beyond or below their records", difference);
        self.none(
            "requests that reached the upstream twice",
            arrived.values().filter(|count| **count > 1).count(),
        );
        self.none("requests at the upstream whose record denies it", strays);
        self.none(
            "requests at the upstream without a record",
            arrived.keys().filter(|id| !by_model.contains_key(*id)).count(),
        );
        self.none("allowed and answered, but not seen by the upstream", missing);
        if proxy.name == "guard-first" {
            self.none("refused requests that were sent upstream", refused_sent);
        } else {
            self.row("refused requests that were sent upstream", refused_sent);
        }
        self.none("panics", proxy.panics.load(Relaxed));
        self.none("proxies that did not stop cleanly", usize::from(!clean));
        self.memory(&proxy.memory);
        Ok(())
    }

    /// Resident memory: flat is within a tenth and 8 MiB of what it was once warm.
    fn memory(&mut self, samples: &[f64]) {
        let tenth = (samples.len() / 10).max(1);
        let mean = |samples: &[f64]| samples.iter().sum::<f64>() / samples.len().max(1) as f64;
        let early = mean(&samples[tenth.min(samples.len() - 1)..(2 * tenth).min(samples.len())]);
        let late = mean(&samples[samples.len() - tenth..]);
        let most = samples.iter().copied().fold(0.0, f64::max);
        self.row("resident memory in the second tenth, MiB", format!("{early:.1}"));
        self.row("in the last tenth, MiB", format!("{late:.1}"));
        self.row("most, MiB", format!("{most:.1}"));
        if late > early * 1.1 + 8.0 {
            self.wrong.push(format!(
                "{}: memory grew from {early:.1} to {late:.1} MiB",
                self.names[self.names.len() - 1]
            ));
        }
    }

    fn text(&self) -> String {
        let mut text = format!(
            "# A soak, counted from all sides\n\n\
             Written by `tests/src/bin/soak.rs`:\n\n\
             ```sh\ncargo run --release -p forethought-tests --bin soak -- run --seconds {} --connections {} --out docs/robustness.md\n```\n\n\
             Two proxies with a guard that takes 3 ms run in processes of their own. wrk sends requests of all wire formats to\n\
             each, half of them streamed: 70% harmless, 15% refused, 15% to an upstream that resets, stops short, drips, falls silent\n\
             or fails ([mixed.lua](../tests/soak/mixed.lua)). Beside it {LEAVERS} callers a proxy leave in the middle of something. Every\n\
             request has an id of its own, which client, audit file and upstream are compared by.\n\n\
             | counted | {} |\n| --- |{}\n",
            self.seconds,
            self.connections,
            self.names.join(" | "),
            " --- |".repeat(self.names.len()),
        );
        for (name, values) in &self.rows {
            let mut values = values.clone();
            values.resize(self.names.len(), "0".to_owned());
            let _ = writeln!(text, "| {name} | {} |", values.join(" | "));
        }
        text
    }

    fn verdict(&self) -> Result<()> {
        if !self.wrong.is_empty() {
            bail!("not everything adds up:\n{}", self.wrong.join("\n"));
        }
        Ok(())
    }
}
