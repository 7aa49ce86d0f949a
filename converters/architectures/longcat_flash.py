"""LongCat-Flash: two attentions and two dense layers a block, and beside them a mixture that joins at the block's end.

Some of its experts hand back the token itself. Queries and latents are scaled as if they were as wide as the stream.
"""

from dataclasses import replace

from converters.architectures.common import LAYER, TRANSPOSED, activation, decoder, end_rules, norm_rules, rename
from converters.architectures.experts import OURS, TRAINING, expert_rules, router_rules
from converters.architectures.family import Family
from converters.architectures.latent import latent_attention, latent_rules
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Branch, Mlp, ModelSpec, Moe, Norm, Router

DEFAULTS = {
    "vocab_size": 131072,
    "hidden_size": 6144,
    "num_layers": 28,
    "num_attention_heads": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000000.0,
    "ffn_hidden_size": 12288,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "moe_topk": 12,
    "n_routed_experts": 512,
    "zero_expert_num": 256,
    "expert_ffn_hidden_size": 2048,
    "routed_scaling_factor": 6.0,
}

ALIASES = {
    "n_routed_experts": "num_local_experts",
    "moe_topk": "num_experts_per_tok",
    "ffn_hidden_size": "intermediate_size",
    "expert_ffn_hidden_size": "moe_intermediate_size",
}

# what the reference does whatever these say, and all that released models say
FIXED = {
    "attention_method": "MLA",
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
    "norm_topk_prob": False,
    "router_bias": False,
    "zero_expert_type": "identity",
}


def experts(take: Take) -> Moe:
    """A softmax over all experts; a bias chooses and does not weigh."""
    router = Router(
        take("n_routed_experts"),
        take("moe_topk"),
        "softmax",
        choice_bias=True,
        scale=take("routed_scaling_factor"),
    )
    return Moe(
        router, take("expert_ffn_hidden_size"), activation(take, "hidden_act"), identity=take("zero_expert_num", 0)
    )


def config(take: Take) -> ModelSpec:
    """Pre-norm; the mixture reads what the first dense layer reads."""
    rename(take, ALIASES)
    take.assume(DEFAULTS)
    take.ignore(*TRAINING, "router_dtype")
    for key, value in FIXED.items():
        take.require(key, value)
    count, dim = take("num_layers"), take("hidden_size")
    take.require("num_hidden_layers", 2 * count)
    norm, latent = Norm(take("rms_norm_eps")), latent_attention(take)
    wide = (dim / take("q_lora_rank")) ** 0.5
    latent = replace(latent, scale=latent.scale * wide, latent_scale=(dim / latent.rank) ** 0.5)
    mlp = Mlp(take("ffn_hidden_size"), activation(take, "hidden_act"))
    block = Block(
        (
            Branch("attention_0", latent, pre=norm),
            Branch("mlp_0", mlp, pre=norm),
            Branch("moe", experts(take), beside=True, late=True),
            Branch("attention_1", latent, pre=norm),
            Branch("mlp_1", mlp, pre=norm),
        )
    )
    return decoder(take, (block,) * count, norm)


def half_rules(half: int) -> tuple[Rule, ...]:
    """An attention and a dense layer, each with the norm before it."""
    names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    return (
        *latent_rules(f"{LAYER}.self_attn.{half}", f"layers.{{l}}.attention_{half}"),
        *norm_rules(f"layers.{{l}}.attention_{half}.pre", f"{LAYER}.input_layernorm.{half}"),
        *(
            Rule(f"layers.{{l}}.mlp_{half}.{mine}", f"{LAYER}.mlps.{half}.{name}.weight", TRANSPOSED)
            for mine, name in names.items()
        ),
        *norm_rules(f"layers.{{l}}.mlp_{half}.pre", f"{LAYER}.post_attention_layernorm.{half}"),
    )


RULES = (
    *end_rules(),
    *half_rules(0),
    *half_rules(1),
    *router_rules(f"{LAYER}.mlp.router.classifier"),
    Rule(f"{OURS}.choice_bias", f"{LAYER}.mlp.router.e_score_correction_bias"),
    *expert_rules(f"{LAYER}.mlp.experts"),
)

FAMILY = Family(
    ("longcat_flash",),
    config,
    RULES,
    # the reference saves these for the experts that hand back the token, too
    buffers=(f"{LAYER}.mlp.experts.{{e}}.gate_proj.weight", f"{LAYER}.mlp.experts.{{e}}.up_proj.weight"),
    drafts=("model.mtp.",),
)
