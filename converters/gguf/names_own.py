"""Between our parameter paths and GGUF's tensor names: what the layers of some models have beside their two branches.

Inputs of their own, shortcuts of low rank, several streams; experts beside a feed-forward layer.
"""

from collections.abc import Iterator

from converters.gguf.names_state import named
from converters.rules import Rule
from forge_jax.spec import Attention, ModelSpec

LAYER, BLOCK = "layers.{l}", "blk.{l}"
TRANSPOSED = "b a -> a b"

OWN = (
    Rule("own.table", "per_layer_token_embd.weight", "v (l p) -> v l p"),
    Rule("own.project", "per_layer_model_proj.weight", "(l p) d -> d l p"),
    Rule("own.norm.scale", "per_layer_proj_norm.weight"),
    Rule(f"{LAYER}.own.gate", f"{BLOCK}.inp_gate.weight", TRANSPOSED),
    Rule(f"{LAYER}.own.out", f"{BLOCK}.proj.weight", TRANSPOSED),
    Rule(f"{LAYER}.own.post.scale", f"{BLOCK}.post_norm.weight"),
)

STREAMS = (
    Rule("streams.enter", "altup_proj.weight", "e b a -> a e b"),
    Rule("streams.leave", "altup_unembd_proj.weight", "e b a -> e a b"),
    Rule(f"{LAYER}.streams.router", f"{BLOCK}.altup_router.weight", TRANSPOSED),
    Rule(f"{LAYER}.streams.norm.scale", f"{BLOCK}.altup_router_norm.weight"),
    Rule(f"{LAYER}.streams.predict", f"{BLOCK}.altup_predict_coef.weight", "(p q) m -> m p q"),
    Rule(f"{LAYER}.streams.correct", f"{BLOCK}.altup_correct_coef.weight", TRANSPOSED),
    Rule(f"{LAYER}.streams.scale", f"{BLOCK}.altup_correct_scale.weight"),
    Rule(f"{LAYER}.mixing.pre.scale", f"{BLOCK}.attn_norm.weight"),
    Rule(f"{LAYER}.laurel.up", f"{BLOCK}.laurel_l.weight", TRANSPOSED),
    Rule(f"{LAYER}.laurel.down", f"{BLOCK}.laurel_r.weight", TRANSPOSED),
    Rule(f"{LAYER}.laurel.post.scale", f"{BLOCK}.laurel_post_norm.weight"),
)

BESIDE = (
    Rule(f"{LAYER}.feed_forward.post.scale", f"{BLOCK}.post_ffw_norm.weight"),
    Rule(f"{LAYER}.mlp.post.scale", f"{BLOCK}.post_ffw_norm_1.weight"),
    Rule(f"{LAYER}.moe.post.scale", f"{BLOCK}.post_ffw_norm_2.weight"),
    Rule(f"{LAYER}.moe.norm.scale", f"{BLOCK}.pre_ffw_norm_2.weight"),
    Rule(f"{LAYER}.moe.router_norm.scale", f"{BLOCK}.ffn_gate_inp.scale"),
    Rule(f"{LAYER}.moe.expert_scale", f"{BLOCK}.ffn_down_exps.scale"),
)


def own_rules(spec: ModelSpec) -> tuple[Rule, ...]:
    """The rules of what a model has of all this; they go before the usual ones."""
    return (
        *(OWN if spec.own else ()),
        *(STREAMS if spec.streams else ()),
        *(BESIDE if named(spec, "feed_forward") else ()),
        Rule(f"{LAYER}.scalar", f"{BLOCK}.layer_output_scale.weight"),
    )


def idle(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The keys and values of layers that read those of others: names and shapes of tensors that have no effect."""
    for i, block in enumerate(spec.layers):
        for op in (branch.op for branch in block.every()):
            if isinstance(op, Attention) and op.reads is not None:
                yield f"blk.{i}.attn_k.weight", (op.kv_heads * op.head_dim, spec.dim)
                yield f"blk.{i}.attn_v.weight", (op.kv_heads * op.value_size, spec.dim)
                yield f"blk.{i}.attn_k_norm.weight", (op.head_dim,)
