"""Pieces that families with latent attention share: the reader of its settings, and its rules."""

from dataclasses import replace

from converters.architectures.common import HEADS_IN, HEADS_OUT, TRANSPOSED, norm_rules, weight_and_bias
from converters.rope import magnitude, read_rope, rope_dict
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Indexer, Latent, ModelSpec, Norm, Rope, Yarn

OURS = "layers.{l}.attention"

# the norms inside keep the default of their class, whatever rms_norm_eps says
INNER_NORM = Norm(1e-6)


def latent_attention(take: Take, *, interleaved: bool = True) -> Latent:
    """Latent attention as most configs describe it. Where YaRN has an mscale_all_dim, it scales the scores."""
    heads, still, turning = take("num_attention_heads"), take("qk_nope_head_dim"), take("qk_rope_head_dim")
    take.require("num_key_value_heads", heads)
    take.ignore("head_dim", "qk_head_dim")  # they follow from the two
    scale, rope = (still + turning) ** -0.5, read_rope(take, turning, interleaved=interleaved)
    over_all = rope_dict(take).get("mscale_all_dim")
    if isinstance(rope.scaling, Yarn) and over_all:
        scale *= magnitude(rope.scaling.factor, over_all) ** 2
    return Latent(
        heads,
        take("kv_lora_rank"),
        still,
        turning,
        take("v_head_dim", take("hidden_size") // heads),
        scale,
        INNER_NORM,
        rope,
        take("q_lora_rank", None),
        bias=take("attention_bias", False),
    )


def latent_rules(theirs: str, ours: str = OURS) -> tuple[Rule, ...]:
    """Latent attention whose queries have a latent of their own; see `direct_queries`."""
    return (
        *weight_and_bias(f"{ours}.q_a", f"{theirs}.q_a_proj", TRANSPOSED),
        *norm_rules(f"{ours}.q_norm", f"{theirs}.q_a_layernorm"),
        Rule(f"{ours}.q", f"{theirs}.q_b_proj.weight", HEADS_OUT),
        *weight_and_bias(f"{ours}.kv_a", f"{theirs}.kv_a_proj_with_mqa", TRANSPOSED),
        *norm_rules(f"{ours}.kv_norm", f"{theirs}.kv_a_layernorm"),
        Rule((f"{ours}.k", f"{ours}.v"), f"{theirs}.kv_b_proj.weight", ("n h r -> r n h", "n v r -> r n v"), "(n c) r"),
        *weight_and_bias(f"{ours}.o", f"{theirs}.o_proj", HEADS_IN),
    )


def read_indexer(take: Take, rope: Rope) -> Indexer:
    """The indexer of sparse attention; its keys are normed with the mean taken out."""
    norm = replace(INNER_NORM, kind="layer", bias=True)
    return Indexer(take("index_n_heads"), take("index_head_dim"), take("index_topk"), norm, rope)


def indexer_rules(theirs: str) -> tuple[Rule, ...]:
    """The indexer."""
    return (
        Rule(f"{OURS}.index.q", f"{theirs}.wq_b.weight", HEADS_OUT),
        Rule(f"{OURS}.index.k", f"{theirs}.wk.weight", TRANSPOSED),
        *norm_rules(f"{OURS}.index.k_norm", f"{theirs}.k_norm"),
        Rule(f"{OURS}.index.weight", f"{theirs}.weights_proj.weight", TRANSPOSED),
    )


def direct_queries(theirs: str):
    """The rule of models whose queries come straight out of the stream, for `Family.first`."""

    def first(spec: ModelSpec) -> tuple[Rule, ...]:
        ops = [branch.op for block in spec.layers for branch in block.branches]
        direct = any(isinstance(op, Latent) and op.q_rank is None for op in ops)
        return (Rule(f"{OURS}.q", f"{theirs}.q_proj.weight", HEADS_OUT),) if direct else ()

    return first
