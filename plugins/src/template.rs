//! The files of a new plugin. They are complete: SDK and interface are part of them, in the version of this program.

/// What a plugin is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// Rust.
    Rust,
    /// JavaScript.
    JavaScript,
    /// Python.
    Python,
}

/// The interface in its newest version: paths and texts.
pub(crate) const WIT: [(&str, &str); 3] = [
    ("wit/0.1.0/host.wit", include_str!("../../wit/0.1.0/host.wit")),
    ("wit/0.1.0/types.wit", include_str!("../../wit/0.1.0/types.wit")),
    ("wit/0.1.0/world.wit", include_str!("../../wit/0.1.0/world.wit")),
];

// The SDK lies two folders below `wit/`, as it does in this repository.
const RUST: [(&str, &str); 10] = [
    ("Cargo.toml", include_str!("../templates/rust/manifest.toml")),
    ("README.md", include_str!("../templates/rust/README.md")),
    ("cases.toml", include_str!("../templates/cases.toml")),
    ("src/lib.rs", include_str!("../templates/rust/src/lib.rs")),
    (".gitignore", "/target\n"),
    ("vendor/forethought-policy/Cargo.toml", include_str!("../sdk/Cargo.toml")),
    ("vendor/forethought-policy/src/arena.rs", include_str!("../sdk/src/arena.rs")),
    ("vendor/forethought-policy/src/lib.rs", include_str!("../sdk/src/lib.rs")),
    ("vendor/forethought-policy/src/refusal.rs", include_str!("../sdk/src/refusal.rs")),
    ("vendor/forethought-policy/src/request.rs", include_str!("../sdk/src/request.rs")),
];

const JAVASCRIPT: [(&str, &str); 6] = [
    ("package.json", include_str!("../templates/js/package.json")),
    ("README.md", include_str!("../templates/js/README.md")),
    ("build.mjs", include_str!("../templates/js/build.mjs")),
    ("cases.toml", include_str!("../templates/cases.toml")),
    ("policy.js", include_str!("../templates/js/policy.js")),
    (".gitignore", "/node_modules\n/policy.wasm\n"),
];

const PYTHON: [(&str, &str); 6] = [
    ("requirements.txt", include_str!("../templates/python/requirements.txt")),
    ("README.md", include_str!("../templates/python/README.md")),
    ("build.sh", include_str!("../templates/python/build.sh")),
    ("cases.toml", include_str!("../templates/cases.toml")),
    ("app.py", include_str!("../templates/python/app.py")),
    (".gitignore", "/.venv\n/policy.wasm\n/bindings\n__pycache__\n"),
];

/// The files of a plugin called `name` (small letters, digits and dashes): their paths and their texts.
pub fn files(language: Language, name: &str) -> Vec<(&'static str, String)> {
    let (own, component): (&[_], _) = match language {
        Language::Rust => {
            let module = name.replace('-', "_");
            (&RUST, format!("target/wasm32-unknown-unknown/release/{module}.wasm"))
        }
        Language::JavaScript => (&JAVASCRIPT, "policy.wasm".to_owned()),
        Language::Python => (&PYTHON, "policy.wasm".to_owned()),
    };
    let fill = |text: &str| text.replace("{{name}}", name).replace("{{component}}", &component);
    own.iter().chain(&WIT).map(|&(path, text)| (path, fill(text))).collect()
}
