"""Zamba 2: Zamba with Mamba 2, several blocks in turn, and a low-rank update of their weights for each layer."""

from dataclasses import replace
from math import inf

from converters.architectures.common import (
    LAYER,
    TRANSPOSED,
    decoder,
    fused_gate_up,
    gated_mlp,
    norm_rules,
    weight_and_bias,
)
from converters.architectures.family import Family
from converters.architectures.ssm import QUIET, mamba2_rules
from converters.architectures.zamba import ENDS, attention, block_rules, fed, fed_rules, listed, shared_rules
from converters.rope import DIALECT, read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Adapter, Attention, Block, Branch, Joined, Mamba2, ModelSpec, Norm

DEFAULTS = {
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "hidden_size": 2560,
    "num_hidden_layers": 54,
    "mamba_d_state": 64,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_ngroups": 1,
    "time_step_min": 0.001,
    "n_mamba_heads": 8,
    "add_bias_linear": False,
    "hidden_act": "gelu",
    "num_attention_heads": 32,
    "num_mem_blocks": 1,
    "use_shared_attention_adapter": False,
    "adapter_rank": 128,
    "use_mem_rope": False,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
FIFTY_FOUR = "mmmmmmh" + "mmmmmh" * 6 + "mmmmh" + "mmmh" + "mm"
INNER_NORM = Norm(1e-5)


def looking(take: Take) -> Attention:
    """The attention of the blocks, with positions if the config says so."""
    op = attention(take)
    if take("use_mem_rope"):
        return replace(op, rope=read_rope(take, op.head_dim))
    take.ignore(*DIALECT)
    return op


def state_space(take: Take) -> Mamba2:
    """Mamba 2, the step size bounded from below."""
    width, heads, bias = int(take("mamba_expand") * take("hidden_size")), take("n_mamba_heads"), take("add_bias_linear")
    if width % heads:
        raise ValueError(f"{take.where}: {heads} heads of mamba cannot share {width} channels")
    take.require("mamba_headdim", width // heads)
    return Mamba2(
        heads,
        width // heads,
        take("mamba_d_state"),
        take("mamba_ngroups"),
        take("mamba_d_conv"),
        in_bias=bias,
        out_bias=bias,
        norm=INNER_NORM,
        dt_limit=(float(take("time_step_min")), inf),
    )


def config(take: Take) -> ModelSpec:
    """Which layers are fed is listed; the blocks take turns in them."""
    take.assume(DEFAULTS | {"intermediate_size": 4 * take.config.get("hidden_size", DEFAULTS["hidden_size"])})
    take.ignore(*QUIET, "use_mem_eff_path", "kv_channels", "num_query_groups")
    # the reference ignores the first two, and without the third its layers would not share their blocks
    for key, value in (("use_conv_bias", True), ("use_long_context", False), ("tie_word_embeddings", True)):
        take.require(key, value)
    norm, rank, bias = Norm(take("rms_norm_eps")), take("adapter_rank"), take("add_bias_linear")
    op, mlp, mamba = Joined(looking(take), "embed", norm), replace(gated_mlp(take), bias=bias), state_space(take)
    updated = take("use_shared_attention_adapter")
    if updated and op.attention.heads != op.attention.kv_heads:
        raise ValueError(f"{take.where}: updates of keys and values need as many key-value heads as heads")
    updates = tuple(Adapter((name,), rank) for name in "qkv") if updated else ()

    def layer(turn: int) -> Block:
        shared = (
            Branch("attention", op, shared=f"attention_{turn}", adapters=updates),
            Branch("mlp", mlp, pre=norm, shared=f"mlp_{turn}", adapters=(Adapter(("gate", "up"), rank),)),
        )
        return fed(shared, mamba, norm)

    kinds = listed(take, [{"m": "mamba", "h": "hybrid"}[letter] for letter in FIFTY_FOUR])
    take.require("hybrid_layer_ids", [i for i, yes in enumerate(kinds) if yes])
    plain, blocks = Block((Branch("mamba", mamba, pre=norm),)), take("num_mem_blocks")
    return decoder(take, (layer(sum(kinds[:i]) % blocks) if yes else plain for i, yes in enumerate(kinds)), norm)


THEIRS = f"{LAYER}.shared_transformer"
BOTH = ("layers.{l}.mlp.gate", "layers.{l}.mlp.up")
SHARED = (
    *block_rules(THEIRS),
    fused_gate_up(f"{THEIRS}.feed_forward.gate_up_proj"),
    Rule(tuple(f"{path}_bias" for path in BOTH), f"{THEIRS}.feed_forward.gate_up_proj.bias", "(q f) -> q f"),
    *weight_and_bias("layers.{l}.mlp.down", f"{THEIRS}.feed_forward.down_proj", TRANSPOSED),
)


def state_rules(theirs: str) -> tuple[Rule, ...]:
    """A state space and the norm before it."""
    return (*mamba2_rules(f"{theirs}.mamba"), *norm_rules("layers.{l}.mamba.pre", f"{theirs}.input_layernorm"))


def adapter_rules(spec: ModelSpec) -> tuple[Rule, ...]:
    """The updates of every fed layer, which lie in the first layer of its block under the layer's turn."""
    out: list[Rule] = []
    first: dict[str, int] = {}
    turn = 0
    for i, block in enumerate(spec.layers):
        named = {branch.name: branch.shared for branch in block.every() if branch.shared is not None}
        if not named:
            continue
        home = f"model.layers.{first.setdefault(str(named['attention']), i)}.shared_transformer"
        for part in "qkv":
            ours, theirs = (
                f"layers.{i}.attention.adapters.{part}",
                f"{home}.self_attn.linear_{part}_adapter_list.{turn}",
            )
            out += [Rule(f"{ours}.a", f"{theirs}.0.weight", "r d -> d r")]
            out += [Rule(f"{ours}.b", f"{theirs}.1.weight", "(n h) r -> r n h")]
        ours, theirs = f"layers.{i}.mlp.adapters", f"{home}.feed_forward.gate_up_proj_adapter_list.{turn}"
        out += [Rule(f"{ours}.gate.a", f"{theirs}.0.weight", "r d -> d r")]
        out += [Rule((f"{ours}.gate.b", f"{ours}.up.b"), f"{theirs}.1.weight", "(q f) r -> q r f")]
        turn += 1
    return tuple(out)


def special(spec: ModelSpec) -> tuple[Rule, ...]:
    """The rules of what is shared, of its updates, and of the layers that are fed."""
    fed_ones = fed_rules(spec, state_rules(f"{LAYER}.mamba_decoder"))
    return (*shared_rules(spec, SHARED), *adapter_rules(spec), *fed_ones)


FAMILY = Family(("zamba2",), config, (*ENDS, *state_rules(LAYER)), first=special)
