"""PLaMo 3: norms before and after each branch, windows with a rope of their own, q, k and v in one matrix."""

from dataclasses import replace

from converters.architectures.common import (
    HEADS_IN,
    TRANSPOSED,
    decoder,
    end_rules,
    fused_gate_up,
    gated_mlp,
    norm_rules,
    rotary_attention,
    stacked_qkv,
)
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Branch, ModelSpec, Norm

DEFAULTS = {
    "hidden_act": "silu",
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "window_size": 2048,
    "sliding_window_pattern": 8,
    "rope_theta": 1000000,
    "rope_local_theta": 10000,
    "tie_word_embeddings": True,
}
AFTER, LAST = 1 / 5, 1 / 5**1.5  # what is added to the stored weights of the norms after the branches


def windows(take: Take) -> list[int | None]:
    """The window of each layer, as listed, or none in every so-many-th.

    Raises:
        ValueError: the list is not of as many layers.
    """
    count, size, every = take("num_hidden_layers"), take("window_size", None), take("sliding_window_pattern")
    found = take("interleaved_sliding_window", None)
    found = [size if (i + 1) % every else None for i in range(count)] if found is None else found
    if len(found) != count:
        raise ValueError(f"{take.where}: interleaved_sliding_window has {len(found)} entries for {count} layers")
    return found


def config(take: Take) -> ModelSpec:
    """Sandwich norms, rotary, gated; queries and keys normalised over a head."""
    take.assume(DEFAULTS)
    eps = take("rms_norm_eps")
    norm, after, last = (Norm(eps, offset=offset) for offset in (1.0, AFTER, LAST))
    whole, mlp = replace(rotary_attention(take), qk_norm=norm), gated_mlp(take)
    local = whole.rope and replace(whole.rope, theta=float(take("rope_local_theta")), scaling=None)

    def layer(window: int | None) -> Block:
        op = whole if window is None else replace(whole, window=window, rope=local)
        return Block((Branch("attention", op, pre=norm, post=after), Branch("mlp", mlp, pre=norm, post=last)))

    return decoder(take, map(layer, windows(take)), norm)


LAYER, OURS = "model.layers.layers.{l}", "layers.{l}"
FAMILY = Family(
    ("plamo3",),
    config,
    (
        *end_rules(),
        stacked_qkv(f"{LAYER}.mixer.qkv_proj"),
        Rule(f"{OURS}.attention.o", f"{LAYER}.mixer.o_proj.weight", HEADS_IN),
        *norm_rules(f"{OURS}.attention.q_norm", f"{LAYER}.mixer.q_norm"),
        *norm_rules(f"{OURS}.attention.k_norm", f"{LAYER}.mixer.k_norm"),
        fused_gate_up(f"{LAYER}.mlp.gate_up_proj"),
        Rule(f"{OURS}.mlp.down", f"{LAYER}.mlp.down_proj.weight", TRANSPOSED),
        *norm_rules(f"{OURS}.attention.pre", f"{LAYER}.pre_mixer_norm"),
        *norm_rules(f"{OURS}.attention.post", f"{LAYER}.post_mixer_norm"),
        *norm_rules(f"{OURS}.mlp.pre", f"{LAYER}.pre_mlp_norm"),
        *norm_rules(f"{OURS}.mlp.post", f"{LAYER}.post_mlp_norm"),
    ),
)
