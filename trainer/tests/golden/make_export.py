"""What transformers and peft make of exports of the decoder's tiny models, for tests/python_export.rs.

    cargo test --release -p forethought-trainer --test python_export -- --ignored      (writes the exports)
    python3 make_export.py EXPORTS      (transformers, peft; versions in core/tests/golden/requirements.txt)

EXPORTS is the folder that the first command names. Writes export.json: for every export the files that were read, by
their hashes, the logits of a sequence's last position, and the ids of texts and of a chat.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
TINY = HERE / "../../../core/tests/golden/tiny"
IDS = [[(i * 53 + 7 * k) % 320 for i in range(k)] for k in (5, 33)]
TEXTS = ["the cat sat on the mat", "  The user's 12345 cats aren't HERE!\n\n", "naïve café — 猫が2匹 👩‍💻", "Verdict: benign"]
CHAT = [{"role": "system", "content": "S"}, {"role": "user", "content": "the cat"}]


def hashes(folder):
    """Of all files that do not hold merged weights: those differ in the last bits from machine to machine."""
    files = [path for path in sorted(folder.iterdir()) if path.name != "model.safetensors"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@torch.no_grad()
def logits(model):
    rows = [model(torch.tensor([ids])).logits[0, -1] for ids in IDS]
    return [[float(f"{value:.7g}") for value in row.tolist()] for row in rows]


def load(folder):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def main():
    cases = []
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        name, base = folder.name.split("-", 1)
        merged = load(folder / "safetensors")
        tokenizer = AutoTokenizer.from_pretrained(folder / "safetensors")
        case = {
            "model": name,
            "base": base,
            "merged": {"files": hashes(folder / "safetensors"), "logits": logits(merged)},
            "texts": [tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in TEXTS],
            "chat": tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False),
        }
        if base == "folder":
            adapted = PeftModel.from_pretrained(load(TINY / name), folder / "peft").eval()
            case["peft"] = {"files": hashes(folder / "peft"), "logits": logits(adapted)}
            off = max(abs(a - b) for x, y in zip(case["peft"]["logits"], case["merged"]["logits"]) for a, b in zip(x, y))
            print(f"{folder.name}: merged and apart differ by {off:.1e}")
        cases.append(case)
    (HERE / "export.json").write_text(json.dumps({"ids": IDS, "cases": cases}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
