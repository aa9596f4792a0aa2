//! `SECURITY.md` names tests; they must be there.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::path::Path;

#[test]
fn the_tests_that_security_md_names_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let named: Vec<(&str, &str)> =
        text.split('`').skip(1).step_by(2).filter_map(|code| code.split_once(".rs::")).collect();
    assert!(named.len() > 50, "{}", named.len());
    for (file, name) in named {
        let source = std::fs::read_to_string(root.join(format!("{file}.rs"))).unwrap_or_default();
        let at = source.find(&format!("fn {name}()")).unwrap_or_else(|| panic!("{file}.rs has no `{name}`"));
        let before = &source[..at];
        let attribute = before.trim_end().trim_end_matches("async").trim_end().rsplit('\n').next().unwrap();
        assert!(attribute.contains("test"), "{file}.rs: `{name}` is no test");
    }
}
