"""North Micro, text: Command R7B's wiring, with a rope in halves for each layer type, or none for it."""

from dataclasses import replace

from converters.architectures.cohere2 import RULES, assemble
from converters.architectures.common import grouped_attention, head_dim, layer_types, windows
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.take import Take
from forge_jax.spec import ModelSpec, Rope

DEFAULTS = {
    "hidden_act": "silu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}


def rope(take: Take, kind: str) -> Rope | None:
    """The rope of a layer type: null where its layers have none, while a type that is missing is an error."""
    # published files have a stray rope beside those of the types
    take.config["rope_parameters"] = {
        key: value for key, value in take("rope_parameters").items() if key not in ("rope_theta", "rope_type")
    }
    if take("rope_parameters").get(kind, {}) is None:
        return None
    return read_rope(take, head_dim(take), layer_type=kind, beside=("mrope_section", "mrope_interleaved"))


def config(take: Take) -> ModelSpec:
    """Parallel, gated, layer norms without bias."""
    take.assume(DEFAULTS)
    take.ignore("pooling")  # of an embedding model
    bias, count = take("attention_bias", False), take("num_hidden_layers")
    kinds = layer_types(take, count, ["full_attention"] * count)
    ropes = {kind: rope(take, kind) for kind in kinds}
    base = replace(grouped_attention(take), qkv_bias=bias, o_bias=bias)
    sizes = windows(take, kinds, take("sliding_window", None))
    layers = [replace(base, rope=ropes[kind], window=size) for kind, size in zip(kinds, sizes, strict=True)]
    return assemble(take, layers, take("logit_scale", 1.0))


FAMILY = Family(("cohere_compass_text",), config, RULES)
