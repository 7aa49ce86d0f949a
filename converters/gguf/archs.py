"""The architectures of GGUF as data: how each says a HuggingFace config, and how it lays out its tensors.

Facts of llama.cpp (its loaders and its converter); the only place in this package with architectures' names. Knows no
files: `config` reads the metadata by these tables, `names` the tensors, `export` writes both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from forge_jax.spec import Activation

Keys = Mapping[str, str]

ATTENTION_BIAS = "blk.0.attn_q.bias"
MLP_BIAS = "blk.0.ffn_up.bias"


@dataclass(frozen=True)
class Arch:
    """One value of general.architecture.

    model_type: the family that reads the config.
    keys, optional: metadata key (below "<arch>.") -> config key, where the value is the same; without an optional one
        the family's default holds.
    present: config key -> the tensor whose presence makes it true.
    fixed: config keys that the architecture implies.
    act: the activation of its feed-forward layers, and the config key that names it (None: the family has no choice).
    rope: whether heads are rotated; rope_tensors: the tensors that may change the frequencies.
    period: every how many layers one has no window, where the metadata does not say; None: no windows by layer.
    permuted: rows of q and k alternate between the two halves of a head, since llama.cpp turns adjacent pairs.
    fused_qkv, fused_gate: attn_qkv, or gate and up as one ffn_up, are what is written; both ways are read.
    swapped_norms: of two norms before parallel branches, attn_norm is the feed-forward layer's.
    square: llama.cpp takes only heads * head size = width.
    head: whether llama.cpp wants an own output tensor, forbids it, or takes both.
    """

    model_type: str
    keys: Keys
    optional: Keys = field(default_factory=dict)
    present: Keys = field(default_factory=dict)
    fixed: Mapping[str, object] = field(default_factory=dict)
    act: tuple[Activation, str | None] = ("silu", "hidden_act")
    rope: bool = True
    rope_tensors: frozenset[str] = frozenset()
    period: int | None = None
    permuted: bool = False
    fused_qkv: bool = False
    fused_gate: bool = False
    swapped_norms: bool = False
    square: bool = False
    head: Literal["optional", "own", "tied"] = "optional"


WIDTHS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
GROUPED = WIDTHS | {"attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim"}
RMS = GROUPED | {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
LAYER = GROUPED | {"attention.layer_norm_epsilon": "layer_norm_eps"}
GPT2 = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
BIASES = {"attention_bias": ATTENTION_BIAS, "mlp_bias": MLP_BIAS}
FREQS, FACTORS = frozenset({"rope_freqs"}), frozenset({"rope_factors"})
GELU_NEW: tuple[Activation, str] = ("gelu_tanh", "activation_function")

ARCHS: Mapping[str, Arch] = MappingProxyType(
    {
        "llama": Arch("llama", RMS, present=BIASES, rope_tensors=FREQS | FACTORS, permuted=True),
        "mistral3": Arch("ministral3", RMS, rope_tensors=FREQS | FACTORS, permuted=True),
        "qwen2": Arch("qwen2", RMS, square=True),
        "qwen3": Arch("qwen3", RMS, present={"attention_bias": ATTENTION_BIAS}),
        "gemma": Arch("gemma", RMS, act=("gelu_tanh", "hidden_act"), head="tied"),
        "gemma2": Arch(
            "gemma2",
            RMS,
            {
                "attn_logit_softcapping": "attn_logit_softcapping",
                "final_logit_softcapping": "final_logit_softcapping",
                "attention.sliding_window": "sliding_window",
            },
            act=("gelu_tanh", "hidden_activation"),
            period=2,
            head="tied",
        ),
        "gemma3": Arch(
            "gemma3_text",
            RMS,
            {
                "final_logit_softcapping": "final_logit_softcapping",
                "attention.sliding_window": "sliding_window",
            },
            act=("gelu_tanh", "hidden_activation"),
            period=6,
        ),
        "gptneox": Arch(
            "gpt_neox",
            WIDTHS | {"attention.layer_norm_epsilon": "layer_norm_eps", "use_parallel_residual": "use_parallel_residual"},
            fixed={"attention_bias": True},
            act=("gelu", "hidden_act"),
            fused_qkv=True,
            square=True,
            head="own",
        ),
        "gptj": Arch("gptj", GPT2, act=GELU_NEW, square=True, head="own"),
        "starcoder": Arch("gpt_bigcode", GPT2, act=GELU_NEW, rope=False, fused_qkv=True, square=True),
        "starcoder2": Arch(
            "starcoder2",
            GROUPED | {"attention.layer_norm_epsilon": "norm_epsilon"},
            present={"use_bias": ATTENTION_BIAS},
            act=("gelu_tanh", "hidden_act"),
            square=True,
        ),
        "bloom": Arch(
            "bloom",
            {
                "context_length": "seq_length",
                "embedding_length": "hidden_size",
                "block_count": "n_layer",
                "attention.head_count": "n_head",
                "attention.layer_norm_epsilon": "layer_norm_epsilon",
            },
            act=("gelu_tanh", None),
            rope=False,
            fused_qkv=True,
            square=True,
        ),
        "falcon": Arch(
            "falcon",
            {
                "context_length": "max_position_embeddings",
                "embedding_length": "hidden_size",
                "block_count": "num_hidden_layers",
                "feed_forward_length": "ffn_hidden_size",
                "attention.head_count": "num_attention_heads",
                "attention.head_count_kv": "num_kv_heads",
                "attention.layer_norm_epsilon": "layer_norm_epsilon",
            },
            act=("gelu", "activation"),
            fused_qkv=True,
            swapped_norms=True,
            square=True,
        ),
        "stablelm": Arch(
            "stablelm",
            LAYER,
            present={"use_qkv_bias": ATTENTION_BIAS, "qk_layernorm": "blk.0.attn_q_norm.weight"},
            square=True,
            head="own",
        ),
        "phi2": Arch("phi", LAYER, act=("gelu_tanh", "hidden_act"), square=True, head="own"),
        "phi3": Arch(
            "phi3",
            RMS,
            {"attention.sliding_window": "sliding_window"},
            rope_tensors=FACTORS,
            fused_qkv=True,
            fused_gate=True,
            square=True,
        ),
        "gpt2": Arch("gpt2", GPT2, act=GELU_NEW, rope=False, fused_qkv=True, square=True),
        "granite": Arch(
            "granite",
            RMS | {"logit_scale": "logits_scaling"},
            {
                "attention.scale": "attention_multiplier",
                "embedding_scale": "embedding_multiplier",
                "residual_scale": "residual_multiplier",
            },
            present=BIASES,
            rope_tensors=FREQS | FACTORS,
            permuted=True,
        ),
        "olmo2": Arch("olmo2", RMS, square=True, head="own"),
        "smollm3": Arch("smollm3", RMS, present=BIASES, permuted=True),
        "cohere2": Arch(
            "cohere2",
            LAYER | {"attention.sliding_window": "sliding_window", "logit_scale": "logit_scale"},
            period=4,
            square=True,
            head="tied",
        ),
        "glm4": Arch("glm4", RMS, present={"attention_bias": ATTENTION_BIAS}, fused_gate=True),
    }
)
