"""Variants of dense families with ways of their own. Data only; see variants_a.py."""

from typing import Any

from variants_a import BIAS, COMMON, LINEAR, SIZES, TIED, UNTIED, YARN, kinds, model, old, without

Config = dict[str, Any]

NO_HEAD_DIM: Config = without(COMMON, "head_dim")
NO_ROPE: Config = without(NO_HEAD_DIM, "rope_parameters")
TWO_ROPES: Config = {
    "full_attention": {"rope_theta": 2000.0, "rope_type": "default"},
    "sliding_attention": {"rope_theta": 300.0, "rope_type": "default"},
}
MULTIPLIERS: Config = {
    "attention_multiplier": 0.31,
    "embedding_multiplier": 1.7,
    "logits_scaling": 1.6,
    "residual_multiplier": 0.6,
}

OLMO3 = model("olmo3", NO_ROPE, {"sliding_window": 8, "num_hidden_layers": 4, "rope_parameters": TWO_ROPES})
ERNIE4_5 = model("ernie4_5", COMMON)
HYPERCLOVAX = model("hyperclovax", COMMON, MULTIPLIERS)
JAIS2 = model("jais2", without(COMMON, "rms_norm_eps"), {"layer_norm_eps": 1e-3})
GRANITE_SWA = model(
    "granite_swa",
    NO_HEAD_DIM,
    MULTIPLIERS,
    {"sliding_window": 8, "num_hidden_layers": 3, "layer_types": kinds("fss"), "layer_rope_theta": [0, 300.0, 2000.0]},
)
OPENAI_GPT = model(
    "openai-gpt",
    {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128, "vocab_size": 160, "layer_norm_epsilon": 1e-3},
)

MODERNBERT = model(
    "modernbert-decoder",
    without(SIZES, "num_hidden_layers"),
    {"num_hidden_layers": 3, "norm_eps": 1e-3, "local_attention": 16, "max_position_embeddings": 128},
    {"layer_types": kinds("fsf"), "rope_parameters": TWO_ROPES},
)
HRM_TEXT = model(
    "hrm_text",
    without(COMMON, "num_key_value_heads"),
    {"num_hidden_layers": 1, "H_cycles": 2, "L_cycles": 2, "embedding_scale": 1.7},
)

NANOCHAT = model("nanochat", NO_HEAD_DIM, {"final_logit_softcapping": 3.0})
XGLM_TINY: Config = {"vocab_size": 160, "d_model": 64, "attention_heads": 4, "num_layers": 2, "ffn_dim": 56}
XGLM = model("xglm", XGLM_TINY, {"max_position_embeddings": 128, "pad_token_id": 0})
MPT_TINY: Config = {"vocab_size": 160, "d_model": 48, "n_heads": 6, "n_layers": 2}
MPT = model("mpt", MPT_TINY, {"layer_norm_epsilon": 1e-3, "max_seq_len": 128, "no_bias": True})
VAULTGEMMA = model(
    "vaultgemma",
    COMMON,
    {
        "query_pre_attn_scalar": 24,
        "sliding_window": 8,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
)
COHERE_COMPASS = model(
    "cohere_compass_text",
    without(NO_ROPE, "rms_norm_eps"),
    {"layer_norm_eps": 1e-3, "sliding_window": 8, "num_hidden_layers": 3, "layer_types": kinds("sfs")},
    {
        "rope_parameters": {
            "full_attention": None,
            "sliding_attention": {"rope_theta": 300.0, "rope_type": "default", "mrope_section": [4, 2, 2]},
        }
    },
)

DIFFLLAMA = model("diffllama", COMMON)

EXAONE = model("exaone", NO_HEAD_DIM)
APERTUS1P5 = model("apertus1p5_text", NO_HEAD_DIM, {"output_vocab_size": 160})


DOGE = model("doge", NO_HEAD_DIM, {"keep_window_size": 16})

VARIANTS: dict[str, Config] = {
    "olmo3": OLMO3,
    "olmo3_bias_tied": OLMO3 | BIAS | TIED | {"num_hidden_layers": 2, "layer_types": kinds("fs"), "hidden_act": "gelu"},
    "olmo3_old_yarn": old(
        OLMO3, rope_theta=500000.0, rope_scaling=without(YARN, "rope_theta"), num_key_value_heads=None
    ),
    "olmo3_bare": model("olmo3", SIZES, {"num_hidden_layers": 4}),
    "ernie4_5": ERNIE4_5,
    "ernie4_5_bias_untied": ERNIE4_5 | UNTIED | {"use_bias": True, "hidden_act": "gelu"},
    "ernie4_5_old_linear": old(ERNIE4_5, rope_scaling={"type": "linear", "factor": 2.5}, head_dim=None),
    "ernie4_5_bare": model("ernie4_5", SIZES),
    "hyperclovax": HYPERCLOVAX,
    "hyperclovax_pre_norm": HYPERCLOVAX
    | BIAS
    | TIED
    | {"use_post_norm": False, "mlp_bias": True, "hidden_act": "gelu"},
    "hyperclovax_old": old(HYPERCLOVAX, rope_scaling=None, attention_multiplier=None, num_key_value_heads=None),
    "hyperclovax_bare": model("hyperclovax", SIZES),
    "jais2": JAIS2,
    "jais2_no_bias_tied": JAIS2 | TIED | {"attention_bias": False, "mlp_bias": False, "hidden_act": "gelu"},
    "jais2_old": old(JAIS2, rope_scaling=None, head_dim=None, num_key_value_heads=None),
    "jais2_bare": model("jais2", SIZES),
    "granite_swa": GRANITE_SWA,
    "granite_swa_bias_untied": GRANITE_SWA
    | BIAS
    | UNTIED
    | {"mlp_bias": True, "layer_rope_theta": None, "rope_parameters": LINEAR, "hidden_act": "gelu"},
    "granite_swa_old": old(without(GRANITE_SWA, "layer_types", "layer_rope_theta"), rope_scaling=None),
    "granite_swa_bare": model("granite_swa", SIZES),
    "openai_gpt": OPENAI_GPT,
    "openai_gpt_untied": OPENAI_GPT | UNTIED | {"afn": "silu", "n_ctx": 128},
    "openai_gpt_bare": model("openai-gpt", {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 160}),
    "modernbert_decoder": MODERNBERT,
    "modernbert_decoder_biases": MODERNBERT
    | BIAS
    | UNTIED
    | {
        "mlp_bias": True,
        "norm_bias": True,
        "classifier_bias": True,
        "decoder_bias": False,
        "hidden_activation": "silu",
        "classifier_activation": "tanh",
    },
    "modernbert_decoder_old": without(MODERNBERT, "layer_types", "rope_parameters")
    | {"global_rope_theta": 2000.0, "local_rope_theta": 300.0, "global_attn_every_n_layers": 2, "sliding_window": 8},
    "modernbert_decoder_bare": model("modernbert-decoder", SIZES),
    "hrm_text": HRM_TEXT,
    "hrm_text_bias_tied": HRM_TEXT
    | BIAS
    | TIED
    | {"num_layers_per_stack": 2, "num_hidden_layers": 6, "H_cycles": 1, "mlp_bias": True, "hidden_act": "gelu"},
    "hrm_text_old": old(
        HRM_TEXT, rope_scaling=None, embedding_scale=None, initializer_range=0.3, H_cycles=3, L_cycles=1
    ),
    "hrm_text_bare": model("hrm_text", SIZES, {"num_hidden_layers": 1}),
    "nanochat": NANOCHAT,
    "nanochat_bias_tied": NANOCHAT | BIAS | TIED | {"hidden_act": "gelu", "final_logit_softcapping": None},
    "nanochat_old_yarn": old(NANOCHAT, rope_scaling=without(YARN, "rope_theta"), num_key_value_heads=None),
    "nanochat_bare": model("nanochat", SIZES),
    "xglm": XGLM,
    "xglm_unscaled_untied": XGLM | UNTIED | {"scale_embedding": False, "activation_function": "relu"},
    "xglm_bare": model("xglm", XGLM_TINY),
    "mpt": MPT,
    "mpt_clipped_untied": MPT
    | UNTIED
    | {"attn_config": {"clip_qkv": 0.4, "softmax_scale": 0.31, "alibi": True, "attn_impl": "torch"}},
    "mpt_bare": model("mpt", MPT_TINY, {"n_heads": 4}),
    "vaultgemma": VAULTGEMMA,
    "vaultgemma_untied_bias": VAULTGEMMA | UNTIED | BIAS | {"hidden_activation": "silu", "layer_types": kinds("fs")},
    "vaultgemma_old": old(
        VAULTGEMMA, rope_scaling=None, attn_logit_softcapping=None, final_logit_softcapping=None, num_hidden_layers=3
    ),
    "vaultgemma_bare": model("vaultgemma", SIZES),
    "cohere_compass_text": COHERE_COMPASS,
    "cohere_compass_text_bias_untied": COHERE_COMPASS
    | BIAS
    | UNTIED
    | {"logit_scale": 0.35, "rope_parameters": TWO_ROPES | {"rope_theta": 5.0, "rope_type": "default"}},
    "cohere_compass_text_bare": model(
        "cohere_compass_text", SIZES, {"rope_parameters": {"full_attention": {"rope_theta": 2000.0}}}
    ),
    "diffllama": DIFFLLAMA,
    "diffllama_bias_tied": DIFFLLAMA | BIAS | TIED | {"num_attention_heads": 8, "num_key_value_heads": 4},
    "diffllama_old_yarn": old(
        DIFFLLAMA, rope_scaling=without(YARN, "rope_theta"), num_key_value_heads=None, hidden_act="gelu"
    ),
    "diffllama_bare": model("diffllama", SIZES),
    "exaone": EXAONE,
    "exaone_bias_tied": EXAONE | BIAS | TIED | {"mlp_bias": True, "hidden_act": "gelu", "num_key_value_heads": None},
    "exaone_old": old(without(EXAONE, "num_hidden_layers", "rms_norm_eps"), rope_scaling=None)
    | {"num_layers": 2, "layer_norm_epsilon": 1e-3, "activation_function": "silu"},
    "exaone_bare": model("exaone", SIZES, {"num_attention_heads": 8}),
    "apertus1p5_text": APERTUS1P5,
    "apertus1p5_text_pruned": APERTUS1P5 | {"output_vocab_size": 142},
    "apertus1p5_text_bare": model("apertus1p5_text", SIZES),
    "doge": DOGE,
    "doge_bias_tied": DOGE | BIAS | TIED | {"mlp_bias": True, "hidden_act": "gelu", "keep_window_size": 3},
    "doge_window": DOGE | {"sliding_window": 8, "keep_window_size": 128},
    "doge_old": old(DOGE, rope_scaling=None, num_key_value_heads=None, keep_window_size=128, num_experts=16),
    "doge_bare": model("doge", SIZES),
    "doge_moe": DOGE | {"is_moe": True, "num_experts": 36, "num_experts_per_tok": 5, "keep_window_size": 128},
    "doge_moe_bias": DOGE
    | BIAS
    | {
        "is_moe": True,
        "mlp_bias": True,
        "hidden_act": "gelu",
        "num_experts": 25,
        "num_experts_per_tok": 4,
        "norm_topk_prob": True,
        "keep_window_size": 128,
    },
}
