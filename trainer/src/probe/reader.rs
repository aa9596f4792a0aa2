//! Reads conversations exactly as the guard does and keeps the states that probes are fitted on: the same weights (the
//! adapter merged, 8 bits), the same prompt, the same windows, behind one shared prefix.

use std::path::Path;

use candle_core::{DType, Device};
use forethought_core::{
    conversation::Conversation,
    guard::{Bundle, Windows, bundle::Manifest, prompt::Prompt, transcript},
    model::{Checkpoint, Decoder, DeviceChoice, KvCache, LoadOptions, Precision, Sequence, Tokenizer, Want},
    probe::{Pool, Position},
    store::{Progress, Store, sha256_file},
};
use sha2::{Digest, Sha256};

use super::{
    cache::{Cache, Key},
    error::{ProbeError, Result},
};

/// Changes whenever the same model and tokens would give other states.
const FORMAT: &str = "forethought states 1";
/// Most tokens, and most windows, of one forward pass.
const BATCH: (usize, usize) = (512, 16);

/// What a probe was made for; its file says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// sha256 of the base model's weights, hexadecimal; empty for a folder.
    pub base_sha256: String,
    /// sha256 of the adapter's weights, hexadecimal; empty without one.
    pub adapter_sha256: String,
    /// Name and version of the template.
    pub template: String,
    /// Values of a state.
    pub width: usize,
}

/// A conversation's windows, ready to be read.
#[derive(Clone, Debug)]
pub struct Reading {
    windows: Vec<Vec<u32>>,
}

impl Reading {
    /// By what its windows' states are found.
    pub fn keys(&self) -> Vec<Key> {
        self.windows.iter().map(|ids| digest(&[&words(ids)])).collect()
    }
}

/// Reads conversations with a bundle's model, and remembers the states.
pub struct Reader {
    identity: Identity,
    bundle: Bundle,
    checkpoint: Checkpoint,
    device: DeviceChoice,
    tokenizer: Tokenizer,
    prompt: Prompt,
    layers: Vec<usize>,
    cache: Cache,
    /// The model with the prefix read; loaded when the first window is read.
    loaded: Option<(Decoder, KvCache)>,
}

impl Reader {
    /// Opens a bundle (a folder, or `default`) to tap `layers`, all of them where none are named. States are kept in
    /// `cache`.
    ///
    /// # Errors
    /// The bundle, its base model or the cache can't be opened or fetched, or a layer is not there.
    pub fn open(
        bundle: &str,
        layers: Option<Vec<usize>>,
        device: DeviceChoice,
        cache: &Path,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let bundle = Bundle::open(bundle)?;
        let spec = bundle.manifest.base.model.parse()?;
        let base = Store::open_default()?.resolve(&spec, progress)?;
        let sha256 = match base.sha256 {
            Some(sha256) => sha256,
            None if base.path.is_file() => sha256_file(&base.path)?,
            None => String::new(),
        };
        Self::over(&bundle, &base.path, sha256, layers, device, cache)
    }

    /// As [`Self::open`], over the base model at `base`, whose weights hash to `sha256`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn over(
        bundle: &Bundle,
        base: &Path,
        sha256: String,
        layers: Option<Vec<usize>>,
        device: DeviceChoice,
        cache: &Path,
    ) -> Result<Self> {
        let manifest = &bundle.manifest;
        if let Some(expected) = manifest.base.sha256.clone().filter(|e| !e.eq_ignore_ascii_case(&sha256)) {
            let path = base.display().to_string();
            let bundle = manifest.name.clone();
            return Err(ProbeError::OtherBase { bundle, expected, path, found: sha256 });
        }
        let checkpoint = Checkpoint::open(base)?;
        let tokenizer = checkpoint.tokenizer()?;
        let prompt = Prompt::new(manifest, &tokenizer, &checkpoint.chat_template()?)?;
        let (width, count) = (checkpoint.config().hidden_size, checkpoint.config().layers);
        let mut layers = layers.unwrap_or_else(|| (0..=count).collect());
        layers.sort_unstable();
        layers.dedup();
        if layers.is_empty() || layers.iter().any(|&layer| layer > count) {
            return Err(ProbeError::setting("layers", format!("choose from 0 to {count}")));
        }
        let adapter_sha256 = bundle.adapter_sha256()?;
        let template = format!("{} {}", manifest.template.name, manifest.template.version);
        let identity = Identity { base_sha256: sha256, adapter_sha256, template, width };
        let taps: Vec<u32> = layers.iter().map(|&layer| layer as u32).collect();
        let model = digest(&[
            FORMAT.as_bytes(),
            fingerprint(base, &identity.base_sha256)?.as_bytes(),
            identity.adapter_sha256.as_bytes(),
            device.to_string().as_bytes(),
            &words(&prompt.prefix),
            &words(&prompt.suffix),
            &words(&prompt.direct_verdict),
            &words(&taps),
        ]);
        let cache = Cache::open(cache, &model, layers.len() * Position::ALL.len() * width)?;
        Ok(Self {
            identity,
            bundle: bundle.clone(),
            checkpoint,
            device,
            tokenizer,
            prompt,
            layers,
            cache,
            loaded: None,
        })
    }

    /// What probes of these states are made for.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The bundle's `guard.toml`.
    pub fn manifest(&self) -> &Manifest {
        &self.bundle.manifest
    }

    /// The layers that are tapped, in order.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// Cuts a conversation into the guard's default windows.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn prepare(&self, conversation: &Conversation) -> Result<Reading> {
        let ids = self.tokenizer.encode_text(&transcript::render(conversation))?;
        let windows = Windows::default().split(ids.len());
        Ok(Reading { windows: windows.into_iter().map(|window| ids[window].to_vec()).collect() })
    }

    /// Reads all windows that are not in the cache yet, telling `progress` how many are done, and of how many.
    ///
    /// # Errors
    /// The model can't be loaded or fails, or the cache can't be written.
    pub fn read(&mut self, readings: &[&Reading], progress: &mut dyn FnMut(usize, usize)) -> Result<()> {
        let mut wanted: Vec<(Key, &[u32])> = readings
            .iter()
            .flat_map(|reading| reading.keys().into_iter().zip(reading.windows.iter().map(Vec::as_slice)))
            .filter(|(key, _)| !self.cache.holds(key))
            .collect();
        wanted.sort_by_key(|&(key, ids)| (ids.len(), key));
        wanted.dedup_by_key(|(key, _)| *key);
        let (total, mut done) = (wanted.len(), 0);
        while done < total {
            // The longest go first: if memory is too small for them, that is known at once.
            let count = batch_len(wanted.iter().rev().map(|(_, ids)| ids.len()));
            let batch = wanted.split_off(wanted.len() - count);
            self.read_batch(&batch)?;
            done += count;
            progress(done, total);
        }
        Ok(())
    }

    fn read_batch(&mut self, windows: &[(Key, &[u32])]) -> Result<()> {
        if self.loaded.is_none() {
            self.loaded = Some(self.load()?);
        }
        let Some((decoder, prefix)) = &self.loaded else { return Ok(()) };
        let end = [&self.prompt.suffix[..], &self.prompt.direct_verdict].concat();
        let tokens: Vec<Vec<u32>> = windows.iter().map(|(_, ids)| [ids, &end[..]].concat()).collect();
        let mut caches =
            tokens.iter().map(|ids| prefix.fork(ids.len())).collect::<std::result::Result<Vec<_>, _>>()?;
        let sequences = tokens.iter().zip(&mut caches);
        let mut sequences: Vec<Sequence<'_>> =
            sequences.map(|(tokens, cache)| Sequence { tokens, cache, want: Want::Nothing }).collect();
        let hidden = decoder.forward(&mut sequences, &self.layers)?.hidden;
        let layers: Vec<Vec<f32>> = hidden
            .iter()
            .map(|states| states.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1())
            .collect::<std::result::Result<_, _>>()?; // [tokens, width] each
        let width = self.identity.width;
        let mut start = 0;
        for ((key, ids), tokens) in windows.iter().zip(&tokens) {
            let rows = start * width..(start + tokens.len()) * width;
            let mut record = Vec::with_capacity(self.layers.len() * Position::ALL.len() * width);
            for states in &layers {
                let mut pool = Pool::new(width, ids.len());
                pool.push(&states[rows.clone()]);
                record.extend(Position::ALL.into_iter().flat_map(|position| pool.state(position)));
            }
            self.cache.append(*key, &record)?;
            start += tokens.len();
        }
        Ok(())
    }

    fn load(&self) -> Result<(Decoder, KvCache)> {
        let adapter = self.bundle.adapter()?;
        let options = LoadOptions {
            device: self.device,
            precision: Precision::default(),
            adapter: adapter.as_ref(),
            keep_adapter_apart: false,
        };
        let decoder = Decoder::load(&self.checkpoint, &options)?;
        let mut prefix = decoder.new_cache()?;
        let sequence = Sequence { tokens: &self.prompt.prefix, cache: &mut prefix, want: Want::Nothing };
        decoder.forward(&mut [sequence], &[])?;
        Ok((decoder, prefix))
    }

    /// States of windows that were read, at a layer and position, `[windows, width]`.
    ///
    /// # Errors
    /// The layer is not tapped, or the cache can't be read.
    pub fn states(&mut self, keys: &[Key], layer: usize, position: Position) -> Result<Vec<f32>> {
        let unknown = || ProbeError::setting("layers", format!("layer {layer} is not among them"));
        let place = self.layers.binary_search(&layer).map_err(|_| unknown())?;
        let width = self.identity.width;
        self.cache.read(keys, (place * Position::ALL.len() + position as usize) * width, width)
    }
}

/// How many of the next windows go into one pass; at least one.
fn batch_len(lengths: impl Iterator<Item = usize>) -> usize {
    let (most_tokens, most) = BATCH;
    let mut tokens = 0;
    let fits = |len: &usize| {
        tokens += len;
        tokens <= most_tokens
    };
    lengths.take(most).take_while(fits).count().max(1)
}

/// Tells base models apart, those in folders too, which have no sha256 of their own.
fn fingerprint(base: &Path, sha256: &str) -> Result<String> {
    if !base.is_dir() {
        return Ok(sha256.to_owned());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(base).map_err(ProbeError::file(base))? {
        let path = entry.map_err(ProbeError::file(base))?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files.iter().map(|path| sha256_file(path)).collect::<std::result::Result<Vec<_>, _>>()?.concat())
}

/// sha256 over parts, with their lengths.
fn digest(parts: &[&[u8]]) -> Key {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn words(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}
