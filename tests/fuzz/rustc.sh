#!/usr/bin/env bash
# What run.sh has cargo call in place of rustc: this project's own crates are compiled with marks for the fuzzer, and with
# checks of arithmetic; all others as ever, so that they need not be compiled anew.
rustc=$1
shift
case " $* " in
*" --crate-name forethought_"* | *" tests/fuzz/targets/"* | *" targets/"*)
    exec "$rustc" "$@" --cfg fuzzing -C debug-assertions -C overflow-checks -C passes=sancov-module \
        -C llvm-args=-sanitizer-coverage-level=4 -C llvm-args=-sanitizer-coverage-inline-8bit-counters \
        -C llvm-args=-sanitizer-coverage-pc-table -C llvm-args=-sanitizer-coverage-trace-compares
    ;;
*)
    exec "$rustc" "$@"
    ;;
esac
