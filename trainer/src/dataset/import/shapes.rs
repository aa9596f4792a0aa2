//! The public benchmarks' columns.

use forethought_core::evidence::Verdict;

use super::Field::{self, Category, Context, Id, Label, Prompt, Response, Style};
use crate::dataset::record::{LINE_KEY, Record};

/// Words that mean harmful where a shape has none of its own; lower case.
pub const HARMFUL: &[&str] = &["harmful", "unsafe", "toxic", "malicious", "yes", "true", "1", "1.0"];
/// Words that mean benign.
pub const BENIGN: &[&str] =
    &["benign", "safe", "unharmful", "harmless", "non-toxic", "no", "false", "0", "0.0"];

/// How a shape's rows say what is harmful.
#[derive(Clone, Copy, Debug)]
pub enum LabelRule {
    /// All rows are alike.
    All(Verdict),
    /// By the value of a column.
    Words {
        /// Values that mean harmful, in lower case.
        harmful: &'static [&'static str],
        /// Values that mean benign, in lower case.
        benign: &'static [&'static str],
    },
    /// By how the value of a column begins where the row is harmful.
    Beginning(&'static str),
    /// They don't.
    NotSaid,
}

use LabelRule::{All, Beginning, NotSaid, Words};

/// The columns of one benchmark.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its name, for `--format`.
    pub name: &'static str,
    /// What the labels are about, where that is not the prompt's own harm.
    pub caution: Option<&'static str>,
    /// Columns by which it is told from the others: all of them are there.
    told_by: &'static [&'static str],
    /// What is harmful.
    pub label: LabelRule,
    /// Its columns for our fields; of several the first that is filled.
    columns: &'static [(Field, &'static [&'static str])],
}

impl Shape {
    /// The file's names for a field.
    pub fn keys(&self, field: Field) -> &'static [&'static str] {
        self.columns.iter().find(|(own, _)| *own == field).map_or(&[], |(_, keys)| keys)
    }

    /// The shape of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        SHAPES.iter().find(|shape| shape.name == name)
    }

    /// The first shape whose columns are there; a column may be empty in some records.
    pub fn detect(records: &[Record]) -> Option<&'static Self> {
        let has = |key: &str| records.iter().any(|record| record.fields.contains_key(key));
        SHAPES.iter().find(|shape| shape.told_by.iter().all(|key| has(key)))
    }
}

const USUAL: LabelRule = Words { harmful: HARMFUL, benign: BENIGN };
const PROMPTS: &[&str] = &["prompt", "instruction", "question", "goal", "text", "user_input"];
const ANSWERS: &[&str] = &["response", "output", "completion"];

/// All shapes, those that are told by more before those that are told by less.
pub const SHAPES: &[Shape] = &[
    Shape {
        name: "xstest",
        caution: None,
        told_by: &["prompt", "type", "label", "focus"],
        label: USUAL,
        columns: &[(Prompt, &["prompt"]), (Label, &["label"]), (Id, &["id"]), (Style, &["type"])],
    },
    Shape {
        // Copies without the label still say it by their types.
        name: "xstest-types",
        caution: None,
        told_by: &["prompt", "type", "focus"],
        label: Beginning("contrast_"),
        columns: &[(Prompt, &["prompt"]), (Label, &["type"]), (Id, &["id", "id_v2"]), (Style, &["type"])],
    },
    Shape {
        name: "strongreject",
        caution: None,
        told_by: &["forbidden_prompt"],
        label: All(Verdict::Harmful),
        columns: &[(Prompt, &["forbidden_prompt"]), (Category, &["category"])],
    },
    Shape {
        name: "harmbench",
        caution: None,
        told_by: &["Behavior", "SemanticCategory"],
        label: All(Verdict::Harmful),
        columns: &[
            (Prompt, &["Behavior"]),
            (Context, &["ContextString"]),
            (Id, &["BehaviorID"]),
            (Category, &["SemanticCategory"]),
            (Style, &["FunctionalCategory"]),
        ],
    },
    Shape {
        // One file of harmful behaviours and one of benign ones, with the same columns.
        name: "jailbreakbench",
        caution: None,
        told_by: &["Goal", "Behavior", "Category"],
        label: NotSaid,
        columns: &[(Prompt, &["Goal"]), (Category, &["Category"])],
    },
    Shape {
        name: "advbench",
        caution: None,
        told_by: &["goal", "target"],
        label: All(Verdict::Harmful),
        columns: &[(Prompt, &["goal"]), (Category, &["category"])],
    },
    Shape {
        name: "wildguardmix",
        caution: None,
        told_by: &["prompt", "prompt_harm_label"],
        label: USUAL,
        columns: &[(Prompt, &["prompt"]), (Label, &["prompt_harm_label"]), (Category, &["subcategory"])],
    },
    Shape {
        name: "toxicchat",
        caution: Some("the labels are about toxicity; `--map label=jailbreaking` takes the other ones"),
        told_by: &["user_input", "toxicity"],
        label: USUAL,
        columns: &[(Prompt, &["user_input"]), (Label, &["toxicity"]), (Id, &["conv_id"])],
    },
    Shape {
        name: "beavertails",
        caution: Some(
            "the labels are about the answers: a harmful prompt that was answered well counts as benign",
        ),
        told_by: &["prompt", "is_safe"],
        label: Words { harmful: &["false", "0"], benign: &["true", "1"] },
        columns: &[
            (Prompt, &["prompt"]),
            (Label, &["is_safe"]),
            (Category, &["category"]),
            (Response, &["response"]),
        ],
    },
    Shape {
        name: "aegis",
        caution: None,
        told_by: &["prompt", "prompt_label"],
        label: USUAL,
        columns: &[
            (Prompt, &["prompt"]),
            (Label, &["prompt_label"]),
            (Id, &["id"]),
            (Category, &["violated_categories"]),
        ],
    },
    Shape {
        name: "simplesafetytests",
        caution: None,
        told_by: &["prompt", "harm_area"],
        label: All(Verdict::Harmful),
        columns: &[(Prompt, &["prompt"]), (Id, &["id"]), (Category, &["harm_area"]), (Style, &["category"])],
    },
    Shape {
        name: "do-not-answer",
        caution: Some(
            "many of the prompts ask for advice that a model should decline, and are not dangerous",
        ),
        told_by: &["question", "risk_area"],
        label: All(Verdict::Harmful),
        columns: &[(Prompt, &["question"]), (Id, &["id"]), (Category, &["types_of_harm", "risk_area"])],
    },
    Shape {
        name: "labelled",
        caution: None,
        told_by: &["label"],
        label: USUAL,
        columns: &[
            (Prompt, PROMPTS),
            (Label, &["label"]),
            (Id, &["id"]),
            (Category, &["category"]),
            (Style, &["style"]),
            (Response, ANSWERS),
        ],
    },
    Shape {
        // The paper's own set: an instruction, and all that is answered, thoughts included.
        name: "r1act",
        caution: None,
        told_by: &["instruction", "response"],
        label: NotSaid,
        columns: &[
            (Prompt, &["instruction"]),
            (Id, &["id"]),
            (Category, &["category"]),
            (Response, &["response"]),
        ],
    },
    Shape {
        // Its files differ by name only: `hard` and `80k` are benign, `toxic` is harmful.
        name: "or-bench",
        caution: None,
        told_by: &["prompt", "category"],
        label: NotSaid,
        columns: &[(Prompt, &["prompt"]), (Category, &["category"])],
    },
    Shape {
        name: "lines",
        caution: None,
        told_by: &[LINE_KEY],
        label: NotSaid,
        columns: &[(Prompt, &[LINE_KEY])],
    },
    Shape {
        name: "prompts",
        caution: None,
        told_by: &[],
        label: NotSaid,
        columns: &[(Prompt, PROMPTS), (Id, &["id"]), (Category, &["category"]), (Response, ANSWERS)],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_every_shape_finds_a_prompt() {
        for (index, shape) in SHAPES.iter().enumerate() {
            assert!(SHAPES[..index].iter().all(|other| other.name != shape.name), "{}", shape.name);
            assert!(!shape.keys(Prompt).is_empty(), "{}", shape.name);
            let by_column = matches!(shape.label, Words { .. } | Beginning(_));
            assert_eq!(by_column, !shape.keys(Label).is_empty(), "{}", shape.name);
        }
    }

    #[test]
    fn no_shape_is_hidden_by_an_earlier_one() {
        for shape in SHAPES {
            let fields = shape.told_by.iter().map(|&key| (key.to_owned(), "x".into())).collect();
            let found = Shape::detect(&[Record { line: 1, fields }]).map(|found| found.name);
            assert_eq!(found, Some(shape.name));
        }
    }
}
