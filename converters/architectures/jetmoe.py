"""JetMoE: mixtures of attention heads and of feed-forward experts, both chosen by logits that the chosen share."""

from converters.architectures.common import LAYER, TRANSPOSED, activation, decoder, end_rules
from converters.architectures.experts import OURS as MOE
from converters.architectures.experts import TRAINING, fused_expert_rules, pre_norm_rules, router_rules
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, Block, Branch, HeadMixture, ModelSpec, Moe, Norm, Router

DEFAULTS = {
    "num_key_value_heads": 16,
    "kv_channels": 128,
    "activation_function": "silu",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm; the norms of the layers have an eps of their own."""
    take.assume(DEFAULTS)
    take.ignore(*TRAINING, "aux_loss_coef", "num_attention_heads")  # there are so many as the chosen experts have
    heads, size = take("num_key_value_heads"), take("kv_channels")
    router = Router(take("num_local_experts"), take("num_experts_per_tok"), "chosen_softmax")
    attention = HeadMixture(Attention(heads, heads, size, size**-0.5, read_rope(take, size), o_bias=True), router)
    moe = Moe(router, take("intermediate_size"), activation(take, "activation_function"), out_bias=True)
    norm = Norm(1e-6)
    block = Block((Branch("attention", attention, norm), Branch("moe", moe, norm)))
    return decoder(take, (block,) * take("num_hidden_layers"), Norm(take("rms_norm_eps")))


OURS, THEIRS = "layers.{l}.attention", f"{LAYER}.self_attention"

FAMILY = Family(
    ("jetmoe",),
    config,
    (
        *end_rules(),
        Rule((f"{OURS}.k", f"{OURS}.v"), f"{THEIRS}.kv_proj.weight", "(q n h) d -> q d n h"),
        Rule(f"{OURS}.q", f"{THEIRS}.experts.input_linear.weight", "e (n h) d -> e d n h"),
        Rule(f"{OURS}.o", f"{THEIRS}.experts.output_linear.weight", "e d (n h) -> e n h d"),
        Rule(f"{OURS}.o_bias", f"{THEIRS}.experts.bias"),
        Rule(f"{OURS}.router", f"{THEIRS}.experts.router.layer.weight", TRANSPOSED),
        *router_rules(f"{LAYER}.mlp.router.layer"),
        *fused_expert_rules(f"{LAYER}.mlp.input_linear.weight", f"{LAYER}.mlp.output_linear.weight"),
        Rule(f"{MOE}.out_bias", f"{LAYER}.mlp.bias"),
        *pre_norm_rules(LAYER),
    ),
)
