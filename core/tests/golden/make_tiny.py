"""Writes tiny/: random-weight models of each architecture and what transformers makes of them. Usage: make_tiny.py

Every folder is read back by transformers from what was written, so that the expected values belong to the files. llama.cpp, where it is
installed, reads the GGUF files as well.
"""

import json
import math
import shutil
import tempfile
from pathlib import Path

import gguf
import numpy as np
import peft
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import llama_cpp
from common import encode, margin, relative_error, rounded, run

FOLDER = Path(__file__).with_name("tiny")
SEED = 20240607
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB = 320  # three special tokens, 256 bytes and 61 merges
LENGTHS = [1, 5, 17, 40]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "the cat and the hen sat on the mat and ate then the rat ran in and the hat fell",
    "there is no one here other than the others in the inner room and on the outer stair",
    "harmful or benign, that is the question; harmful or benign, this is the answer",
    "user assistant system verdict category the user asked and the assistant answered",
]
TEXTS = [
    "",
    "the cat sat on the mat",
    "  the   cat\n\n\tsat \n",
    "The user's 12345 cats aren't HERE!",
    "he'LL say 1,024 times: x = y**2;",
    "naïve café — 猫が2匹 👩‍💻",
    "in 2024\r\n\r\nthere (really) is 'this'",
    "Verdict: benign",
    "<|im_start|>user\nhi<|im_end|>\n",
]

# How each family splits text before BPE, by the name GGUF has for it. Qwen's digits stand alone, Llama 3's go by up to three.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    if name == "smollm":
        parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    else:
        split = Regex(SPLIT % {"qwen2": "", "llama-bpe": "{1,3}"}[name])
        parts = [
            pre_tokenizers.Split(split, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    return pre_tokenizers.Sequence(parts)


COMMON = {
    "hidden_act": "silu",
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "use_cache": True,
}
# The older form of config.json (`rope_theta`, `rope_scaling`, `torch_dtype`) is what most published models have; qwen2 has the newer one.
CONFIGS = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    },
    "llama3": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        # Wavelengths here are 6, 63, 628 and 6283 tokens: one kept, one blended, two stretched.
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        # Published Qwen2 models name a window and switch it off; it must not act.
        "use_sliding_window": False,
        "sliding_window": 8,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
        "dtype": "float32",
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    },
}
PRE = {"llama": "smollm", "llama3": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2"}
GGUF_KINDS = {"llama": ["f32", "q8_0"], "llama3": ["q8_0"], "qwen2": ["q8_0"], "qwen3": ["q8_0"]}
BLOCK_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_weights(config: dict, folder: Path, generator: torch.Generator) -> None:
    """Weights large enough that every part of a block shows in the logits: nothing near zero, no norm of one."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(config))
        model = AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(scratch))
    weights = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("norm.weight"):
            weights[name] = 1 + 0.3 * noise
        elif name.endswith(".bias"):
            weights[name] = 0.5 * noise
        elif "embed_tokens" in name or "lm_head" in name:
            weights[name] = 0.6 * noise
        else:
            weights[name] = 1.5 * noise / math.sqrt(value.shape[1])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def make_tokenizer(name: str, folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizer(name)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    assert tokenizer.get_vocab_size() == VOCAB
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(folder / "tokenizer.json")))


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Each head's two halves become pairs of neighbours: llama.cpp turns a llama's q and k in interleaved pairs (and only a llama's)."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def llama3_factors(scaling: dict, theta: float, head_dim: int) -> np.ndarray:
    """By what each RoPE frequency is divided; GGUF keeps them in `rope_freqs.weight`. Llama 3.1's rule: long waves are stretched by
    `factor`, short ones kept, those between blended."""
    wave = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = np.clip((scaling["original_max_position_embeddings"] / wave - low) / (high - low), 0, 1)
    return (1 / ((1 - kept) / scaling["factor"] + kept)).astype(np.float32)


def write_gguf(name: str, config: dict, kind: str, path: Path, folder: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    """Writes the model as GGUF and returns the weights, under transformers' names, as a reader of that file gets them."""
    architecture = config["model_type"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"tiny {name}")
    writer.add_file_type({"f32": gguf.LlamaFileType.ALL_F32, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}[kind])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(theta)
    if "head_dim" in config:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if architecture == "llama":
        writer.add_vocab_size(VOCAB)
        writer.add_rope_dimension_count(head_dim)

    state = json.loads((folder / "tokenizer.json").read_text())
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE[name])
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token, _ in tokens])
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    seen = {}
    if "rope_scaling" in config and config["rope_scaling"]:
        writer.add_tensor("rope_freqs.weight", llama3_factors(config["rope_scaling"], theta, head_dim))
    for key, value in load_file(folder / "model.safetensors").items():
        stem, suffix = key.rsplit(".", 1)
        if stem.startswith("model.layers."):
            _, _, block, part = stem.split(".", 3)
            stem = f"blk.{block}.{BLOCK_NAMES[part]}"
        else:
            part, stem = stem, NAMES[stem]
        data = value.numpy()
        if kind == "q8_0" and data.ndim == 2:
            # Rows are quantised one by one, so quantising commutes with the permutation of rows.
            seen[key] = torch.from_numpy(gguf.dequantize(gguf.quantize(data, Kind.Q8_0), Kind.Q8_0).copy())
        else:
            seen[key] = value
        if architecture == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
            data = permute(data, heads if part == "self_attn.q_proj" else kv_heads)
        if kind == "q8_0" and data.ndim == 2:
            writer.add_tensor(f"{stem}.{suffix}", gguf.quantize(data, Kind.Q8_0), raw_dtype=Kind.Q8_0)
        else:
            writer.add_tensor(f"{stem}.{suffix}", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return seen


def expect(model, sequences: list[list[int]]) -> list[dict]:
    cases = []
    for ids in sequences:
        logits, states = run(model, ids)
        assert margin(logits).min() > 1e-3, "two tokens too close: choose another seed"
        cases.append(
            {
                "ids": ids,
                "argmax": logits.argmax(-1).tolist(),
                "logits": rounded(logits[-1]),
                "hidden": [rounded(state) for state in states],
            }
        )
    return cases


def write_expected(path: Path, **content) -> None:
    header = {
        "made_by": "make_tiny.py",
        "seed": SEED,
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
        "peft": peft.__version__,
        "logits": "last position",
        "argmax": "every position",
        "hidden": "last position; row 0 is the embedding, row k the output of the k-th block, before the final norm",
    }
    parts = [f'"header": {json.dumps(header | content.pop("header", {}))}']
    for name, entries in content.items():
        if isinstance(entries, dict):
            inner = ",\n".join(f'"{key}": [\n' + rows(value) + "\n]" for key, value in entries.items())
            parts.append(f'"{name}": {{\n{inner}\n}}')
        else:
            parts.append(f'"{name}": [\n{rows(entries)}\n]')
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="ascii")


def rows(entries: list) -> str:
    return ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)


def second_opinion(path: Path, model, sequences, tokens) -> str:
    """llama.cpp on the same GGUF. Its key and value cache is f16, and with Q8_0 it quantises the activations too."""
    other = llama_cpp.LlamaCpp(str(path))
    for entry in tokens:
        assert other.encode(entry["text"], special=False) == entry["ids"], entry
        assert other.encode(entry["text"], special=True) == entry["ids_special"], entry
    same, count, worst = 0, 0, 0.0
    for ids in sequences:
        ours, theirs = run(model, ids)[0], other.logits(ids)
        same, count = same + int((ours.argmax(-1) == theirs.argmax(-1)).sum()), count + len(ids)
        worst = max(worst, float(relative_error(theirs, ours).max()))
    return f"same argmax at {same} of {count} positions, largest relative error {worst:.2g}"


def make_lora(folder: Path, sequences, plain: list[dict], generator: torch.Generator) -> None:
    """Rank 4, alpha 8 on all seven projections, with an A and a B that are both random and not zero."""
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
        lora_dropout=0.0,
    )
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), config)
    for name, value in model.named_parameters():
        if ".lora_" in name:
            value.data = 0.3 * torch.randn(value.shape, generator=generator)
    config.base_model_name_or_path = model.peft_config["default"].base_model_name_or_path = "tiny-llama"
    lora = folder / "lora"
    model.save_pretrained(lora, save_embedding_layers=False)
    (lora / "README.md").unlink()
    # A set's order changes from run to run; the file should not.
    settings = json.loads((lora / "adapter_config.json").read_text())
    settings["target_modules"].sort()
    (lora / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")

    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), lora).eval()
    cases = expect(loaded.get_base_model(), sequences)
    merged = expect(loaded.merge_and_unload(), sequences)
    for case, with_merged, without in zip(cases, merged, plain):
        logits = np.array(case["logits"])
        assert relative_error(np.array(with_merged["logits"]), logits) < 1e-5
        assert relative_error(np.array(without["logits"]), logits) > 0.1
    write_expected(lora / "expected.json", cases=cases)


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, own in CONFIGS.items():
        generator = torch.Generator().manual_seed(SEED)
        folder = FOLDER / name
        folder.mkdir(parents=True)
        config = own | COMMON
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        write_weights(config, folder, generator)
        tokenizer = make_tokenizer(PRE[name], folder)
        tokens = [
            {"text": text, "ids": encode(tokenizer, text, special=False), "ids_special": encode(tokenizer, text, special=True)}
            for text in TEXTS
        ]
        sequences = [torch.randint(0, VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        cases = expect(model, sequences)
        files, opinions = {}, {}
        for kind in ["f32", "q8_0"]:
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / f"model-{kind}.gguf"
                weights = write_gguf(name, config, kind, path, folder, tokenizer)
                model.load_state_dict(weights, strict=not config["tie_word_embeddings"])
                if llama_cpp.AVAILABLE:
                    opinions[path.name] = second_opinion(path, model, sequences, tokens)
                if kind in GGUF_KINDS[name]:
                    shutil.copy(path, folder)
                    files[path.name] = expect(model, sequences)
        header = {"second_opinion": {"by": llama_cpp.NAME} | opinions} if opinions else {}
        print(name, opinions)
        write_expected(folder / "expected.json", header=header, cases=cases, gguf=files, tokens=tokens)
        if name == "llama":
            make_lora(folder, sequences, cases, generator)


if __name__ == "__main__":
    main()
