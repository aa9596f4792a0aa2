"""This trainer beside torch and peft: the same model, sequences and steps, in turns, with two threads each.

    python3 trainer/benches/compare.py MODEL.gguf [ROUNDS] [STEPS]

Wants torch, transformers, peft and gguf (versions: core/tests/golden/requirements.txt) in the Python that runs it, and
cargo. Prints a table with the median of the rounds; the first step's losses must agree.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
model = sys.argv[1]
rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
steps = sys.argv[3] if len(sys.argv) > 3 else "4"

built = subprocess.run(
    ["cargo", "bench", "-p", "forethought-trainer", "--bench", "step", "--no-run", "--message-format=json"],
    check=True,
    capture_output=True,
    text=True,
)
artifacts = map(json.loads, built.stdout.splitlines())
bench = [a["executable"] for a in artifacts if a.get("target", {}).get("name") == "step" and a.get("executable")][0]

ways = {
    "torch + peft, f32": [sys.executable, str(HERE / "torch_step.py"), model, steps],
    "forethought-trainer, f32": [bench, "--steps", steps],
    "the same, blocks run again": [bench, "--steps", steps, "--recompute"],
    "forethought-trainer, bf16": [bench, "--steps", steps, "--precision", "bf16"],
    "forethought-trainer, q8_0": [bench, "--steps", steps, "--precision", "q8_0"],
    "forethought-trainer, nf4": [bench, "--steps", steps, "--precision", "nf4"],
}
found = {name: [] for name in ways}
for _ in range(rounds):
    for name, command in ways.items():
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        found[name].append(json.loads(run.stdout.splitlines()[-1]))

median = lambda name, key: statistics.median(run[key] for run in found[name])
torch = next(iter(ways))
print("| | first loss | tokens/s | of torch | peak MiB | of torch |\n| --- | ---: | ---: | ---: | ---: | ---: |")
for name in ways:
    speed, peak = median(name, "tokens_per_second"), median(name, "peak_mib")
    print(
        f"| {name} | {median(name, 'loss'):.4f} | {speed:.0f} | {speed / median(torch, 'tokens_per_second'):.2f} "
        f"| {peak:.0f} | {peak / median(torch, 'peak_mib'):.2f} |"
    )
off = abs(median("forethought-trainer, f32", "loss") - median(torch, "loss"))
assert off < 1e-3, f"the losses differ by {off}: the two do not compute the same thing"
