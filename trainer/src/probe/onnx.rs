//! A probe as an ONNX file: opset 17, IR 8, input `hidden` `[batch, width]`, output `probability` `[batch, 1]`, and all
//! that is to be known about the probe in its metadata.
//!
//! The messages are the few of `onnx.proto3` that such a file needs, with the tags written by hand, so that no protobuf
//! compiler is needed.

use std::collections::BTreeMap;

use forethought_core::probe::Position;
use prost::Message;

use super::{classifier::Classifier, reader::Identity};

const IR_VERSION: i64 = 8;
const OPSET: i64 = 17;
/// `TensorProto.DataType.FLOAT`.
const FLOAT: i32 = 1;

/// What a file says of its probe.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// The layer it reads: 0 is the embedding, `k` the residual stream after block `k`.
    pub layer: usize,
    /// The state it reads there.
    pub position: Position,
    /// What it was made for.
    pub made_for: Identity,
    /// Probability from which on it says harmful.
    pub threshold: f32,
    /// How it came about, as JSON.
    pub training: String,
}

impl Metadata {
    /// The keys and values as they are in the file.
    pub fn entries(&self) -> BTreeMap<&'static str, String> {
        BTreeMap::from([
            ("forethought.format", "1".into()),
            ("forethought.name", self.name.clone()),
            ("forethought.layer", self.layer.to_string()),
            ("forethought.position", self.position.to_string()),
            ("forethought.width", self.made_for.width.to_string()),
            ("forethought.base_sha256", self.made_for.base_sha256.clone()),
            ("forethought.adapter_sha256", self.made_for.adapter_sha256.clone()),
            ("forethought.template", self.made_for.template.clone()),
            ("forethought.threshold", self.threshold.to_string()),
            ("forethought.training", self.training.clone()),
        ])
    }
}

/// The bytes of a probe's file.
pub fn encode(classifier: &Classifier, metadata: &Metadata) -> Vec<u8> {
    let entry = |(key, value): (&str, String)| StringStringEntryProto { key: key.into(), value };
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: "forethought-trainer".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph(classifier, &metadata.name)),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        metadata_props: metadata.entries().into_iter().map(entry).collect(),
    };
    model.encode_to_vec()
}

fn graph(classifier: &Classifier, name: &str) -> GraphProto {
    let width = classifier.mean.len();
    let mut graph = GraphProto {
        name: name.into(),
        input: vec![batch_of("hidden", width)],
        output: vec![batch_of("probability", 1)],
        ..GraphProto::default()
    };
    graph.constant("mean", &[width], &classifier.mean);
    graph.constant("inverse_std", &[width], &classifier.scale);
    graph.node("Sub", &["hidden", "mean"], "centred");
    graph.node("Mul", &["centred", "inverse_std"], "standardised");
    let mut last = ("standardised", width);
    if let Some(hidden) = &classifier.hidden {
        let size = hidden.bias.len();
        graph.constant("hidden_weight", &[width, size], &hidden.weight);
        graph.constant("hidden_bias", &[size], &hidden.bias);
        graph.node("Gemm", &[last.0, "hidden_weight", "hidden_bias"], "hidden_sum");
        graph.node("Relu", &["hidden_sum"], "hidden_units");
        last = ("hidden_units", size);
    }
    graph.constant("weight", &[last.1, 1], &classifier.output.weight);
    graph.constant("bias", &[1], &classifier.output.bias);
    graph.node("Gemm", &[last.0, "weight", "bias"], "logit");
    graph.node("Sigmoid", &["logit"], "probability");
    graph
}

impl GraphProto {
    fn constant(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.initializer.push(TensorProto {
            dims: shape.iter().map(|&d| d as i64).collect(),
            data_type: FLOAT,
            name: name.into(),
            raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        });
    }

    fn node(&mut self, operator: &str, inputs: &[&str], output: &str) {
        self.node.push(NodeProto {
            input: inputs.iter().map(|&i| i.into()).collect(),
            output: vec![output.into()],
            name: output.into(),
            op_type: operator.into(),
        });
    }
}

fn batch_of(name: &str, width: usize) -> ValueInfoProto {
    let named = Dimension { value: Some(DimensionValue::Param("batch".into())) };
    let fixed = Dimension { value: Some(DimensionValue::Value(width as i64)) };
    let shape = TensorShapeProto { dim: vec![named, fixed] };
    let tensor = TensorTypeProto { elem_type: FLOAT, shape: Some(shape) };
    ValueInfoProto { name: name.into(), kind: Some(TypeProto { tensor_type: Some(tensor) }) }
}

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(string, tag = "2")]
    producer_name: String,
    #[prost(string, tag = "3")]
    producer_version: String,
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<OperatorSetIdProto>,
    #[prost(message, repeated, tag = "14")]
    metadata_props: Vec<StringStringEntryProto>,
}

#[derive(Clone, PartialEq, Message)]
struct OperatorSetIdProto {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    node: Vec<NodeProto>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfoProto>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    op_type: String,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "vec", tag = "9")]
    raw_data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfoProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    kind: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeProto {
    #[prost(message, optional, tag = "1")]
    tensor_type: Option<TensorTypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorTypeProto {
    #[prost(int32, tag = "1")]
    elem_type: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<TensorShapeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorShapeProto {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
struct Dimension {
    #[prost(oneof = "DimensionValue", tags = "1, 2")]
    value: Option<DimensionValue>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum DimensionValue {
    #[prost(int64, tag = "1")]
    Value(i64),
    #[prost(string, tag = "2")]
    Param(String),
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use forethought_core::evidence::Verdict;
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;
    use crate::probe::classifier::{FitSettings, Problem};

    const WIDTH: usize = 12;

    /// Noise whose first value says what is harmful, on scales as far apart as those of real states.
    fn states(rows: usize) -> (Vec<f32>, Vec<Verdict>) {
        let mut rng = StdRng::seed_from_u64(5);
        let (mut states, mut labels) = (Vec::new(), Vec::new());
        for i in 0..rows {
            let label = if i % 3 == 0 { Verdict::Harmful } else { Verdict::Benign };
            let shift = if label == Verdict::Harmful { 1.0 } else { -1.0 };
            let noise = (0..WIDTH).map(|j| rng.random_range(-2.0..2.0) + if j == 0 { shift } else { 0.0 });
            states.extend(noise.enumerate().map(|(j, v): (usize, f32)| v * 4f32.powi(j as i32 - 6) + 100.0));
            labels.push(label);
        }
        (states, labels)
    }

    fn metadata() -> Metadata {
        let made_for = Identity {
            base_sha256: "b".repeat(64),
            adapter_sha256: String::new(),
            template: "r1act 1".into(),
            width: WIDTH,
        };
        Metadata {
            name: "last-18".into(),
            layer: 18,
            position: Position::Last,
            made_for,
            threshold: 0.7,
            training: r#"{"seed":0}"#.into(),
        }
    }

    /// Runs a file's graph node by node, knowing nothing of how it was made.
    fn interpret(bytes: &[u8], hidden: &[f32]) -> Vec<f32> {
        let graph = ModelProto::decode(bytes).unwrap().graph.unwrap();
        let mut values: HashMap<String, (Vec<f32>, usize)> = HashMap::new(); // with their columns
        for tensor in &graph.initializer {
            let raw = tensor.raw_data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            assert_eq!(tensor.data_type, FLOAT);
            values.insert(tensor.name.clone(), (raw, *tensor.dims.last().unwrap() as usize));
        }
        values.insert(graph.input[0].name.clone(), (hidden.to_vec(), WIDTH));
        for node in &graph.node {
            let input = |i: usize| values[&node.input[i]].clone();
            let (x, width) = input(0);
            let by_column = |f: &dyn Fn(f32, f32) -> f32| -> Vec<f32> {
                let other = input(1).0;
                x.iter().enumerate().map(|(i, &v)| f(v, other[i % width])).collect()
            };
            let result = match node.op_type.as_str() {
                "Sub" => (by_column(&|a, b| a - b), width),
                "Mul" => (by_column(&|a, b| a * b), width),
                "Relu" => (x.iter().map(|v| v.max(0.0)).collect(), width),
                "Sigmoid" => (x.iter().map(|v| 1.0 / (1.0 + (-v).exp())).collect(), width),
                "Gemm" => {
                    let ((weight, columns), (bias, _)) = (input(1), input(2));
                    let cell = |row: &[f32], j: usize| -> f32 {
                        let products = row.iter().enumerate().map(|(i, v)| v * weight[i * columns + j]);
                        products.sum::<f32>() + bias[j]
                    };
                    let rows = x.chunks_exact(width);
                    let y = rows.flat_map(|row| (0..columns).map(move |j| (row, j)));
                    (y.map(|(row, j)| cell(row, j)).collect(), columns)
                }
                other => panic!("operator {other}"),
            };
            values.insert(node.output[0].clone(), result);
        }
        values[&graph.output[0].name].0.clone()
    }

    #[test]
    fn a_file_computes_what_was_fitted() {
        let (states, labels) = states(200);
        for hidden in [0, 5] {
            let settings = FitSettings { hidden, c: 0.1, seed: 1 };
            let classifier = Problem::new(&states, &labels).fit(&settings).calibrated(0.8, -0.3);
            let bytes = encode(&classifier, &metadata());
            let found = interpret(&bytes, &states);
            let expected = classifier.probabilities(&states);
            let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-6, "{off}");
            let spread = expected.iter().fold(0f32, |m, p| m.max((p - expected[0]).abs()));
            assert!(spread > 0.3, "{spread}: nothing was learnt");
        }
    }

    #[test]
    fn the_metadata_is_in_the_file() {
        let (states, labels) = states(30);
        let classifier = Problem::new(&states, &labels).fit(&FitSettings { hidden: 0, c: 1.0, seed: 0 });
        let model = ModelProto::decode(&encode(&classifier, &metadata())[..]).unwrap();
        let found: BTreeMap<_, _> = model.metadata_props.into_iter().map(|e| (e.key, e.value)).collect();
        let expected = metadata().entries();
        assert_eq!(found.len(), expected.len());
        for (key, value) in expected {
            assert_eq!(found[key], value, "{key}");
        }
        assert_eq!(found["forethought.threshold"].parse(), Ok(0.7f32));
    }
}
