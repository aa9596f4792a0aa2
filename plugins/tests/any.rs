//! Files that are no plugins, or nearly: they are rejected, and never more than that.

#![allow(clippy::unwrap_used)] // helpers of tests

#[path = "support/guest.rs"]
mod guest;

use std::path::Path;

use forethought_plugins::{Engine, Plugin, PluginOptions};
use proptest::{collection::vec, prelude::*};

use crate::guest::Guest;

/// What Rust's toolchain makes of a sample: a module, which the host turns into a component.
const MODULE: &[u8] = include_bytes!("../policies/built/escalate.wasm");

fn load(engine: &Engine, file: &[u8]) -> Result<String, String> {
    Plugin::of_bytes(engine, Path::new("any.wasm"), file, PluginOptions::default())
        .map(|plugin| plugin.manifest().name.clone())
        .map_err(|error| error.to_string())
}

#[test]
fn a_module_with_a_hole_is_rejected() {
    let engine = Engine::new(None).unwrap();
    for start in (8..MODULE.len()).step_by(MODULE.len() / 40) {
        let end = (start + MODULE.len() / 3).min(MODULE.len());
        let error = load(&engine, &[&MODULE[..start], &MODULE[end..]].concat()).unwrap_err();
        assert!(error.contains("can't be made a component"), "{error}");
    }
}

/// A module's own description is not read: nothing could catch it if the encoder used up the stack with this one, whose
/// packages `a:a` and `b:b` depend on each other.
#[test]
fn what_a_module_says_of_itself_does_not_count() {
    const CIRCULAR: &str = r#"(component
        (type (component
            (type (component
                (type (instance (type (enum "e")) (export "t" (type (eq 0)))))
                (import "a:a/one" (instance (type 0)))
                (alias export 0 "t" (type))
                (type (instance (alias outer 1 1 (type)) (export "t" (type (eq 0)))))
                (import "b:b/two" (instance (type 2)))
                (alias export 1 "t" (type))
                (type (instance (alias outer 1 3 (type)) (export "t" (type (eq 0)))))
                (import "a:a/three" (instance (type 4)))))
            (export "root:root/root" (component (type 0)))))
        (export "root" (type 0))
        (@custom "wit-component-encoding" "\04\00"))"#;
    let engine = Engine::new(None).unwrap();
    let data = wat::parse_str(CIRCULAR).unwrap();
    let data: String = data.iter().map(|byte| format!("\\{byte:02x}")).collect();
    let section = wat::parse_str(format!("(module (@custom \"component-type\" \"{data}\"))")).unwrap();
    // It runs, and wants to be told more.
    let error = load(&engine, &[MODULE, &section[8..]].concat()).unwrap_err();
    assert!(error.contains("missing field `upstream`"), "{error}");
    let error = load(&engine, &section).unwrap_err();
    assert!(error.contains("can't be made a component"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn a_plugin_with_other_bytes_loads_or_is_rejected(changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let engine = Engine::new(None).unwrap();
        let mut file = Guest::default().component();
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Err(error) = load(&engine, &file) {
            prop_assert!(error.contains("any.wasm"), "{}", error);
        }
    }

    #[test]
    fn a_plugin_that_breaks_off_is_rejected(end in any::<prop::sample::Index>()) {
        let engine = Engine::new(None).unwrap();
        let file = Guest::default().component();
        prop_assert!(load(&engine, &file[..end.index(file.len())]).is_err());
    }

    #[test]
    fn what_is_no_webassembly_is_rejected(file in vec(any::<u8>(), 0..200)) {
        let engine = Engine::new(None).unwrap();
        prop_assert!(load(&engine, &file).is_err());
    }

    /// A manifest of any bytes: its name and version are checked before they are shown.
    #[test]
    fn a_plugin_may_say_anything_of_itself(name in vec(any::<u8>(), 8), fields in vec(any::<u32>(), 4), left in 0usize..4) {
        let engine = Engine::new(None).unwrap();
        let mut init: String = name
            .iter()
            .enumerate()
            .map(|(at, byte)| format!("(i32.store8 (i32.const {}) (i32.const {byte}))", 200 + at))
            .collect();
        // Pointers and lengths, the manifest's result and its flag included.
        for (at, value) in fields.iter().enumerate().skip(left) {
            init += &format!("(i32.store (i32.const {}) (i32.const {}))", 20 + 4 * at, *value as i32);
        }
        let guest = Guest { init: init.leak(), ..Guest::default() };
        match load(&engine, &guest.component()) {
            Ok(name) => prop_assert!(!name.is_empty() && !name.chars().any(char::is_control), "{:?}", name),
            Err(error) => prop_assert!(error.contains("any.wasm"), "{}", error),
        }
    }
}
