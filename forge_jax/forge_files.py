"""The part of `Forge` that reads and writes files and turns weights into other weights."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import jax

from converters.architectures.forge import forge_config
from converters.checkpoint import interpret
from forge_jax import exporting, loading, quantizing
from forge_jax.config import ForgeConfig
from forge_jax.loading import Model
from forge_jax.params import abstract, flatten, init
from forge_jax.quantization.policy import fine, packable, row_length
from forge_jax.spec import Attention, Compressed, Latent, Mlp, ModelSpec, attention_of


@dataclass(frozen=True)
class Summary:
    """The sizes of a loaded model under the names of ForgeConfig. What is computed is in its `spec`."""

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden_dim: int
    max_seq_len: int
    kv_cache_dtype: str | None = None
    use_paged_attn: bool = False


def summarise(spec: ModelSpec) -> Summary:
    """The sizes of the first attention and the first feed-forward layer stand for all."""
    ops = [branch.op for block in spec.layers for branch in block.every()]
    looking = (op if isinstance(op, Compressed | Latent) else attention_of(op) for op in ops)
    attention = next((op for op in looking if op is not None), None)
    mlp = next((op for op in ops if isinstance(op, Mlp)), None)
    heads = attention.heads if attention else 0
    return Summary(
        spec.vocab_size,
        spec.dim,
        len(spec.layers),
        heads,
        attention.kv_heads if isinstance(attention, Attention) else 1 if isinstance(attention, Compressed) else heads,
        mlp.dim if mlp else 0,
        spec.max_seq_len,
    )


class ForgeFiles(ABC):
    """Loading, saving, converting, quantising, adapting. `Forge` brings the rest."""

    model: Model
    config: ForgeConfig | Summary

    @abstractmethod
    def adopt(self, model: Model, config: ForgeConfig | Summary) -> None:
        """Become the facade of a model; `Forge` does it."""

    # -------------------------------------------------------------------------------------------- in
    @classmethod
    def from_config(cls, config: Mapping[str, Any] | ForgeConfig) -> Self:
        """A new model with random weights, from a ForgeConfig, its fields, or the config of any known architecture.

        Raises:
            ValueError: a key that is no field (names the nearest), an unknown architecture, or a wrong value.
        """
        if isinstance(config, ForgeConfig):
            return cls(config=config)  # type: ignore[call-arg]
        if config.get("model_type", "forge") == "forge":
            return cls(config=forge_config(config))  # type: ignore[call-arg]
        _, spec = interpret(config, "Forge.from_config")
        return cls.from_model(Model(spec, init(spec, jax.random.key(0)), None, MappingProxyType(dict(config))))

    @classmethod
    def from_model(cls, model: Model) -> Self:
        """The facade of a model that was loaded."""
        self = cls.__new__(cls)
        own = model.config.get("model_type") == "forge"
        self.adopt(model, forge_config(model.config) if own else summarise(model.spec))
        return self

    @classmethod
    def from_any(cls, path: str | Path, **options: Any) -> Self:
        """Load a directory, a file or a hub id, whatever its format. Options: `forge_jax.loading.load`.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: an unknown format, or a checkpoint that is not understood.
        """
        return cls.from_model(loading.load(path, **options))

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> Self:
        """Load what `save_pretrained` wrote, or any other checkpoint."""
        return cls.from_any(path, **options)

    @classmethod
    def from_huggingface(cls, model_id: str | Path, **options: Any) -> Self:
        """Load a hub id of any shape ("gpt2", "org/name", "org/name@revision") or a HuggingFace directory."""
        return cls.from_any(model_id, **options)

    @classmethod
    def from_safetensors(cls, path: str | Path, **options: Any) -> Self:
        """Load a safetensors file or directory; another format is an error."""
        return cls._of_format("safetensors", path, options)

    @classmethod
    def from_gguf(cls, path: str | Path, **options: Any) -> Self:
        """Load a GGUF file; another format is an error."""
        return cls._of_format("gguf", path, options)

    @classmethod
    def from_onnx(cls, path: str | Path, **options: Any) -> Self:
        """Load a decoder in ONNX, one of ours or with config.json beside it; another format is an error."""
        return cls._of_format("onnx", path, options)

    @classmethod
    def _of_format(cls, expected: str, path: str | Path, options: Mapping[str, Any]) -> Self:
        model = loading.load(path, **options)
        if model.format != expected:
            raise ValueError(f"Forge.from_{expected}: {path} is {model.format}, not {expected}; use Forge.from_any")
        return cls.from_model(model)

    # -------------------------------------------------------------------------------------------- out
    def save_pretrained(self, path: str | Path, **options: Any) -> Path:
        """Write a directory that `from_pretrained` reads. Options: `forge_jax.exporting.export_huggingface`."""
        return exporting.export_huggingface(self.model, path, **options)

    def export_to_huggingface(self, directory: str | Path, **options: Any) -> Path:
        """Write a HuggingFace directory: config, safetensors shards, tokenizer."""
        return exporting.export_huggingface(self.model, directory, **options)

    def export_to_safetensors(self, path: str | Path, **options: Any) -> Path:
        """Write all weights to one safetensors file."""
        return exporting.export_safetensors(self.model, path, **options)

    def export_to_gguf(self, path: str | Path, type: str = "F16", **options: Any) -> Path:
        """Write a GGUF file: F32, F16, BF16, Q8_0, Q4_K_M, ... Options: `forge_jax.exporting.export_gguf`."""
        return exporting.export_gguf(self.model, path, type=type, **options)

    def export_to_onnx(self, path: str | Path, **options: Any) -> Path:
        """Write an ONNX graph with its cache, a file or a directory. Options: `forge_jax.exporting.export_onnx`."""
        return exporting.export_onnx(self.model, path, **options)

    # -------------------------------------------------------------------------------------------- weights
    def quantize(
        self,
        mode: str = "dynamic",
        *,
        group_size: int = 128,
        quantize_linear: bool = True,
        quantize_embedding: bool = False,
    ) -> Self:
        """A model that computes with quantised weights; this one stays as it is.

        Args:
            mode: "none"; "int8": weights in int8, one scale an output feature; "dynamic": the same, and inputs are
                rounded to int8 as they come; "int4": groups of `group_size` weights, or of the largest number that
                divides both it and the row, share a scale; or any other scheme of `forge_jax.quantization.packers`.
            quantize_linear: every matrix of the layers and an untied head.
            quantize_embedding: the embedding, and with it a tied head, and other tables of tokens.

        Raises:
            ValueError: an unknown mode, or a model that is quantised already.
        """

        def scheme(row: int) -> str:
            known = {"dynamic": "int8-dynamic", "int4": f"int4-g{gcd(group_size, row)}"}
            return known.get(mode, mode)

        policy = {
            path: scheme(row_length(param)) if (quantize_linear if param.inputs else quantize_embedding) else None
            for path, param in flatten(abstract(self.model.spec))
            if packable(param) and not fine(path, param)
        }
        model = self.model if mode == "none" else quantizing.quantize(self.model, scheme(group_size), policy=policy)
        new = type(self).__new__(type(self))
        new.adopt(model, self.config)
        return new
