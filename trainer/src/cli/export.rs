//! `forethought-trainer export`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use forethought_core::guard::Bundle;
use forethought_core::guard::bundle::{Base, Manifest};
use forethought_core::model::Checkpoint;
use forethought_core::store::{Console, Store, sha256_file};

use crate::export::check::{self, Check};
use crate::export::report::{self, Line};
use crate::export::{BundleParts, Dtype, Export, Quant, Source, Tuned, publish};

/// Flags of `export`.
#[derive(clap::Args, Debug)]
pub struct ExportArgs {
    /// Folder of a training checkpoint
    #[arg(long, value_name = "FOLDER")]
    checkpoint: PathBuf,
    /// The model it was tuned on: a name, a path, `pip:...` or `hf:...`
    #[arg(long, value_name = "SPEC")]
    base: String,
    /// What to write; may be given several times
    #[arg(long, value_delimiter = ',', default_value = "peft")]
    format: Vec<Format>,
    /// New folder for all of it
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Replace a folder of earlier exports
    #[arg(long)]
    force: bool,
    /// How numbers are held, GGUF apart [default: f16 in bundles, else f32]
    #[arg(long)]
    dtype: Option<Dtype>,
    /// How matrices are held in GGUF; may be given several times
    #[arg(long, value_delimiter = ',', default_value = "q8_0")]
    quant: Vec<Quant>,
    /// What `adapter_config.json` calls the base model, for Python's peft to load [default: that of --base]
    #[arg(long, value_name = "NAME")]
    base_name: Option<String>,
    /// The bundle's `guard.toml`; its base and adapter are filled in. Prompts of the check are rendered by it too
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// A file to go into the bundle as `EVAL.md`
    #[arg(long, value_name = "FILE")]
    eval: Option<PathBuf>,
    /// Prompts on which exports are compared with the adapter
    #[arg(long, value_name = "COUNT", default_value_t = 16)]
    prompts: usize,
    /// Take the prompts from this file of JSON lines instead of the built-in ones
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// How far the worst logit may be off, in standard deviations of the logits [default: by format]
    #[arg(long, value_name = "NUMBER")]
    tolerance: Option<f64>,
}

/// What can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The adapter, as Python's peft has it
    Peft,
    /// Base and adapter as one Hugging Face folder
    Safetensors,
    /// Base and adapter as one GGUF file
    Gguf,
    /// A guard bundle for the proxy
    Bundle,
}

/// Runs `export`.
///
/// # Errors
/// Something can't be read or written, or an export is too far from the adapter. Nothing is written then.
pub fn run(args: &ExportArgs) -> anyhow::Result<ExitCode> {
    publish::check_free(&args.out, args.force)?;
    let tolerance = args.tolerance;
    ensure!(tolerance.is_none_or(|t| t >= 0.0), "`--tolerance` must be a number from 0 on");
    let manifest = match &args.manifest {
        Some(path) => Manifest::read(path)?,
        None => Bundle::builtin("default")?.manifest,
    };
    let exports = exports(args, &manifest)?;
    let conversations = check::conversations(args.data.as_deref(), args.prompts)?;

    let model = Store::open_default()?.resolve(&args.base.parse()?, &Console::stderr())?;
    let sha256 = match model.sha256 {
        None if model.path.is_file() => Some(sha256_file(&model.path)?),
        known => known,
    };
    let base = Checkpoint::open(&model.path)?;
    let (tuned, progress) = Tuned::open(&args.checkpoint, &base)
        .with_context(|| format!("can't use the checkpoint with base `{}`", args.base))?;
    eprintln!("adapter after step {}: rank {}", progress.step, progress.lora.rank);
    let source = Source {
        checkpoint: &base,
        base: Base { model: args.base.clone(), sha256 },
        base_name: args.base_name.clone().unwrap_or_else(|| args.base.clone()),
        tuned: &tuned,
    };
    let check = Check::new(&base, &tuned, &manifest, &conversations)?;
    println!("{}", Line::head());
    let tell = &mut |line: &Line<'_>| println!("{line}");
    let report = report::export(&source, &exports, &check, (&args.out, args.force), tolerance, tell)?;
    for row in &report.exports {
        println!("{} ({:.1} MB)", args.out.join(&row.path).display(), row.bytes as f64 / 1e6);
    }
    Ok(ExitCode::SUCCESS)
}

/// The flags as a list of exports, each once.
fn exports(args: &ExportArgs, manifest: &Manifest) -> anyhow::Result<Vec<Export>> {
    let mut exports = Vec::new();
    for format in each_once(&args.format) {
        let dtype = |default| args.dtype.unwrap_or(default);
        match format {
            Format::Peft => exports.push(Export::Peft(dtype(Dtype::F32))),
            Format::Safetensors => exports.push(Export::Safetensors(dtype(Dtype::F32))),
            Format::Gguf => exports.extend(each_once(&args.quant).into_iter().map(Export::Gguf)),
            Format::Bundle => {
                ensure!(args.manifest.is_some(), "a bundle needs its `guard.toml`: name one with --manifest");
                let parts = BundleParts { manifest: manifest.clone(), eval: args.eval.clone() };
                exports.push(Export::Bundle(dtype(Dtype::F16), Box::new(parts)));
            }
        }
    }
    if args.eval.is_some() && !args.format.contains(&Format::Bundle) {
        bail!("--eval is for bundles: add --format bundle");
    }
    Ok(exports)
}

fn each_once<T: Copy + PartialEq>(items: &[T]) -> Vec<T> {
    let mut once = Vec::new();
    for item in items {
        if !once.contains(item) {
            once.push(*item);
        }
    }
    once
}
