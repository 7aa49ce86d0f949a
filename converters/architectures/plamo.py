"""PLaMo (13B): both branches on one norm; queries share a key and a value with every so-many-th one after them."""

from converters.architectures.common import (
    attention_rules,
    decoder,
    end_rules,
    gated_mlp,
    mlp_rules,
    norm_rules,
    parallel,
    rotary_attention,
)
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm, attention_of

DEFAULTS = {"hidden_act": "silu", "n_shared_head": 8, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048}


def config(take: Take) -> ModelSpec:
    """Parallel branches, rotary, gated.

    Raises:
        ValueError: the heads cannot share keys.
    """
    take.assume(DEFAULTS)
    take.ignore("num_key_value_heads")  # in the published config it says nothing
    heads, share = take("num_attention_heads"), take("n_shared_head")
    if heads % share:
        raise ValueError(f"{take.where}: {heads} heads, and n_shared_head = {share} is no divisor of that")
    take.config["num_key_value_heads"] = heads // share
    norm = Norm(take("rms_norm_eps"))
    block = parallel(rotary_attention(take), gated_mlp(take), norm)
    return decoder(take, (block,) * take("num_hidden_layers"), norm)


LAYER = "model.layers.layers.{l}"


def shared_first(spec: ModelSpec) -> tuple[Rule, ...]:
    """Query heads lie so that the first so many have one key head each; here those of one key lie together."""
    op = attention_of(spec.layers[0].branches[0].op)
    keys = op.kv_heads if op else 1
    theirs, ours = f"(g {keys} h)", f"({keys} g) h"
    return (
        Rule("layers.{l}.attention.q", f"{LAYER}.self_attn.q_proj.weight", f"{theirs} d -> d {ours}"),
        Rule("layers.{l}.attention.o", f"{LAYER}.self_attn.o_proj.weight", f"d {theirs} -> {ours} d"),
    )


FAMILY = Family(
    ("plamo",),
    config,
    (
        *end_rules(),
        *attention_rules(f"{LAYER}.self_attn"),
        *mlp_rules(f"{LAYER}.mlp"),
        *norm_rules("layers.{l}.pre", f"{LAYER}.norm"),
    ),
    buffers=(f"{LAYER}.self_attn.rotary_emb.inv_freq",),
    first=shared_first,
)
