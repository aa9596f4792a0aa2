//! What a soak counted, one side against the other.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
    fs::File,
    io::{BufRead, BufReader},
    process::Command,
    sync::atomic::Ordering::Relaxed,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{LEAVERS, RunArgs, process::Running};

/// What was counted, a column for each proxy.
pub(crate) struct Report {
    seconds: u64,
    connections: usize,
    names: Vec<&'static str>,
    rows: Vec<(String, Vec<String>)>,
    wrong: Vec<String>,
}

impl Report {
    pub(crate) fn new(args: &RunArgs) -> Self {
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

    pub(crate) fn add(
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

    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "# A soak, counted from all sides\n\n\
             Written by `tests/src/bin/soak/`:\n\n\
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

    pub(crate) fn verdict(&self) -> Result<()> {
        if !self.wrong.is_empty() {
            bail!("not everything adds up:\n{}", self.wrong.join("\n"));
        }
        Ok(())
    }
}
