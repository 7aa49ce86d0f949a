"""GGUF metadata as the config of the same model on HuggingFace, so that one `config()` per family serves both.

What llama.cpp keeps in tensors (biases by their presence, rope factors, a tied head by its absence) is read from them.
The tables are in `archs`; here is what cannot be copied key by key.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from converters.gguf.arch import Arch
from converters.gguf.archs import ARCHS
from converters.gguf.extras import EXTRAS, KINDS
from converters.gguf.extras_common import Config
from converters.gguf.reading import Reading
from converters.gguf.rope import read_rope
from converters.source import TensorInfo

ACTIVATIONS: Mapping[str, str] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu2": "relu2",
}

NUMBERS = frozenset(
    """attention.layer_norm_epsilon attention.layer_norm_rms_epsilon attention.scale embedding_scale residual_scale
    logit_scale attn_logit_softcapping final_logit_softcapping expert_weights_scale
    attention.clamp_kqv attention.value_scale""".split()
)
FLAGS = frozenset({"use_parallel_residual", "expert_weights_norm"})
UNSET = frozenset({"attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window"})
"""Keys that mean "none" where they are 0."""

NONE = frozenset(
    """expert_count expert_used_count leading_dense_block_count expert_shared_count altup.active_idx
    attention.shared_kv_layers embedding_length_per_layer_input""".split()
)
"""Counts that may be 0."""

UNUSED = ("context_length", "feed_forward_length", "attention.head_count")
"""Keys that llama.cpp wants from everyone, but that say nothing about a model without attention."""

TOKENS = ("bos_token_id", "eos_token_id")


def read_config(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
    where: str,
    allow: Iterable[str] = (),
) -> tuple[str, Config, frozenset[str]]:
    """Understand the metadata of a GGUF file.

    Args:
        metadata, tensors: those of the file.
        read: gives the values of a tensor; small ones that belong to the config are read.
        where: what errors begin with.
        allow: keys that may stay unread, with or without the architecture's prefix.

    Returns:
        The entry of the tables, the config with its model_type, and the tensors that are thereby used up.

    Raises:
        ValueError: no model, an unknown architecture, or metadata that is missing, impossible or not understood.
    """
    arch = architecture(metadata, where)
    reading = Reading(prefix(arch), metadata, tensors, read, where, allow)
    config = read_common(ARCHS[arch], reading)
    config |= EXTRAS[arch](reading, config) if arch in EXTRAS else {}
    ids = {key: metadata.get(f"tokenizer.ggml.{key}") for key in TOKENS}
    config |= {key: value for key, value in ids.items() if isinstance(value, int)}
    reading.take.done()
    return arch, config, frozenset(reading.used)


def prefix(arch: str) -> str:
    """The value of general.architecture for an entry of the tables, "llama" for "llama:mixtral"."""
    return arch.partition(":")[0]


def architecture(metadata: Mapping[str, Any], where: str) -> str:
    """The entry of the tables for a file, if its architecture is one that can be read and it is a whole model."""
    kind, arch = metadata.get("general.type", "model"), metadata.get("general.architecture")
    if not isinstance(kind, str) or kind != "model":
        raise ValueError(f"{where}: general.type is {kind!r}, expected a model")
    if not isinstance(arch, str) or arch not in ARCHS:
        raise ValueError(
            f"{where}: general.architecture is {arch!r}, which is not implemented; known are "
            + ", ".join(dict.fromkeys(map(prefix, ARCHS)))
        )
    return KINDS[arch](metadata) if arch in KINDS else arch


def setting(reading: Reading, key: str) -> Any:
    """A value of the tables, in its type."""
    if key in FLAGS:
        return reading.flag(key)
    value = reading.number(key) if key in NUMBERS else reading.count(key, least=int(key not in UNSET | NONE))
    return (value or None) if key in UNSET else value


def read_common(facts: Arch, reading: Reading) -> Config:
    """Everything that the tables say."""
    take = reading.take
    embedding = reading.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError(f"{take.where}: there is no matrix token_embd.weight: the file holds a vocabulary, no model")
    for key in {"expert_count", "expert_used_count"} - {*facts.keys, *facts.optional}:
        take.require(key, 0)
    take.require("attention.causal", True)
    layers = reading.count("block_count")
    if layers > len(reading.tensors):
        raise ValueError(f"{take.where}: block_count is {layers}, but there are {len(reading.tensors)} tensors")
    known = head_sizes(reading, facts.hybrid) if facts.attention == "grouped" else {}
    take.ignore(*(UNUSED if facts.attention == "never" else ()))
    config: Config = {
        "model_type": facts.model_type,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": not reading.has("output.weight"),
        **facts.fixed,
    }
    config |= {theirs: known[key] if key in known else setting(reading, key) for key, theirs in facts.keys.items()}
    config |= {theirs: setting(reading, key) for key, theirs in facts.optional.items() if take.has(key)}
    for key, theirs in facts.repeats.items():
        take.require(key, config[theirs])
    config |= {theirs: any(map(reading.has, one_of)) for theirs, one_of in facts.present.items()}
    act, named = facts.act
    if named is not None:
        config[named] = reading.text("hidden_activation", ACTIVATIONS[act])
    if facts.rope and facts.attention == "grouped":
        size = known["attention.key_length"]
        config["rope_parameters"] = read_rope(reading, size, reading.count("context_length"))
    return config


def head_sizes(reading: Reading, hybrid: bool) -> dict[str, int]:
    """The heads' number and size, where they have defaults.

    Raises:
        ValueError: values of another size than keys.
    """
    width, heads = reading.count("embedding_length"), reading.count("attention.head_count")
    size = reading.count("attention.key_length", width // heads)
    if reading.count("attention.value_length", size) != size:
        raise ValueError(
            f"{reading.take.where}: attention.value_length differs from key_length {size}; not implemented"
        )
    if hybrid and isinstance(given := reading.take("attention.head_count_kv"), list):
        kept = [count for count in given if count != 0]
        reading.take.config["attention.head_count_kv"] = kept or [heads]
        known = reading.count("attention.head_count_kv")
        reading.take.config["attention.head_count_kv"] = given
    else:
        known = reading.count("attention.head_count_kv", heads)
    return {"attention.key_length": size, "attention.head_count_kv": known}
