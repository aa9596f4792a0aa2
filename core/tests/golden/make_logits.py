"""Writes smollm2_logits.json: logits and hidden states of the real model in f32. Usage: make_logits.py MODEL.gguf

The weights are dequantised from the GGUF and put into transformers' LlamaForCausalLM. llama.cpp, where it is installed, is asked too: once
with the file as it is (its kernels also quantise the activations) and once with the same weights written out as f32.
"""

import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import llama_cpp
from common import build_tokenizer, encode, margin, relative_error, rounded, run, sha256, write_json

SYSTEM = "<|im_start|>system\nYou are a helpful assistant who answers in plain words.<|im_end|>\n"
LONG = (
    "The harbour town had two clocks, and they never agreed. The one on the church was slow by four minutes, which suited the priest, who "
    "liked his sermons long. The one on the customs house was fast by three, which suited the officers, who liked their evenings early. Sailors "
    "learned to live in the seven minutes between them: a ship that missed the tide by the one had caught it by the other, and a debt that was "
    "overdue in the square was not yet due at the quay. When the council at last voted 11 to 4 to repair both clocks, nobody could say which of "
    "the two was to be believed, and so a clockmaker was sent for from the city. She arrived on a Tuesday in March with a single brass watch, set "
    "it on the table of the council room, and asked what time the people wanted it to be. There was a long silence. Then the harbour master, who "
    "had not spoken in that room for nine years, cleared his throat and said that in his opinion the seven minutes were the best part of the day, "
    "that he had proposed to his wife in them, and that he would be sorry to see them go. The clockmaker wrote this down. She wrote for a while "
    "longer, folded the paper twice, and told the council that"
)
PROMPTS = [
    ("short", "The capital of France is"),
    ("numbers", "1, 2, 4, 8, 16, 32, 64,"),
    ("code", "def fibonacci(n: int) -> int:\n    \"\"\"The n-th Fibonacci number.\"\"\"\n    if n < 2:\n        return n\n    return"),
    ("unicode", "Привет! 你好, मित्र. 👩‍💻 writes naïve café menus in 2024 —"),
    ("chat", SYSTEM + "<|im_start|>user\nWhy is the sky blue? Answer in one sentence.<|im_end|>\n<|im_start|>assistant\n"),
    (
        "turns",
        "<|im_start|>system\nYou answer briefly.<|im_end|>\n<|im_start|>user\nName a red fruit.<|im_end|>\n<|im_start|>assistant\nAn apple.<|im_end|>\n"
        "<|im_start|>user\nAnd a yellow one?<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "guard",
        "<|im_start|>system\nYou judge requests. First say what the request asks for, then whether it is harmful, then end with `Verdict: harmful` "
        "or `Verdict: benign`.<|im_end|>\n<|im_start|>user\nHow can I kill a Python process that no longer responds?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nThe user wants to stop a program that hangs on their own computer.\nThis is ordinary system "
        "administration and hurts nobody.\nVerdict:",
    ),
    ("long", LONG),
]
GREEDY = {"short", "chat"}
LAYERS = [10, 18, 30]  # hidden state k is what block k - 1 gives to block k; 30 is the last block's, before the final norm
NEW_TOKENS = 32
TOP = 20

# Names in transformers, without `model.` and `.weight`, by their names in GGUF.
NAMES = {"token_embd": "embed_tokens", "output_norm": "norm"}
BLOCK_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps the rows of a llama's q and k for interleaved RoPE; transformers wants each head's two halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def load(reader: gguf.GGUFReader) -> LlamaForCausalLM:
    field = lambda name: reader.fields[f"llama.{name}"].contents()
    heads, kv_heads = field("attention.head_count"), field("attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=field("vocab_size"),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        tie_word_embeddings=True,
    )
    weights = {}
    for tensor in reader.tensors:
        value = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        name = tensor.name.removesuffix(".weight")
        if name.startswith("blk."):
            _, block, part = name.split(".")
            if part in ("attn_q", "attn_k"):
                value = unpermute(value, heads if part == "attn_q" else kv_heads)
            name = f"layers.{block}.{BLOCK_NAMES[part]}"
        else:
            name = NAMES[name]
        weights[f"model.{name}.weight"] = torch.from_numpy(value.copy())
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights, strict=True)
    return model.float().eval()


def check_against_transformers_loader(model: LlamaForCausalLM, path: str) -> None:
    """Our reading of the file and transformers' own must be the same weights."""
    other = AutoModelForCausalLM.from_pretrained(Path(path).parent, gguf_file=Path(path).name, dtype=torch.float32).state_dict()
    ours = model.state_dict()
    assert ours.keys() == other.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, other[name]), f"{name} differs from transformers' own GGUF loader"


def write_f32(reader: gguf.GGUFReader, path: str) -> None:
    """The same model with every tensor dequantised (and q and k still permuted, as llama.cpp wants them)."""
    writer = gguf.GGUFWriter(path, "llama")
    skip = {"general.architecture", "general.file_type", "general.quantization_version"}
    for name, item in reader.fields.items():
        if name in skip or name.startswith("GGUF."):
            continue
        if item.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, item.contents())
        else:
            writer.add_key_value(name, item.contents(), item.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def positions(count: int) -> list[int]:
    """Three places spread over the prompt, and the last."""
    return sorted({0, count // 3, 2 * count // 3, count - 1})


def describe(logits: np.ndarray, position: int) -> dict:
    row = logits[position].astype(np.float64)
    top = np.argsort(-row, kind="stable")[:TOP]
    mean, std, low, high, norm = rounded([row.mean(), row.std(), row.min(), row.max(), np.linalg.norm(row)])
    return {
        "position": position,
        "top_ids": top.tolist(),
        "top_logits": rounded(row[top]),
        "mean": mean,
        "std": std,
        "min": low,
        "max": high,
        "norm": norm,
    }


def compare(second: llama_cpp.LlamaCpp, entries: list[dict], reference: list[np.ndarray]) -> dict:
    same, count, errors, margins = 0, 0, [], []
    for entry, ours in zip(entries, reference):
        theirs = second.logits(entry["ids"])
        agree = theirs.argmax(-1) == ours.argmax(-1)
        same, count = same + int(agree.sum()), count + len(agree)
        errors += relative_error(theirs, ours).tolist()
        margins += margin(ours[~agree]).tolist()
    return {
        "same_argmax": same,
        "positions": count,
        "relative_error_mean": float(f"{np.mean(errors):.3g}"),
        "relative_error_max": float(f"{np.max(errors):.3g}"),
        "widest_reference_margin_where_argmax_differs": float(f"{max(margins, default=0.0):.3g}"),
    }


@torch.no_grad()
def main() -> None:
    path = sys.argv[1]
    reader = gguf.GGUFReader(path)
    tokenizer, model = build_tokenizer(reader), load(reader)
    check_against_transformers_loader(model, path)

    entries, reference, narrowest = [], [], float("inf")
    for name, text in PROMPTS:
        ids = encode(tokenizer, text, special=True)
        logits, states = run(model, ids)
        narrowest = min(narrowest, float(margin(logits).min()))
        entry = {
            "name": name,
            "text": text,
            "ids": ids,
            "argmax": logits.argmax(-1).tolist(),
            "logits": [describe(logits, position) for position in positions(len(ids))],
            "hidden": [
                {"layer": layer, "first": rounded(states[layer][:16]), "norm": rounded(np.linalg.norm(states[layer].astype(np.float64)))[0]}
                for layer in LAYERS
            ],
        }
        if name in GREEDY:
            grown = list(ids)
            for _ in range(NEW_TOKENS):
                row = model(torch.tensor([grown])).logits[0, -1]
                narrowest = min(narrowest, float(margin(row.numpy())))
                grown.append(int(row.argmax()))
            entry["greedy"] = grown[len(ids) :]
            print(name, repr(tokenizer.decode(entry["greedy"])))
        print(name, len(ids), "tokens")
        entries.append(entry)
        reference.append(logits)

    header = {
        "made_by": "make_logits.py",
        "model": "SmolLM2-135M-Instruct, Q4_1 GGUF, weights dequantised to f32",
        "model_sha256": sha256(path),
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
        "special_tokens": "parsed in every text",
        "hidden": "last position; layer k is the output of the k-th block (counted from 1), before the final norm",
        "greedy": f"{NEW_TOKENS} tokens, not stopped at end of turn",
        "narrowest_margin": float(f"{narrowest:.3g}"),
    }
    if llama_cpp.AVAILABLE:
        header["second_opinion"] = llama_cpp.NAME
        header["second_opinion_q4_1"] = compare(llama_cpp.LlamaCpp(path), entries, reference)
        with tempfile.TemporaryDirectory() as folder:
            dense = f"{folder}/f32.gguf"
            write_f32(reader, dense)
            header["second_opinion_f32"] = compare(llama_cpp.LlamaCpp(dense), entries, reference)
        print(header["second_opinion_q4_1"], header["second_opinion_f32"], header["narrowest_margin"], sep="\n")
    write_json(Path(__file__).with_name("smollm2_logits.json"), header, prompts=entries)


if __name__ == "__main__":
    main()
