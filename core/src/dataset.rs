//! Labelled prompts in JSON lines: what `eval` scores and the trainer learns from.
//!
//! A row is an object with `prompt` or `instruction` (the same thing under two names), `label` (`harmful` or
//! `benign`), and, where there is one, `id`, `category`, `source`, `style`, `understanding` and `assessment`; other
//! keys are left alone. Text that begins with a speaker's label (`User: `) is a transcript of several turns, under
//! either name; all other text is one user message. A row without `id` is called by its line number.
//!
//! Lines end at `\n` only: prompts hold every other separator that Unicode knows. A row that can't be used is never
//! dropped in silence: it is in [`Dataset::bad`], with its line.

use std::{collections::HashMap, fs, io, path::Path};

use serde_json::{Map, Value};

use crate::{conversation::Conversation, evidence::Verdict};

/// Why a file can't be read at all.
#[derive(Debug, thiserror::Error)]
#[error("can't read {path}: {source}")]
pub struct DatasetError {
    /// The file.
    pub path: String,
    /// What the system said.
    pub source: io::Error,
}

/// One usable row.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name, unique in the file.
    pub id: String,
    /// Its line, counted from 1.
    pub line: usize,
    /// What is to be judged.
    pub conversation: Conversation,
    /// The truth.
    pub label: Verdict,
    /// The hazard, or the source's own word for it.
    pub category: Option<String>,
    /// The set it comes from.
    pub source: Option<String>,
    /// How the prompt is written.
    pub style: Option<String>,
    /// What the first phase should say.
    pub understanding: Option<String>,
    /// What the second phase should say.
    pub assessment: Option<String>,
}

/// A row that can't be used. Never holds the row's text.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct BadRow {
    /// Its line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: String,
}

/// The rows of one file, in its order.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    /// What can be used.
    pub rows: Vec<Row>,
    /// What can't.
    pub bad: Vec<BadRow>,
}

impl Dataset {
    /// Reads a file of JSON lines.
    ///
    /// # Errors
    /// Only if the file can't be read; rows that can't be used are in [`Self::bad`].
    pub fn read(path: &Path) -> Result<Self, DatasetError> {
        Self::read_as(path, None)
    }

    /// Reads a file of JSON lines that are all of one `label`, if it is given: a row needs none then, and one with the other
    /// is bad.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn read_as(path: &Path, label: Option<Verdict>) -> Result<Self, DatasetError> {
        let bytes =
            fs::read(path).map_err(|source| DatasetError { path: path.display().to_string(), source })?;
        Ok(Self::labelled(&bytes, label))
    }

    /// Reads JSON lines. Blank lines hold nothing and count for nothing; a byte order mark is passed over.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self::labelled(bytes, None)
    }

    fn labelled(bytes: &[u8], label: Option<Verdict>) -> Self {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut dataset = Self::default();
        let mut lines_by_id: HashMap<String, usize> = HashMap::new();
        for (line, text) in (1..).zip(bytes.split(|&b| b == b'\n')) {
            if text.trim_ascii().is_empty() {
                continue;
            }
            let row =
                parse(line, text, label).and_then(|row| match lines_by_id.insert(row.id.clone(), line) {
                    Some(first) => {
                        lines_by_id.insert(row.id, first);
                        Err(format!("`id` is that of line {first}"))
                    }
                    None => Ok(row),
                });
            match row {
                Ok(row) => dataset.rows.push(row),
                Err(problem) => dataset.bad.push(BadRow { line, problem }),
            }
        }
        dataset
    }
}

/// Fields are taken by hand, for serde's own messages quote the values, and these are prompts.
fn parse(line: usize, text: &[u8], all: Option<Verdict>) -> Result<Row, String> {
    let text = str::from_utf8(text).map_err(|e| format!("not UTF-8 from byte {} on", e.valid_up_to()))?;
    let value = serde_json::from_str(text).map_err(|e| format!("not JSON (column {})", e.column()))?;
    let Value::Object(mut row) = value else {
        return Err("not a JSON object".into());
    };
    let id = match row.remove("id") {
        None | Some(Value::Null) => line.to_string(),
        Some(Value::String(id)) => id,
        Some(Value::Number(id)) => id.to_string(),
        Some(_) => return Err("`id` is neither text nor a number".into()),
    };
    let prompt = match (take(&mut row, "prompt")?, take(&mut row, "instruction")?) {
        (Some(prompt), None) | (None, Some(prompt)) => prompt,
        (None, None) => return Err("no `prompt` (or `instruction`)".into()),
        (Some(_), Some(_)) => return Err("both `prompt` and `instruction`".into()),
    };
    let label = match take(&mut row, "label")?.as_deref() {
        Some("harmful") => Verdict::Harmful,
        Some("benign") => Verdict::Benign,
        Some(_) => return Err("`label` is neither `harmful` nor `benign`".into()),
        None => all.ok_or("no `label`")?,
    };
    if let Some(all) = all.filter(|all| *all != label) {
        return Err(format!("`label` is {label}, and this file is to hold {all} rows only"));
    }
    let mut filled = |key| Ok::<_, String>(take(&mut row, key)?.filter(|text| !text.is_empty()));
    Ok(Row {
        id,
        line,
        conversation: Conversation::from_transcript(&prompt),
        label,
        category: filled("category")?,
        source: filled("source")?,
        style: filled("style")?,
        understanding: filled("understanding")?,
        assessment: filled("assessment")?,
    })
}

fn take(row: &mut Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match row.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("`{key}` is not text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::{Message, Role};

    #[test]
    fn rows() {
        let text = concat!(
            r#"{"id": "a", "prompt": "How?", "label": "benign", "category": "", "source": "s", "extra": [1]}"#,
            "\r\n",
            // Unicode's own line ends are text; so is an escaped \n.
            "{\"instruction\": \"User: a\u{2028}b\\nc\\nAssistant: d\", \"label\": \"harmful\"}\n",
            "\n",
            r#"{"id": 7, "prompt": "", "label": "harmful", "understanding": "u", "style": null}"#,
        );
        let data = Dataset::from_bytes(format!("\u{feff}{text}").as_bytes());
        assert_eq!(data.bad, []);
        let [a, b, c] = &data.rows[..] else { panic!("{} rows", data.rows.len()) };
        assert_eq!((a.id.as_str(), a.line, a.label), ("a", 1, Verdict::Benign));
        assert_eq!((a.category.as_deref(), a.source.as_deref()), (None, Some("s")));
        assert!(a.conversation == Conversation::from_user("How?"));
        assert_eq!((b.id.as_str(), b.line, b.label), ("2", 2, Verdict::Harmful));
        let turns = [Message::text(Role::User, "a\u{2028}b\nc"), Message::text(Role::Assistant, "d")];
        assert!(b.conversation.messages == turns);
        assert_eq!((c.id.as_str(), c.line, c.understanding.as_deref()), ("7", 4, Some("u")));
    }

    #[test]
    fn bad_rows_are_named_without_their_text() {
        fn check(line: &[u8], problem: &str) {
            let good = br#"{"id": "a", "prompt": "p", "label": "benign"}"#;
            let data = Dataset::from_bytes(&[&good[..], b"\n", line].concat());
            assert_eq!(data.rows.len(), 1);
            assert_eq!(data.bad, [BadRow { line: 2, problem: problem.into() }]);
        }
        check(br#"{"prompt": "secret", "label": "ben"#, "not JSON (column 34)");
        check(br#"{"prompt": "secret \ud800", "label": "benign"}"#, "not JSON (column 26)");
        check(br#""secret""#, "not a JSON object");
        check(b"{\"prompt\": \"\xff\"}", "not UTF-8 from byte 12 on");
        check(br#"{"prompt": "secret", "label": "secret"}"#, "`label` is neither `harmful` nor `benign`");
        check(br#"{"prompt": "secret"}"#, "no `label`");
        check(br#"{"label": "benign"}"#, "no `prompt` (or `instruction`)");
        check(br#"{"prompt": ["secret"], "label": "benign"}"#, "`prompt` is not text");
        check(
            br#"{"prompt": "x", "instruction": "y", "label": "benign"}"#,
            "both `prompt` and `instruction`",
        );
        check(br#"{"id": {}, "prompt": "x", "label": "benign"}"#, "`id` is neither text nor a number");
        check(br#"{"id": "a", "prompt": "x", "label": "benign"}"#, "`id` is that of line 1");
    }

    #[test]
    fn a_file_of_one_label_needs_none() {
        let text = concat!(
            r#"{"prompt": "a"}"#,
            "\n",
            r#"{"prompt": "b", "label": "benign"}"#,
            "\n",
            r#"{"prompt": "c", "label": "harmful"}"#,
        );
        let data = Dataset::labelled(text.as_bytes(), Some(Verdict::Benign));
        assert!(data.rows.len() == 2 && data.rows.iter().all(|row| row.label == Verdict::Benign));
        let problem = "`label` is harmful, and this file is to hold benign rows only".to_owned();
        assert_eq!(data.bad, [BadRow { line: 3, problem }]);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Dataset::read(Path::new("no/such.jsonl")).unwrap_err();
        assert!(error.to_string().starts_with("can't read no/such.jsonl: "), "{error}");
    }
}
