"""torchax as an engine, the model of transformers as programs of JAX: "float32" or "bfloat16".

Weights are arguments of jitted functions, the static cache is donated, and tokens are made in a loop that is one
program: in bfloat16 that took a third of the CPU time of a program a token. Programs are kept, as by forge-jax.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from protocol import serve


class Torchax:
    """torchax under measurement."""

    def __init__(self, imported: Any, path: str, weights: str) -> None:
        self.jax, self.torch, self.transformers, torchax = imported
        if weights not in ("float32", "bfloat16"):
            raise ValueError(f"torchax runs float32 or bfloat16 here; weights {weights!r} are neither")
        self.env, self.view, self.dtype = torchax.default_env(), torchax.interop, self.jax.numpy.dtype(weights)
        self.model = self.transformers.AutoModelForCausalLM.from_pretrained(path, dtype=self.torch.__dict__[weights])
        model = self.model.eval()
        with self.env:
            self.weights = self.env.t2j_copy(dict(model.named_parameters()) | dict(model.named_buffers()))
        model.to("meta").tie_weights()  # its own memory is free now
        self.read = self.jax.jit(self.step, donate_argnums=1)
        self.make = self.jax.jit(self.steps, donate_argnums=1)

    def step(self, weights: Any, kept: Any, length: Any, ids: Any) -> tuple[Any, Any, Any]:
        """A pass over ids after `length` others: keys and values, their length, and the best next ids."""
        weights, kept, length, ids = self.view.torch_view((weights, kept, length, ids))
        with self.env, self.torch.no_grad():
            cache = self.cache(kept, length)
            with self.torch.nn.utils.stateless._reparametrize_module(self.model, weights, tie_weights=True):
                out = self.model(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1)
            best = out.logits[:, -1].argmax(-1, keepdim=True).to(self.torch.int32)
            kept = [(layer.keys, layer.values) for layer in cache.layers]
            return self.view.jax_view((kept, cache.layers[0].cumulative_length, best))

    def steps(self, weights: Any, kept: Any, length: Any, ids: Any, count: Any) -> tuple[Any, Any, Any]:
        """`count` passes, each over the ids of the one before."""
        once = lambda _, carried: self.step(weights, *carried)  # noqa: E731
        return self.jax.lax.fori_loop(0, count, once, (kept, length, ids))

    def cache(self, kept: Any, length: Any) -> Any:
        """The static cache of transformers around keys and values that a program was given."""
        cache = self.transformers.StaticCache(config=self.model.config, max_cache_len=kept[0][0].shape[2])
        for layer, (keys, values) in zip(cache.layers, kept, strict=True):
            layer.keys, layer.values, layer.cumulative_length = keys, values, length
            layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
            layer.update = partial(self.write, layer)
        return cache

    def write(self, layer: Any, keys: Any, values: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        """A layer's new keys and values, as a slice: its own way, by indices, is a scatter in XLA, which is slow."""
        put = partial(self.jax.lax.dynamic_update_slice_in_dim, axis=2)
        layer.keys = self.view.call_jax(put, layer.keys, keys, layer.cumulative_length)
        layer.values = self.view.call_jax(put, layer.values, values, layer.cumulative_length)
        layer.cumulative_length = layer.cumulative_length + keys.shape[2]
        return layer.keys, layer.values

    def begin(self, rows: Sequence[Sequence[int]], room: int) -> list[int]:
        """Read the prompts, with a cache that has just the room."""
        np, config = self.jax.numpy, self.model.config
        shape = len(rows), config.num_key_value_heads, len(rows[0]) + room, config.head_dim
        kept = [(np.zeros(shape, self.dtype), np.zeros(shape, self.dtype)) for _ in range(config.num_hidden_layers)]
        self.state = self.read(self.weights, kept, np.int32(0), np.asarray(rows, np.int32))
        return self.state[2][:, 0].tolist()

    def go_on(self, count: int) -> None:
        """All of them in one program."""
        self.state = self.make(self.weights, *self.state, count)
        self.state[2].block_until_ready()

    def facts(self) -> dict[str, Any]:
        """Bytes of the arrays, tied ones once, and of keys and values."""
        config, parameters = self.model.config, {name for name, _ in self.model.named_parameters()}
        kept = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * self.dtype.itemsize
        return {"weights": sum(self.weights[name].nbytes for name in parameters), "cache": kept}


@contextlib.contextmanager
def named_overloads(packets: Any) -> Iterator[None]:
    """Names for what torch 2.13 lacks: torchax 0.0.13 lists operations on named tensors; none is run."""
    found = packets.__getattr__

    def lenient(packet: Any, name: str) -> Any:
        if "names" not in name and "imname" not in name:
            return found(packet, name)
        with contextlib.suppress(AttributeError):
            return found(packet, name)
        return f"{packet}.{name}"

    packets.__getattr__ = lenient
    yield
    packets.__getattr__ = found


def imports() -> Any:
    """torchax and what it stands between; compiled programs are kept where those of forge-jax are."""
    import jax
    import torch
    import transformers

    with named_overloads(torch._ops.OpOverloadPacket):
        import torchax
        import torchax.interop

        torchax.default_env()
    jax.config.update("jax_compilation_cache_dir", os.path.join(os.environ["FORGE_JAX_CACHE"], "torchax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    _ = transformers.AutoModelForCausalLM, transformers.StaticCache
    return jax, torch, transformers, torchax


if __name__ == "__main__":
    serve(("jax", "torch", "transformers", "torchax"), imports, Torchax)
