//! Manifests of guard bundles that are wrong in any way are rejected, and right ones say the same when written and read again.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::fs;

use forethought_core::guard::bundle::{Bundle, Manifest};
use proptest::{prelude::*, sample::select};
use toml::{Table, Value};

const DEFAULT: &str = include_str!("../bundles/default/guard.toml");

/// The value at a position of the tree, counted in order.
fn nth<'a>(value: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Table(table) => table.iter_mut().find_map(|(_, value)| nth(value, left)),
        Value::Array(items) => items.iter_mut().find_map(|value| nth(value, left)),
        _ => None,
    }
}

fn values() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(Value::Array(vec![])),
        Just(Value::Table(Table::new())),
        select(&["../x", "/etc/passwd", "{conversation}", "a\u{0}b", "reason", "direct"][..])
            .prop_map(Value::from),
    ]
}

/// What is made of a manifest with this text.
fn open(text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("guard.toml");
    fs::write(&file, text).unwrap();
    match Manifest::read(&file) {
        Ok(manifest) => {
            fs::write(&file, toml::to_string(&manifest).unwrap()).unwrap();
            assert_eq!(Manifest::read(&file).unwrap(), manifest, "{text}");
        }
        Err(error) => assert!(error.to_string().contains("guard.toml"), "{error}"),
    }
    if let Ok(bundle) = Bundle::open(folder.path().to_str().unwrap()) {
        // The files that it names are not there.
        assert!(bundle.manifest.adapter.is_none() || bundle.adapter().is_err());
        assert!(bundle.manifest.probes.is_empty() || bundle.probes().is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn any_value_may_be_any_other(at in 1usize..80, value in values()) {
        let mut tree = Value::Table(DEFAULT.parse().unwrap());
        if let Some(old) = nth(&mut tree, &mut { at }) {
            *old = value;
        }
        open(&toml::to_string(&tree).unwrap());
    }

    #[test]
    fn any_line_may_be_missing_or_broken(line in 0usize..60, end in 0usize..60) {
        let mut lines: Vec<&str> = DEFAULT.lines().collect();
        let line = line % lines.len();
        let text = lines[line];
        lines[line] = text.get(..end.min(text.len())).unwrap_or_default();
        open(&lines.join("\n"));
    }
}
