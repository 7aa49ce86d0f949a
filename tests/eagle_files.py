"""EAGLE-3 heads written by hand in both dialects, and the formulas of the paper in float64 (arXiv:2503.01840)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

VOCABULARY = 37
Tensors = dict[str, np.ndarray]
KNOWN = np.array([0, 2, 3, 4, 5, 7, 8, 9, 10, 11, 15, 20, 21, 25, 30, 33, 36])
LAYER = {
    "model_type": "llama",
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-3,
    "rope_theta": 100.0,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
NATIVE = LAYER | {
    "architectures": ["LlamaForCausalLMEagle3"],
    "draft_vocab_size": len(KNOWN),
    "target_hidden_size": 16,
    "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 4], "use_aux_hidden_state": True},
    "torch_dtype": "float32",
}
NESTED = {
    "architectures": ["Eagle3DraftModel"],
    "model_type": "speculator_model",
    "speculators_model_type": "eagle3",
    "speculators_version": "0.3.0",
    "speculators_config": {"algorithm": "eagle3", "proposal_methods": [], "verifier": {"name_or_path": "x"}},
    "transformer_layer_config": LAYER | {"model_type": "qwen3", "hidden_size": 16, "attention_bias": True},
    "draft_vocab_size": VOCABULARY,
    "eagle_aux_hidden_state_layer_ids": [0, 2, 5],
    "norm_before_residual": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "native": NATIVE,
    "native, normed taps": NATIVE | {"fc_norm": True, "norm_output": True},
    "nested": NESTED,
    "nested, normed together": NESTED | {"norm_before_fc": True, "norm_before_residual": False},
}


def tensors(config: dict[str, Any], target: int = 16, taps: int = 3) -> Tensors:
    """A random head under the names of its dialect."""
    rng = np.random.default_rng(3)
    layer = config.get("transformer_layer_config", config)
    nested, d, f = layer is not config, layer["hidden_size"], layer["intermediate_size"]
    h, n, k = layer["head_dim"], layer["num_attention_heads"], layer["num_key_value_heads"]
    at = "layers.0." if nested else "midlayer."
    shapes: dict[str, tuple[int, ...]] = {
        f"{at}self_attn.{x}_proj.weight": (m * h, 2 * d) for x, m in zip("qkv", (n, k, k), strict=True)
    }
    shapes |= {
        f"{at}self_attn.o_proj.weight": (d, n * h),
        f"{at}mlp.down_proj.weight": (d, f),
        "fc.weight": (d, taps * target),
    }
    shapes |= {f"{at}mlp.{x}_proj.weight": (f, d) for x in ("gate", "up")}
    shapes |= {f"{at}{x}.weight": (d,) for x in ("hidden_norm", "input_layernorm", "post_attention_layernorm")}
    shapes |= {"norm.weight": (d,), "lm_head.weight": (config["draft_vocab_size"], d)}
    if not nested:
        shapes["embed_tokens.weight"] = (VOCABULARY, d)
    if layer["model_type"] == "qwen3":
        shapes |= {f"{at}self_attn.{x}_norm.weight": (h,) for x in "qk"}
    if layer.get("attention_bias"):
        shapes |= {f"{at}self_attn.{x}_proj.bias": (m,) for x, m in zip("qkvo", (n * h, k * h, k * h, d), strict=True)}
    if config.get("fc_norm"):
        shapes |= {f"fc_norm.{i}.weight": (target,) for i in range(3)}
    if config.get("norm_before_fc"):
        shapes["input_norm.weight"] = (3 * target,)
    out = {
        name: (rng.normal(size=shape) * (2 if "lm_head" in name else 0.6)).astype(np.float32)
        for name, shape in shapes.items()
    }
    if config["draft_vocab_size"] < VOCABULARY:
        out["d2t"] = KNOWN - np.arange(len(KNOWN))
        out["t2d"] = np.isin(np.arange(VOCABULARY), KNOWN)
    return out


def written(path: Path, config: dict[str, Any], arrays: Tensors) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(arrays, path / "model.safetensors")
    return path


# ------------------------------------------------------------------------------------------------ the paper's formulas
def rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3) * weight


def turned(x_TNH: np.ndarray) -> np.ndarray:
    half = x_TNH.shape[-1] // 2
    angle = np.arange(len(x_TNH))[:, None] * 100.0 ** (-np.arange(half) / half)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x_TNH[..., :half], x_TNH[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def oracle(config: dict[str, Any], arrays: Tensors, embed: np.ndarray, taps: np.ndarray, tokens: list[int], count: int):
    """The logits of `count` drafts over the head's own ids, and the drafts: the best of them. float64.

    taps: [T - 1, 3, E] of all tokens but the last one.
    """
    layer = config.get("transformer_layer_config", config)
    at = "midlayer." if layer is config else "layers.0."
    w = {name: x.astype(np.float64) for name, x in arrays.items()}
    embed = w.get("embed_tokens.weight", embed.astype(np.float64))
    linear = lambda x, name: x @ w[f"{at}{name}.weight"].T + w.get(f"{at}{name}.bias", 0)  # noqa: E731
    taps = taps.astype(np.float64)
    if config.get("fc_norm"):
        taps = np.stack([rms(taps[:, i], w[f"fc_norm.{i}.weight"]) for i in range(3)], 1)
    flat = taps.reshape(len(taps), -1)
    if config.get("norm_before_fc"):
        flat = rms(flat, w["input_norm.weight"])
    g, logits = flat @ w["fc.weight"].T, []
    for _ in range(count):
        e, normed = rms(embed[tokens[1:]], w[f"{at}input_layernorm.weight"]), rms(g, w[f"{at}hidden_norm.weight"])
        pair = np.concatenate([e, normed], -1)
        q, k, v = (linear(pair, f"self_attn.{x}_proj").reshape(len(g), -1, layer["head_dim"]) for x in "qkv")
        if f"{at}self_attn.q_norm.weight" in w:
            q, k = (rms(x, w[f"{at}self_attn.{name}_norm.weight"]) for x, name in ((q, "q"), (k, "k")))
        q, k, v = turned(q), np.repeat(turned(k), 2, 1), np.repeat(v, 2, 1)
        scores = np.einsum("tnh,snh->nts", q, k) / np.sqrt(layer["head_dim"])
        scores = np.where(np.tri(len(g)) > 0, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        found = np.einsum("nts,snh->tnh", weights / weights.sum(-1, keepdims=True), v)
        x = (normed if config.get("norm_before_residual") else g) + linear(
            found.reshape(len(g), -1), "self_attn.o_proj"
        )
        y = rms(x, w[f"{at}post_attention_layernorm.weight"])
        gate = linear(y, "mlp.gate_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(y, "mlp.up_proj"), "mlp.down_proj")
        out = rms(x, w["norm.weight"])
        logits.append(out[-1] @ w["lm_head.weight"].T)
        best = int(logits[-1].argmax())
        tokens = [*tokens, best + int(arrays["d2t"][best]) if "d2t" in arrays else best]
        g = np.concatenate([g, (out if config.get("norm_output") else x)[-1:]])
    return np.array(logits), tokens[-count:]
