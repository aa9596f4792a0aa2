"""What llama.cpp makes of exported GGUF files. Arguments: the folder of llama_cpp.py, and a JSON file with a list of

    {"path": FILE.gguf, "texts": [{"text": ..., "ids": [...]}], "cases": [{"ids": [...], "logits": [[...], ...]}]}

where ids and logits (a row for every position) are our own. Prints a list of how far llama.cpp is from them.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, sys.argv[1])
import llama_cpp


def main():
    results = []
    for export in json.loads(Path(sys.argv[2]).read_text()):
        model = llama_cpp.LlamaCpp(export["path"])
        other_ids = sum(model.encode(text["text"], special=False) != text["ids"] for text in export["texts"])
        same, positions, worst = 0, 0, 0.0
        for case in export["cases"]:
            ours, theirs = np.array(case["logits"]), model.logits(case["ids"])
            assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
            same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
            positions += len(ours)
            error = np.linalg.norm(theirs - ours, axis=-1) / np.linalg.norm(ours - ours.mean(-1, keepdims=True), axis=-1)
            worst = max(worst, float(error.max()))
        results.append({"other_ids": other_ids, "same": same, "positions": positions, "worst": worst})
    print(json.dumps(results))


main()
