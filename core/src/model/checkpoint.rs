//! A model's files under one set of names: GGUF or a folder of safetensors, read alike.

use std::{
    collections::HashMap,
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
    sync::Mutex,
};

use candle_core::{DType, Device, Tensor, quantized::gguf_file, safetensors::MmapedSafetensors};

use super::{ChatTemplate, ModelConfig, ModelError, Result, Tokenizer, config::RopeScaling, gguf, tokenizer};

/// An opened model.
///
/// Tensors have the names of Hugging Face checkpoints (`model.layers.0.self_attn.q_proj.weight`) and their layout
/// (`[out, in]`, rotary halves side by side), whatever the file.
pub struct Checkpoint {
    path: PathBuf,
    config: ModelConfig,
    source: Source,
}

/// A chat template as its model's files hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatSource {
    /// Its Jinja text.
    pub template: String,
    /// The token that begins a text.
    pub bos: Option<String>,
    /// The token that ends one.
    pub eos: Option<String>,
}

enum Source {
    Gguf { content: Box<gguf_file::Content>, file: Mutex<BufReader<File>> },
    Safetensors(MmapedSafetensors),
}

impl Checkpoint {
    /// Opens a `.gguf` file, or a folder with `config.json`, `tokenizer.json` and `*.safetensors`.
    ///
    /// # Errors
    /// A file is missing, unreadable or of an unsupported architecture.
    pub fn open(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|e| ModelError::io(path, e))?;
        if meta.is_dir() { Self::open_folder(path) } else { Self::open_gguf(path) }
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| ModelError::io(path, e))?;
        let mut file = BufReader::new(file);
        let content = gguf_file::Content::read(&mut file)
            .map_err(|e| ModelError::invalid(path, format!("not a readable GGUF file: {e}")))?;
        let invalid = |problem: String| ModelError::invalid(path, problem);
        let embedding = content
            .tensor_infos
            .get("token_embd.weight")
            .ok_or_else(|| invalid("tensor `token_embd.weight` is missing".into()))?;
        let vocab_size = embedding.shape.dims2().map_err(|e| invalid(e.to_string()))?.0;
        let mut config = ModelConfig::from_gguf(&content.metadata, vocab_size).map_err(invalid)?;
        if content.tensor_infos.contains_key("rope_freqs.weight") {
            let factors = content.tensor(&mut file, "rope_freqs.weight", &Device::Cpu)?;
            config.rope_scaling = RopeScaling::Factors(factors.dequantize(&Device::Cpu)?.to_vec1()?);
        }
        let source = Source::Gguf { content: Box::new(content), file: Mutex::new(file) };
        Ok(Self { path: path.to_owned(), config, source })
    }

    fn open_folder(path: &Path) -> Result<Self> {
        let config = ModelConfig::from_json(&read_text(&path.join("config.json"))?)
            .map_err(|problem| ModelError::invalid(&path.join("config.json"), problem))?;
        let mut shards = Vec::new();
        for entry in std::fs::read_dir(path).map_err(|e| ModelError::io(path, e))? {
            let file = entry.map_err(|e| ModelError::io(path, e))?.path();
            if file.extension().is_some_and(|e| e == "safetensors") {
                shards.push(file);
            }
        }
        if shards.is_empty() {
            return Err(ModelError::invalid(path, "no `.safetensors` file in this folder"));
        }
        shards.sort();
        let tensors = map_files(&shards)
            .map_err(|e| ModelError::invalid(path, format!("unreadable safetensors: {e}")))?;
        Ok(Self { path: path.to_owned(), config, source: Source::Safetensors(tensors) })
    }

    /// Where the model lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// A tensor as f32 on the CPU, or `None` where the model has none of this name.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn get(&self, name: &str) -> Result<Option<Tensor>> {
        let damaged =
            |e: candle_core::Error| ModelError::invalid(&self.path, format!("tensor `{name}`: {e}"));
        match &self.source {
            Source::Safetensors(tensors) => {
                if tensors.get(name).is_err() {
                    return Ok(None);
                }
                let tensor = tensors.load(name, &Device::Cpu).map_err(damaged)?;
                tensor.to_dtype(DType::F32).map(Some).map_err(damaged)
            }
            Source::Gguf { content, file } => {
                let Some(gguf) = gguf::tensor_name(name).filter(|n| content.tensor_infos.contains_key(n))
                else {
                    return Ok(None);
                };
                let mut file = file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                let tensor = content
                    .tensor(&mut *file, &gguf, &Device::Cpu)
                    .and_then(|t| t.dequantize(&Device::Cpu))
                    .and_then(|t| gguf::rows_in_halves(&self.config, name, t));
                tensor.map(Some).map_err(damaged)
            }
        }
    }

    /// A tensor that must be there, of this shape.
    ///
    /// # Errors
    /// It is missing, damaged, or of another shape.
    pub fn require(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self
            .get(name)?
            .ok_or_else(|| ModelError::invalid(&self.path, format!("tensor `{name}` is missing")))?;
        if tensor.dims() != shape {
            let problem = format!("tensor `{name}` has shape {:?}, expected {shape:?}", tensor.dims());
            return Err(ModelError::invalid(&self.path, problem));
        }
        Ok(tensor)
    }

    /// Whether the output head is the embedding.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn ties_embeddings(&self) -> bool {
        match &self.source {
            Source::Gguf { content, .. } => !content.tensor_infos.contains_key("output.weight"),
            Source::Safetensors(tensors) => tensors.get("lm_head.weight").is_err(),
        }
    }

    /// The metadata of a GGUF file; `None` for a folder.
    pub fn gguf_metadata(&self) -> Option<&HashMap<String, gguf_file::Value>> {
        match &self.source {
            Source::Gguf { content, .. } => Some(&content.metadata),
            Source::Safetensors(_) => None,
        }
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// It is missing, damaged or of an unknown kind.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_json(self.tokenizer_json()?)
            .map_err(|problem| ModelError::invalid(&self.path, problem))
    }

    /// The model's `tokenizer.json`: a folder's own, or one made of a GGUF file's metadata.
    ///
    /// # Errors
    /// As for [`Self::tokenizer`].
    pub fn tokenizer_json(&self) -> Result<serde_json::Value> {
        match &self.source {
            Source::Gguf { content, .. } => tokenizer::json_of_gguf(&content.metadata)
                .map_err(|problem| ModelError::invalid(&self.path, problem)),
            Source::Safetensors(_) => {
                let path = self.path.join("tokenizer.json");
                serde_json::from_str(&read_text(&path)?)
                    .map_err(|e| ModelError::invalid(&path, e.to_string()))
            }
        }
    }

    /// The model's chat template.
    ///
    /// # Errors
    /// There is none, or it has a syntax error.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        let ChatSource { template, bos, eos } = self.chat_source()?;
        ChatTemplate::new(&template, bos, eos)
    }

    /// The text of the chat template, and the tokens it may name.
    ///
    /// # Errors
    /// There is none.
    pub fn chat_source(&self) -> Result<ChatSource> {
        let missing = || ModelError::invalid(&self.path, "the model has no chat template");
        match &self.source {
            Source::Gguf { content, .. } => {
                let text = |key: &str| content.metadata.get(key).and_then(|v| v.to_string().ok()).cloned();
                let token = |key: &str| {
                    let id = content.metadata.get(key)?.to_u32().ok()?;
                    let tokens = content.metadata.get("tokenizer.ggml.tokens")?.to_vec().ok()?;
                    tokens.get(id as usize)?.to_string().ok().cloned()
                };
                Ok(ChatSource {
                    template: text("tokenizer.chat_template").ok_or_else(missing)?,
                    bos: token("tokenizer.ggml.bos_token_id"),
                    eos: token("tokenizer.ggml.eos_token_id"),
                })
            }
            Source::Safetensors(_) => {
                let config: serde_json::Value = serde_json::from_str(&read_text(
                    &self.path.join("tokenizer_config.json"),
                )?)
                .map_err(|e| ModelError::invalid(&self.path.join("tokenizer_config.json"), e.to_string()))?;
                let own_file = self.path.join("chat_template.jinja");
                let template = if own_file.exists() {
                    read_text(&own_file)?
                } else {
                    config["chat_template"].as_str().ok_or_else(missing)?.to_owned()
                };
                // A special token is written as a string, or as an object that holds it.
                let token = |key: &str| {
                    let value = &config[key];
                    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
                };
                Ok(ChatSource { template, bos: token("bos_token"), eos: token("eos_token") })
            }
        }
    }
}

#[allow(unsafe_code)]
fn map_files(shards: &[PathBuf]) -> candle_core::Result<MmapedSafetensors> {
    // SAFETY: mapped files must not change while mapped. Model files are written once, under another name, and then
    // renamed into place; nothing in this program writes to them afterwards.
    unsafe { MmapedSafetensors::multi(shards) }
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| ModelError::io(path, e))
}

/// Reads all tensors of a safetensors file as f32 on the CPU; `path` is for messages.
pub(super) fn parse_tensors(path: &Path, bytes: &[u8]) -> Result<HashMap<String, Tensor>> {
    let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu)
        .map_err(|e| ModelError::invalid(path, format!("unreadable safetensors: {e}")))?;
    tensors.into_iter().map(|(name, tensor)| Ok((name, tensor.to_dtype(DType::F32)?))).collect()
}
