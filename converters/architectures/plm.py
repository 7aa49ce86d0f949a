"""PLM (1.8B): latent attention, and feed-forward layers of squared relu."""

from converters.architectures.common import LAYER, activation, decoder, end_rules, mlp_rules, pre_norm, pre_norm_rules
from converters.architectures.family import Family
from converters.architectures.latent import direct_queries, latent_attention, latent_rules
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Norm

DEFAULTS = {
    "hidden_act": "relu2",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, not gated; queries have no latent of their own."""
    take.assume(DEFAULTS)
    take.require("q_lora_rank", None)
    take.ignore("pretraining_tp")
    norm, mlp = Norm(take("rms_norm_eps")), Mlp(take("intermediate_size"), activation(take, "hidden_act"), gated=False)
    return decoder(take, (pre_norm(latent_attention(take), mlp, norm),) * take("num_hidden_layers"), norm)


RULES = (
    *end_rules(),
    *latent_rules(f"{LAYER}.self_attn"),
    *mlp_rules(f"{LAYER}.mlp"),
    *pre_norm_rules(LAYER),
)

FAMILY = Family(("plm",), config, RULES, first=direct_queries(f"{LAYER}.self_attn"))
