//! Writes small ONNX files: probes as the trainer exports them, and such as it never would.

use prost::Message;

/// A linear probe: `sigmoid(state . weights + bias)`.
#[derive(Clone)]
pub(crate) struct Onnx {
    pub(crate) input: &'static str,
    pub(crate) output: &'static str,
    /// States it takes at once; `None` is any number.
    pub(crate) batch: Option<i64>,
    pub(crate) weights: Vec<f32>,
    pub(crate) bias: f32,
    /// Without it, the output is a logit.
    pub(crate) sigmoid: bool,
    pub(crate) metadata: Vec<(&'static str, String)>,
}

impl Onnx {
    /// A file without metadata.
    pub(crate) fn foreign(weights: Vec<f32>, bias: f32) -> Self {
        let (input, output) = ("hidden", "probability");
        Self { input, output, batch: None, weights, bias, sigmoid: true, metadata: vec![] }
    }

    /// A file that says all of itself: made for a model of unknown hash, without adapter.
    #[allow(dead_code)] // not every test file asks
    pub(crate) fn exported(
        name: &str,
        (layer, position): (usize, &str),
        template: &str,
        weights: Vec<f32>,
        bias: f32,
    ) -> Self {
        let width = weights.len().to_string();
        let metadata = [
            ("forethought.format", "1"),
            ("forethought.name", name),
            ("forethought.layer", &layer.to_string()),
            ("forethought.position", position),
            ("forethought.width", &width),
            ("forethought.base_sha256", ""),
            ("forethought.adapter_sha256", ""),
            ("forethought.template", template),
            ("forethought.threshold", "0.5"),
            ("forethought.training", "{}"),
        ];
        let metadata = metadata.map(|(key, value)| (key, value.to_owned())).into();
        Self { metadata, ..Self::foreign(weights, bias) }
    }

    /// The same, with another value for one key; an empty one takes the key out.
    #[allow(dead_code)]
    pub(crate) fn saying(mut self, key: &'static str, value: &str) -> Self {
        self.metadata.retain(|(known, _)| *known != key);
        if !value.is_empty() {
            self.metadata.push((key, value.to_owned()));
        }
        self
    }

    /// The file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let width = self.weights.len() as i64;
        let node = |op: &str, inputs: &[&str], output: &str| Node {
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.to_owned()],
            op_type: op.to_owned(),
        };
        let logit = if self.sigmoid { "logit" } else { self.output };
        let mut nodes = vec![node("Gemm", &[self.input, "weights", "bias"], logit)];
        if self.sigmoid {
            nodes.push(node("Sigmoid", &["logit"], self.output));
        }
        let tensor = |name: &str, dims: Vec<i64>, values: &[f32]| TensorProto {
            dims,
            data_type: FLOAT,
            float_data: values.to_vec(),
            name: name.to_owned(),
        };
        let batch = match self.batch {
            Some(size) => Dim { dim_value: Some(size), dim_param: None },
            None => Dim { dim_value: None, dim_param: Some("batch".to_owned()) },
        };
        let value = |name: &str, width: i64| ValueInfo {
            name: name.to_owned(),
            r#type: Some(Type {
                tensor_type: Some(TensorType {
                    elem_type: FLOAT,
                    shape: Some(Shape {
                        dim: vec![batch.clone(), Dim { dim_value: Some(width), dim_param: None }],
                    }),
                }),
            }),
        };
        let graph = Graph {
            node: nodes,
            name: "probe".to_owned(),
            initializer: vec![
                tensor("weights", vec![width, 1], &self.weights),
                tensor("bias", vec![1], &[self.bias]),
            ],
            input: vec![value(self.input, width)],
            output: vec![value(self.output, 1)],
        };
        let entry = |(key, value): &(&str, String)| Entry { key: (*key).to_owned(), value: value.clone() };
        let model = Model {
            ir_version: 8,
            graph: Some(graph),
            opset_import: vec![Opset { domain: String::new(), version: 17 }],
            metadata_props: self.metadata.iter().map(entry).collect(),
        };
        model.encode_to_vec()
    }
}

const FLOAT: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<Opset>,
    #[prost(message, repeated, tag = "14")]
    metadata_props: Vec<Entry>,
}

#[derive(Clone, PartialEq, Message)]
struct Opset {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    node: Vec<Node>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "4")]
    op_type: String,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(float, repeated, tag = "4")]
    float_data: Vec<f32>,
    #[prost(string, tag = "8")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    r#type: Option<Type>,
}

#[derive(Clone, PartialEq, Message)]
struct Type {
    #[prost(message, optional, tag = "1")]
    tensor_type: Option<TensorType>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorType {
    #[prost(int32, tag = "1")]
    elem_type: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<Dim>,
}

#[derive(Clone, PartialEq, Message)]
struct Dim {
    #[prost(int64, optional, tag = "1")]
    dim_value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    dim_param: Option<String>,
}
