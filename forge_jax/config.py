"""ForgeConfig: the flat, friendly description of a decoder, checked, and its expansion to a `ModelSpec`.

Knows nothing of arrays, files and checkpoints: it imports no jax. What a flat list of fields cannot say (a layer that
differs from the others, an op with options of its own) belongs in a ModelSpec.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from math import inf, log
from numbers import Integral, Real
from typing import Any

from forge_jax.spec import (
    Attention,
    Block,
    Branch,
    DynamicNtk,
    Linear,
    Llama3,
    Mlp,
    ModelSpec,
    Moe,
    Norm,
    Positions,
    Rope,
    Router,
    Scaling,
    Yarn,
)

ROPE_SCALING_TYPES = ("linear", "dynamic", "yarn", "llama3", "longrope", "proportional")
KV_CACHE_DTYPES = ("int8", "fp16", "bf16", "fp8", "int4")
QUANTIZATION_MODES = ("none", "dynamic", "int8", "int4")
ALIASES = {"depth": "n_layers", "heads": "n_heads", "max_len": "max_seq_len", "embed_dim": "dim"}


@dataclass(frozen=True, init=False)
class ForgeConfig:
    """A decoder in flat fields. Immutable and hashable; checked when it is made.

    With rope scaling, max_seq_len is the scaled length: the original one is max_seq_len / rope_scaling_factor.
    dropout and moe_load_balancing are read by training only. kv_cache_dtype says how caches keep keys and values;
    use_paged_attn lays out those of `generate` in pages, which rows that begin alike share.
    """

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden_dim: int
    max_seq_len: int
    dropout: float
    use_rope: bool
    use_rms_norm: bool
    use_swiglu: bool
    use_bias: bool
    rope_theta: float
    rope_scaling_type: str | None
    rope_scaling_factor: float
    use_moe: bool
    num_experts: int
    num_experts_per_token: int
    moe_load_balancing: float
    sliding_window: int | None
    use_paged_attn: bool
    kv_cache_dtype: str | None
    use_gradient_checkpointing: bool
    vision_hidden_size: int | None
    audio_hidden_size: int | None

    def __init__(
        self,
        vocab_size: int = 8000,
        dim: int = 512,
        n_layers: int = 8,
        n_heads: int = 8,
        n_kv_heads: int | None = None,
        hidden_dim: int | None = None,
        max_seq_len: int = 1024,
        dropout: float = 0.1,
        use_rope: bool = True,
        use_rms_norm: bool = True,
        use_swiglu: bool = True,
        use_bias: bool = False,
        rope_theta: float = 10000.0,
        rope_scaling_type: str | None = None,
        rope_scaling_factor: float = 1.0,
        use_moe: bool = False,
        num_experts: int = 8,
        num_experts_per_token: int = 2,
        moe_load_balancing: float = 0.01,
        sliding_window: int | None = None,
        use_paged_attn: bool = False,
        kv_cache_dtype: str | None = None,
        use_gradient_checkpointing: bool = False,
        vision_hidden_size: int | None = None,
        audio_hidden_size: int | None = None,
        *,
        depth: int | None = None,
        heads: int | None = None,
        max_len: int | None = None,
        embed_dim: int | None = None,
    ) -> None:
        """Fill in what is left open and check everything.

        Args:
            n_kv_heads: None means n_heads.
            hidden_dim: None means 4 * dim, or with SwiGLU int(8 * dim / 3) rounded up to a multiple of 64.
            depth, heads, max_len, embed_dim: other names of n_layers, n_heads, max_seq_len and dim, which win.

        Raises:
            ValueError: lists every field that is wrong, what was found and what is expected.
        """
        given = dict(locals())
        for alias, name in ALIASES.items():
            if given[alias] is not None:
                given[name] = given[alias]
        for field in fields(self):
            object.__setattr__(self, field.name, given[field.name])
        self.validate()
        if n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        if hidden_dim is None:
            derived = -(-int(2 * 4 * self.dim / 3) // 64) * 64 if self.use_swiglu else 4 * self.dim
            object.__setattr__(self, "hidden_dim", derived)

    @property
    def depth(self) -> int:
        """n_layers."""
        return self.n_layers

    @property
    def heads(self) -> int:
        """n_heads."""
        return self.n_heads

    @property
    def max_len(self) -> int:
        """max_seq_len."""
        return self.max_seq_len

    @property
    def embed_dim(self) -> int:
        """dim."""
        return self.dim

    @property
    def head_dim(self) -> int:
        """Features of one head."""
        return self.dim // self.n_heads

    def validate(self) -> None:
        """Check every field.

        Raises:
            ValueError: lists what is wrong.
        """
        problems = field_problems(self) or relation_problems(self)
        if problems:
            raise ValueError("ForgeConfig: " + "; ".join(problems))

    def freeze(self) -> "ForgeConfig":
        """Return the config itself, which is immutable anyway."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Every field and its value."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ForgeConfig":
        """Make a config of a dict of fields or aliases.

        Raises:
            ValueError: a key is no field (names the nearest one), or a value is wrong.
        """
        check_field_names("ForgeConfig.from_dict", values)
        return cls(**values)

    def to_spec(self) -> ModelSpec:
        """Expand to the spec that the decoder runs; the output head is the embedding.

        Raises:
            NotImplementedError: an option is set that this version cannot honour; says which and what to do.
        """
        missing = unsupported(self)
        if missing:
            raise NotImplementedError("ForgeConfig: " + "; ".join(missing))
        norm = Norm(eps=1e-6, kind="rms") if self.use_rms_norm else Norm(eps=1e-6, kind="layer", bias=True)
        attention = Attention(
            heads=self.n_heads,
            kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
            rope=Rope(self.head_dim, self.rope_theta, scaling=rope_scaling(self)) if self.use_rope else None,
            window=self.sliding_window,
            qkv_bias=self.use_bias,
            o_bias=self.use_bias,
        )
        act = "silu" if self.use_swiglu else "gelu"
        if self.use_moe:
            router = Router(self.num_experts, self.num_experts_per_token, renorm=1.0)
            moe = Moe(router, self.hidden_dim, act=act, gated=self.use_swiglu, bias=self.use_bias)
            second = Branch("moe", moe, pre=norm)
        else:
            mlp = Mlp(self.hidden_dim, act=act, gated=self.use_swiglu, bias=self.use_bias)
            second = Branch("mlp", mlp, pre=norm)
        layer = Block((Branch("attention", attention, pre=norm), second))
        return ModelSpec(
            vocab_size=self.vocab_size,
            dim=self.dim,
            layers=(layer,) * self.n_layers,
            max_seq_len=self.max_seq_len,
            final_norm=norm,
            tied=True,
            positions=None if self.use_rope else Positions(self.max_seq_len),
        )


@dataclass(frozen=True)
class QuantizationConfig:
    """How weights are quantised: "dynamic" also quantises activations to int8 as they come.

    Raises:
        ValueError: an unknown mode or a group size that is no positive whole number.
    """

    mode: str = "none"
    group_size: int = 128
    quantize_linear: bool = True
    quantize_embedding: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.mode not in QUANTIZATION_MODES:
            known = ", ".join(QUANTIZATION_MODES)
            raise ValueError(f"QuantizationConfig: mode must be one of {known}; found {self.mode!r}")
        if not is_whole(self.group_size) or self.group_size <= 0:
            raise ValueError(f"QuantizationConfig: group_size must be a whole number > 0; found {self.group_size!r}")


def rope_scaling(config: ForgeConfig) -> Scaling | None:
    """The scaling of the rotary frequencies that a config asks for."""
    if config.rope_scaling_type is None:
        return None
    factor = config.rope_scaling_factor
    original = max(1, round(config.max_seq_len / factor))
    match config.rope_scaling_type:
        case "linear":
            return Linear(factor)
        case "dynamic":
            return DynamicNtk(factor, original)
        case "yarn":
            return Yarn(factor, original, attention_factor=0.1 * log(factor) + 1 if factor > 1 else 1.0)
        case "llama3":
            return Llama3(factor, low=1.0, high=4.0, original_len=original)
    return None


def unsupported(config: ForgeConfig) -> list[str]:
    """The options of a config that this version accepts and keeps but cannot honour, each with what to do."""
    notes = []
    if config.use_gradient_checkpointing:
        notes.append("use_gradient_checkpointing=True is not implemented yet; set it to False")
    if config.rope_scaling_type in ("longrope", "proportional"):
        notes.append(
            f"rope_scaling_type={config.rope_scaling_type!r} needs numbers for each feature, which no field holds; "
            "make a ModelSpec with that scaling, or use linear, dynamic, yarn or llama3"
        )
    for name, value in (("vision", config.vision_hidden_size), ("audio", config.audio_hidden_size)):
        if value is not None:
            notes.append(f"{name}_hidden_size={value} is not implemented yet; set {name}_hidden_size=None")
    return notes


# ------------------------------------------------------------------------------------------------ checks
def field_problems(config: ForgeConfig) -> list[str]:
    """What is wrong with single fields; the relations between fields need these to be right."""
    positive = ["vocab_size", "dim", "n_layers", "n_heads", "max_seq_len"]
    optional = ["n_kv_heads", "hidden_dim", "sliding_window", "vision_hidden_size", "audio_hidden_size"]
    experts = ["num_experts", "num_experts_per_token"] if config.use_moe else []
    flags = ["use_rope", "use_rms_norm", "use_swiglu", "use_bias", "use_moe", "use_paged_attn"]
    flags.append("use_gradient_checkpointing")
    values = asdict(config)
    wrong = [(name, "a whole number > 0") for name in positive + experts if not is_count(values[name])]
    wrong += [(n, "None or a whole number > 0") for n in optional if values[n] is not None and not is_count(values[n])]
    wrong += [(name, "True or False") for name in flags if not isinstance(values[name], bool)]
    in_range = {
        "dropout": ("in [0, 1]", 0 <= real(config.dropout) <= 1),
        "rope_theta": ("> 0", 0 < real(config.rope_theta) < inf),
        "rope_scaling_factor": ("> 0", 0 < real(config.rope_scaling_factor) < inf or config.rope_scaling_type is None),
        "moe_load_balancing": (">= 0", 0 <= real(config.moe_load_balancing) < inf or not config.use_moe),
    }
    wrong += [(name, f"a number {expected}") for name, (expected, right) in in_range.items() if not right]
    choices = {"rope_scaling_type": ROPE_SCALING_TYPES, "kv_cache_dtype": KV_CACHE_DTYPES}
    for name, known in choices.items():
        if values[name] is not None and values[name] not in known:
            wrong.append((name, "one of " + ", ".join(known)))
    return [f"{name} must be {expected}; found {values[name]!r}" for name, expected in wrong]


def relation_problems(config: ForgeConfig) -> list[str]:
    """What is wrong between fields that are right by themselves."""
    heads, kv_heads = config.n_heads, config.n_kv_heads
    problems = []
    if config.dim % heads:
        problems.append(f"dim must be a multiple of n_heads; found dim {config.dim}, n_heads {heads}")
    elif config.use_rope and config.head_dim % 2:
        problems.append(f"dim / n_heads must be even with use_rope; found {config.dim} / {heads} = {config.head_dim}")
    if kv_heads is not None and heads % kv_heads:
        problems.append(f"n_heads must be a multiple of n_kv_heads; found n_heads {heads}, n_kv_heads {kv_heads}")
    if config.use_moe and config.num_experts_per_token > config.num_experts:
        found = f"{config.num_experts_per_token} of {config.num_experts}"
        problems.append(f"num_experts_per_token must be at most num_experts; found {found}")
    if config.rope_scaling_type is not None and not config.use_rope:
        problems.append(f"rope_scaling_type {config.rope_scaling_type!r} needs use_rope=True; found use_rope=False")
    return problems


def check_field_names(where: str, names: Mapping[str, Any]) -> None:
    """Raise ValueError unless every name is a field or an alias; the message names the nearest."""
    known = [field.name for field in fields(ForgeConfig)] + list(ALIASES)
    wrong = []
    for name in names:
        if name not in known:
            near = get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            wrong.append(f"{name!r} is no field (the nearest is {near!r})")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(f"{where}: " + "; ".join(wrong[:5]) + more)


def is_whole(value: Any) -> bool:
    """Whether it is a whole number and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Whether it is a whole number > 0."""
    return is_whole(value) and value > 0


def real(value: Any) -> float:
    """The number, or NaN, which is in no range."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else float("nan")
