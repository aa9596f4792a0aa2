#!/usr/bin/env bash
# Builds plugins in Rust: the samples, whose components go into built/ (or into $OUT), or, with cargo's flags as arguments,
# any other.
#
# With rustup's own target where it is there, else with Debian's compiler for the web (rustc-web, cargo-web, rust-web-src),
# which has the sources of the standard library and borrows the linker of the toolchain in use.
set -euo pipefail

sysroot=$(rustc --print sysroot)
build() {
    if [ -d "$sysroot/lib/rustlib/wasm32-unknown-unknown" ]; then
        cargo build --release --target wasm32-unknown-unknown "$@"
    else
        local lld
        lld=$(find "$sysroot" -name rust-lld | head -n 1)
        # Without the places of panics, which would name this machine's folders.
        PATH=/usr/bin:/bin RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zlocation-detail=none /usr/bin/cargo build --release \
            -Z build-std=std,panic_abort --target wasm32-unknown-unknown \
            --config "target.wasm32-unknown-unknown.linker='$lld'" "$@"
    fi
}

if [ $# -gt 0 ]; then
    build "$@"
else
    cd "$(dirname "$0")"
    build --locked
    mkdir -p "${OUT:-built}"
    cp "${CARGO_TARGET_DIR:-target}"/wasm32-unknown-unknown/release/*.wasm "${OUT:-built}"/
fi
