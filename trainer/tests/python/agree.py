"""How far other programs' scores of an exported guard are from the served guard's, prompt by prompt.

    python3 agree.py BUNDLE RESULTS.jsonl ROWS.jsonl peft=FOLDER,BASE.gguf gguf=MODEL.gguf ...

RESULTS is what `forethought eval --mode reason` wrote about ROWS with the BUNDLE. For `peft` (wants torch, transformers,
peft and gguf: core/tests/golden/requirements.txt) the exported folder is laid over the base model, for `gguf` (wants
xllamacpp) the merged file is loaded as it is. Both are given the guard's prompt: without phases, and behind the phases that
the guard wrote. Rows of several turns are left out, for their transcript is not a row's text.
"""

import json
import math
import sys
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "core/tests/golden"))


def torch_reader(folder, base):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    base = Path(base)
    model = AutoModelForCausalLM.from_pretrained(base.parent, gguf_file=base.name, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder).eval()

    def logits(ids):
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0, -1].tolist()

    return logits


def llama_reader(model):
    return lambda ids: model.logits(ids)[-1]


def main():
    bundle, results, rows = sys.argv[1:4]
    guard = tomllib.loads((Path(bundle) / "guard.toml").read_text())
    template = guard["template"]
    rows = {row["id"]: row for row in map(json.loads, Path(rows).read_text().splitlines())}
    scored = [json.loads(line) for line in Path(results).read_text().splitlines()]
    scored = [
        r for r in scored if not r["error"] and r["tokens"] < 500 and not rows[r["id"]]["instruction"].startswith("User: ")
    ]

    import llama_cpp

    exports = [argument.split("=", 1) for argument in sys.argv[4:]]
    # One tokenizer for all: that the programs agree on ids is another test's business.
    vocabulary = llama_cpp.LlamaCpp([path for kind, path in exports if kind == "gguf"][0])
    special = lambda text: vocabulary.encode(text, True)
    plain = lambda text: vocabulary.encode(text, False)
    harmful, benign = plain(template["harmful"])[0], plain(template["benign"])[0]

    def prompt(row, result, reasoned):
        ids = special(f"<|im_start|>system\n{template['system']}<|im_end|>\n<|im_start|>user\n")
        ids += plain("User: " + row["instruction"]) + special("<|im_end|>\n<|im_start|>assistant\n") + special(template["open"].lstrip("\n"))
        if not reasoned:
            return ids + special(template["direct_verdict"])
        ids += special(template["understanding"]) + plain(" " + result["understanding"])
        ids += special(template["assessment"]) + plain(" " + result["assessment"])
        return ids + special(template["verdict"])

    print("| export | score | prompts | mean difference | greatest | same side of 0.5 |\n| --- | --- | ---: | ---: | ---: | ---: |")
    for kind, path in exports:
        read = torch_reader(*path.split(",")) if kind == "peft" else llama_reader(llama_cpp.LlamaCpp(path))
        name = kind if kind == "peft" else Path(path).stem.replace("model-", "gguf ")
        for form, key in (("direct", "direct_score"), ("reason", "reason_score")):
            scale = guard["calibration"][form]
            differences, same = [], 0
            for result in scored:
                found = read(prompt(rows[result["id"]], result, form == "reason"))
                score = 1 / (1 + math.exp(-((found[harmful] - found[benign]) / scale["temperature"] + scale["bias"])))
                differences.append(abs(score - result[key]))
                same += (score >= 0.5) == (result[key] >= 0.5)
            mean, worst = sum(differences) / len(differences), max(differences)
            print(f"| {name} | {form} | {len(scored)} | {mean:.4f} | {worst:.3f} | {same} |", flush=True)


main()
