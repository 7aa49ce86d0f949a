"""llama.cpp as an engine, through llama-cpp-python, on as many threads as the process may use. One row at a time."""

import os
from collections.abc import Sequence
from typing import Any

from protocol import serve

CONTEXT = 8192


class Llama:
    """llama.cpp under measurement."""

    def __init__(self, llama_cpp: Any, path: str, weights: str) -> None:
        if weights != "stored":
            raise ValueError(f"llama.cpp runs a file as it is; weights {weights!r} are not 'stored'")
        threads = len(os.sched_getaffinity(0))
        made = {"n_ctx": CONTEXT, "n_threads": threads, "n_threads_batch": threads, "n_batch": 512, "verbose": False}
        self.path, self.model = path, llama_cpp.Llama(path, **made)

    def begin(self, rows: Sequence[Sequence[int]], room: int) -> list[int]:
        """Read one prompt."""
        if len(rows) > 1:
            raise ValueError("llama-cpp-python's Llama reads one row at a time")
        self.model.reset()
        self.model.eval(list(rows[0]))
        self.next = self.model.sample(temp=0.0)
        return [self.next]

    def go_on(self, count: int) -> None:
        """A pass a token."""
        for _ in range(count):
            self.model.eval([self.next])
            self.next = self.model.sample(temp=0.0)

    def facts(self) -> dict[str, Any]:
        """Bytes of the file, and of keys and values in float16."""
        about = self.model.metadata
        name = about["general.architecture"]
        layers, heads, kv, dim = (
            int(about[f"{name}.{key}"])
            for key in ("block_count", "attention.head_count", "attention.head_count_kv", "embedding_length")
        )
        return {"weights": os.path.getsize(self.path), "cache": 2 * layers * kv * (dim // heads) * 2}


def imports() -> Any:
    """The binding."""
    import llama_cpp

    return llama_cpp


if __name__ == "__main__":
    serve(("llama_cpp",), imports, Llama)
