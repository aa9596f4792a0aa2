//! Modules that a guest toolchain made for components, and the step from one to the other.

use std::path::Path;

use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{Resolve, SourceMap};

use crate::template;

/// Whether a file is a core module, and no component.
pub(crate) fn is_module(file: &[u8]) -> bool {
    file.starts_with(b"\0asm\x01\0\0\0")
}

/// A component of a module: the step that `wasm-tools component new` takes, but that the module is held against the plugins'
/// own interface, and not against what it says of itself.
///
/// # Errors
/// Says why, where the module is broken, or is not made for the interface.
pub(crate) fn encode(module: &[u8]) -> Result<Vec<u8>, String> {
    let encode = || {
        wasmparser::validate(module)?;
        let mut module = bare(module)?;
        describe(&mut module)?;
        ComponentEncoder::default().validate(true).module(&module)?.encode()
    };
    encode().map_err(|error: anyhow::Error| {
        format!(
            "it is a module that can't be made a component ({error:#}); was it built with the SDK? What \
             imports more than the interface, or has no strings in UTF-8, must be a component."
        )
    })
}

/// A valid module without its custom sections. One may describe the module, and be anything: in one of packages that depend on
/// each other in a circle, `wit-parser` (0.254) recurses until the stack is used up, and that ends a process.
fn bare(module: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut kept = Vec::with_capacity(module.len());
    let mut from = 0;
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload?;
        let to = match &payload {
            Payload::Version { range, .. } => range.end,
            section => match section.as_section() {
                Some((_, range)) => range.end,
                None => continue, // a part of the section before it, or the end
            },
        };
        if !matches!(&payload, Payload::CustomSection(_)) {
            kept.extend_from_slice(&module[from..to]);
        }
        from = to;
    }
    Ok(kept)
}

/// Says of a module that it is a plugin of the newest interface.
fn describe(module: &mut Vec<u8>) -> anyhow::Result<()> {
    let mut files = SourceMap::new();
    for (path, text) in template::WIT {
        files.push(Path::new(path), text);
    }
    let mut resolve = Resolve::default();
    let package = resolve.push_group(files.parse().map_err(|(_, error)| error)?)?;
    let world = resolve.select_world(&[package], Some("plugin"))?;
    embed_component_metadata(module, &resolve, world, StringEncoding::UTF8)
}
