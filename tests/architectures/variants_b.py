"""Configs of the variants of each family, as config.json would hold them: tiny, with unusual constants. Data only.

The names of both config dialects occur: what one variant spells `rope_parameters`, another spells `rope_theta`.
"""

from typing import Any

Config = dict[str, Any]

TINY: Config = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 160}
GPT_TINY: Config = {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128, "vocab_size": 160}
LENGTH: Config = {"intermediate_size": 56, "max_position_embeddings": 128}
ROPE: Config = {"rope_theta": 1234.5, "rope_type": "default"}
LINEAR: Config = {"rope_theta": 1234.5, "rope_type": "linear", "factor": 2.5}
DYNAMIC: Config = {"rope_theta": 1234.5, "rope_type": "dynamic", "factor": 2.0}
YARN: Config = {
    "rope_theta": 1234.5,
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 4.0,
}
LLAMA3: Config = {
    "rope_theta": 1234.5,
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def model(model_type: str, architecture: str, *parts: Config) -> Config:
    """One config of several parts; a later part wins."""
    out: Config = {"model_type": model_type, "architectures": [architecture]}
    for part in parts:
        out |= part
    return out


PHI = model(
    "phi",
    "PhiForCausalLM",
    TINY,
    LENGTH,
    {"layer_norm_eps": 1e-3, "num_key_value_heads": 2, "rope_parameters": ROPE | {"partial_rotary_factor": 0.5}},
)
GPT2 = model("gpt2", "GPT2LMHeadModel", GPT_TINY, {"layer_norm_epsilon": 1e-3, "n_inner": 56})
GPT_NEOX = model(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    TINY,
    LENGTH,
    {"layer_norm_eps": 1e-3, "rope_parameters": ROPE | {"partial_rotary_factor": 0.25}},
)
GPTJ = model("gptj", "GPTJForCausalLM", GPT_TINY, {"layer_norm_epsilon": 1e-3, "n_inner": 56, "rotary_dim": 8})
GPT_NEO = model(
    "gpt_neo",
    "GPTNeoForCausalLM",
    LENGTH,
    {
        "attention_types": [[["global", "local"], 1]],
        "hidden_size": 64,
        "layer_norm_epsilon": 1e-3,
        "num_heads": 4,
        "num_layers": 2,
        "vocab_size": 160,
        "window_size": 8,
    },
)
GPT_BIGCODE = model("gpt_bigcode", "GPTBigCodeForCausalLM", GPT_TINY, {"layer_norm_epsilon": 1e-3, "n_inner": 56})
OPT = model("opt", "OPTForCausalLM", TINY, {"ffn_dim": 56, "max_position_embeddings": 128})
BLOOM = model(
    "bloom",
    "BloomForCausalLM",
    {"hidden_size": 64, "layer_norm_epsilon": 1e-3, "n_head": 4, "n_layer": 2, "vocab_size": 160},
)
FALCON = model(
    "falcon",
    "FalconForCausalLM",
    TINY,
    {
        "ffn_hidden_size": 56,
        "layer_norm_epsilon": 1e-3,
        "max_position_embeddings": 128,
        "multi_query": True,
        "new_decoder_architecture": False,
        "parallel_attn": True,
        "rope_parameters": ROPE,
    },
)
FALCON_NEW = FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}
FALCON_ALIBI = FALCON | {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False}
STARCODER2 = model(
    "starcoder2",
    "Starcoder2ForCausalLM",
    TINY,
    LENGTH,
    {"norm_epsilon": 1e-3, "num_key_value_heads": 2, "rope_parameters": ROPE},
)
STABLELM = model(
    "stablelm",
    "StableLmForCausalLM",
    TINY,
    LENGTH,
    {"layer_norm_eps": 1e-3, "num_key_value_heads": 2, "rope_parameters": ROPE | {"partial_rotary_factor": 0.25}},
)


def old(config: Config, **settings: Any) -> Config:
    """A config without `rope_parameters` and with `settings` in its place."""
    return {key: value for key, value in config.items() if key != "rope_parameters"} | settings


VARIANTS: dict[str, Config] = {
    "phi": PHI,
    "phi_qk_norm": PHI | {"qk_layernorm": True},
    "phi_tied": PHI | {"tie_word_embeddings": True},
    "phi_every_head": {key: value for key, value in PHI.items() if key != "num_key_value_heads"},
    "phi_gelu": PHI | {"hidden_act": "gelu"},
    "phi_yarn": PHI | {"rope_parameters": YARN | {"partial_rotary_factor": 0.75}},
    "phi_llama3": PHI | {"rope_parameters": LLAMA3 | {"partial_rotary_factor": 0.5}},
    "phi_old": old(PHI, rope_theta=1234.5, partial_rotary_factor=0.75, rope_scaling=None, torch_dtype="float32"),
    "phi_old_linear": old(PHI, rope_theta=1234.5, rope_scaling={"type": "linear", "factor": 2.5}),
    "phi_bare": old(PHI),
    "gpt2": GPT2,
    "gpt2_untied": GPT2 | {"tie_word_embeddings": False},
    "gpt2_inner_null": GPT2 | {"n_inner": None},
    "gpt2_unscaled": GPT2 | {"scale_attn_weights": False},
    "gpt2_by_layer": GPT2 | {"n_layer": 3, "scale_attn_by_inverse_layer_idx": True},
    "gpt2_by_layer_unscaled": GPT2 | {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
    "gpt2_reordered": GPT2 | {"reorder_and_upcast_attn": True, "n_ctx": 128, "summary_type": "cls_index"},
    "gpt2_relu": GPT2 | {"activation_function": "relu"},
    "gpt2_common_names": model(
        "gpt2", "GPT2LMHeadModel", TINY, {"max_position_embeddings": 128, "layer_norm_epsilon": 1e-3}
    ),
    "gpt_neox": GPT_NEOX,
    "gpt_neox_sequential": GPT_NEOX | {"use_parallel_residual": False},
    "gpt_neox_no_bias": GPT_NEOX | {"attention_bias": False},
    "gpt_neox_tied": GPT_NEOX | {"tie_word_embeddings": True},
    "gpt_neox_gelu_fast": GPT_NEOX | {"hidden_act": "gelu_fast"},
    "gpt_neox_whole_head": GPT_NEOX | {"rope_parameters": ROPE | {"partial_rotary_factor": 1.0}},
    "gpt_neox_dynamic": GPT_NEOX
    | {"max_position_embeddings": 16, "rope_parameters": DYNAMIC | {"partial_rotary_factor": 0.5}},
    "gpt_neox_yarn": GPT_NEOX | {"rope_parameters": YARN | {"partial_rotary_factor": 0.5}},
    "gpt_neox_old": old(GPT_NEOX, rotary_pct=0.5, rotary_emb_base=1234.5, rope_scaling=None, torch_dtype="float16"),
    "gpt_neox_old_linear": old(
        GPT_NEOX, rotary_pct=0.5, rotary_emb_base=1234.5, rope_scaling={"type": "linear", "factor": 2.5}
    ),
    "gpt_neox_bare": old(GPT_NEOX),
    "gptj": GPTJ,
    "gptj_tied": GPTJ | {"tie_word_embeddings": True},
    "gptj_inner_null": GPTJ | {"n_inner": None},
    "gptj_whole_head": GPTJ | {"rotary_dim": 16},
    "gptj_relu": GPTJ | {"activation_function": "relu"},
    "gptj_early": GPTJ | {"rotary": True, "scale_attn_weights": True, "summary_first_dropout": 0.1},
    "gptj_common_names": model(
        "gptj", "GPTJForCausalLM", TINY, {"max_position_embeddings": 128, "layer_norm_epsilon": 1e-3, "rotary_dim": 4}
    ),
    "gpt_neo": GPT_NEO,
    "gpt_neo_global": GPT_NEO | {"attention_types": [[["global"], 2]]},
    "gpt_neo_mixed": GPT_NEO | {"attention_types": [[["local"], 2], [["global", "local"], 1]], "num_layers": 4},
    "gpt_neo_layers": GPT_NEO
    | {"attention_layers": ["local", "global", "local"], "attention_types": [[["local"], 3]], "num_layers": 3},
    "gpt_neo_inner_null": GPT_NEO | {"intermediate_size": None},
    "gpt_neo_untied": GPT_NEO | {"tie_word_embeddings": False},
    "gpt_neo_silu": GPT_NEO | {"activation_function": "silu", "window_size": 3},
    "gpt_bigcode": GPT_BIGCODE,
    "gpt_bigcode_multi_head": GPT_BIGCODE | {"multi_query": False},
    "gpt_bigcode_unscaled": GPT_BIGCODE | {"scale_attn_weights": False},
    "gpt_bigcode_untied": GPT_BIGCODE | {"tie_word_embeddings": False},
    "gpt_bigcode_inner_null": GPT_BIGCODE | {"n_inner": None, "activation_function": "gelu"},
    "gpt_bigcode_runner": GPT_BIGCODE
    | {
        "attention_softmax_in_fp32": False,
        "inference_runner": 0,
        "max_sequence_length": None,
        "pad_key_length": True,
        "scale_attention_softmax_in_fp32": False,
        "validate_runner_input": True,
    },
    "opt": OPT,
    "opt_after": OPT | {"do_layer_norm_before": False},
    "opt_narrow": OPT | {"word_embed_proj_dim": 48},
    "opt_narrow_untied": OPT | {"word_embed_proj_dim": 48, "tie_word_embeddings": False},
    "opt_narrow_after": OPT | {"word_embed_proj_dim": 48, "do_layer_norm_before": False},
    "opt_no_bias": OPT | {"enable_bias": False},
    "opt_plain_norms": OPT | {"layer_norm_elementwise_affine": False},
    "opt_plain_norms_after": OPT | {"layer_norm_elementwise_affine": False, "do_layer_norm_before": False},
    "opt_no_final_norm": OPT | {"_remove_final_layer_norm": True},
    "opt_untied": OPT | {"tie_word_embeddings": False},
    "opt_gelu": OPT | {"activation_function": "gelu", "activation_dropout": 0.0, "prefix": "</s>"},
    "bloom": BLOOM,
    "bloom_normed_residual": BLOOM | {"apply_residual_connection_post_layernorm": True},
    "bloom_untied": BLOOM | {"tie_word_embeddings": False},
    "bloom_twelve_heads": BLOOM | {"hidden_size": 48, "n_head": 12},
    "bloom_exact": BLOOM | {"pretraining_tp": 1, "slow_but_exact": True},
    "bloom_in_parts": BLOOM | {"pretraining_tp": 2, "slow_but_exact": False},
    "bloom_early": model(
        "bloom",
        "BloomForCausalLM",
        {
            "attention_softmax_in_fp32": True,
            "bias_dropout_fusion": True,
            "layer_norm_epsilon": 1e-3,
            "masked_softmax_fusion": True,
            "n_embed": 64,
            "n_inner": None,
            "n_layer": 2,
            "num_attention_heads": 4,
            "offset_alibi": 100,
            "seq_length": 64,
            "skip_bias_add": True,
            "skip_bias_add_qkv": False,
            "vocab_size": 160,
        },
    ),
    "falcon": FALCON,
    "falcon_multi_head": FALCON | {"multi_query": False},
    "falcon_sequential": FALCON | {"parallel_attn": False},
    "falcon_bias": FALCON | {"bias": True},
    "falcon_untied": FALCON | {"tie_word_embeddings": False},
    "falcon_inner_null": FALCON | {"ffn_hidden_size": None, "activation": "relu"},
    "falcon_new": FALCON_NEW,
    "falcon_new_one_norm": FALCON_NEW | {"num_ln_in_parallel_attn": 1},
    "falcon_new_two_norms": FALCON_NEW | {"num_ln_in_parallel_attn": 2, "bias": True},
    "falcon_new_every_head": FALCON_NEW | {"num_kv_heads": None},
    "falcon_new_alibi": FALCON_NEW | {"alibi": True},
    "falcon_alibi": FALCON_ALIBI,
    "falcon_alibi_multi_query": FALCON | {"alibi": True},
    "falcon_alibi_twelve_heads": FALCON_ALIBI | {"hidden_size": 48, "num_attention_heads": 12},
    "falcon_yarn": FALCON | {"rope_parameters": YARN},
    "falcon_dynamic": FALCON | {"max_position_embeddings": 16, "rope_parameters": DYNAMIC},
    "falcon_old": old(
        FALCON, apply_residual_connection_post_layernorm=False, rope_theta=1234.5, rope_scaling=None, num_kv_heads=2
    ),
    "falcon_old_linear": old(FALCON_NEW, rope_theta=1234.5, rope_scaling={"type": "linear", "factor": 2.5}),
    "starcoder2": STARCODER2,
    "starcoder2_no_bias": STARCODER2 | {"use_bias": False},
    "starcoder2_window": STARCODER2 | {"sliding_window": 8},
    "starcoder2_untied": STARCODER2 | {"tie_word_embeddings": False},
    "starcoder2_every_head": STARCODER2 | {"num_key_value_heads": 4, "hidden_act": "relu"},
    "starcoder2_linear": STARCODER2 | {"rope_parameters": LINEAR},
    "starcoder2_llama3": STARCODER2 | {"rope_parameters": LLAMA3, "sliding_window": 8},
    "starcoder2_old": old(STARCODER2, rope_theta=1234.5, mlp_type="default", norm_type="layer_norm"),
    "starcoder2_old_yarn": old(
        STARCODER2,
        rope_theta=1234.5,
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    ),
    "stablelm": STABLELM,
    "stablelm_qk_norm": STABLELM | {"qk_layernorm": True},
    "stablelm_qk_norm_parallel": STABLELM
    | {"qk_layernorm": True, "use_parallel_residual": True, "num_key_value_heads": 4},
    "stablelm_qkv_bias": STABLELM | {"use_qkv_bias": True},
    "stablelm_parallel": STABLELM | {"use_parallel_residual": True},
    "stablelm_tied": STABLELM | {"tie_word_embeddings": True},
    "stablelm_gelu": STABLELM | {"hidden_act": "gelu"},
    "stablelm_yarn": STABLELM | {"rope_parameters": YARN | {"partial_rotary_factor": 0.5}},
    "stablelm_old": old(STABLELM, rope_theta=1234.5, partial_rotary_factor=0.5, rope_scaling=None),
    "stablelm_old_dynamic": old(
        STABLELM,
        max_position_embeddings=16,
        rope_theta=1234.5,
        partial_rotary_factor=0.5,
        rope_scaling={"type": "dynamic", "factor": 2.0},
    ),
    "stablelm_bare": old(STABLELM),
}
