"""Models whose code lives on the hub, written down again in float64: the witness of their goldens.

Each is a function of a config, tensors and token ids that gives the logits. What it does was read off llama.cpp's
graphs (src/models/*.cpp, May 2026) and its converter, which says how they differ from checkpoints; nothing here knows
our specs or ops. A tensor is made up where it is asked for, so that a witness also says which there are.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from helpers import TOKENS, VOCABULARY, Golden, token_ids, weight

Config = dict[str, Any]
Array = np.ndarray
Parts = tuple[str, str, str]
PARTS: Parts = ("gate_proj", "up_proj", "down_proj")


class Tensors:
    """Tensors by name, float64 [*shape]; remembers those that were asked for."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __call__(self, name: str, *shape: int) -> Array:
        """A tensor of this name."""
        self.shapes[name] = shape
        return weight(name, shape).astype(np.float64)

    def linear(self, name: str, x: Array, out: int, *, bias: bool = False, transposed: bool = False) -> Array:
        """x [..., D] times a matrix [out, D], or [D, out] if transposed."""
        inner = x.shape[-1]
        y = x @ (self(f"{name}.weight", inner, out) if transposed else self(f"{name}.weight", out, inner).T)
        return y + self(f"{name}.bias", out) if bias else y

    def rms(self, name: str, x: Array, eps: float) -> Array:
        """Root-mean-square norm over the last axis."""
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * self(f"{name}.weight", x.shape[-1])

    def layer(self, name: str, x: Array, eps: float) -> Array:
        """Layer norm over the last axis."""
        centred = x - x.mean(-1, keepdims=True)
        y = centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps)
        return y * self(f"{name}.weight", x.shape[-1]) + self(f"{name}.bias", x.shape[-1])

    def gated(self, name: str, x: Array, width: int, parts: Parts = PARTS) -> Array:
        """down(silu(gate(x)) * up(x))."""
        gate, up, down = (f"{name}.{part}" for part in parts)
        return self.linear(down, silu(self.linear(gate, x, width)) * self.linear(up, x, width), x.shape[-1])


def silu(x: Array) -> Array:
    """x * sigmoid(x)."""
    return x / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    """Over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def heads(x: Array, count: int) -> Array:
    """[B, T, N * H] as [B, T, N, H]."""
    return x.reshape(*x.shape[:2], count, -1)


def turned(x: Array, theta: float, *, adjacent: bool = False, part: float = 1.0) -> Array:
    """x [B, T, N, H] with the first `part` of each head rotated by the position, in halves or in adjacent pairs."""
    size = int(x.shape[-1] * part)
    angle = np.arange(x.shape[1])[:, None] * theta ** (-np.arange(0, size, 2) / size)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    out = x.copy()
    one, two = (slice(0, size, 2), slice(1, size, 2)) if adjacent else (slice(0, size // 2), slice(size // 2, size))
    out[..., one] = x[..., one] * cos - x[..., two] * sin
    out[..., two] = x[..., two] * cos + x[..., one] * sin
    return out


def attend(
    q: Array,
    k: Array,
    v: Array,
    scale: float | None = None,
    slopes: Array | None = None,
    window: int | None = None,
) -> Array:
    """Causal attention, [B, T, N * H]; as many queries in a row as there are for each key see that key.

    window: a token sees so many, itself among them.
    """
    share, length = q.shape[2] // k.shape[2], q.shape[1]
    k, v = k.repeat(share, 2), v.repeat(share, 2)
    scores = np.einsum("btnh,bsnh->bnts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if slopes is not None:  # towards the past, which differs from the distance by what a softmax takes away
        scores = scores + slopes[:, None, None] * np.arange(length)
    seen = np.tri(length, dtype=bool) & ~np.tri(length, k=-(window or length), dtype=bool)
    scores = np.where(seen, scores, -np.inf)
    return np.einsum("bnts,bsnh->btnh", softmax(scores), v).reshape(*q.shape[:2], -1)


def alibi(count: int) -> Array:
    """The slopes of a power of two of heads."""
    assert count & (count - 1) == 0
    return 2.0 ** (-8.0 / count * np.arange(1, count + 1))


def grouped(t: Tensors, name: str, x: Array, c: Config, **turn: Any) -> Array:
    """q, k, v, o with a rope."""
    size, keys = c["head_dim"], c["num_key_value_heads"]
    q, k, v = (
        heads(t.linear(f"{name}.{part}_proj", x, n * size), n)
        for part, n in (("q", c["num_attention_heads"]), ("k", keys), ("v", keys))
    )
    return t.linear(f"{name}.o_proj", attend(turned(q, **turn), turned(k, **turn), v), x.shape[-1])


def mixture(t: Tensors, name: str, x: Array, weights: Array, top: int, width: int, parts: Parts = PARTS) -> Array:
    """The experts with the `top` largest weights of each token, so weighted: [B, T, D]."""
    out = np.zeros_like(x)
    chosen = weights >= np.sort(weights, -1)[..., -top, None]
    for e in range(weights.shape[-1]):
        y = t.gated(f"{name}.{e}", x, width, parts)
        out += np.where(chosen[..., e], weights[..., e], 0.0)[..., None] * y
    return out


# ------------------------------------------------------------------------------------------------ models
def plamo(c: Config, t: Tensors, tokens: Array) -> Array:
    """Query head n has key head n modulo their number."""
    x, width = t("model.embed_tokens.weight", c["vocab_size"], c["hidden_size"])[tokens], c["hidden_size"]
    count, keys = c["num_attention_heads"], c["num_attention_heads"] // c["n_shared_head"]
    for i in range(c["num_hidden_layers"]):
        name = f"model.layers.layers.{i}"
        y = t.rms(f"{name}.norm", x, c["rms_norm_eps"])
        q, k, v = (
            heads(t.linear(f"{name}.self_attn.{part}_proj", y, n * c["head_dim"]), n)
            for part, n in (("q", count), ("k", keys), ("v", keys))
        )
        k, v = (np.tile(part, (1, 1, c["n_shared_head"], 1)) for part in (turned(k, 1e4), v))
        a = t.linear(f"{name}.self_attn.o_proj", attend(turned(q, 1e4), k, v), width)
        x = x + a + t.gated(f"{name}.mlp", y, c["intermediate_size"])
    return t.linear("lm_head", t.rms("model.norm", x, c["rms_norm_eps"]), c["vocab_size"])


def deepseek(c: Config, t: Tensors, tokens: Array) -> Array:
    """Softmax over all experts; chosen weights stay as they are unless norm_topk_prob is set."""
    x, eps = t("model.embed_tokens.weight", c["vocab_size"], c["hidden_size"])[tokens], c["rms_norm_eps"]
    for i in range(c["num_hidden_layers"]):
        name = f"model.layers.{i}"
        x = x + grouped(t, f"{name}.self_attn", t.rms(f"{name}.input_layernorm", x, eps), c, theta=c["rope_theta"])
        y = t.rms(f"{name}.post_attention_layernorm", x, eps)
        if i < c["first_k_dense_replace"]:
            x = x + t.gated(f"{name}.mlp", y, c["intermediate_size"])
        else:
            x = x + softmax_experts(t, f"{name}.mlp", y, c, c["n_routed_experts"], c["n_shared_experts"])
    return t.linear("lm_head", t.rms("model.norm", x, eps), c["vocab_size"])


def softmax_experts(t: Tensors, name: str, x: Array, c: Config, experts: int, shared: int) -> Array:
    """Chosen and shared experts."""
    weights, top = softmax(t.linear(f"{name}.gate", x, experts)), c["num_experts_per_tok"]
    if c["norm_topk_prob"]:
        weights = weights / np.sort(weights, -1)[..., -top:].sum(-1, keepdims=True)
    rest = t.gated(f"{name}.shared_experts", x, shared * c["moe_intermediate_size"])
    return mixture(t, f"{name}.experts", x, weights, top, c["moe_intermediate_size"]) + rest


def qkv(t: Tensors, name: str, x: Array, c: Config, bias: bool) -> list[Array]:
    """All of q, all of k and all of v, from one matrix."""
    counts = (c["num_attention_heads"], c["num_key_value_heads"], c["num_key_value_heads"])
    whole = heads(t.linear(f"{name}.query_key_value", x, sum(counts) * c["head_dim"], bias=bias), sum(counts))
    return np.split(whole, np.cumsum(counts)[:2], 2)


def bailing_moe(c: Config, t: Tensors, tokens: Array) -> Array:
    """Every layer is a mixture; the second generation goes by the same name."""
    if c.get("score_function") == "sigmoid":
        return bailing_moe_v2(c, t, tokens)
    x, eps = t("model.word_embeddings.weight", c["vocab_size"], c["hidden_size"])[tokens], c["rms_norm_eps"]
    for i in range(c["num_hidden_layers"]):
        name = f"model.layers.{i}"
        q, k, v = qkv(t, f"{name}.attention", t.rms(f"{name}.input_layernorm", x, eps), c, c.get("use_qkv_bias", False))
        q, k = (turned(part, c["rope_theta"]) for part in (q, k))
        x = x + t.linear(f"{name}.attention.dense", attend(q, k, v), x.shape[-1])
        y = t.rms(f"{name}.post_attention_layernorm", x, eps)
        x = x + softmax_experts(t, f"{name}.mlp", y, c, c["num_experts"], c["num_shared_experts"])
    return t.linear("lm_head", t.rms("model.norm", x, eps), c["vocab_size"])


def bailing_moe_v2(c: Config, t: Tensors, tokens: Array) -> Array:
    """Sigmoid scores; their bias chooses within the groups that have the best pairs, and does not weigh."""
    x, eps = t("model.word_embeddings.weight", c["vocab_size"], c["hidden_size"])[tokens], c["rms_norm_eps"]
    for i in range(c["num_hidden_layers"]):
        name = f"model.layers.{i}"
        q, k, v = qkv(t, f"{name}.attention", t.rms(f"{name}.input_layernorm", x, eps), c, False)
        q, k = (t.rms(f"{name}.attention.{n}_layernorm", part, eps) for n, part in (("query", q), ("key", k)))
        q, k = (turned(part, c["rope_theta"], part=c["partial_rotary_factor"]) for part in (q, k))
        x = x + t.linear(f"{name}.attention.dense", attend(q, k, v), x.shape[-1])
        y = t.rms(f"{name}.post_attention_layernorm", x, eps)
        if i < c["first_k_dense_replace"]:
            x = x + t.gated(f"{name}.mlp", y, c["intermediate_size"])
            continue
        score = 1 / (1 + np.exp(-t.linear(f"{name}.mlp.gate", y, c["num_experts"])))
        choice = score + t(f"{name}.mlp.gate.expert_bias", c["num_experts"])
        groups = choice.reshape(*choice.shape[:2], c["n_group"], -1)
        best = np.sort(groups, -1)[..., -2:].sum(-1)
        open_ = best >= np.sort(best, -1)[..., -c["topk_group"], None]
        choice = np.where(open_[..., None], groups, -np.inf).reshape(choice.shape)
        top = c["num_experts_per_tok"]
        weights = np.where(choice >= np.sort(choice, -1)[..., -top, None], score, 0.0)
        weights = weights / weights.sum(-1, keepdims=True) * c["routed_scaling_factor"]
        x = x + mixture(t, f"{name}.mlp.experts", y, weights, top, c["moe_intermediate_size"])
        x = x + t.gated(f"{name}.mlp.shared_experts", y, c["num_shared_experts"] * c["moe_intermediate_size"])
    return t.linear("lm_head", t.rms("model.norm", x, eps), c["vocab_size"])


def jais(c: Config, t: Tensors, tokens: Array) -> Array:
    """Matrices are stored [in, out]; scores are divided by the size of a head, not by its root."""
    width, eps, name = c["n_embd"], c["layer_norm_epsilon"], "transformer"
    embed = t(f"{name}.wte.weight", c["vocab_size"], width)
    x = embed[tokens] * c.get("mup_embeddings_scale", c.get("embeddings_scale"))
    for i in range(c["n_layer"]):
        layer = f"{name}.h.{i}"
        whole = t.linear(
            f"{layer}.attn.c_attn", t.layer(f"{layer}.ln_1", x, eps), 3 * width, bias=True, transposed=True
        )
        q, k, v = (heads(part, c["n_head"]) for part in np.split(whole, 3, -1))
        a = attend(q, k, v, 1 / q.shape[-1], alibi(c["n_head"]))
        x = x + t.linear(f"{layer}.attn.c_proj", a, width, bias=True, transposed=True)
        y = t.layer(f"{layer}.ln_2", x, eps)
        up, gate = (
            t.linear(f"{layer}.mlp.{n}", y, c["n_inner"], bias=True, transposed=True) for n in ("c_fc", "c_fc2")
        )
        x = x + t.linear(f"{layer}.mlp.c_proj", silu(gate) * up, width, bias=True, transposed=True)
    scale = c["width_scale"] if "width_scale" in c else c["mup_output_alpha"] * c["mup_width_scale"]
    head = embed if c.get("tie_word_embeddings", True) else t("lm_head.weight", c["vocab_size"], width)
    return t.layer(f"{name}.ln_f", x, eps) @ head.T * scale


def gpt_refact(c: Config, t: Tensors, tokens: Array) -> Array:
    """One key and value for all queries, or for each."""
    width, eps, inner = c["n_embd"], c["layer_norm_epsilon"], 256 * -(-int(c["n_embd"] * 8 / 3) // 256)
    x = t("transformer.wte.weight", c["vocab_size"], width)[tokens]
    for i in range(c["n_layer"]):
        name = f"transformer.h.{i}"
        y = t.rms(f"{name}.ln_1", x, eps)
        q = heads(t.linear(f"{name}.attn.q", y, width), c["n_head"])
        keys = 1 if c["multi_query"] else c["n_head"]
        both = t.linear(f"{name}.attn.kv", y, 2 * keys * width // c["n_head"])
        k, v = (heads(part, keys) for part in np.split(both, 2, -1))
        x = x + t.linear(f"{name}.attn.c_proj", attend(q, k, v, slopes=alibi(c["n_head"])), width)
        gate, up = np.split(t.linear(f"{name}.mlp.gate_up_proj", t.rms(f"{name}.ln_2", x, eps), 2 * inner), 2, -1)
        x = x + t.linear(f"{name}.mlp.c_proj", silu(gate) * up, width)
    return t.linear("lm_head", t.rms("ln_f", x, eps), c["vocab_size"])


def maincoder(c: Config, t: Tensors, tokens: Array) -> Array:
    """Adjacent features turn together; the norms of queries and keys come after that."""
    x, eps = t("model.embed_tokens.weight", c["vocab_size"], c["hidden_size"])[tokens], c["rms_norm_eps"]
    size, keys = c["head_dim"], c["num_key_value_heads"]
    for i in range(c["num_hidden_layers"]):
        name = f"model.layers.{i}"
        y = t.rms(f"{name}.input_layernorm", x, eps)
        q, k, v = (
            heads(t.linear(f"{name}.self_attn.{part}_proj", y, n * size), n)
            for part, n in (("q", c["num_attention_heads"]), ("k", keys), ("v", keys))
        )
        q, k = (
            t.rms(f"{name}.self_attn.{n}_norm", turned(part, c["rope_theta"], adjacent=True), eps)
            for n, part in (("q", q), ("k", k))
        )
        x = x + t.linear(f"{name}.self_attn.o_proj", attend(q, k, v), x.shape[-1])
        x = x + t.gated(f"{name}.mlp", t.rms(f"{name}.post_attention_layernorm", x, eps), c["intermediate_size"])
    return t.linear("lm_head", t.rms("model.norm", x, eps), c["vocab_size"])


def plamo3(c: Config, t: Tensors, tokens: Array) -> Array:
    """Norms store their factors less 1, after attention less 1/5, after the feed-forward layer less 1/5^1.5."""
    embed, eps, size = (
        t("model.embed_tokens.weight", c["vocab_size"], c["hidden_size"]),
        c["rms_norm_eps"],
        c["head_dim"],
    )

    def norm(name: str, x: Array, offset: float = 1.0) -> Array:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * (t(f"{name}.weight", x.shape[-1]) + offset)

    x, n, k = embed[tokens], c["num_attention_heads"], c["num_key_value_heads"]
    for i in range(c["num_hidden_layers"]):
        name, full = f"model.layers.layers.{i}", (i + 1) % c["sliding_window_pattern"] == 0
        y = t.linear(f"{name}.mixer.qkv_proj", norm(f"{name}.pre_mixer_norm", x), (n + 2 * k) * size)
        q, key, v = np.split(heads(y, n + 2 * k), [n, n + k], 2)
        theta = c["rope_theta" if full else "rope_local_theta"]
        q, key = (turned(norm(f"{name}.mixer.{part}_norm", z), theta) for part, z in (("q", q), ("k", key)))
        a = attend(q, key, v, window=None if full else c["window_size"])
        a = t.linear(f"{name}.mixer.o_proj", a, x.shape[-1])
        x = x + norm(f"{name}.post_mixer_norm", a, 1 / 5)
        y = t.linear(f"{name}.mlp.gate_up_proj", norm(f"{name}.pre_mlp_norm", x), 2 * c["intermediate_size"])
        gate, up = np.split(y, 2, -1)
        y = t.linear(f"{name}.mlp.down_proj", silu(gate) * up, x.shape[-1])
        x = x + norm(f"{name}.post_mlp_norm", y, 5**-1.5)
    return norm("model.norm", x) @ embed.T


def plm(c: Config, t: Tensors, tokens: Array) -> Array:
    """Keys and values out of a latent, beside one rotated key for all heads; squared relu."""
    embed, eps = t("model.embed_tokens.weight", c["vocab_size"], c["hidden_size"]), c["rms_norm_eps"]
    n, still, turning = c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"]
    x = embed[tokens]
    for i in range(c["num_hidden_layers"]):
        name = f"model.layers.{i}"
        y = t.rms(f"{name}.input_layernorm", x, eps)
        q = heads(t.linear(f"{name}.self_attn.q_proj", y, n * (still + turning)), n)
        entry = t.linear(f"{name}.self_attn.kv_a_proj_with_mqa", y, c["kv_lora_rank"] + turning)
        latent = t.rms(f"{name}.self_attn.kv_a_layernorm", entry[..., : c["kv_lora_rank"]], 1e-6)
        kv = heads(t.linear(f"{name}.self_attn.kv_b_proj", latent, n * (still + c["v_head_dim"])), n)
        shared = turned(heads(entry[..., c["kv_lora_rank"] :], 1), c["rope_theta"], adjacent=True)
        k = np.concatenate([kv[..., :still], shared.repeat(n, 2)], -1)
        q = np.concatenate([q[..., :still], turned(q[..., still:], c["rope_theta"], adjacent=True)], -1)
        x = x + t.linear(f"{name}.self_attn.o_proj", attend(q, k, kv[..., still:]), x.shape[-1])
        y = t.linear(f"{name}.mlp.up_proj", t.rms(f"{name}.post_attention_layernorm", x, eps), c["intermediate_size"])
        x = x + t.linear(f"{name}.mlp.down_proj", np.maximum(y, 0) ** 2, x.shape[-1])
    return t.rms("model.norm", x, eps) @ embed.T


def arctic(c: Config, t: Tensors, tokens: Array) -> Array:
    """The experts see what the layer began with; their weights sum to one."""
    x, eps = t("model.embed_tokens.weight", c["vocab_size"], c["hidden_size"])[tokens], c["rms_norm_eps"]
    for i in range(c["num_hidden_layers"]):
        name = f"model.layers.{i}"
        y = t.rms(f"{name}.post_attention_layernorm", x, eps)
        weights = softmax(t.linear(f"{name}.block_sparse_moe.gate", y, c["num_local_experts"]))
        weights = weights / np.sort(weights, -1)[..., -c["num_experts_per_tok"] :].sum(-1, keepdims=True)
        experts = f"{name}.block_sparse_moe.experts"
        late = mixture(t, experts, y, weights, c["num_experts_per_tok"], c["intermediate_size"], ("w1", "w3", "w2"))
        y = t.rms(f"{name}.input_layernorm", x, eps)
        x = x + grouped(t, f"{name}.self_attn", y, c, theta=c["rope_theta"])
        y = t.rms(f"{name}.residual_layernorm", x, eps)
        x = x + t.gated(f"{name}.residual_mlp", y, c["hidden_size"], ("w1", "w3", "w2")) + late
    return t.linear("lm_head", t.rms("model.norm", x, eps), c["vocab_size"])


def openelm(c: Config, t: Tensors, tokens: Array) -> Array:
    """Each layer has its own number of heads, and its own width of the feed-forward layer, a multiple of something."""
    embed, size = t("transformer.token_embeddings.weight", c["vocab_size"], c["model_dim"]), c["head_dim"]
    x = embed[tokens]
    for i in range(c["num_transformer_layers"]):
        name, n, k = f"transformer.layers.{i}", c["num_query_heads"][i], c["num_kv_heads"][i]
        whole = t.linear(f"{name}.attn.qkv_proj", t.rms(f"{name}.attn_norm", x, 1e-6), (n + 2 * k) * size)
        q, key, v = np.split(heads(whole, n + 2 * k), [n, n + k], 2)
        q, key = t.rms(f"{name}.attn.q_norm", q, 1e-6), t.rms(f"{name}.attn.k_norm", key, 1e-6)
        a = attend(turned(q, c["rope_freq_constant"]), turned(key, c["rope_freq_constant"]), v)
        x = x + t.linear(f"{name}.attn.out_proj", a, x.shape[-1])
        step = c["ffn_dim_divisor"]
        inner = int(c["ffn_multipliers"][i] * c["model_dim"] + step / 2) // step * step
        gate, up = np.split(t.linear(f"{name}.ffn.proj_1", t.rms(f"{name}.ffn_norm", x, 1e-6), 2 * inner), 2, -1)
        x = x + t.linear(f"{name}.ffn.proj_2", silu(gate) * up, x.shape[-1])
    return t.rms("transformer.norm", x, 1e-6) @ embed.T


HUB: Mapping[str, Callable[[Config, Tensors, Array], Array]] = {
    "arctic": arctic,
    "bailing_moe": bailing_moe,
    "bailing_moe_v2": bailing_moe_v2,
    "deepseek": deepseek,
    "gpt_refact": gpt_refact,
    "jais": jais,
    "maincoder": maincoder,
    "openelm": openelm,
    "plamo": plamo,
    "plamo3": plamo3,
    "plm": plm,
}
"""Model type -> its witness."""


def witnessed(name: str, config: Config) -> Golden:
    """The golden of a model of the hub."""
    tensors, tokens = Tensors(), token_ids()
    logits = HUB[config["model_type"]](config, tensors, tokens).astype(np.float32)
    return Golden(name, config, tensors.shapes, tokens, np.ascontiguousarray(logits[:, list(TOKENS), VOCABULARY]))
