"""What the golden scripts share: the reference tokenizer, built from a GGUF file's own metadata."""

import hashlib
import json
from pathlib import Path

import gguf
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


def write_json(path: Path, header: dict, **lists) -> None:
    """One line an entry, so that a change is seen in a diff; ASCII only, so that no editor hides a control character."""
    parts = [f'"header": {json.dumps(header)}']
    for name, entries in lists.items():
        rows = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
        parts.append(f'"{name}": [\n{rows}\n]')
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="ascii")
    print(f"{path.name}: {path.stat().st_size} bytes")
