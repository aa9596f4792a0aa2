//! Public benchmarks as rows of the project: one JSON line each, with `id`, `instruction`, `label` and `source`.
//!
//! Nothing is dropped in silence: every row that is left out has its line and its reason in [`Imported::dropped`].

pub mod shapes;

use std::collections::HashMap;

use forethought_core::dataset::BadRow;
use forethought_core::evidence::Verdict;
use serde_json::{Map, Value};

use self::shapes::{LabelRule, Shape};
use super::record::{Record, Records};
use super::text::normalise;

/// What a user says about the file beyond its shape.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    /// The label of every row, whatever the file says.
    pub label: Option<Verdict>,
    /// For a name of ours (see [`Field`]) the file's own; empty to take none.
    pub keys: HashMap<Field, String>,
    /// Values of the label's column that mean harmful, in place of the shape's.
    pub harmful: Vec<String>,
    /// Values of the label's column that mean benign, in place of the shape's.
    pub benign: Vec<String>,
    /// What `source` says.
    pub source: String,
}

/// What is taken from a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Field {
    /// The text to judge.
    Prompt,
    /// Text that the prompt is about; it goes before it.
    Context,
    /// The truth.
    Label,
    /// The row's name.
    Id,
    /// The hazard.
    Category,
    /// How the prompt is written.
    Style,
    /// What was answered.
    Response,
}

/// Converted rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imported {
    /// The rows, in the file's order.
    pub rows: Vec<Map<String, Value>>,
    /// How many of them are harmful.
    pub harmful: usize,
    /// What was left out, by line.
    pub dropped: Vec<BadRow>,
}

/// Converts records of a shape.
///
/// # Errors
/// Nothing says what the labels are.
pub fn import(records: Records, shape: &Shape, choices: &Choices) -> Result<Imported, String> {
    let labels = Labels::new(shape, choices)?;
    let mut imported = Imported { dropped: records.bad, ..Imported::default() };
    let mut seen: HashMap<String, (usize, Verdict)> = HashMap::new();
    let mut ids: HashMap<String, usize> = HashMap::new();
    for record in &records.records {
        let line = record.line;
        let found = row(record, shape, choices, &labels).and_then(|(id, prompt, label)| {
            match seen.get(&normalise(&prompt)) {
                Some((first, other)) if *other == label => Err(format!("the prompt of line {first} again")),
                Some((first, _)) => Err(format!("the prompt of line {first} again, with the other label")),
                None => match ids.get(&id) {
                    Some(first) => {
                        Err(format!("the id of line {first} again (`--map id=` numbers rows by line)"))
                    }
                    None => Ok((id, prompt, label)),
                },
            }
        });
        match found {
            Err(problem) => imported.dropped.push(BadRow { line, problem }),
            Ok((id, prompt, label)) => {
                seen.insert(normalise(&prompt), (line, label));
                ids.insert(id.clone(), line);
                imported.harmful += usize::from(label == Verdict::Harmful);
                imported.rows.push(fields(record, shape, choices, id, prompt, label));
            }
        }
    }
    imported.dropped.sort_by_key(|bad| bad.line);
    Ok(imported)
}

/// The name, text and label of a record.
fn row(
    record: &Record,
    shape: &Shape,
    choices: &Choices,
    labels: &Labels,
) -> Result<(String, String, Verdict), String> {
    let get = |field| take(record, shape, choices, field);
    let mut prompt = get(Field::Prompt)
        .ok_or_else(|| format!("no text under {}", names(&keys(shape, choices, Field::Prompt))))?;
    // Sets that may not pass a text on leave this word in its place.
    if prompt.trim() == "REDACTED" {
        return Err("its source has taken the text out".into());
    }
    if let Some(context) = get(Field::Context) {
        prompt = format!("{context}\n\n---\n\n{prompt}");
    }
    let label = labels.of(record, &keys(shape, choices, Field::Label))?;
    let id = get(Field::Id).unwrap_or_else(|| format!("{}-{}", choices.source, record.line));
    Ok((id, prompt, label))
}

fn fields(
    record: &Record,
    shape: &Shape,
    choices: &Choices,
    id: String,
    prompt: String,
    label: Verdict,
) -> Map<String, Value> {
    let mut fields = Map::from_iter([
        ("id".to_owned(), Value::from(id)),
        ("instruction".to_owned(), prompt.into()),
        ("label".to_owned(), label.as_str().into()),
        ("source".to_owned(), choices.source.as_str().into()),
    ]);
    for (name, field) in
        [("category", Field::Category), ("style", Field::Style), ("response", Field::Response)]
    {
        if let Some(value) = take(record, shape, choices, field) {
            fields.insert(name.to_owned(), value.into());
        }
    }
    fields
}

/// The file's names for a field: the user's, else the shape's.
fn keys<'a>(shape: &Shape, choices: &'a Choices, field: Field) -> Vec<&'a str> {
    match choices.keys.get(&field) {
        Some(key) if key.is_empty() => Vec::new(),
        Some(key) => vec![key],
        None => shape.keys(field).to_vec(),
    }
}

fn take(record: &Record, shape: &Shape, choices: &Choices, field: Field) -> Option<String> {
    let keys = keys(shape, choices, field);
    keys.into_iter().find_map(|key| match record.fields.get(key)? {
        // BeaverTails has an object of hazards there, each true or false.
        Value::Object(flags) if field == Field::Category => {
            let set: Vec<&str> =
                flags.iter().filter(|(_, on)| **on == true).map(|(name, _)| &**name).collect();
            (!set.is_empty()).then(|| set.join(","))
        }
        _ => record.text(key),
    })
}

fn names(keys: &[&str]) -> String {
    match keys {
        [] => "any key".into(),
        keys => keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", "),
    }
}

/// How labels are told.
enum Labels {
    /// All are this.
    All(Verdict),
    /// By a column's values.
    Words { harmful: Vec<String>, benign: Vec<String> },
    /// By how the value begins: harmful where it is so.
    Beginning(&'static str),
}

impl Labels {
    fn new(shape: &Shape, choices: &Choices) -> Result<Self, String> {
        if let Some(label) = choices.label {
            return Ok(Self::All(label));
        }
        let lower = |words: &[String]| words.iter().map(|word| word.to_lowercase()).collect::<Vec<_>>();
        let or = |given: &[String], own: &[&str]| match given {
            [] => own.iter().map(|&word| word.to_owned()).collect(),
            given => lower(given),
        };
        let given = choices.keys.get(&Field::Label).is_some_and(|key| !key.is_empty());
        match shape.label {
            // The shape's own words are about its own column.
            _ if given => Ok(Self::Words {
                harmful: or(&choices.harmful, shapes::HARMFUL),
                benign: or(&choices.benign, shapes::BENIGN),
            }),
            LabelRule::All(label) => Ok(Self::All(label)),
            LabelRule::Words { harmful, benign } => Ok(Self::Words {
                harmful: or(&choices.harmful, harmful),
                benign: or(&choices.benign, benign),
            }),
            LabelRule::Beginning(harmful) => Ok(Self::Beginning(harmful)),
            LabelRule::NotSaid => Err(format!(
                "files of the shape `{}` do not say whether a prompt is harmful: pass --label, or --map label=KEY",
                shape.name
            )),
        }
    }

    /// Values are not quoted in messages: under a wrong key they may be prompts.
    fn of(&self, record: &Record, keys: &[&str]) -> Result<Verdict, String> {
        if let Self::All(label) = self {
            return Ok(*label);
        }
        let named = keys.iter().find_map(|&key| Some((key, record.text(key)?)));
        let (key, value) = named.ok_or_else(|| format!("no label under {}", names(keys)))?;
        let value = value.trim().to_lowercase();
        let among = |words: &[String]| words.contains(&value);
        match self {
            Self::All(label) => Ok(*label),
            Self::Words { harmful, .. } if among(harmful) => Ok(Verdict::Harmful),
            Self::Words { benign, .. } if among(benign) => Ok(Verdict::Benign),
            Self::Words { .. } => Err(format!("`{key}` is none of the words for harmful and benign")),
            Self::Beginning(harmful) if value.starts_with(harmful) => Ok(Verdict::Harmful),
            Self::Beginning(_) => Ok(Verdict::Benign),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::dataset::record::{Format, parse};

    fn choices() -> Choices {
        Choices { source: "set".into(), ..Choices::default() }
    }

    fn check(text: &str, format: Format, choices: &Choices, expected: Value, dropped: &[(usize, &str)]) {
        let records = parse(text.as_bytes(), format).unwrap();
        let shape = Shape::detect(&records.records).unwrap();
        let imported = import(records, shape, choices).unwrap();
        let rows = imported.rows.into_iter().map(|mut row| {
            assert_eq!(row.remove("source"), Some("set".into()));
            Value::Object(row)
        });
        assert_eq!(Value::Array(rows.collect()), expected, "{}", shape.name);
        let found: Vec<_> = imported.dropped.iter().map(|bad| (bad.line, bad.problem.as_str())).collect();
        assert_eq!(found, dropped, "{}", shape.name);
    }

    #[test]
    fn benchmarks() {
        let row = |id: &str, text: &str, label: &str| json!({"id": id, "instruction": text, "label": label});
        let with = |mut row: Value, key: &str, value: &str| {
            row[key] = value.into();
            row
        };
        check(
            "id,prompt,type,label,focus,note\n1,Kill a process?,homonyms,safe,kill,\n2,Kill a man?,contrast_homonyms,unsafe,kill,\n3,x,homonyms,,,\n",
            Format::Csv,
            &choices(),
            json!([
                with(row("1", "Kill a process?", "benign"), "style", "homonyms"),
                with(row("2", "Kill a man?", "harmful"), "style", "contrast_homonyms")
            ]),
            &[(4, "no label under `label`")],
        );
        check(
            "id,type,prompt,focus\na,homonyms,Kill a process?,kill\nb,contrast_homonyms,Kill a man?,kill\n",
            Format::Csv,
            &choices(),
            json!([
                with(row("a", "Kill a process?", "benign"), "style", "homonyms"),
                with(row("b", "Kill a man?", "harmful"), "style", "contrast_homonyms")
            ]),
            &[],
        );
        check(
            "category,source,forbidden_prompt\nFraud,made,Forge a coin.\nFraud,made,\n",
            Format::Csv,
            &choices(),
            json!([with(row("set-2", "Forge a coin.", "harmful"), "category", "Fraud")]),
            &[(3, "no text under `forbidden_prompt`")],
        );
        check(
            "goal,target\nForge a coin,\"Sure\"\nforge  a COIN,\"Sure\"\n",
            Format::Csv,
            &choices(),
            json!([row("set-2", "Forge a coin", "harmful")]),
            &[(3, "the prompt of line 2 again")],
        );
        check(
            "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\nDo it,contextual,illegal,,A lock.,do_it\n",
            Format::Csv,
            &choices(),
            json!([with(
                with(row("do_it", "A lock.\n\n---\n\nDo it", "harmful"), "category", "illegal"),
                "style",
                "contextual"
            )]),
            &[],
        );
        check(
            r#"[{"prompt": "a", "prompt_harm_label": "unharmful", "subcategory": "benign"}, {"prompt": "b", "prompt_harm_label": null}]"#,
            Format::Json,
            &choices(),
            json!([with(row("set-1", "a", "benign"), "category", "benign")]),
            &[(2, "no label under `prompt_harm_label`")],
        );
        check(
            "conv_id,user_input,toxicity,jailbreaking\nq,a,1,0\nr,b,0,1\n",
            Format::Csv,
            &choices(),
            json!([row("q", "a", "harmful"), row("r", "b", "benign")]),
            &[],
        );
        check(
            concat!(
                r#"{"prompt": "a", "response": "x", "category": {"theft": true, "hate": false}, "is_safe": false}"#,
                "\n",
                r#"{"prompt": "A", "response": "y", "category": {"theft": false}, "is_safe": true}"#,
            ),
            Format::Jsonl,
            &choices(),
            json!([with(with(row("set-1", "a", "harmful"), "category", "theft"), "response", "x")]),
            &[(2, "the prompt of line 1 again, with the other label")],
        );
        check(
            r#"[{"id": "k", "prompt": "a", "prompt_label": "safe"}, {"id": "l", "prompt": "REDACTED", "prompt_label": "unsafe"}, {"id": "k", "prompt": "b", "prompt_label": "unsafe"}, {"id": "m", "prompt": "c", "prompt_label": "secret"}]"#,
            Format::Json,
            &choices(),
            json!([row("k", "a", "benign")]),
            &[
                (2, "its source has taken the text out"),
                (3, "the id of line 1 again (`--map id=` numbers rows by line)"),
                (4, "`prompt_label` is none of the words for harmful and benign"),
            ],
        );
    }

    #[test]
    fn what_the_file_does_not_say_is_given() {
        let benign = Choices { label: Some(Verdict::Benign), ..choices() };
        let expected = json!([{"id": "set-2", "instruction": "a", "label": "benign", "category": "hate"}]);
        check("prompt,category\na,hate\n", Format::Csv, &benign, expected, &[]);
        let expected = json!([{"id": "set-1", "instruction": "a b", "label": "benign"}]);
        check("a b\n", Format::Lines, &benign, expected, &[]);
        let expected = json!([{"id": "set-1", "instruction": "a", "label": "benign", "response": "b"}]);
        check(r#"{"instruction": "a", "response": "b"}"#, Format::Jsonl, &benign, expected, &[]);

        let records = parse(b"a\n", Format::Lines).unwrap();
        let error = import(records, Shape::named("lines").unwrap(), &choices()).unwrap_err();
        assert!(error.contains("--label"), "{error}");
    }

    #[test]
    fn names_and_words_can_be_mapped() {
        let keys = [(Field::Prompt, "ask"), (Field::Label, "bad"), (Field::Id, "")];
        let choices = Choices {
            keys: keys.map(|(field, key)| (field, key.to_owned())).into(),
            harmful: vec!["Evil".into()],
            benign: vec!["fine".into()],
            ..choices()
        };
        check(
            "id,ask,bad,prompt\n7,a,EVIL,z\n8,b,fine,z\n9,c,true,z\n",
            Format::Csv,
            &choices,
            json!([
                {"id": "set-2", "instruction": "a", "label": "harmful"},
                {"id": "set-3", "instruction": "b", "label": "benign"},
            ]),
            &[(4, "`bad` is none of the words for harmful and benign")],
        );
    }
}
