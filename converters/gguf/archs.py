"""The architectures of GGUF as data: how each says a HuggingFace config, and how it lays out its tensors.

Facts of llama.cpp (its loaders and its converter); the only place in this package with architectures' names. Knows no
files: `config` reads the metadata by these tables, `names` the tensors, `export` writes both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from forge_jax.spec import Activation

Keys = Mapping[str, str]


@dataclass(frozen=True)
class Arch:
    """One value of general.architecture, or one kind of model that goes by it.

    model_type: the family that reads the config.
    keys, optional: metadata key (below "<arch>.") -> config key, where the value is the same; without an optional one
        the family's default holds.
    repeats: the same for metadata keys that llama.cpp wants although another one says it already.
    present: config key -> the tensors of which one must be there to make it true.
    fixed: config keys that the architecture implies.
    act: the activation of its feed-forward layers, and the config key that names it (None: the family has no choice).
    attention: whether any layer has it.
    rope: whether heads are rotated; rope_tensors: the tensors that may change the frequencies.
    period: every how many layers one has no window, where the metadata does not say; None: no windows by layer.
    permuted: rows of q and k alternate between the two halves of a head, since llama.cpp turns adjacent pairs.
    fused_qkv, fused_gate: attn_qkv, or gate and up as one ffn_up, are what is written; both ways are read.
    swapped_norms: of two norms before parallel branches, attn_norm is the feed-forward layer's.
    names: the usual name of a tensor -> its name here.
    whole_ramp: YaRN's ramp goes from whole feature to whole feature, as in llama.cpp; the models themselves may differ.
    What llama.cpp's loader insists on, so that an export keeps to it:
    square: heads * head size = width.
    partial: heads may be rotated in part.
    biases: whether attn_output and the feed-forward layer have biases.
    head: whether there is an output tensor of its own.
    """

    model_type: str
    keys: Keys
    optional: Keys = field(default_factory=dict)
    repeats: Keys = field(default_factory=dict)
    present: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fixed: Mapping[str, object] = field(default_factory=dict)
    act: tuple[Activation, str | None] = ("silu", "hidden_act")
    attention: bool = True
    rope: bool = True
    rope_tensors: frozenset[str] = frozenset()
    period: int | None = None
    permuted: bool = False
    fused_qkv: bool = False
    fused_gate: bool = False
    swapped_norms: bool = False
    names: Keys = field(default_factory=dict)
    whole_ramp: bool = True
    square: bool = False
    partial: bool = False
    biases: Literal["never", "optional", "always"] = "never"
    head: Literal["optional", "always", "never"] = "optional"


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
BLOOM = {
    "context_length": "seq_length",
    "embedding_length": "hidden_size",
    "block_count": "n_layer",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
FALCON = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "ffn_hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_kv_heads",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
EXPERTS = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}
LOCAL_EXPERTS = EXPERTS | {"expert_count": "num_local_experts"}
EXPERT_WIDTH = {"expert_feed_forward_length": "moe_intermediate_size"}
STATE = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
    "ssm.conv_kernel": "conv_kernel",
    "ssm.state_size": "state_size",
}
CAPS = {name: name for name in ("attn_logit_softcapping", "final_logit_softcapping")}
WINDOW = {"attention.sliding_window": "sliding_window"}
MULTIPLIERS = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
}
QKV_BIAS = ("blk.0.attn_q.bias", "blk.0.attn_qkv.bias")
ATTENTION_BIAS, MLP_BIAS = {"attention_bias": QKV_BIAS}, {"mlp_bias": ("blk.0.ffn_up.bias",)}
FREQS, FACTORS = frozenset({"rope_freqs"}), frozenset({"rope_factors"})
TANH: tuple[Activation, str] = ("gelu_tanh", "hidden_act")
TANH_GEMMA: tuple[Activation, str] = ("gelu_tanh", "hidden_activation")
TANH_GPT2: tuple[Activation, str] = ("gelu_tanh", "activation_function")

_LLAMA = Arch("llama", RMS, rope_tensors=FREQS | FACTORS, permuted=True, biases="optional")
_GPT2 = Arch("gpt2", GPT2, act=TANH_GPT2, rope=False, fused_qkv=True, square=True, biases="always")

_MAMBA = Arch(
    "mamba",
    STATE | {"ssm.inner_size": "intermediate_size", "ssm.time_step_rank": "time_step_rank"},
    present={"use_conv_bias": ("blk.0.ssm_conv1d.bias",)},
    attention=False,
    rope=False,
)

ARCHS: Mapping[str, Arch] = MappingProxyType(
    {
        "llama": replace(_LLAMA, present=ATTENTION_BIAS | MLP_BIAS),
        "llama:mixtral": replace(_LLAMA, model_type="mixtral", keys=RMS | LOCAL_EXPERTS, biases="never"),
        "mistral3": replace(_LLAMA, model_type="ministral3"),
        "granite": replace(
            _LLAMA,
            model_type="granite",
            keys=RMS | {"logit_scale": "logits_scaling"},
            optional=MULTIPLIERS,
            present=ATTENTION_BIAS | MLP_BIAS,
        ),
        "smollm3": Arch("smollm3", RMS, present=ATTENTION_BIAS | MLP_BIAS, permuted=True),
        "qwen2": Arch("qwen2", RMS, square=True),
        "qwen3": Arch("qwen3", RMS, present=ATTENTION_BIAS),
        "qwen2moe": Arch(
            "qwen2_moe",
            RMS | EXPERTS,
            EXPERT_WIDTH | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
            present={"qkv_bias": QKV_BIAS},
            fixed={"norm_topk_prob": False},
            square=True,
        ),
        "qwen3moe": Arch("qwen3_moe", RMS | EXPERTS, EXPERT_WIDTH, fixed={"norm_topk_prob": True}),
        "gpt-oss": Arch(
            "gpt_oss",
            RMS | LOCAL_EXPERTS | WINDOW,
            repeats={"expert_feed_forward_length": "intermediate_size"},
            fixed={"attention_bias": True},
            act=("silu", None),
            period=2,
            biases="always",
            names={"ffn_norm": "post_attention_norm"},
            whole_ramp=False,
            head="always",
        ),
        "llama4": Arch(
            "llama4_text",
            RMS
            | LOCAL_EXPERTS
            | {
                "feed_forward_length": "intermediate_size_mlp",
                "expert_feed_forward_length": "intermediate_size",
                "interleave_moe_layer_step": "interleave_moe_layer_step",
            },
            rope_tensors=FREQS,
        ),
        "gemma": Arch("gemma", RMS, act=TANH, partial=True, head="never"),
        "gemma2": Arch("gemma2", RMS, CAPS | WINDOW, act=TANH_GEMMA, period=2, partial=True, head="never"),
        "gemma3": Arch(
            "gemma3_text",
            RMS,
            WINDOW | {"final_logit_softcapping": "final_logit_softcapping"},
            act=TANH_GEMMA,
            period=6,
            partial=True,
        ),
        "phi2": Arch("phi", LAYER, act=TANH, square=True, partial=True, biases="always", head="always"),
        "phi3": Arch(
            "phi3",
            RMS,
            WINDOW,
            rope_tensors=FACTORS,
            fused_qkv=True,
            fused_gate=True,
            square=True,
            partial=True,
        ),
        "gpt2": _GPT2,
        "starcoder": replace(_GPT2, model_type="gpt_bigcode"),
        "bloom": replace(_GPT2, model_type="bloom", keys=BLOOM, act=("gelu_tanh", None)),
        "gptneox": Arch(
            "gpt_neox",
            WIDTHS
            | {"attention.layer_norm_epsilon": "layer_norm_eps", "use_parallel_residual": "use_parallel_residual"},
            fixed={"attention_bias": True},
            act=("gelu", "hidden_act"),
            fused_qkv=True,
            square=True,
            partial=True,
            biases="always",
            head="always",
        ),
        # a reserved name: the format describes it, but llama.cpp does not run it and nothing converts to it
        "gptj": Arch("gptj", GPT2, act=TANH_GPT2, square=True, partial=True, biases="optional", head="always"),
        "falcon": Arch("falcon", FALCON, act=("gelu", "activation"), fused_qkv=True, swapped_norms=True, square=True),
        "starcoder2": Arch(
            "starcoder2",
            GROUPED | {"attention.layer_norm_epsilon": "norm_epsilon"},
            present={"use_bias": QKV_BIAS},
            act=TANH,
            square=True,
            biases="always",
        ),
        "stablelm": Arch(
            "stablelm",
            LAYER,
            present={"use_qkv_bias": QKV_BIAS, "qk_layernorm": ("blk.0.attn_q_norm.weight",)},
            square=True,
            partial=True,
            head="always",
        ),
        "olmo2": Arch("olmo2", RMS, square=True, head="always"),
        "olmo2:olmo3": Arch("olmo3", RMS | WINDOW, period=4, square=True, head="always"),
        "ernie4_5": Arch("ernie4_5", RMS, present={"use_bias": QKV_BIAS}),
        "jais2": Arch(
            "jais2",
            LAYER,
            present=ATTENTION_BIAS | MLP_BIAS,
            act=("relu2", "hidden_act"),
            biases="always",
        ),
        "mamba": _MAMBA,
        "mamba:falcon": replace(_MAMBA, model_type="falcon_mamba"),
        "mamba2": replace(
            _MAMBA,
            model_type="mamba2",
            keys=STATE | {"ssm.group_count": "n_groups", "ssm.time_step_rank": "num_heads"},
        ),
        "cohere2": Arch(
            "cohere2",
            LAYER | WINDOW | {"logit_scale": "logit_scale"},
            period=4,
            square=True,
            partial=True,
            head="never",
        ),
        "glm4": Arch("glm4", RMS, present=ATTENTION_BIAS, fused_gate=True, partial=True),
    }
)
