"""Qwen 3.5, text, dense: Qwen 3 Next with other names, and every feed-forward layer dense."""

from converters.architectures.common import decoder, gated_mlp
from converters.architectures.experts import pre_norm
from converters.architectures.family import Family
from converters.architectures.qwen2_moe import RULES
from converters.architectures.qwen3_next import DEFAULTS as NEXT
from converters.architectures.qwen3_next import HYBRID_RULES, OURS, THEIRS, mixers
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

SAME = ("head_dim", "hidden_act", "rms_norm_eps", "max_position_embeddings")
DEFAULTS = {key: value for key, value in NEXT.items() if key in SAME or key.startswith("linear_")} | {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, gated, the norms of the stream stored as w - 1."""
    take.assume(DEFAULTS)
    take.ignore("full_attention_interval")
    norm, mlp = Norm(take("rms_norm_eps"), offset=1.0), gated_mlp(take)
    return decoder(take, (pre_norm(mixer, mlp, norm) for mixer in mixers(take)), norm)


KEYS, VALUES = "(k h) d -> d k h", "(n v) d -> d n v"

APART = (
    Rule(tuple(f"{OURS}.{part}" for part in "qkv"), f"{THEIRS}.in_proj_qkv.weight", (KEYS, KEYS, VALUES), "c d"),
    Rule(f"{OURS}.gate", f"{THEIRS}.in_proj_z.weight", VALUES),
    Rule(f"{OURS}.beta", f"{THEIRS}.in_proj_b.weight", "n d -> d n"),
    Rule(f"{OURS}.decay", f"{THEIRS}.in_proj_a.weight", "n d -> d n"),
)

FAMILY = Family(("qwen3_5_text",), config, (*HYBRID_RULES, *APART, *RULES), drafts=("mtp.",))
