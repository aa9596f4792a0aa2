//! Plugins written by hand, in WebAssembly's text format, so that tests need no guest toolchain.

#![allow(dead_code)] // not every test file uses all of it

use std::path::Path;

use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::{Resolve, UnresolvedPackageGroup};

/// A guest that refuses with "no", but for what is put in place of its pieces.
pub(crate) struct Guest {
    /// Other imports, and other top-level fields.
    pub(crate) fields: &'static str,
    /// What `init` does before it returns its manifest.
    pub(crate) init: &'static str,
    /// What both decisions do before they return their ruling.
    pub(crate) decide: &'static str,
    /// What `decide-request` returns: the address of a ruling.
    pub(crate) ruling: &'static str,
    /// Whether it says that it is stateful.
    pub(crate) stateful: bool,
    /// WIT of a world `other` to use in place of `plugin`.
    pub(crate) world: Option<&'static str>,
}

impl Default for Guest {
    fn default() -> Self {
        Self { fields: "", init: "", decide: "", ruling: "i32.const 64", stateful: false, world: None }
    }
}

impl Guest {
    /// The component.
    pub(crate) fn component(&self) -> Vec<u8> {
        encode(&self.wat(), self.world)
    }

    fn wat(&self) -> String {
        let Self { fields, init, decide, ruling, stateful, .. } = self;
        let stateful = if *stateful { "\\01" } else { "\\00" };
        // A manifest at 16: ok, name (8 bytes at 200), version (3 at 208), stateful. Rulings at 64 ("no" at 211) and, for
        // responses, at 96: variants come first, then reason and flags.
        format!(
            r#"(module
  (import "forethought:policy/facts@0.1.0" "probe-trace" (func $trace (param i32 i32 i32)))
  (import "forethought:policy/log@0.1.0" "log" (func $log (param i32 i32 i32)))
  {fields}
  (memory (export "memory") 1)
  (global $free (mut i32) (i32.const 4096))
  (global $calls (mut i32) (i32.const 0))
  (data (i32.const 16) "\00\00\00\00\c8\00\00\00\08\00\00\00\d0\00\00\00\03\00\00\00{stateful}")
  (data (i32.const 64) "\02\00\00\00\d3\00\00\00\02\00\00\00\d5\00\00\00\04\00\00\00\00\00\00\00\00\00\00\00")
  (data (i32.const 96) "\01\00\00\00\00\00\00\00\00\00\00\00\d5\00\00\00\04\00\00\00\00\00\00\00\00\00\00\00")
  (data (i32.const 200) "by-hand.1.0norule")
  (func (export "cabi_realloc") (param $old i32) (param $size i32) (param $align i32) (param $new i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
    (global.set $free (i32.add (local.get $at) (local.get $new)))
    (block $room
      (br_if $room (i32.le_u (global.get $free) (i32.shl (memory.size) (i32.const 16))))
      (drop (memory.grow (i32.add (i32.shr_u (local.get $new) (i32.const 16)) (i32.const 1)))))
    local.get $at)
  (func (export "forethought:policy/policy@0.1.0#init") (param $config i32) (param $length i32) (result i32)
    {init}
    i32.const 16)
  (func $decide (export "forethought:policy/policy@0.1.0#decide-request") (param $case i32) (result i32)
    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
    {decide}
    {ruling})
  (func (export "forethought:policy/policy@0.1.0#decide-response") (param $case i32) (result i32)
    {decide}
    i32.const 96)
)"#
        )
    }
}

/// A component of this module and the world `plugin`, or the world `other` of this WIT.
pub(crate) fn encode(wat: &str, world: Option<&str>) -> Vec<u8> {
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit/0.1.0");
    let mut resolve = Resolve::default();
    let (mut package, _) = resolve.push_path(wit).expect("right WIT");
    if let Some(world) = world {
        let group = UnresolvedPackageGroup::parse("other.wit", world).expect("right WIT");
        package = resolve.push_group(group).expect("right WIT");
    }
    let name = if world.is_some() { "other" } else { "plugin" };
    let world = resolve.select_world(&[package], Some(name)).expect("a world");
    let mut module = wat::parse_str(wat).expect("right WAT");
    wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
        .expect("a module");
    let mut encoder =
        ComponentEncoder::default().module(&module).expect("a module for this world").validate(true);
    encoder.encode().expect("a component")
}

/// The hostile guests that load and then misbehave: name, kind of failure, guest.
pub(crate) fn hostile() -> Vec<(&'static str, &'static str, Guest)> {
    let guest = |decide| Guest { decide, ..Guest::default() };
    vec![
        ("infinite loop", "deadline", guest("(loop $l (br $l))")),
        ("slow host call", "deadline", guest("(call $trace (i32.const 200) (i32.const 7) (i32.const 1024))")),
        (
            "memory bomb",
            "memory",
            guest("(loop $l (drop (memory.grow (i32.const 16))) (br $l))"),
        ),
        (
            "memory bomb at once",
            "memory",
            guest("(drop (memory.grow (i32.const 65000)))"),
        ),
        ("table bomb", "table", Guest {
            fields: "(table $t 1 funcref)",
            decide: "(drop (table.grow $t (ref.null func) (i32.const 100000000)))",
            ..Guest::default()
        }),
        ("stack bomb", "stack", guest("(drop (call $decide (local.get $case)))")),
        ("trap", "trap", guest("unreachable")),
        ("division by zero", "trap", guest("(drop (i32.div_u (i32.const 1) (i32.const 0)))")),
        ("access out of bounds", "trap", guest("(drop (i32.load (i32.const -8)))")),
        ("giant output", "output", Guest {
            // A reason of 8 MB.
            decide: "(drop (memory.grow (i32.const 160))) (i32.store (i32.const 80) (i32.const 8000000))",
            ..Guest::default()
        }),
        ("output many times over", "output", Guest {
            // 100,000 flags, each of the same 60,000 bytes: 6 GB.
            decide: "(drop (memory.grow (i32.const 16)))
                (i32.store (i32.const 84) (i32.const 131072))
                (i32.store (i32.const 88) (i32.const 100000))
                (local.set $case (i32.const 0))
                (loop $l
                    (i32.store (i32.add (i32.const 131076) (i32.shl (local.get $case) (i32.const 3))) (i32.const 60000))
                    (local.set $case (i32.add (local.get $case) (i32.const 1)))
                    (br_if $l (i32.lt_u (local.get $case) (i32.const 100000))))",
            ..Guest::default()
        }),
        ("invalid UTF-8", "malformed", guest("(i32.store8 (i32.const 212) (i32.const 255))")),
        ("no such variant", "malformed", guest("(i32.store8 (i32.const 64) (i32.const 77))")),
        ("output outside memory", "malformed", guest("(i32.store (i32.const 76) (i32.const -16))")),
        ("ruling outside memory", "malformed", Guest { ruling: "i32.const -4", ..Guest::default() }),
    ]
}
