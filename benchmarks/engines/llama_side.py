"""llama.cpp as an engine, through the C functions of llama-cpp-python: on as many threads as the process may use.

The next ids are those of the largest logits, as its own greedy sampler has them.
"""

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from protocol import serve

ROOM = 8192  # slots of a single row; of several, a quarter each
READ = 512  # tokens that are read at once


class Llama:
    """llama.cpp under measurement."""

    def __init__(self, llama_cpp: Any, path: str, weights: str) -> None:
        if weights != "stored":
            raise ValueError(f"llama.cpp runs a file as it is; weights {weights!r} are not 'stored'")
        self.c, self.path = llama_cpp, path
        self.silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.silent, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise ValueError(f"{path}: llama.cpp cannot load it")
        self.size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.contexts: dict[int, Any] = {}

    def context(self, rows: int) -> Any:
        """For so many rows, made once."""
        if rows not in self.contexts:
            asked = self.c.llama_context_default_params()
            asked.n_ctx = ROOM if rows == 1 else rows * ROOM // 4
            asked.n_seq_max, asked.n_batch, asked.n_ubatch = rows, max(READ, rows), READ
            asked.n_threads = asked.n_threads_batch = len(os.sched_getaffinity(0))
            self.contexts[rows] = self.c.llama_init_from_model(self.model, asked)
        return self.contexts[rows]

    def begin(self, rows: Sequence[Sequence[int]], room: int) -> list[int]:
        """Read prompts of one length, row after row."""
        self.ctx, self.place = self.context(len(rows)), len(rows[0])
        self.c.llama_memory_clear(self.c.llama_get_memory(self.ctx), False)
        self.batch = self.c.llama_batch_init(max(READ, len(rows)), 0, 1)
        self.next = []
        for row, ids in enumerate(rows):
            for at in range(0, len(ids), READ):
                piece = ids[at : at + READ]
                last = at + READ >= len(ids)
                self.run([(id, at + i, row, last and i == len(piece) - 1) for i, id in enumerate(piece)])
            self.next.append(self.best(len(piece) - 1))
        return self.next

    def run(self, tokens: Sequence[tuple[int, int, int, bool]]) -> None:
        """A pass over tokens, each an id, a place, a row, and whether its logits are wanted."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, place, row, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, place, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
        if self.c.llama_decode(self.ctx, batch):
            raise ValueError(f"llama_decode: no room for {len(tokens)} tokens")

    def best(self, place: int) -> int:
        """The id of the largest logit of a token of the last pass."""
        at = self.c.llama_get_logits_ith(self.ctx, place)
        return int(np.ctypeslib.as_array(ctypes.cast(at, ctypes.POINTER(ctypes.c_float)), (self.size,)).argmax())

    def go_on(self, count: int) -> None:
        """A pass a token."""
        for _ in range(count):
            self.run([(token, self.place, row, True) for row, token in enumerate(self.next)])
            self.next = [self.best(row) for row in range(len(self.next))]
            self.place += 1

    def facts(self) -> dict[str, Any]:
        """Bytes of the file, and of keys and values in float16."""
        c, model = self.c, self.model
        head = c.llama_model_n_embd(model) // c.llama_model_n_head(model)
        kept = 2 * c.llama_model_n_layer(model) * c.llama_model_n_head_kv(model) * head * 2
        return {"weights": os.path.getsize(self.path), "cache": kept}


def imports() -> Any:
    """The binding."""
    import llama_cpp

    return llama_cpp


if __name__ == "__main__":
    serve(("llama_cpp",), imports, Llama)
