"""What there is to know about an architecture of GGUF, and the keys that many of them share. No names stand here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from forge_jax.spec import Activation

Keys = Mapping[str, str]


@dataclass(frozen=True)
class Arch:
    """One value of general.architecture, or one kind of model that goes by it.

    model_type: the family that reads the config.
    alias: models of this name have a family only on the hub, with code of their own, and are the same mathematics as
        this family's, or have it as their language model; it is read, and an export says the family's own name.
    keys, optional: metadata key (below "<arch>.") -> config key, where the value is the same; without an optional one
        the family's default holds.
    repeats: the same for metadata keys that llama.cpp wants although another one says it already.
    present: config key -> the tensors of which one must be there to make it true.
    fixed: config keys that the architecture implies.
    act: the activation of its feed-forward layers, and the config key that names it (None: the family has no choice).
    attention: whether any layer has it, with keys and values of its own (of one size in all layers, or mixed) or out of
        a latent.
    rope: whether heads are rotated; rope_tensors: the tensors that may change the frequencies.
    period: every how many layers one has no window, where the metadata does not say; None: no windows by layer.
    permuted: rows of q and k alternate between the two halves of a head, since llama.cpp turns adjacent pairs.
    fused_qkv, fused_gate: attn_qkv, or gate and up as one ffn_up, are what is written; both ways are read.
    gated_queries: attn_q holds each head's gate after its query.
    fused_experts: gate and up of all experts are one tensor.
    idle_keys: layers that read the keys and values of others have tensors for their own, which have no effect.
    fused_kv: the ways out of a latent are one tensor.
    tiled: value heads of the delta rule lie so that every so many of them begin again with the first key head.
    hybrid: only some layers have attention, those with a head count in the list of key-value heads.
    norms: our norm of a layer, "mlp.pre" -> its tensor's name here, where that is not the usual one.
    names: the usual name of a tensor -> its name here.
    numbers: metadata keys, of no architecture's own, that hold a parameter of every layer -> its shape here.
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
    alias: bool = False
    present: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fixed: Mapping[str, object] = field(default_factory=dict)
    act: tuple[Activation, str | None] = ("silu", "hidden_act")
    attention: Literal["grouped", "mixed", "latent", "never"] = "grouped"
    rope: bool = True
    rope_tensors: frozenset[str] = frozenset()
    period: int | None = None
    permuted: bool = False
    fused_qkv: bool = False
    fused_gate: bool = False
    gated_queries: bool = False
    fused_experts: bool = False
    idle_keys: bool = False
    fused_kv: bool = False
    tiled: bool = False
    hybrid: bool = False
    norms: Keys = field(default_factory=dict)
    names: Keys = field(default_factory=dict)
    numbers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
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
OWN = {
    "attention.shared_kv_layers": "num_kv_shared_layers",
    "embedding_length_per_layer_input": "hidden_size_per_layer_input",
}
MULTIPLIERS = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
}
QKV_BIAS = ("blk.0.attn_q.bias", "blk.0.attn_qkv.bias")
ATTENTION_BIAS, MLP_BIAS = {"attention_bias": QKV_BIAS}, {"mlp_bias": ("blk.0.ffn_up.bias",)}
FREQS, FACTORS, PAIRS = (frozenset({name}) for name in ("rope_freqs", "rope_factors", "rope_pairs"))
TANH: tuple[Activation, str] = ("gelu_tanh", "hidden_act")
TANH_GEMMA: tuple[Activation, str] = ("gelu_tanh", "hidden_activation")
TANH_GPT2: tuple[Activation, str] = ("gelu_tanh", "activation_function")
GROUPED_EXPERTS = {
    "expert_count": "n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_shared_count": "n_shared_experts",
    "leading_dense_block_count": "first_k_dense_replace",
} | EXPERT_WIDTH
WEIGHTS = {"expert_weights_scale": "routed_scaling_factor", "expert_weights_norm": "norm_topk_prob"}
GROUPS = {"expert_group_count": "n_group", "expert_group_used_count": "topk_group"}
LATENT = WIDTHS | {
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.kv_lora_rank": "kv_lora_rank",
    "rope.dimension_count": "qk_rope_head_dim",
}
