#!/bin/sh
# Makes policy.wasm of app.py. WASI is left out: a policy has no file, no clock and no network.
set -eu
cd "$(dirname "$0")"
componentize-py --wit-path wit/0.1.0 --world plugin componentize --stub-wasi app -o policy.wasm
