//! What a component imports and exports, against what it may.

use std::path::Path;

use serde::{Deserialize, Serialize};
use wasmtime::component::Component;

use crate::{error::LoadError, v0_1_0};

/// The interface's package.
const PACKAGE: &str = "forethought:policy/";
/// What every plugin may import.
const FREE: [&str; 3] = ["types", "log", "facts"];

/// Something that a plugin may import only where the operator says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grant {
    /// An empty WASI, for guests whose toolchains import one: no file, no network, no environment; output goes nowhere,
    /// clocks stand still, random numbers are always the same.
    Wasi,
}

/// Checks that a component is a plugin and wants no more than it is granted.
pub(crate) fn check(component: &Component, path: &Path, grants: &[Grant]) -> Result<(), LoadError> {
    let engine = component.engine();
    let ty = component.component_type();
    let wrong = |message: String| LoadError::Wrong { path: path.to_owned(), message };
    for (name, _) in ty.imports(engine) {
        let refused = |remedy: String| {
            Err(LoadError::Ungranted { path: path.to_owned(), import: name.to_owned(), remedy })
        };
        if let Some(own) = name.strip_prefix(PACKAGE) {
            let (interface, version) = own.split_once('@').unwrap_or((own, ""));
            if version != v0_1_0::VERSION || !FREE.contains(&interface) {
                return refused(format!("this program has {} of version {}", listed(&FREE), v0_1_0::VERSION));
            }
        } else if name.starts_with("wasi:") {
            if !grants.contains(&Grant::Wasi) {
                return refused(
                    "add `grants = [\"wasi\"]` to its table [[policy.plugins]] to give it an empty WASI"
                        .to_owned(),
                );
            }
        } else {
            return refused("no grant gives it; build the plugin without it".to_owned());
        }
    }
    let exports: Vec<&str> = ty.exports(engine).map(|(name, _)| name).collect();
    let wanted = format!("{PACKAGE}policy@{}", v0_1_0::VERSION);
    if !exports.contains(&wanted.as_str()) {
        let own = exports.iter().find_map(|name| name.strip_prefix(PACKAGE)?.strip_prefix("policy@"));
        return Err(wrong(match own {
            Some(version) => format!(
                "it is made for version {version} of the interface, and this program knows {}",
                v0_1_0::VERSION
            ),
            None => format!("it must export `{wanted}`, and exports {}", listed(&exports)),
        }));
    }
    Ok(())
}

fn listed(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        names => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    }
}
