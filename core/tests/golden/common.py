"""What the golden scripts share: the reference tokenizer, built from a GGUF file's own metadata; one forward pass; output."""

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

NORMAL = 1  # GGUF token type of an ordinary entry; control tokens are 3, user-defined ones 4


def sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_tokenizer(reader: gguf.GGUFReader) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the `smollm` pre-tokenizer: every digit alone, then GPT-2's split, no prefix space."""
    field = lambda name: reader.fields[f"tokenizer.ggml.{name}"].contents()
    tokens, types, merges = field("tokens"), field("token_type"), field("merges")
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, kind in zip(tokens, types) if kind != NORMAL]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def encode(tokenizer: PreTrainedTokenizerFast, text: str, special: bool) -> list[int]:
    """Ids of `text`; with `special` off, `<|im_end|>` and the like are plain text."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"]


@torch.no_grad()
def run(model, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits (tokens, vocabulary) and the last position's hidden states (layers + 1, hidden).

    State 0 is the embedding, state k the output of the k-th block. The states are taken at the blocks, since the last of transformers' own
    `hidden_states` has the final norm on it.
    """
    states = []
    keep = lambda _, __, out: states.append((out if torch.is_tensor(out) else out[0])[0, -1].numpy().copy())
    base = model.get_decoder()
    hooks = [part.register_forward_hook(keep) for part in [base.embed_tokens, *base.layers]]
    logits = model(torch.tensor([ids])).logits[0].numpy()
    for hook in hooks:
        hook.remove()
    return logits, np.stack(states)


def rounded(values) -> list[float]:
    """Seven digits: what f32 holds."""
    return [float(f"{value:.7g}") for value in np.asarray(values, dtype=np.float64).ravel()]


def margin(logits: np.ndarray) -> np.ndarray:
    """By how much the best token leads the second best."""
    ordered = np.sort(logits, axis=-1)
    return ordered[..., -1] - ordered[..., -2]


def relative_error(value: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.linalg.norm(value - truth, axis=-1) / np.linalg.norm(truth, axis=-1)


def write_json(path: Path, header: dict, **lists) -> None:
    """One line an entry, so that a change is seen in a diff; ASCII only, so that no editor hides a control character."""
    parts = [f'"header": {json.dumps(header)}']
    for name, entries in lists.items():
        rows = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
        parts.append(f'"{name}": [\n{rows}\n]')
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="ascii")
    print(f"{path.name}: {path.stat().st_size} bytes")
