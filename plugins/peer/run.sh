#!/usr/bin/env bash
# The policy `thresholds` behind this project's host and behind Extism's, in turns, on the same request and evidence.
#
#   plugins/peer/run.sh [ROUNDS] [SECONDS]      prints a line of JSON for each run, then the medians
#
# Needs a built `forethought` (target/release), jq, and what policies/build.sh needs for Extism's guest. Extism 1.41 needs
# Rust 1.96 or newer; set RUSTC and CARGO for it if the toolchain in use is older.
set -euo pipefail
cd "$(dirname "$0")"
rounds=${1:-5} seconds=${2:-2}
root=$(cd ../.. && pwd)
target=${CARGO_TARGET_DIR:-$PWD/target}

CARGO_TARGET_DIR=$target "${CARGO:-cargo}" build --release --quiet
(cd guest && CARGO_TARGET_DIR=$target/guest ../../policies/build.sh --quiet)
guest=$target/guest/wasm32-unknown-unknown/release/guest.wasm

lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
ours=$root/plugins/policies/built/thresholds.wasm
for _ in $(seq "$rounds"); do
    for threads in 1 2; do
        "$root/target/release/forethought" plugin bench "$ours" --seconds "$seconds" --threads "$threads" --json |
            jq -c '.runs[0] + {host: "forethought, fresh"}'
        for mode in fresh reused; do
            "$target/release/peer" "$guest" "$mode" "$seconds" "$threads" | jq -c ". + {host: \"extism, $mode\"}"
        done
    done
done | tee "$lines"

jq -rs 'group_by([.host, .threads])[] | (map(.p50_us) | sort | .[length / 2 | floor]) as $p50
    | (map(.p99_us) | sort | .[length / 2 | floor]) as $p99 | (map(.per_second) | sort | .[length / 2 | floor]) as $rate
    | "\(.[0].host)\t\(.[0].threads) threads\tp50 \($p50) us\tp99 \($p99) us\t\($rate) a second"' "$lines"
