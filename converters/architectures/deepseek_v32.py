"""DeepSeek-V3.2 and GLM-5: the layers of DeepSeek-V3, where an indexer picks the tokens that are looked at.

GLM-5 turns the indexer's keys in pairs, and its layers may share what an earlier one picked.
"""

from dataclasses import replace

from converters.architectures.common import LAYER, decoder, gated_mlp, rename
from converters.architectures.deepseek_v3 import DEFAULTS as PARENT
from converters.architectures.deepseek_v3 import IDLE, RULES
from converters.architectures.experts import grouped_moe, pre_norm, sparse_layers
from converters.architectures.family import Family
from converters.architectures.latent import indexer_rules, latent_attention, read_indexer
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

INDEX = {"index_topk": 2048, "index_head_dim": 128}
DEFAULTS = {
    "deepseek_v32": PARENT | INDEX | {"index_n_heads": 64, "max_position_embeddings": 163840},
    "glm_moe_dsa": PARENT
    | INDEX
    | {
        "vocab_size": 154880,
        "hidden_size": 6144,
        "intermediate_size": 12288,
        "num_hidden_layers": 78,
        "num_attention_heads": 64,
        "q_lora_rank": 2048,
        "v_head_dim": 256,
        "qk_nope_head_dim": 192,
        "n_group": 1,
        "topk_group": 1,
        "max_position_embeddings": 202752,
        "rms_norm_eps": 1e-5,
        "index_n_heads": 32,
    },
}


def sharing(take: Take, count: int) -> list[bool]:
    """Whether each layer looks at what an earlier one picked: listed, a pattern of letters, or every so many layers.

    Raises:
        ValueError: a list of the wrong length or with another kind.
    """
    kinds = take("indexer_types", None) or take("index_topk_pattern", None)
    if kinds is None:
        every, offset = max(take("index_topk_freq", 1), 1), take("index_skip_topk_offset", 2)
        return [max(i - offset + 1, 0) % every != 0 for i in range(count)]
    take.ignore("index_topk_pattern", "index_topk_freq", "index_skip_topk_offset")  # the list goes first
    known = {"full": False, "F": False, "shared": True, "S": True}
    if len(kinds) != count or not {*kinds} <= {*known} or known[kinds[0]]:
        raise ValueError(f"{take.where}: indexer types {kinds}; expected {count} times full or shared, full first")
    return [known[kind] for kind in kinds]


def config(take: Take) -> ModelSpec:
    """Pre-norm, latent attention, gated; the first layers dense."""
    rename(take, {"n_routed_experts": "num_local_experts"})
    rename(take, {"n_routed_experts": "num_experts"})
    shares = take("model_type") == "glm_moe_dsa"
    take.assume({key: value for key, value in DEFAULTS[take("model_type")].items() if key != "rope_interleave"})
    take.ignore(*IDLE)
    take.require("mlp_bias", False)
    count, norm, attention = take("num_hidden_layers"), Norm(take("rms_norm_eps")), latent_attention(take)
    take.require("layer_types", ["indexed_attention"] * count)
    if attention.rope is None:
        raise ValueError(f"{take.where}: no rope")
    indexer = read_indexer(take, attention.rope if shares else replace(attention.rope, interleaved=False))
    mlp, moe = gated_mlp(take), grouped_moe(take)
    shared = sharing(take, count) if shares else [False] * count
    layers = (
        pre_norm(replace(attention, indexer="shared" if again else indexer), moe if sparse else mlp, norm)
        for sparse, again in zip(sparse_layers(take), shared, strict=True)
    )
    return decoder(take, layers, norm)


FAMILY = Family(
    tuple(DEFAULTS), config, (*RULES, *indexer_rules(f"{LAYER}.self_attn.indexer")), drafts=("model.layers.{l}.",)
)
