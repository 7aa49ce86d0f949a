"""A spec as GGUF metadata: Gemma with inputs of a layer's own and keys that layers share."""

from typing import Any

from converters.gguf.extras_gemma import deviations
from converters.gguf.facts import attentions, feed_forward, local_rope
from forge_jax.spec import Attention, Mlp, ModelSpec

Metadata = dict[str, Any]


def windowed(spec: ModelSpec) -> Metadata:
    """Which layers have a window, one by one, and how many look at the keys of others."""
    ops = attentions(spec)
    return {
        "attention.sliding_window_pattern": [op.window is not None for op in ops],
        "attention.shared_kv_layers": sum(op.reads is not None for op in ops),
    }


def gemma3n(spec: ModelSpec) -> Metadata:
    """The base of the other rope, and what gates leave out."""
    local = local_rope(spec)
    gates = [op for op in feed_forward(spec) if isinstance(op, Mlp) and op.gated]
    return windowed(spec) | {
        "feed_forward_length": gates[0].dim,
        "rope.freq_base_swa": local.theta if local else None,
        "activation_sparsity_scale": [deviations(op.sparsity) for op in gates],
    }


def heads_of(spec: ModelSpec, wide: bool) -> Attention | None:
    """The attention of the layers without a window (`wide`), or with one."""
    return next((op for op in attentions(spec) if (op.window is None) == wide), None)


def gemma4(spec: ModelSpec) -> Metadata:
    """The heads of both kinds of layers."""
    full, near = heads_of(spec, True), heads_of(spec, False)
    if full is None or near is None or near.rope is None:
        raise ValueError("GGUF: this architecture has layers with a window and without, and rotates their heads")
    counts = [op.kv_heads for op in attentions(spec)]
    inner = [op.dim for op in feed_forward(spec) if isinstance(op, Mlp)]
    own = {"embedding_length_per_layer_input": spec.own.dim if spec.own else 0}
    return (
        windowed(spec)
        | own
        | {
            "attention.head_count_kv": counts if len(set(counts)) > 1 else counts[0],
            "attention.key_length": full.head_dim,
            "attention.value_length": full.value_size,
            "attention.key_length_swa": near.head_dim,
            "attention.value_length_swa": near.value_size,
            "feed_forward_length": inner if len(set(inner)) > 1 else inner[0],
            "rope.dimension_count_swa": near.rope.dim,
            "rope.freq_base_swa": near.rope.theta,
        }
    )
