"""transformers as an engine, with its own cache: "float32", "bfloat16", or either with "+compile"."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

from protocol import serve


class Torch:
    """transformers under measurement."""

    def __init__(self, imported: Any, path: str, weights: str) -> None:
        self.torch, self.transformers = imported
        dtype, _, compiled = weights.partition("+")
        model = self.transformers.AutoModelForCausalLM.from_pretrained(path, dtype=self.torch.__dict__[dtype])
        self.config = model.config
        self.takes = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"  # its older name
        self.weights = sum(p.numel() * p.element_size() for p in {id(p): p for p in model.parameters()}.values())
        self.size = self.torch.finfo(self.torch.__dict__[dtype]).bits // 8
        self.model = self.torch.compile(model.eval(), dynamic=True) if compiled else model.eval()

    def run(self, ids: Any) -> None:
        """One pass, which the cache grows by; the best next id of every row."""
        with self.torch.no_grad():
            out = self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **{self.takes: self.cache})
        self.next = out.logits[:, -1].argmax(-1, keepdim=True)

    def begin(self, rows: Sequence[Sequence[int]], room: int) -> list[int]:
        """Read the prompts."""
        self.cache = self.transformers.DynamicCache(config=self.config)
        self.run(self.torch.tensor(rows))
        return self.next[:, 0].tolist()

    def go_on(self, count: int) -> None:
        """A pass a token."""
        for _ in range(count):
            self.run(self.next)
        self.next.tolist()

    def facts(self) -> dict[str, Any]:
        """Bytes of the parameters, tied ones once, and of keys and values."""
        heads = self.config.num_key_value_heads * self.config.hidden_size // self.config.num_attention_heads
        return {"weights": self.weights, "cache": 2 * self.config.num_hidden_layers * heads * self.size}


def imports() -> Any:
    """torch and the class that loads."""
    import torch
    import transformers

    _ = transformers.AutoModelForCausalLM, transformers.DynamicCache
    return torch, transformers


if __name__ == "__main__":
    serve(("torch", "transformers"), imports, Torch)
