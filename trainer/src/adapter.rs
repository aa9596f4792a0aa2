//! The trainable part: LoRA factors for chosen projections of every block, in one flat vector.
//!
//! One vector makes everything else plain: gradients, the optimizer's moments and a checkpoint are vectors of the same
//! layout, and the sum of two workers' gradients is one loop. It lives in host memory on every device.

use std::ops::Range;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::model::Dimensions;
use crate::ops::linear::{LoraPart, LoraSlots};

/// A projection of a block that can be adapted, named as in Hugging Face's checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// Attention queries.
    QProj,
    /// Attention keys.
    KProj,
    /// Attention values.
    VProj,
    /// Attention output.
    OProj,
    /// The MLP's gate.
    GateProj,
    /// The MLP's up projection.
    UpProj,
    /// The MLP's down projection.
    DownProj,
}

impl Projection {
    /// All seven, in the order of a block.
    pub const ALL: [Self; 7] =
        [Self::QProj, Self::KProj, Self::VProj, Self::OProj, Self::GateProj, Self::UpProj, Self::DownProj];

    /// Its module's name, as PEFT's `target_modules` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
        }
    }

    /// Its module's path in the model.
    pub fn module(self, block: usize) -> String {
        let parent = match self {
            Self::QProj | Self::KProj | Self::VProj | Self::OProj => "self_attn",
            Self::GateProj | Self::UpProj | Self::DownProj => "mlp",
        };
        format!("model.layers.{block}.{parent}.{}", self.name())
    }
}

/// Which projections are adapted, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank of the factors.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f32,
    /// The adapted projections.
    pub targets: Vec<Projection>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 16, alpha: 16.0, targets: Projection::ALL.to_vec() }
    }
}

/// One factor inside the flat vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Factor {
    /// Its name in PEFT's files.
    pub name: String,
    /// `[rows, columns]`: `A` is `[rank, inputs]`, `B` `[outputs, rank]`.
    pub shape: [usize; 2],
    /// Where it lies.
    pub range: Range<usize>,
}

/// The four linear layers of a block, each with the adapters of the projections stacked in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockSlots {
    /// Queries, keys and values.
    pub qkv: LoraSlots,
    /// Attention output.
    pub output: LoraSlots,
    /// Gate and up.
    pub gate_up: LoraSlots,
    /// Down.
    pub down: LoraSlots,
}

/// Where every factor lies in the flat vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Every factor, in the vector's order.
    pub factors: Vec<Factor>,
    /// The same, by block and layer.
    pub blocks: Vec<BlockSlots>,
    /// Length of the vector.
    pub len: usize,
}

impl Layout {
    /// The layout for a model of these dimensions.
    pub fn new(dimensions: &Dimensions, config: &LoraConfig) -> Self {
        use Projection::*;
        let heads = dimensions.heads;
        let (q, kv, hidden, mlp) =
            (heads.query_width(), heads.key_width(), dimensions.hidden, dimensions.mlp);
        let mut layout = Self { factors: Vec::new(), blocks: Vec::new(), len: 0 };
        for block in 0..dimensions.layers {
            let slots = BlockSlots {
                qkv: layout.stack(block, config, hidden, &[(QProj, q), (KProj, kv), (VProj, kv)]),
                output: layout.stack(block, config, q, &[(OProj, hidden)]),
                gate_up: layout.stack(block, config, hidden, &[(GateProj, mlp), (UpProj, mlp)]),
                down: layout.stack(block, config, mlp, &[(DownProj, hidden)]),
            };
            layout.blocks.push(slots);
        }
        layout
    }

    /// Places the adapters of the projections stacked in one layer: all `A`, then every `B`.
    fn stack(
        &mut self,
        block: usize,
        config: &LoraConfig,
        inputs: usize,
        projections: &[(Projection, usize)],
    ) -> LoraSlots {
        let start = self.len;
        let adapted = |(projection, _): &&(Projection, usize)| config.targets.contains(projection);
        for (projection, _) in projections.iter().filter(adapted) {
            self.place(block, *projection, "lora_A", [config.rank, inputs]);
        }
        let a = start..self.len;
        let mut parts = Vec::new();
        let mut column = 0;
        for &(projection, outputs) in projections {
            if config.targets.contains(&projection) {
                let b = self.place(block, projection, "lora_B", [outputs, config.rank]);
                parts.push(LoraPart { columns: column..column + outputs, b });
            }
            column += outputs;
        }
        LoraSlots { rank: config.rank, scale: config.alpha / config.rank as f32, a, parts }
    }

    fn place(
        &mut self,
        block: usize,
        projection: Projection,
        factor: &str,
        shape: [usize; 2],
    ) -> Range<usize> {
        let range = self.len..self.len + shape[0] * shape[1];
        let name = format!("base_model.model.{}.{factor}.weight", projection.module(block));
        self.factors.push(Factor { name, shape, range: range.clone() });
        self.len = range.end;
        range
    }

    /// Starting values as PEFT has them: `A` uniform in `±1 / sqrt(inputs)`, `B` zero, so that the adapted model
    /// begins as the base model.
    pub fn init(&self, seed: u64) -> Vec<f32> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut values = vec![0.0; self.len];
        for factor in self.factors.iter().filter(|factor| factor.name.contains(".lora_A.")) {
            let bound = 1.0 / (factor.shape[1] as f32).sqrt();
            values[factor.range.clone()].fill_with(|| rng.random_range(-bound..bound));
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_tile_the_vector() {
        let dimensions = Dimensions::tiny();
        for targets in [Projection::ALL.to_vec(), vec![Projection::VProj, Projection::DownProj], vec![]] {
            let config = LoraConfig { rank: 4, alpha: 8.0, targets };
            let layout = Layout::new(&dimensions, &config);
            let mut end = 0;
            for factor in &layout.factors {
                assert_eq!(factor.range.start, end);
                assert_eq!(factor.range.len(), factor.shape[0] * factor.shape[1]);
                end = factor.range.end;
            }
            assert_eq!(end, layout.len);
            assert_eq!(layout.factors.len(), 2 * config.targets.len() * dimensions.layers);
            let parts: usize = layout.blocks.iter().map(|b| b.qkv.parts.len()).sum();
            let qkv = config.targets.iter().filter(|t| Projection::ALL[..3].contains(t)).count();
            assert_eq!(parts, qkv * dimensions.layers);
        }
    }

    #[test]
    fn names_are_those_of_peft() {
        let layout = Layout::new(&Dimensions::tiny(), &LoraConfig::default());
        let names: Vec<_> = layout.factors.iter().map(|factor| factor.name.as_str()).collect();
        assert_eq!(names[0], "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
        assert!(names.contains(&"base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"));
    }

    #[test]
    fn only_a_starts_off_zero() {
        let layout = Layout::new(&Dimensions::tiny(), &LoraConfig::default());
        let values = layout.init(7);
        assert_eq!(values, layout.init(7));
        assert_ne!(values, layout.init(8));
        for factor in &layout.factors {
            let zero = values[factor.range.clone()].iter().all(|&v| v == 0.0);
            assert_eq!(zero, factor.name.contains("lora_B"), "{}", factor.name);
        }
    }
}
