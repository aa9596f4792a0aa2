//! The decoder: one forward pass for llama, qwen2 and qwen3, over ragged batches.
//!
//! All new tokens of all sequences lie in one `[tokens, hidden]` tensor, with no padding: a prefill of hundreds of
//! tokens and the single next tokens of others run in one pass. Only attention looks at one sequence at a time.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, RmsNorm, ops::silu, rotary_emb::rope_thd};
use rayon::prelude::*;

use super::{
    Adapter, Checkpoint, DeviceChoice, KvCache, ModelConfig, Precision, Result,
    attention::{attend, mask},
    linear::{Linear, forward_many},
    rope::Rope,
};

/// A loaded model.
pub struct Decoder {
    config: ModelConfig,
    /// `[vocab, hidden]`; none where the head's rows serve as well.
    embedding: Option<Tensor>,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
    rope: Rope,
    device: Device,
    dtype: DType,
}

struct Block {
    attention_norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Option<RmsNorm>, // qwen3
    k_norm: Option<RmsNorm>,
    mlp_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// How to load a model.
#[derive(Default)]
pub struct LoadOptions<'a> {
    /// Where it runs.
    pub device: DeviceChoice,
    /// How its weights are held.
    pub precision: Precision,
    /// A LoRA adapter for it.
    pub adapter: Option<&'a Adapter>,
    /// Keep the adapter beside the weights instead of adding it to them. Slower; for comparison.
    pub keep_adapter_apart: bool,
}

/// What a forward pass is to return of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Nothing: more of the prompt follows.
    Nothing,
    /// The logits of the last token.
    Last,
    /// The logits of every new token.
    All,
}

/// One sequence's part in a forward pass.
pub struct Sequence<'a> {
    /// The new tokens; at least one.
    pub tokens: &'a [u32],
    /// What was read before; the new tokens are added.
    pub cache: &'a mut KvCache,
    /// What to return.
    pub want: Want,
}

/// What a forward pass returned.
pub struct Output {
    /// For each sequence the wanted logits `[rows, vocab]` as f32 on the CPU; no rows for [`Want::Nothing`].
    pub logits: Vec<Tensor>,
    /// For each tapped layer, in the order asked for, the hidden states of all new tokens of all sequences in order,
    /// `[tokens, hidden]`.
    pub hidden: Vec<Tensor>,
}

/// The hidden states of one sequence's new tokens in an [`Output`].
pub struct States<'a> {
    output: &'a Output,
    taps: &'a [usize],
    rows: Range<usize>,
}

impl<'a> States<'a> {
    /// Those of the tokens `rows` of all tokens of a forward pass that was asked for `taps`.
    pub fn new(output: &'a Output, taps: &'a [usize], rows: Range<usize>) -> Self {
        Self { output, taps, rows }
    }

    /// The tapped layer's states, `[tokens, hidden]`, as f32 on the CPU.
    ///
    /// # Errors
    /// The layer was not tapped, or the device fails.
    pub fn layer(&self, layer: usize) -> Result<Vec<f32>> {
        self.copy(layer, self.rows.clone())
    }

    /// The tapped layer's state of the last token, `[hidden]`.
    ///
    /// # Errors
    /// As [`Self::layer`].
    pub fn last(&self, layer: usize) -> Result<Vec<f32>> {
        self.copy(layer, self.rows.end.saturating_sub(1)..self.rows.end)
    }

    fn copy(&self, layer: usize, rows: Range<usize>) -> Result<Vec<f32>> {
        let tapped = self.taps.iter().position(|tap| *tap == layer);
        let states = tapped.and_then(|index| self.output.hidden.get(index));
        let states =
            states.ok_or_else(|| candle_core::Error::msg(format!("layer {layer} was not tapped")))?;
        let rows = states.narrow(0, rows.start, rows.len())?;
        Ok(rows.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }
}

impl Decoder {
    /// Loads all weights.
    ///
    /// # Errors
    /// The checkpoint lacks tensors or has them in other shapes, the adapter was made for another model, or the device
    /// can't be used.
    pub fn load(checkpoint: &Checkpoint, options: &LoadOptions<'_>) -> Result<Self> {
        let device = options.device.open()?;
        let dtype = options.device.dtype();
        let config = checkpoint.config().clone();
        let loader = Loader { checkpoint, options, device: &device, dtype };
        let ModelConfig { hidden_size, vocab_size, .. } = config;
        let embedding = checkpoint.require("model.embed_tokens.weight", &[vocab_size, hidden_size])?;
        let tied = checkpoint.ties_embeddings();
        let head = if tied {
            Linear::new(&embedding, None, None, options.precision, &device, dtype)?
        } else {
            loader.linear("lm_head", vocab_size, hidden_size)?
        };
        let blocks = (0..config.layers).map(|i| Block::load(&loader, &config, i)).collect::<Result<_>>()?;
        let norm = loader.norm("model.norm", hidden_size)?;
        if let Some(adapter) = options.adapter {
            adapter.check_all_used()?;
        }
        let shared = tied && head.rows(&[]).is_some();
        let embedding = match head.dense() {
            _ if shared => None,
            Some(table) if tied => Some(table.clone()),
            _ => Some(embedding.to_device(&device)?.to_dtype(dtype)?),
        };
        let rope = Rope::new(&config);
        Ok(Self { config, embedding, blocks, norm, head, rope, device, dtype })
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// An empty cache for this model.
    ///
    /// # Errors
    /// Out of memory on the device.
    pub fn new_cache(&self) -> Result<KvCache> {
        KvCache::new(&self.config, &self.device, self.dtype)
    }

    /// Reads the new tokens of all `sequences`. `taps` names layers whose hidden states are wanted: 0 is the embedding,
    /// `i` the output of block `i` counted from 1; the final norm is not applied.
    ///
    /// # Errors
    /// A token id or a tap out of range, a sequence of no tokens, or a failed computation. The caches are then to be
    /// thrown away.
    pub fn forward(&self, sequences: &mut [Sequence<'_>], taps: &[usize]) -> Result<Output> {
        let tokens: Vec<u32> = sequences.iter().flat_map(|s| s.tokens).copied().collect();
        self.check(sequences, &tokens, taps)?;
        let mut segments: Vec<Range<usize>> = Vec::with_capacity(sequences.len());
        let mut positions = Vec::with_capacity(tokens.len());
        let mut masks = Vec::with_capacity(sequences.len());
        for sequence in &mut *sequences {
            let (start, past) = (positions.len(), sequence.cache.len());
            let total = past + sequence.tokens.len();
            masks.push(mask(sequence.tokens.len(), total, self.dtype, &self.device)?);
            positions.extend(past..total);
            segments.push(start..positions.len());
            sequence.cache.reserve(sequence.tokens.len())?;
        }
        let angles = self.rope.angles(&positions, self.dtype, &self.device)?;

        let mut x = self.embed(tokens)?; // [tokens, hidden]
        let mut hidden = vec![None; taps.len()];
        let on_cpu = matches!(self.device, Device::Cpu);
        self.tap(taps, 0, &x, &mut hidden);
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&self.config, &x, &angles, |q, k, v| {
                let one = |((segment, mask), sequence): ((&Range<usize>, &Option<Tensor>), &Sequence<'_>)| {
                    let part = |t: &Tensor| t.narrow(0, segment.start, segment.len());
                    let (keys, values) = sequence.cache.append(i, &part(k)?, &part(v)?)?;
                    attend(&self.config, &part(q)?, &keys, &values, mask.as_ref())
                };
                let outputs: Vec<Tensor> = if on_cpu {
                    segments.par_iter().zip(&masks).zip(&*sequences).map(one).collect::<Result<_>>()?
                } else {
                    segments.iter().zip(&masks).zip(&*sequences).map(one).collect::<Result<_>>()?
                };
                Ok(if let [single] = &outputs[..] { single.clone() } else { Tensor::cat(&outputs, 0)? })
            })?;
            self.tap(taps, i + 1, &x, &mut hidden);
        }
        for sequence in &mut *sequences {
            sequence.cache.advance(sequence.tokens.len());
        }
        let logits = self.logits(&x, sequences, &segments)?;
        Ok(Output { logits, hidden: hidden.into_iter().flatten().collect() })
    }

    fn embed(&self, ids: Vec<u32>) -> Result<Tensor> {
        let table = match &self.embedding {
            Some(table) => table,
            None => {
                return self
                    .head
                    .rows(&ids)
                    .unwrap_or_else(|| Err(candle_core::Error::msg("no embedding").into()));
            }
        };
        let count = ids.len();
        Ok(table.index_select(&Tensor::from_vec(ids, count, &self.device)?, 0)?)
    }

    /// Runs the head over the wanted rows only.
    fn logits(
        &self,
        x: &Tensor,
        sequences: &[Sequence<'_>],
        segments: &[Range<usize>],
    ) -> Result<Vec<Tensor>> {
        let wanted: Vec<Range<usize>> = sequences
            .iter()
            .zip(segments)
            .map(|(sequence, segment)| match sequence.want {
                Want::Nothing => segment.end..segment.end,
                Want::Last => segment.end - 1..segment.end,
                Want::All => segment.clone(),
            })
            .collect();
        let rows: Vec<u32> = wanted.iter().flat_map(|rows| rows.clone()).map(|row| row as u32).collect();
        let count = rows.len();
        let logits = if count == 0 {
            Tensor::zeros((0, self.config.vocab_size), DType::F32, &Device::Cpu)?
        } else {
            let x = x.index_select(&Tensor::from_vec(rows, count, &self.device)?, 0)?;
            self.head.forward(&self.norm.forward(&x)?)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?
        };
        let mut start = 0;
        let part = |rows: Range<usize>| {
            let part = logits.narrow(0, start, rows.len())?;
            start += rows.len();
            Ok(part)
        };
        wanted.into_iter().map(part).collect()
    }

    fn tap(&self, taps: &[usize], layer: usize, x: &Tensor, hidden: &mut [Option<Tensor>]) {
        for (_, slot) in taps.iter().zip(hidden).filter(|(tap, _)| **tap == layer) {
            *slot = Some(x.clone());
        }
    }

    fn check(&self, sequences: &[Sequence<'_>], tokens: &[u32], taps: &[usize]) -> Result<()> {
        let problem = if sequences.iter().any(|s| s.tokens.is_empty()) {
            "a sequence has no tokens".to_owned()
        } else if let Some(id) = tokens.iter().find(|&&id| id as usize >= self.config.vocab_size) {
            format!("token id {id} is not below the vocabulary's size {}", self.config.vocab_size)
        } else if let Some(tap) = taps.iter().find(|&&tap| tap > self.config.layers) {
            format!("layer {tap} can't be tapped: the model has {}", self.config.layers)
        } else {
            return Ok(());
        };
        Err(candle_core::Error::msg(problem).into())
    }
}

impl Block {
    fn load(loader: &Loader<'_>, config: &ModelConfig, index: usize) -> Result<Self> {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let (hidden, mlp) = (config.hidden_size, config.intermediate_size);
        let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_width());
        let linear = |part: &str, out, input| loader.linear(&name(part), out, input);
        let norm = |part: &str| loader.norm(&name(part), hidden);
        let head_norm = |part: &str| loader.optional_norm(&name(part), config.head_dim);
        Ok(Self {
            attention_norm: norm("input_layernorm")?,
            q: linear("self_attn.q_proj", q_width, hidden)?,
            k: linear("self_attn.k_proj", kv_width, hidden)?,
            v: linear("self_attn.v_proj", kv_width, hidden)?,
            o: linear("self_attn.o_proj", hidden, q_width)?,
            q_norm: head_norm("self_attn.q_norm")?,
            k_norm: head_norm("self_attn.k_norm")?,
            mlp_norm: norm("post_attention_layernorm")?,
            gate: linear("mlp.gate_proj", mlp, hidden)?,
            up: linear("mlp.up_proj", mlp, hidden)?,
            down: linear("mlp.down_proj", hidden, mlp)?,
        })
    }

    /// `x` `[tokens, hidden]` to the same shape; `attention` maps q, k, v `[tokens, width]` to `[tokens, q_width]`.
    fn forward(
        &self,
        config: &ModelConfig,
        x: &Tensor,
        (cos, sin): &(Tensor, Tensor),
        attention: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let qkv = forward_many([&self.q, &self.k, &self.v], &self.attention_norm.forward(x)?)?;
        let rotate = |t: &Tensor, heads: usize, norm: &Option<RmsNorm>| {
            let (tokens, width) = t.dims2()?;
            let mut t = t.reshape((tokens, heads, config.head_dim))?;
            if let Some(norm) = norm {
                t = norm.forward(&t)?;
            }
            rope_thd(&t.unsqueeze(0)?, cos, sin)?.reshape((tokens, width))
        };
        let q = rotate(&qkv[0], config.heads, &self.q_norm)?;
        let k = rotate(&qkv[1], config.kv_heads, &self.k_norm)?;
        let x = (x + self.o.forward(&attention(&q, &k, &qkv[2])?)?)?;
        let gate_up = forward_many([&self.gate, &self.up], &self.mlp_norm.forward(&x)?)?;
        Ok((&x + self.down.forward(&(silu(&gate_up[0])? * &gate_up[1])?)?)?)
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a LoadOptions<'a>,
    device: &'a Device,
    dtype: DType,
}

impl Loader<'_> {
    fn linear(&self, name: &str, out: usize, input: usize) -> Result<Linear> {
        let mut weight = self.checkpoint.require(&format!("{name}.weight"), &[out, input])?;
        let bias = self.checkpoint.get(&format!("{name}.bias"))?;
        let mut lora = match self.options.adapter {
            Some(adapter) => adapter.get(name, out, input)?,
            None => None,
        };
        if !self.options.keep_adapter_apart
            && let Some(lora) = lora.take()
        {
            weight = lora.add_to(&weight)?;
        }
        Linear::new(&weight, bias.as_ref(), lora, self.options.precision, self.device, self.dtype)
    }

    fn norm(&self, name: &str, width: usize) -> Result<RmsNorm> {
        let weight = self.checkpoint.require(&format!("{name}.weight"), &[width])?;
        self.place_norm(&weight)
    }

    fn optional_norm(&self, name: &str, width: usize) -> Result<Option<RmsNorm>> {
        match self.checkpoint.get(&format!("{name}.weight"))? {
            Some(_) => self.norm(name, width).map(Some),
            None => Ok(None),
        }
    }

    fn place_norm(&self, weight: &Tensor) -> Result<RmsNorm> {
        let weight = weight.to_device(self.device)?.to_dtype(self.dtype)?;
        Ok(RmsNorm::new(weight, self.checkpoint.config().rms_eps))
    }
}
