"""One training step of torch and peft on the decoder's tiny models, for tests/reference.rs.

    python3 make_step.py        (transformers, peft; versions in core/tests/golden/requirements.txt)

Writes step.json: the weighted mean loss of two sequences, and the gradient of every LoRA factor (its norm, and its
product with a fixed vector).
"""

import json
import random
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
TINY = HERE / "../../../core/tests/golden/tiny"
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def probe(count):
    """A fixed vector that both sides can make."""
    return torch.tensor([((i * 37 + 11) % 101) / 50 - 1 for i in range(count)])


def sequences(vocabulary):
    draw = random.Random(7)
    lengths = [31, 18]
    tokens = [[draw.randrange(vocabulary) for _ in range(n)] for n in lengths]
    weights = [[0.0 if i < n // 3 else 0.5 * (1 + i % 3) for i in range(n)] for n in lengths]
    return tokens, weights


def step(model, tokens, weights):
    total = sum(sum(w[1:]) for w in weights)
    loss = 0
    for ids, weight in zip(tokens, weights):
        logits = model(torch.tensor([ids])).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        loss = loss + (nll * torch.tensor(weight[1:])).sum() / total
    loss.backward()
    return loss.item()


def main():
    cases = []
    for name in ["llama", "llama3", "qwen2", "qwen3"]:
        torch.manual_seed(3)
        base = AutoModelForCausalLM.from_pretrained(TINY / name, dtype=torch.float32)
        if name == "llama":
            model = PeftModel.from_pretrained(base, TINY / "llama/lora", is_trainable=True)
        else:
            config = LoraConfig(r=4, lora_alpha=8, target_modules=PROJECTIONS)
            model = get_peft_model(base, config)
        factors = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
        if name != "llama":
            for value in factors.values():
                value.data = probe(value.numel()).view_as(value) * 0.2
        tokens, weights = sequences(base.config.vocab_size)
        loss = step(model, tokens, weights)
        grads = {
            n: [p.grad.norm().item(), (p.grad.flatten() * probe(p.numel())).sum().item()]
            for n, p in factors.items()
        }
        cases.append({"model": name, "tokens": tokens, "weights": weights, "loss": loss, "grads": grads})
    (HERE / "step.json").write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main()
