"""Hunyuan (0.5B to 7B): llama whose queries and keys are normalised after the rope."""

from dataclasses import replace

from converters.architectures.common import (
    COMMON,
    LAYER,
    decoder,
    gated_mlp,
    grouped_attention,
    head_dim,
    norm_rules,
    pre_norm,
)
from converters.architectures.family import Family
from converters.rope import read_ntk_rope
from converters.take import Take
from forge_jax.spec import Attention, ModelSpec, Norm

DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 2048}
# what the releases spell out and every one of them has
FIXED = {"use_qk_norm": True, "use_rotary_pos_emb": True, "mlp_bias": False, "num_experts": 1}
# of other models of the line, which see images, encode or share keys between layers; of the tokenizer; repetitions
UNUSED = """
    attention_head_dim cla_share_factor class_num dense_list eod_token_id im_end_id im_newline_id im_start_id
    image_token_id norm_type num_media_embeds org_vocab_size pad_id pool_type pretraining_tp text_end_id text_start_id
    xdrope_section
""".split()


def attention(take: Take, norm: Norm) -> Attention:
    """Rotary attention with a late norm of queries and keys."""
    bias, op = take("attention_bias", False), grouped_attention(take, read_ntk_rope(take, head_dim(take)))
    return replace(op, qk_norm=norm, qk_norm_late=True, qkv_bias=bias, o_bias=bias)


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated."""
    take.assume(DEFAULTS)
    for key, value in FIXED.items():
        take.require(key, value)
    take.ignore(*UNUSED)
    norm = Norm(take("rms_norm_eps"))
    block = pre_norm(attention(take, norm), gated_mlp(take), norm)
    return decoder(take, (block,) * take("num_hidden_layers"), norm)


NORMS = (
    *norm_rules("layers.{l}.attention.q_norm", f"{LAYER}.self_attn.query_layernorm"),
    *norm_rules("layers.{l}.attention.k_norm", f"{LAYER}.self_attn.key_layernorm"),
)

FAMILY = Family(("hunyuan_v1_dense",), config, (*NORMS, *COMMON))
