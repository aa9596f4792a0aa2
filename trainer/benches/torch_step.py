"""The steps of step.rs with torch and peft: `python3 torch_step.py MODEL.gguf STEPS [cuda]` prints one JSON object."""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

BATCH, LENGTH, LEARNT = 4, 171, 80
path, steps = Path(sys.argv[1]), int(sys.argv[2])
device = sys.argv[3] if len(sys.argv) > 3 else "cpu"
torch.set_num_threads(2)
base = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).to(device)
model = get_peft_model(
    base,
    LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ),
)
decoder, head = base.get_decoder(), base.lm_head
optimizer = torch.optim.AdamW(
    [p for p in model.parameters() if p.requires_grad], lr=2e-4, betas=(0.9, 0.95), weight_decay=1e-4
)
ids = torch.tensor(
    [[1000 + (i * 7919 + at * 104_729 + at * at * 31) % 40_000 for at in range(LENGTH)] for i in range(BATCH)],
    device=device,
)


def step():
    # As in step.rs, the head sees only the positions that count.
    states = decoder(ids[:, :-1]).last_hidden_state[:, -LEARNT:]
    loss = torch.nn.functional.cross_entropy(head(states).flatten(0, 1), ids[:, -LEARNT:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


first = step()
began = time.perf_counter()
for _ in range(steps):
    step()
speed = steps * BATCH * LENGTH / (time.perf_counter() - began)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"loss": first, "tokens_per_second": speed, "peak_mib": peak}))
