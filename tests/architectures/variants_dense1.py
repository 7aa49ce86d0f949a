"""Variants of dense decoders. Data only; see variants_a.py."""

from typing import Any

from variants_a import (
    BIAS,
    COMMON,
    DYNAMIC,
    LLAMA3,
    ROPE,
    SIZES,
    TIED,
    UNTIED,
    YARN,
    kinds,
    model,
    old,
    without,
)
from variants_b import GPT_TINY

Config = dict[str, Any]

EVERY_HEAD: Config = without(COMMON, "num_key_value_heads", "head_dim")
LAYER_NORM: Config = without(COMMON, "rms_norm_eps") | {"layer_norm_eps": 1e-3}
HALF: Config = {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}
QUARTER: Config = {"rope_parameters": ROPE | {"partial_rotary_factor": 0.25}}

COHERE = model("cohere", without(LAYER_NORM, "head_dim"), {"logit_scale": 0.35})
OLMO = model("olmo", without(COMMON, "head_dim", "rms_norm_eps"))
GLM = model("glm", COMMON, HALF)
EXAONE4 = model("exaone4", COMMON, {"num_hidden_layers": 3, "layer_types": kinds("sfs"), "sliding_window": 8})
ARCEE = model("arcee", COMMON)
SEED_OSS = model("seed_oss", COMMON, {"pretraining_tp": 1})
MINISTRAL = model("ministral", COMMON, {"sliding_window": 8, "layer_types": kinds("fs")})
NEMOTRON = model("nemotron", without(COMMON, "rms_norm_eps"), HALF, {"norm_eps": 1e-3})
HELIUM = model("helium", COMMON, {"head_dim": 16})
HUNYUAN = model("hunyuan_v1_dense", COMMON, {"eod_token_id": 2, "pretraining_tp": 1})
ALPHA: Config = {
    "alpha": 1000.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "type": "dynamic",
}
INTERNLM3 = model("internlm3", COMMON, {"bias": False, "qkv_bias": False})
APERTUS = model("apertus", COMMON)
CODEGEN = model("codegen", GPT_TINY, {"layer_norm_epsilon": 1e-3, "n_ctx": 128, "n_inner": 56, "rotary_dim": 8})
BIOGPT = model("biogpt", SIZES, {"layer_norm_eps": 1e-3, "max_position_embeddings": 128})
BITNET = model("bitnet", without(COMMON, "head_dim"))
CWM = model("cwm", COMMON, {"num_hidden_layers": 3, "layer_types": kinds("fsf"), "sliding_window": 8})
IQUESTCODER = model("iquestcoder", COMMON)
CTRL = model("ctrl", GPT_TINY, {"dff": 56, "layer_norm_epsilon": 1e-3})
GPT_NEOX_JAPANESE = model(
    "gpt_neox_japanese",
    without(SIZES, "intermediate_size"),
    {"intermediate_multiple_size": 2, "layer_norm_eps": 1e-3, "max_position_embeddings": 128},
    {"rope_parameters": ROPE | {"partial_rotary_factor": 1.0}},
)
PERSIMMON = model("persimmon", SIZES, HALF, {"layer_norm_eps": 1e-3, "max_position_embeddings": 128})

VARIANTS: dict[str, Config] = {
    "cohere": COHERE,
    "cohere_qk_norm": COHERE | {"use_qk_norm": True, "num_key_value_heads": 1},
    "cohere_untied_bias": COHERE | UNTIED | BIAS | {"hidden_act": "gelu", "use_qk_norm": True},
    "cohere_old": old(COHERE, rope_scaling=None, model_max_length=256, num_key_value_heads=None),
    "cohere_bare": model("cohere", SIZES),
    "olmo": OLMO,
    "olmo_clipped": OLMO | TIED | {"clip_qkv": 0.5, "hidden_act": "gelu"},
    "olmo_bias_old": old(OLMO, attention_bias=True, rope_scaling={"type": "linear", "factor": 2.5}, clip_qkv=None),
    "olmo_bare": model("olmo", SIZES),
    "glm": GLM,
    "glm_tied": GLM | TIED | {"attention_bias": False, "hidden_act": "gelu", "num_key_value_heads": 1},
    "glm_old": old(GLM, partial_rotary_factor=0.25, rope_scaling=None),
    "glm_bare": model("glm", SIZES),
    "exaone4": EXAONE4,
    "exaone4_no_window": EXAONE4 | TIED | {"sliding_window": None, "layer_types": kinds("fff"), "hidden_act": "gelu"},
    "exaone4_period_old": old(
        without(EXAONE4, "layer_types", "head_dim"),
        sliding_window_pattern=2,
        rope_scaling=without(LLAMA3, "rope_theta"),
    ),
    "exaone4_bare": model("exaone4", SIZES, {"num_hidden_layers": 4, "num_attention_heads": 32}),
    "arcee": ARCEE,
    "arcee_bias_tied": ARCEE | BIAS | TIED | {"mlp_bias": True, "hidden_act": "gelu"},
    "arcee_old_yarn": old(ARCEE, rope_scaling=without(YARN, "rope_theta"), num_key_value_heads=None, head_dim=None),
    "arcee_bare": model("arcee", SIZES),
    "seed_oss": SEED_OSS,
    "seed_oss_out_bias": SEED_OSS | TIED | {"attention_out_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    "seed_oss_old": old(SEED_OSS, attention_bias=False, rope_scaling={"rope_type": "default"}),
    "seed_oss_bare": model("seed_oss", SIZES, {"num_attention_heads": 8}),
    "ministral": MINISTRAL,
    "ministral_every_window": without(MINISTRAL, "layer_types") | TIED | {"hidden_act": "gelu"},
    "ministral_old": old(MINISTRAL, rope_scaling=without(YARN, "rope_theta"), layer_types=None, num_hidden_layers=1),
    "ministral_bare": model("ministral", SIZES, {"num_attention_heads": 8, "head_dim": 8}),
    "nemotron": NEMOTRON,
    "nemotron_bias_tied": NEMOTRON | BIAS | TIED | {"mlp_bias": True, "hidden_act": "gelu", "head_dim": None},
    "nemotron_old": old(NEMOTRON, partial_rotary_factor=0.25, rope_scaling=None, kv_channels=24),
    "nemotron_bare": model("nemotron", SIZES, {"num_key_value_heads": 4}),
    "helium": HELIUM,
    "helium_bias_tied": HELIUM | BIAS | TIED | {"mlp_bias": True, "hidden_act": "gelu"},
    "helium_old_linear": old(HELIUM, rope_scaling={"type": "linear", "factor": 2.5}),
    "helium_bare": model("helium", SIZES, {"hidden_size": 128, "num_attention_heads": 1, "num_key_value_heads": 1}),
    "hunyuan_v1_dense": HUNYUAN,
    "hunyuan_v1_dense_alpha": HUNYUAN | {"rope_parameters": {"rope_theta": 1234.5} | ALPHA},
    "hunyuan_v1_dense_old_alpha": old(HUNYUAN, rope_scaling=ALPHA, use_qk_norm=True, use_cla=False, **BIAS),
    "hunyuan_v1_dense_dynamic": HUNYUAN | TIED | {"max_position_embeddings": 16, "rope_parameters": DYNAMIC},
    "hunyuan_v1_dense_bare": model("hunyuan_v1_dense", SIZES, {"head_dim": 16}),
    "internlm3": INTERNLM3,
    "internlm3_bias": without(INTERNLM3, "bias", "qkv_bias") | BIAS | {"mlp_bias": True, "hidden_act": "gelu"},
    "internlm3_old_dynamic": old(
        INTERNLM3, bias=True, qkv_bias=True, max_position_embeddings=16, rope_scaling=without(DYNAMIC, "rope_theta")
    ),
    "internlm3_bare": model("internlm3", SIZES),
    "apertus": APERTUS,
    "apertus_gelu": APERTUS | BIAS | TIED | {"hidden_act": "gelu", "num_key_value_heads": None},
    "apertus_old": old(APERTUS, rope_scaling=without(LLAMA3, "rope_theta"), qk_norm=True, post_norm=False),
    "apertus_bare": model("apertus", SIZES),
    "codegen": CODEGEN,
    "codegen_eight_heads": CODEGEN | TIED | {"n_head": 8, "activation_function": "relu", "n_inner": None},
    "biogpt": BIOGPT,
    "biogpt_plain": BIOGPT | UNTIED | {"scale_embedding": False, "hidden_act": "relu", "activation_dropout": 0.1},
    "biogpt_bare": model("biogpt", SIZES),
    "bitnet": BITNET,
    "bitnet_bias_tied": BITNET | BIAS | TIED | {"hidden_act": "silu", "num_key_value_heads": None},
    "bitnet_old": old(BITNET, rope_scaling=None, num_key_value_heads=1),
    "bitnet_bare": model("bitnet", SIZES, {"num_attention_heads": 5, "hidden_size": 80}),
    "cwm": CWM,
    "cwm_old": old(without(CWM, "layer_types"), mlp_bias=True, rope_scaling=without(LLAMA3, "rope_theta"), **TIED),
    "cwm_bare": model("cwm", SIZES, {"num_attention_heads": 8}),
    "iquestcoder": IQUESTCODER,
    "iquestcoder_bias": IQUESTCODER | BIAS | TIED | {"mlp_bias": True, "hidden_act": "gelu", "head_dim": None},
    "iquestcoder_old": old(IQUESTCODER, rope_scaling=None, clip_qkv=None, use_sliding_window=False),
    "iquestcoder_bare": model("iquestcoder", SIZES, {"num_attention_heads": 8}),
    "ctrl": CTRL,
    "ctrl_untied": CTRL | UNTIED | {"n_ctx": 64, "num_labels": 1, "summary_type": "cls_index"},
    "ctrl_bare": model("ctrl", without(GPT_TINY, "n_positions"), {"n_layer": 1, "dff": 56}),
    "gpt_neox_japanese": GPT_NEOX_JAPANESE,
    "gpt_neox_japanese_untied": GPT_NEOX_JAPANESE | UNTIED | QUARTER | {"hidden_act": "relu"},
    "gpt_neox_japanese_old": without(GPT_NEOX_JAPANESE, "rope_parameters")
    | {"rotary_pct": 0.5, "rotary_emb_base": 1234.5, "num_hidden_layers": 3},
    "gpt_neox_japanese_bare": model("gpt_neox_japanese", without(SIZES, "intermediate_size")),
    "persimmon": PERSIMMON,
    "persimmon_no_norm": PERSIMMON | TIED | {"qk_layernorm": False, "hidden_act": "gelu"},
    "persimmon_old": old(PERSIMMON, partial_rotary_factor=0.25, rope_scaling=None),
    "persimmon_bare": model("persimmon", SIZES),
}
