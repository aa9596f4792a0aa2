//! R1-Act's phases from a teacher: any server of the OpenAI chat API writes understanding and assessment for labelled
//! instructions, as the paper had GPT-4o do.
//!
//! [`assess`] is the run. Workers take rows from one queue and hand what they get to this thread, which alone writes:
//! each row is appended to [`journal`]'s file and synced before it counts as done, so that a run that was stopped, or
//! killed, goes on where it was. [`client`] asks once, [`status`] sorts failures, [`retry`] asks until the server answers, [`answer`] decides
//! whether an answer will do, [`prompt`] is what the teacher is told, [`budget`] keeps count of the money.

pub mod answer;
pub mod budget;
pub mod client;
pub mod journal;
pub mod prompt;
pub mod retry;
pub mod status;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, mpsc};
use std::{iter, thread};

use forethought_core::dataset::{Dataset, Row};
use serde_json::{Value, json};

use self::answer::{Bounds, Phases};
use self::budget::{Budget, Prices, estimate_tokens};
use self::client::{Reply, Teacher};
use self::journal::{FailedRow, Journal};
use self::prompt::TeacherPrompt;
use self::retry::{Retry, Stop};
use self::status::Failure;
use super::record::{self, Format, Record};
use crate::error::{Result, TrainError};

/// Rows in a row that may fail: after so many, what is wrong is not with the rows.
const GIVE_UP_AFTER: usize = 20;
/// Tokens of an answer where no server says: two phases and their JSON.
const ANSWER_TOKENS: u64 = 120;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Labelled instructions, as JSON lines.
    pub input: PathBuf,
    /// Where the rows go.
    pub out: PathBuf,
    /// Rows asked about at once.
    pub concurrency: usize,
    /// How a server that does not answer is asked again.
    pub retry: Retry,
    /// How often a teacher whose answer will not do is asked in all.
    pub tries: usize,
    /// The most rows to ask about.
    pub max_rows: Option<usize>,
    /// What tokens cost.
    pub prices: Option<Prices>,
    /// The most that the run may cost, in USD; needs prices.
    pub max_cost: Option<f64>,
    /// What the teacher is told.
    pub prompt: TeacherPrompt,
    /// What an answer must be like.
    pub bounds: Bounds,
}

/// What a run is about to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Estimate {
    /// Usable rows of the input.
    pub rows: usize,
    /// Rows of the input that can't be used.
    pub bad: usize,
    /// Rows that the output holds already.
    pub done: usize,
    /// Rows that have both phases already: they are copied.
    pub ready: usize,
    /// Rows to ask about.
    pub to_ask: usize,
    /// Tokens to send, about, if every first answer will do.
    pub tokens_in: u64,
    /// Tokens to get, about.
    pub tokens_out: u64,
    /// What that costs in USD, where prices are known.
    pub cost: Option<f64>,
}

/// What a run has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Summary {
    /// Rows copied with the phases that they had.
    pub copied: usize,
    /// Rows that the teacher has written phases for.
    pub written: usize,
    /// Rows that failed.
    pub failed: usize,
    /// Rows that were not reached.
    pub left: usize,
    /// Tokens sent, as the server counts where it does.
    pub tokens_in: u64,
    /// Tokens received.
    pub tokens_out: u64,
    /// What they cost in USD, where prices are known.
    pub cost: Option<f64>,
    /// Why rows were not reached, if any were not.
    pub ended: Option<Ended>,
}

/// Why a run ended before its last row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// The next row might have cost more than is left.
    OverBudget,
    /// `max_rows` was reached.
    MaxRows,
}

/// Told to who watches.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A row was written; the run so far.
    Written(&'a Summary),
    /// A row failed.
    Failed(&'a FailedRow, &'a Summary),
}

/// A row to ask about.
struct Job {
    row: Row,
    record: Record,
}

/// What became of a row.
enum Outcome {
    Written(Box<Job>, Phases),
    Failed(FailedRow),
    /// No row after this can be asked about.
    Fatal(String),
    /// Not asked to the end; `None` where it was the user who stopped the run.
    Left(Option<Ended>),
}

struct Work {
    jobs: Vec<Job>,
    ready: Vec<Job>,
    estimate: Estimate,
    max_rows: bool,
}

/// What a run of `plan` would do. Asks nobody and writes nothing.
///
/// # Errors
/// The input can't be read, or the output holds rows of something else.
pub fn estimate(plan: &Plan) -> Result<Estimate> {
    let done = journal::peek(&plan.out)?;
    Ok(work(plan, &done)?.estimate)
}

/// Runs `plan`, from where an earlier run ended, until it is done or `stop` is set.
///
/// # Errors
/// The input can't be read; the output can't be written or holds rows of something else; the teacher can't be asked at
/// all. What was written until then is kept. Rows that fail one by one are no error.
pub fn assess(plan: &Plan, teacher: &Teacher, stop: &Stop, watch: &mut dyn FnMut(Event)) -> Result<Summary> {
    let mut journal = Journal::open(&plan.out)?;
    let Work { jobs, ready, max_rows, estimate } = work(plan, journal.done())?;
    let mut summary = Summary { left: estimate.to_ask, ..Summary::default() };
    summary.ended = max_rows.then_some(Ended::MaxRows);
    for job in ready {
        journal.append(written(job, None, ""))?;
        summary.copied += 1;
    }
    let budget = Budget::new(plan.prices, plan.max_cost);
    let queue = Mutex::new(jobs.into_iter());
    // Without room in between: no worker runs ahead of what is written.
    let (sender, outcomes) = mpsc::sync_channel(0);
    let fatal = thread::scope(|scope| {
        for _ in 0..plan.concurrency.max(1) {
            let (sender, queue, budget) = (sender.clone(), &queue, &budget);
            scope.spawn(move || {
                let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                while !stop.is_set()
                    && let Some(job) = next()
                {
                    let outcome = ask(job, plan, teacher, budget, stop);
                    let goes_on = matches!(outcome, Outcome::Written(..) | Outcome::Failed(_));
                    if sender.send(outcome).is_err() || !goes_on {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let ended = collect(outcomes, &mut journal, teacher, &budget, stop, &mut summary, watch);
        // An output that can't be written ends the workers too.
        if ended.is_err() {
            stop.set();
        }
        ended
    });
    (summary.tokens_in, summary.tokens_out, summary.cost) = budget.spent();
    fatal?;
    if stop.is_set() && summary.left > 0 {
        summary.ended = Some(Ended::Stopped);
    }
    Ok(summary)
}

/// Takes what the workers hand over, until all have ended: answers that are under way when the run breaks off are paid
/// for, and kept.
fn collect(
    outcomes: mpsc::Receiver<Outcome>,
    journal: &mut Journal,
    teacher: &Teacher,
    budget: &Budget,
    stop: &Stop,
    summary: &mut Summary,
    watch: &mut dyn FnMut(Event),
) -> Result<()> {
    let mut failed_in_a_row = 0;
    let mut fatal = None;
    for outcome in outcomes {
        match outcome {
            Outcome::Written(job, phases) => {
                journal.append(written(*job, Some(phases), teacher.model()))?;
                failed_in_a_row = 0;
                summary.written += 1;
                summary.left -= 1;
            }
            Outcome::Failed(row) => {
                journal.append_failed(&row)?;
                failed_in_a_row += 1;
                summary.failed += 1;
                summary.left -= 1;
                (summary.tokens_in, summary.tokens_out, summary.cost) = budget.spent();
                watch(Event::Failed(&row, summary));
                if failed_in_a_row == GIVE_UP_AFTER {
                    let last = row.reason;
                    fatal.get_or_insert(format!(
                        "{failed_in_a_row} rows in a row failed, the last with: {last}"
                    ));
                    stop.set();
                }
                continue;
            }
            Outcome::Fatal(reason) => {
                fatal.get_or_insert(reason);
                stop.set();
                continue;
            }
            Outcome::Left(ended) => {
                summary.ended = ended.or(summary.ended);
                continue;
            }
        }
        (summary.tokens_in, summary.tokens_out, summary.cost) = budget.spent();
        watch(Event::Written(summary));
    }
    fatal.map_or(Ok(()), |reason| Err(TrainError::Teacher(reason)))
}

/// Sorts the input by what is still to do.
fn work(plan: &Plan, done: &journal::Done) -> Result<Work> {
    let bytes =
        std::fs::read(&plan.input).map_err(|source| TrainError::File { path: plan.input.clone(), source })?;
    let dataset = Dataset::from_bytes(&bytes);
    let records = record::parse(&bytes, Format::Jsonl)
        .map_err(|problem| TrainError::Input { path: plan.input.clone(), problem })?;
    let mut records = records.records.into_iter();
    let mut work =
        Work { jobs: Vec::new(), ready: Vec::new(), estimate: Estimate::default(), max_rows: false };
    work.estimate.rows = dataset.rows.len();
    work.estimate.bad = dataset.bad.len();
    for row in dataset.rows {
        // Every usable row is a record of the same file, in the same order.
        let Some(record) = records.by_ref().find(|record| record.line == row.line) else { continue };
        if done.holds(&row, &record, &plan.out)? {
            work.estimate.done += 1;
        } else if row.understanding.is_some() && row.assessment.is_some() {
            work.ready.push(Job { row, record });
        } else if plan.max_rows.is_some_and(|most| work.jobs.len() >= most) {
            work.max_rows = true;
        } else {
            work.jobs.push(Job { row, record });
        }
    }
    let estimate = &mut work.estimate;
    (estimate.ready, estimate.to_ask) = (work.ready.len(), work.jobs.len());
    estimate.tokens_in = work.jobs.iter().map(|job| tokens(&plan.prompt.messages(&job.row))).sum();
    estimate.tokens_out = ANSWER_TOKENS * estimate.to_ask as u64;
    estimate.cost = plan.prices.map(|prices| prices.cost(estimate.tokens_in, estimate.tokens_out));
    Ok(work)
}

/// Asks about one row until an answer will do, or it is clear that none will.
fn ask(job: Job, plan: &Plan, teacher: &Teacher, budget: &Budget, stop: &Stop) -> Outcome {
    let mut messages = plan.prompt.messages(&job.row);
    let failed = |tries, reason: String| {
        Outcome::Failed(FailedRow { id: job.row.id.clone(), line: job.row.line, tries, reason })
    };
    let mut problem = String::new();
    for round in 1..=plan.tries.max(1) {
        let tokens_in = tokens(&messages);
        let Some(reserve) = budget.reserve(tokens_in, teacher.max_tokens()) else {
            return Outcome::Left(Some(Ended::OverBudget));
        };
        let asked = retry::ask(teacher, &messages, &plan.retry, stop);
        let reply = match asked {
            Ok(reply) => reply,
            Err(failure) => {
                // A request that broke off may have been paid for: what was sent is counted.
                budget.settle(reserve, tokens_in, 0);
                return match failure {
                    Failure::Fatal(reason) => Outcome::Fatal(reason),
                    Failure::Row(reason) | Failure::Again { reason, .. } => failed(round, reason),
                    Failure::Stopped => Outcome::Left(None),
                };
            }
        };
        let Reply { content, cut, tokens_in: sent, tokens_out: got } = reply;
        budget.settle(reserve, sent.unwrap_or(tokens_in), got.unwrap_or_else(|| estimate_tokens(&content)));
        problem = match answer::read(&content, cut, &job.row, &plan.bounds) {
            Ok(phases) => return Outcome::Written(Box::new(job), phases),
            Err(reason) => reason,
        };
        if stop.is_set() {
            return Outcome::Left(None);
        }
        messages.extend([
            json!({"role": "assistant", "content": content}),
            json!({"role": "user", "content": plan.prompt.again(&problem)}),
        ]);
    }
    failed(plan.tries.max(1), problem)
}

fn tokens(messages: &[Value]) -> u64 {
    messages
        .iter()
        .filter_map(|message| message["content"].as_str())
        .map(|text| estimate_tokens(text) + 4)
        .sum()
}

/// The row as it goes into the output: all that it had, with an id and the phases.
fn written(job: Job, phases: Option<Phases>, model: &str) -> Record {
    let Job { row, mut record } = job;
    let mut set = |key: &str, value: String| record.fields.insert(key.to_owned(), value.into());
    if let Some(Phases { understanding, assessment }) = phases {
        set("understanding", understanding);
        set("assessment", assessment);
        set("teacher", model.to_owned());
    }
    let rest = std::mem::take(&mut record.fields).into_iter().filter(|(key, _)| key != "id");
    record.fields = iter::once(("id".to_owned(), row.id.into())).chain(rest).collect();
    record
}
