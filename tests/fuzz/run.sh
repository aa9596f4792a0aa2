#!/usr/bin/env bash
# Runs every fuzzer for a while, on a stable Rust.
#
#   tests/fuzz/run.sh [SECONDS] [TARGET...]      SECONDS for each target (default 10)
#
# What a fuzzer finds is left in target/fuzz/TARGET, and ends the run; what it learns, in target/fuzz/corpus/TARGET. The same
# targets run under cargo-fuzz, which wants a nightly Rust: cargo fuzz run --fuzz-dir tests/fuzz TARGET.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-10}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(decode edit frames answer window config bundle plugin)

root=$(cd ../.. && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
# Of no effect but that these crates are kept apart from the ordinary ones.
apart=()
for crate in core plugins proxy; do
    apart+=(--config "profile.release.package.forethought-$crate.opt-level=1")
done
RUSTC_WRAPPER=$PWD/rustc.sh CARGO_INCREMENTAL=0 CARGO_TARGET_DIR=$target \
    cargo build --release --locked --quiet "${apart[@]}" "${targets[@]/#/--bin=}"

for name in "${targets[@]}"; do
    printf '%s, %s s\n' "$name" "$seconds"
    folder=$target/fuzz
    mkdir -p "$folder/corpus/$name" "$folder/$name"
    seeds=seeds/$name most=8192
    [ "$name" != plugin ] || seeds=$root/plugins/policies/built most=200000
    "$target/release/$name" "$folder/corpus/$name" "$seeds" -max_total_time="$seconds" -max_len="$most" -timeout=20 \
        -rss_limit_mb=4096 -artifact_prefix="$folder/$name/" -print_final_stats=1 >"$folder/$name.log" 2>&1 || {
        tail -n 40 "$folder/$name.log"
        exit 1
    }
    grep -E 'number_of_executed_units|average_exec_per_sec' "$folder/$name.log"
    grep -oE 'cov: [0-9]+ ft: [0-9]+' "$folder/$name.log" | tail -n 1
done
