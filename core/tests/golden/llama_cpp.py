"""A second opinion: llama.cpp's tokenizer and logits, called through the C functions that the xllamacpp wheel exports.

The two parameter structs are passed as opaque memory: by the C calling conventions in use a large struct is written and read only as far
as the callee knows it, so an oversized buffer filled by `*_default_params` is right for every version of llama.cpp.
"""

import ctypes
from ctypes import POINTER, byref, c_bool, c_char_p, c_float, c_int8, c_int32, c_void_p
from importlib.metadata import version

import numpy as np

try:
    import xllamacpp

    AVAILABLE = True
    NAME = f"llama.cpp (xllamacpp {version('xllamacpp')})"
except ImportError:
    AVAILABLE = False
    NAME = None


class Params(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint8 * 2048)]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


def library() -> ctypes.CDLL:
    lib = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    signatures = {
        "llama_model_default_params": (Params, []),
        "llama_context_default_params": (Params, []),
        "llama_model_load_from_file": (c_void_p, [c_char_p, Params]),
        "llama_init_from_model": (c_void_p, [c_void_p, Params]),
        "llama_model_get_vocab": (c_void_p, [c_void_p]),
        "llama_vocab_n_tokens": (c_int32, [c_void_p]),
        "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]),
        "llama_batch_init": (Batch, [c_int32, c_int32, c_int32]),
        "llama_decode": (c_int32, [c_void_p, Batch]),
        "llama_get_logits_ith": (POINTER(c_float), [c_void_p, c_int32]),
        "llama_get_memory": (c_void_p, [c_void_p]),
        "llama_memory_clear": (None, [c_void_p, c_bool]),
        "llama_set_n_threads": (None, [c_void_p, c_int32, c_int32]),
        "llama_log_set": (None, [c_void_p, c_void_p]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


SILENT = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)(lambda *_: None)


class LlamaCpp:
    """One model with a context of 512 tokens (llama.cpp's default)."""

    def __init__(self, path: str):
        self.lib = library()
        self.lib.llama_log_set(SILENT, None)
        self.lib.llama_backend_init()
        self.model = self.lib.llama_model_load_from_file(path.encode(), self.lib.llama_model_default_params())
        if not self.model:
            raise RuntimeError("llama.cpp can't load the model")
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.context = None

    def encode(self, text: str, special: bool) -> list[int]:
        data = text.encode("utf-8")
        room = len(data) + 8
        ids = (c_int32 * room)()
        count = self.lib.llama_tokenize(self.vocab, data, len(data), ids, room, False, special)
        if count < 0:
            raise RuntimeError("llama.cpp wants more room than one token a byte")
        return list(ids[:count])

    def logits(self, ids: list[int]) -> np.ndarray:
        """Logits at every position, (tokens, vocabulary)."""
        if self.context is None:
            self.context = self.lib.llama_init_from_model(self.model, self.lib.llama_context_default_params())
            self.lib.llama_set_n_threads(self.context, 2, 2)
            self.batch = self.lib.llama_batch_init(512, 0, 1)
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        self.batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            self.batch.token[index] = token
            self.batch.pos[index] = index
            self.batch.n_seq_id[index] = 1
            self.batch.seq_id[index][0] = 0
            self.batch.logits[index] = 1
        if self.lib.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama.cpp can't decode the prompt")
        width = self.lib.llama_vocab_n_tokens(self.vocab)
        row = lambda index: np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, index), (width,)).copy()
        return np.stack([row(index) for index in range(len(ids))])
