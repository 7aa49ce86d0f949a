"""Configs of the variants of each family, as config.json would hold them: tiny, with unusual constants. Data only.

The names of both config dialects occur: what one variant spells `rope_parameters`, another spells `rope_theta`.
A family's `_bare` variant leaves out every key that has a default, so its defaults are the reference's.
"""

from typing import Any

Config = dict[str, Any]

ROPE: Config = {"rope_theta": 1234.5, "rope_type": "default"}
LINEAR: Config = {"rope_theta": 1234.5, "rope_type": "linear", "factor": 2.5}
DYNAMIC: Config = {"rope_theta": 1234.5, "rope_type": "dynamic", "factor": 2.0}
YARN: Config = {"rope_theta": 1234.5, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3: Config = {
    "rope_theta": 1234.5,
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONGROPE: Config = {
    "rope_theta": 1234.5,
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
    "original_max_position_embeddings": 16,
}

SIZES: Config = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
"""Without head_dim or key-value heads: every head has its own, of 16 features."""
COMMON: Config = SIZES | {
    "num_key_value_heads": 2,
    "head_dim": 24,
    "rms_norm_eps": 1e-3,
    "max_position_embeddings": 128,
    "rope_parameters": ROPE,
}


def model(model_type: str, *parts: Config) -> Config:
    """One config of several parts; a later part wins."""
    out: Config = {"model_type": model_type}
    for part in parts:
        out |= part
    return out


def old(config: Config, **settings: Any) -> Config:
    """A config without `rope_parameters` and with `settings` in its place."""
    return without(config, "rope_parameters") | {"rope_theta": 1234.5, "torch_dtype": "float16"} | settings


def without(config: Config, *keys: str) -> Config:
    """A config that lacks some keys."""
    return {key: value for key, value in config.items() if key not in keys}


def kinds(pattern: str) -> list[str]:
    """Layer types from a letter each: s for sliding, f for full."""
    return [{"s": "sliding_attention", "f": "full_attention"}[letter] for letter in pattern]


TIED: Config = {"tie_word_embeddings": True}
UNTIED: Config = {"tie_word_embeddings": False}
BIAS: Config = {"attention_bias": True}

LLAMA = model("llama", COMMON, {"pretraining_tp": 1})
MISTRAL = model("mistral", COMMON, {"sliding_window": 8})
MINISTRAL3 = model(
    "ministral3",
    COMMON,
    {
        "rope_parameters": YARN
        | {
            "original_max_position_embeddings": 8,
            "llama_4_scaling_beta": 0.3,
            "max_position_embeddings": 128,
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
            "type": "yarn",
        }
    },
)
QWEN2 = model("qwen2", without(COMMON, "head_dim"), {"sliding_window": 8, "max_window_layers": 1})
QWEN3 = model("qwen3", COMMON, {"sliding_window": 8, "max_window_layers": 1})
GEMMA = model("gemma", COMMON)
GEMMA2 = model(
    "gemma2",
    COMMON,
    {
        "query_pre_attn_scalar": 24,
        "sliding_window": 8,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
)
GEMMA3 = model(
    "gemma3_text",
    without(COMMON, "rope_parameters"),
    {
        "num_hidden_layers": 3,
        "query_pre_attn_scalar": 24,
        "sliding_window": 8,
        "layer_types": kinds("sfs"),
        "rope_parameters": {
            "full_attention": {"rope_theta": 2000.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 300.0, "rope_type": "default"},
        },
    },
)
GEMMA3_OLD = old(
    without(GEMMA3, "layer_types"), rope_theta=2000.0, rope_local_base_freq=300.0, sliding_window_pattern=2
)
PHI3 = model("phi3", without(COMMON, "head_dim"))
GRANITE = model(
    "granite",
    without(COMMON, "head_dim"),
    {
        "attention_multiplier": 0.31,
        "embedding_multiplier": 1.7,
        "logits_scaling": 1.6,
        "residual_multiplier": 0.6,
    },
)
OLMO2 = model("olmo2", without(COMMON, "head_dim"))
SMOLLM3 = model(
    "smollm3",
    without(COMMON, "head_dim"),
    {"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1], "no_rope_layer_interval": 4},
)
COHERE2 = model(
    "cohere2",
    without(COMMON, "rms_norm_eps"),
    {"layer_norm_eps": 1e-3, "logit_scale": 0.35, "sliding_window": 8, "layer_types": kinds("sf")},
)
GLM4 = model("glm4", COMMON, {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}})

VARIANTS: dict[str, Config] = {
    "llama": LLAMA,
    "llama_bias": LLAMA | BIAS | {"mlp_bias": True},
    "llama_tied_gelu": LLAMA | TIED | {"hidden_act": "gelu"},
    "llama_one_kv_head": LLAMA | {"num_key_value_heads": 1, "hidden_act": "relu2"},
    "llama_bare": model("llama", SIZES),
    "llama_nulls": LLAMA | {"head_dim": None, "num_key_value_heads": None, "rope_scaling": None},
    "llama_old": old(LLAMA, rope_scaling=None),
    "llama_old_linear": old(LLAMA, rope_scaling={"type": "linear", "factor": 2.5}),
    "llama_dynamic": LLAMA | {"max_position_embeddings": 16, "rope_parameters": DYNAMIC},
    "llama_yarn": LLAMA
    | {"rope_parameters": YARN | {"attention_factor": 1.3, "beta_fast": 4.0, "beta_slow": 0.5, "truncate": False}},
    "llama_yarn_lengths": LLAMA | {"rope_parameters": YARN | {"factor": None, "mscale": 1.2, "mscale_all_dim": 0.5}},
    "llama_old_llama3": old(LLAMA, rope_scaling=without(LLAMA3, "rope_theta")),
    "llama_longrope": LLAMA | {"head_dim": 16, "rope_parameters": LONGROPE | {"factor": 4.0}},
    "llama_longrope_short": LLAMA
    | {"head_dim": 16, "rope_parameters": LONGROPE | {"original_max_position_embeddings": 32}},
    "llama_longrope_factor": LLAMA | {"head_dim": 16, "rope_parameters": LONGROPE | {"attention_factor": 1.4}},
    "llama_proportional": LLAMA
    | {"rope_parameters": ROPE | {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2.0}},
    "mistral": MISTRAL,
    "mistral_no_window": MISTRAL | TIED | {"sliding_window": None, "hidden_act": "gelu_pytorch_tanh"},
    "mistral_null_head_dim": MISTRAL | {"head_dim": None},
    "mistral_bare": model("mistral", SIZES, {"num_attention_heads": 8}),
    "mistral_old_yarn": old(MISTRAL, rope_scaling=without(YARN, "rope_theta", "original_max_position_embeddings")),
    "ministral3": MINISTRAL3,
    "ministral3_window": MINISTRAL3 | TIED | {"sliding_window": 8},
    "ministral3_bare": model("ministral3", SIZES, {"num_attention_heads": 8}),
    "ministral3_unscaled_rope": MINISTRAL3
    | {"rope_parameters": ROPE | {"llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 5}},
    "ministral3_old": old(
        MINISTRAL3, rope_scaling=without(MINISTRAL3["rope_parameters"], "rope_theta"), max_position_embeddings=64
    ),
    "qwen2": QWEN2,
    "qwen2_windows": QWEN2 | {"use_sliding_window": True, "num_hidden_layers": 3},
    "qwen2_layer_types": QWEN2 | TIED | {"use_sliding_window": True, "layer_types": kinds("sf"), "head_dim": 24},
    "qwen2_bare": model("qwen2", SIZES, {"num_attention_heads": 32}),
    "qwen2_nulls": QWEN2 | {"num_key_value_heads": None, "layer_types": None, "hidden_act": "gelu_new"},
    "qwen2_old_yarn": old(QWEN2, rope_scaling=without(YARN, "rope_theta")),
    "qwen3": QWEN3,
    "qwen3_bias_tied": QWEN3 | BIAS | TIED | {"hidden_act": "gelu"},
    "qwen3_windows": QWEN3 | {"use_sliding_window": True},
    "qwen3_layer_types": QWEN3 | {"use_sliding_window": True, "layer_types": kinds("sf")},
    "qwen3_bare": model("qwen3", SIZES, {"num_attention_heads": 32}),
    "qwen3_old": old(QWEN3, rope_scaling=None, use_sliding_window=True, max_window_layers=0),
    "gemma": GEMMA,
    "gemma_untied_bias": GEMMA | UNTIED | BIAS,
    "gemma_old": old(GEMMA, hidden_act="gelu", hidden_activation=None, rope_scaling=None),
    "gemma_relu": GEMMA | {"hidden_act": "relu"},
    "gemma_bare": model("gemma", SIZES, {"num_attention_heads": 16}),
    "gemma2": GEMMA2,
    "gemma2_no_caps": GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    "gemma2_untied_bias": GEMMA2 | UNTIED | BIAS | {"hidden_activation": "silu", "hidden_act": "gelu"},
    "gemma2_layer_types": GEMMA2 | {"num_hidden_layers": 3, "layer_types": kinds("fss")},
    "gemma2_old": old(GEMMA2, rope_scaling=None, cache_implementation="hybrid", num_hidden_layers=3),
    "gemma2_bare": model("gemma2", SIZES),
    "gemma3": GEMMA3,
    "gemma3_capped": GEMMA3 | UNTIED | BIAS | {"final_logit_softcapping": 3.0, "attn_logit_softcapping": None},
    "gemma3_yarn": GEMMA3
    | {"rope_parameters": {"full_attention": YARN, "sliding_attention": LINEAR | {"factor": 3.0}}},
    "gemma3_half_nested": GEMMA3 | {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}},
    "gemma3_old": GEMMA3_OLD,
    "gemma3_old_linear": GEMMA3_OLD | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "gemma3_bare": model("gemma3_text", SIZES, {"num_hidden_layers": 6}),
    "phi3": PHI3,
    "phi3_window": PHI3 | TIED | {"sliding_window": 8, "num_key_value_heads": 1},
    "phi3_partial": PHI3 | {"hidden_act": "gelu", "rope_parameters": ROPE | {"partial_rotary_factor": 0.75}},
    "phi3_longrope": PHI3 | {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16},
    "phi3_old_su": old(
        PHI3,
        original_max_position_embeddings=16,
        partial_rotary_factor=0.5,
        rope_scaling={
            "type": "su",
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 2.0, 3.0, 4.0],
            "original_max_position_embeddings": 16,
        },
    ),
    "phi3_old_yarn": old(
        PHI3,
        original_max_position_embeddings=16,
        rope_scaling=without(LONGROPE, "rope_theta", "rope_type") | {"type": "yarn"},
    ),
    "phi3_bare": model("phi3", SIZES),
    "granite": GRANITE,
    "granite_bias_tied": GRANITE | BIAS | TIED | {"mlp_bias": True, "hidden_act": "gelu"},
    "granite_whole_numbers": GRANITE
    | {"embedding_multiplier": 3, "logits_scaling": 2, "attention_multiplier": 1, "residual_multiplier": 1},
    "granite_old_yarn": old(GRANITE, rope_scaling=without(YARN, "rope_theta"), num_key_value_heads=None),
    "granite_bare": model("granite", SIZES),
    "olmo2": OLMO2,
    "olmo2_bias_tied": OLMO2 | BIAS | TIED | {"hidden_act": "gelu"},
    "olmo2_every_head": OLMO2 | {"num_key_value_heads": None},
    "olmo2_old_linear": old(OLMO2, rope_scaling={"type": "linear", "factor": 2.5}),
    "olmo2_bare": model("olmo2", SIZES),
    "smollm3": SMOLLM3,
    "smollm3_interval": SMOLLM3 | UNTIED | {"no_rope_layers": None, "no_rope_layer_interval": 2},
    "smollm3_windows": SMOLLM3 | BIAS | {"use_sliding_window": True, "sliding_window": 8, "mlp_bias": True},
    "smollm3_layer_types": SMOLLM3
    | {"use_sliding_window": True, "sliding_window": 8, "layer_types": kinds("sff"), "hidden_act": "gelu"},
    "smollm3_old_yarn": old(SMOLLM3, rope_scaling=without(YARN, "rope_theta"), num_key_value_heads=None),
    "smollm3_bare": model("smollm3", SIZES, {"num_hidden_layers": 4}),
    "cohere2": COHERE2,
    "cohere2_untied_bias": COHERE2 | UNTIED | BIAS | {"hidden_act": "gelu"},
    "cohere2_all_sliding": COHERE2 | {"layer_types": kinds("ss"), "num_key_value_heads": None},
    "cohere2_old": old(
        without(COHERE2, "layer_types", "head_dim"),
        sliding_window_pattern=2,
        rope_scaling=None,
        layer_switch=2,
        cache_implementation="hybrid",
        order_of_interleaved_layers="local_attn_first",
        position_embedding_type="rope_gptj",
        rotary_pct=1.0,
        use_embedding_sharing=True,
        use_gated_activation=True,
        use_parallel_block=True,
        use_parallel_embedding=False,
        use_qk_norm=False,
    ),
    "cohere2_yarn": COHERE2 | {"rope_parameters": YARN},
    "cohere2_bare": model("cohere2", SIZES, {"num_hidden_layers": 4}),
    "glm4": GLM4,
    "glm4_tied": GLM4 | TIED | {"attention_bias": False, "hidden_act": "gelu"},
    "glm4_whole_head": GLM4 | {"rope_parameters": ROPE | {"partial_rotary_factor": 1.0}},
    "glm4_old": old(GLM4, partial_rotary_factor=0.25, rope_scaling=None),
    "glm4_bare": model("glm4", SIZES),
}
