"""ModernBERT as a decoder: windows and full attention by turns, a rope a layer type, a dense layer before the head."""

from dataclasses import replace

from converters.architectures.common import (
    TRANSPOSED,
    activation,
    attention_rules,
    decoder,
    end_rules,
    fused_gate_up,
    gated_mlp,
    grouped_attention,
    head_dim,
    layer_types,
    norm_rules,
    pre_norm_rules,
    weight_and_bias,
    windows,
)
from converters.architectures.family import Family
from converters.rope import read_ropes
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Branch, HeadTransform, ModelSpec, Norm

DEFAULTS = {
    "hidden_activation": "gelu",
    "norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
    "decoder_bias": True,
    "classifier_activation": "gelu",
    "tie_word_embeddings": True,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm but for the first layer, which sees the normalised embedding; rotary, gated."""
    take.assume(DEFAULTS)
    take.ignore("initializer_cutoff_factor", "mlp_dropout", "cls_token_id")
    norm, bias = Norm(take("norm_eps"), "layer", bias=take("norm_bias", False)), take("attention_bias", False)
    count, every = take("num_hidden_layers"), take("global_attn_every_n_layers")
    kinds = layer_types(take, count, ["sliding_attention" if i % every else "full_attention" for i in range(count)])
    # local_attention counts both directions, as it did in the encoder
    sizes = windows(take, kinds, take("sliding_window", take("local_attention") // 2))
    thetas = {"full_attention": take("global_rope_theta"), "sliding_attention": take("local_rope_theta")}
    ropes = read_ropes(take, head_dim(take), thetas, stretched=thetas)
    attention = replace(grouped_attention(take), qkv_bias=bias, o_bias=bias)
    mlp = Branch("mlp", replace(gated_mlp(take, "hidden_activation"), bias=take("mlp_bias", False)), pre=norm)

    def layer(i: int) -> Block:
        op = replace(attention, rope=ropes[kinds[i]], window=sizes[i])
        return Block((Branch("attention", op, pre=norm if i else None), mlp))

    spec = decoder(take, map(layer, range(count)), norm)
    act = activation(take, "classifier_activation")
    transform = HeadTransform(act, norm, bias=take("classifier_bias", False))
    return replace(spec, embed_norm=norm, head_transform=transform, head_bias=take("decoder_bias"))


LAYER = "model.layers.{l}"
FAMILY = Family(
    ("modernbert-decoder",),
    config,
    (
        *end_rules("model.embeddings.tok_embeddings", "model.final_norm", "decoder"),
        *norm_rules("embed_norm", "model.embeddings.norm"),
        *weight_and_bias("head_transform.dense", "lm_head.dense", TRANSPOSED),
        *norm_rules("head_transform.norm", "lm_head.norm"),
        *attention_rules(f"{LAYER}.attn", o="Wo"),
        fused_gate_up(f"{LAYER}.mlp.Wi"),
        Rule(("layers.{l}.mlp.gate_bias", "layers.{l}.mlp.up_bias"), f"{LAYER}.mlp.Wi.bias", "(q f) -> q f"),
        *weight_and_bias("layers.{l}.mlp.down", f"{LAYER}.mlp.Wo", TRANSPOSED),
        *pre_norm_rules(LAYER, "attn_norm", "mlp_norm"),
    ),
)
