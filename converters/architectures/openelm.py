"""OpenELM: llama with heads and feed-forward layers of each layer's own number and width, queries and keys normed."""

from converters.architectures.common import (
    HEADS_IN,
    TRANSPOSED,
    activation,
    decoder,
    end_rules,
    fused_gate_up,
    norm_rules,
    pre_norm,
    pre_norm_rules,
    rename,
    stacked_qkv,
)
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, Block, Mlp, ModelSpec, Norm

NAMES = {
    "hidden_size": "model_dim",
    "num_hidden_layers": "num_transformer_layers",
    "max_position_embeddings": "max_context_length",
    "rope_theta": "rope_freq_constant",
    "tie_word_embeddings": "share_input_output_layers",
}
DEFAULTS = {
    "ffn_dim_divisor": 256,
    "head_dim": 128,
    "max_context_length": 2048,
    "rope_freq_constant": 10000,
    "share_input_output_layers": True,
    "activation_fn_name": "swish",
}
FIXED = {"ffn_with_glu": True, "normalize_qk_projections": True, "normalization_layer_name": "rms_norm"}
# how the lists of heads and widths were made; how far tables of angles reach
MADE_OF = ("num_gqa_groups", "qkv_multipliers", "rope_max_length")
LISTS = ("num_query_heads", "num_kv_heads", "ffn_multipliers")


def width(size: float, divisor: int) -> int:
    """The nearest multiple, but no less than nine tenths."""
    near = max(divisor, int(size + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * size else near


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated.

    Raises:
        ValueError: a list is not of as many layers, or heads cannot be grouped.
    """
    take.assume(DEFAULTS)
    for key, value in FIXED.items():
        take.require(key, value)
    take.ignore(*MADE_OF)
    rename(take, NAMES)
    count, size, norm = take("num_hidden_layers"), take("head_dim"), Norm(1e-6)
    lists = [take(key) for key in LISTS]
    for key, given in zip(LISTS, lists, strict=True):
        if not isinstance(given, list) or len(given) != count:
            raise ValueError(f"{take.where}: {key} is {given!r}, expected a list for {count} layers")
    rope, act = read_rope(take, size), activation(take, "activation_fn_name")
    dim, divisor = take("hidden_size"), take("ffn_dim_divisor")

    def layer(heads: int, keys: int, times: float) -> Block:
        if heads % keys:
            raise ValueError(f"{take.where}: {heads} heads cannot share {keys} key-value heads")
        op = Attention(heads, keys, size, size**-0.5, rope, qk_norm=norm)
        return pre_norm(op, Mlp(width(times * dim, divisor), act), norm)

    return decoder(take, map(layer, *lists), norm)


LAYER, OURS = "transformer.layers.{l}", "layers.{l}.attention"
FAMILY = Family(
    ("openelm",),
    config,
    (
        *end_rules("transformer.token_embeddings", "transformer.norm"),
        stacked_qkv(f"{LAYER}.attn.qkv_proj"),
        Rule(f"{OURS}.o", f"{LAYER}.attn.out_proj.weight", HEADS_IN),
        *norm_rules(f"{OURS}.q_norm", f"{LAYER}.attn.q_norm"),
        *norm_rules(f"{OURS}.k_norm", f"{LAYER}.attn.k_norm"),
        fused_gate_up(f"{LAYER}.ffn.proj_1"),
        Rule("layers.{l}.mlp.down", f"{LAYER}.ffn.proj_2.weight", TRANSPOSED),
        *pre_norm_rules(LAYER, "attn_norm", "ffn_norm"),
    ),
    prefix="transformer.",
)
