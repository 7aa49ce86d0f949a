"""Qwen 3.5, text, mixtures of experts: Qwen 3 Next with other names."""

from converters.architectures.common import activation
from converters.architectures.family import Family
from converters.architectures.qwen2_moe import SHARED_RULES, assemble
from converters.architectures.qwen3_5 import APART
from converters.architectures.qwen3_next import DEFAULTS as NEXT
from converters.architectures.qwen3_next import HYBRID_RULES, mixers
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Moe, Router

DEFAULTS = {key: value for key, value in NEXT.items() if key not in ("decoder_sparse_step", "norm_topk_prob")} | {
    "num_hidden_layers": 40,
    "num_experts_per_tok": 8,
    "num_experts": 256,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, every layer a mixture, the chosen weights summing to one."""
    take.assume(DEFAULTS)
    take.ignore("full_attention_interval")
    act, router = activation(take, "hidden_act"), Router(take("num_experts"), take("num_experts_per_tok"), renorm=1.0)
    shared = Mlp(take("shared_expert_intermediate_size"), act)
    moe = Moe(router, take("moe_intermediate_size"), act, shared=shared, shared_gate=True)
    return assemble(take, mixers(take), moe, offset=1.0)


FAMILY = Family(("qwen3_5_moe_text",), config, (*HYBRID_RULES, *APART, *SHARED_RULES), drafts=("mtp.",))
