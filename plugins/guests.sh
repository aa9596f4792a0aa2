#!/usr/bin/env bash
# What needs guest toolchains, and so no other test does: rebuilds the sample policies and has the rebuilt ones pass the
# same cases as the committed ones, then makes, builds and tests a new plugin in each language.
#
# Needs npm, Python with venv, and a Rust compiler for WebAssembly (see policies/build.sh). Downloads the toolchains of
# JavaScript and Python into target/guest-tools, where they stay.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$PWD/target/guest-tools
mkdir -p "$tools"
if [ ! -x "$tools/venv/bin/componentize-py" ]; then
    python3 -m venv "$tools/venv"
    "$tools/venv/bin/pip" install --quiet -r plugins/templates/python/requirements.txt
fi
if [ ! -d "$tools/node_modules/@bytecodealliance/componentize-js" ]; then
    cp plugins/templates/js/package.json "$tools"
    sed -i 's/{{name}}/guest-tools/' "$tools/package.json"
    (cd "$tools" && npm install --silent)
fi

built=$PWD/target/guests/built
(export CARGO_TARGET_DIR=$PWD/target/guests; OUT=$built plugins/policies/build.sh)
# The whole workspace, so that its tests' build is used again.
cargo build --quiet --release --workspace --bins
for policy in plugins/policies/*/cases.toml; do
    name=$(basename "$(dirname "$policy")")
    "${CARGO_TARGET_DIR:-target}/release/forethought" plugin test "$policy" --component "$built/${name//-/_}.wasm"
done

FORETHOUGHT_GUEST_TOOLS=$tools cargo test --release --workspace --test plugin a_new_plugin -- --ignored
