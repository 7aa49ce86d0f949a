"""transformers as an engine, with its own cache: "float32", "bfloat16", or either with "+compile"."""

from collections.abc import Sequence
from typing import Any

from protocol import serve


class Torch:
    """transformers under measurement."""

    def __init__(self, imported: Any, path: str, weights: str) -> None:
        self.torch, transformers = imported
        dtype, _, compiled = weights.partition("+")
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=self.torch.__dict__[dtype])
        self.config = model.config
        self.weights = sum(p.numel() * p.element_size() for p in {id(p): p for p in model.parameters()}.values())
        self.size = self.torch.finfo(self.torch.__dict__[dtype]).bits // 8
        self.model = self.torch.compile(model.eval(), dynamic=True) if compiled else model.eval()

    def run(self, ids: Any, cache: Any) -> None:
        """One pass; the best next id of every row."""
        with self.torch.no_grad():
            out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self.next, self.cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values

    def begin(self, rows: Sequence[Sequence[int]], room: int) -> list[int]:
        """Read the prompts."""
        self.run(self.torch.tensor(rows), None)
        return self.next[:, 0].tolist()

    def go_on(self, count: int) -> None:
        """A pass a token."""
        for _ in range(count):
            self.run(self.next, self.cache)
        self.next.tolist()

    def facts(self) -> dict[str, Any]:
        """Bytes of the parameters, tied ones once, and of keys and values."""
        heads = self.config.num_key_value_heads * self.config.hidden_size // self.config.num_attention_heads
        return {"weights": self.weights, "cache": 2 * self.config.num_hidden_layers * heads * self.size}


def imports() -> Any:
    """torch and the class that loads."""
    import torch
    import transformers

    _ = transformers.AutoModelForCausalLM
    return torch, transformers


if __name__ == "__main__":
    serve(("torch", "transformers"), imports, Torch)
