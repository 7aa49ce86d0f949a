"""llama.cpp's mixes as data: what each stores most matrices as, and which tensors differ where.

Facts of its quantiser (src/llama-quant.cpp). Most matrices have the type that a mix is called after; those that the
output depends on most have a finer one: the head, attention's values, the feed-forward's way down in the layers where
errors grow most.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Facts:
    """What a mix asks about a model.

    `arch` is general.architecture, `groups` how many heads share keys and values, `tied` whether the embedding is the
    head too, `weighed` whether there is an importance matrix.
    """

    arch: str
    layers: int
    experts: int
    groups: int
    tied: bool
    weighed: bool = False


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: it is number `index` of `count` with its part in the model."""

    model: Facts
    index: int
    count: int


When = Callable[[Place], bool]
Rules = tuple[tuple[When, str], ...]
"""Conditions and the types that they give; the first that holds decides, and none leaves the mix's own type."""


def always(place: Place) -> bool:
    """Everywhere."""
    return True


def eighth(place: Place) -> bool:
    """In the first eighth of the layers."""
    return place.index < place.count // 8


def sixteenth(place: Place) -> bool:
    """In the first sixteenth of the layers."""
    return place.index < place.count // 16


def first_two(place: Place) -> bool:
    """In the first two layers."""
    return place.index < 2


def first_four(place: Place) -> bool:
    """In the first four layers."""
    return place.index < 4


def spread(place: Place) -> bool:
    """In the first and the last eighth of the layers, and in each third of those between (use_more_bits)."""
    i, n = place.index, place.count
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def middle(place: Place) -> bool:
    """Neither in the first nor in the last eighth."""
    return place.count // 8 <= place.index < 7 * place.count // 8


def grouped(place: Place) -> bool:
    """At least four heads share keys and values, so that those are small."""
    return place.model.groups >= 4


def shared(place: Place) -> bool:
    """The same, or there are at least four experts."""
    return grouped(place) or place.model.experts >= 4


def eight(place: Place) -> bool:
    """There are exactly eight experts, as in Mixtral: attention is a small part."""
    return place.model.experts == 8


def falcon(place: Place) -> bool:
    """In Falcon, which has exceptions of its own."""
    return place.model.arch == "falcon"


def weighed(place: Place) -> bool:
    """There is an importance matrix."""
    return place.model.weighed


def both(*conditions: When) -> When:
    """All of them hold."""
    return lambda place: all(condition(place) for condition in conditions)


def without(condition: When) -> When:
    """It does not hold."""
    return lambda place: not condition(place)


EIGHT: Rules = ((eight, "Q8_0"),)
EIGHT_OUT: Rules = ((eight, "Q5_K"),)


@dataclass(frozen=True)
class Mix:
    """One file type: its general.file_type, the type of most matrices, and what is different where.

    `low` mixes of about two bits count tensors where the others take the number of the layer.
    `parts` has rules by the part of the model: v (also q, k and v in one), k, q, o, down, gate, up.
    """

    id: int
    base: str
    head: str = "Q6_K"
    embedding: str | None = None
    experts: str | None = None
    low: bool = False
    parts: Mapping[str, Rules] = field(default_factory=dict)


def _mix(id: int, base: str, head: str = "Q6_K", embedding: str | None = None, **parts: Rules) -> Mix:
    """A mix whose keys and values are finer in models of eight experts."""
    v, k = EIGHT + parts.pop("v", ()), EIGHT + parts.pop("k", ())
    return Mix(id, base, head, embedding, parts=MappingProxyType({"v": v, "k": k, **parts}))


def _low(id: int, base: str, fine: str, embedding: str, o: Rules = ()) -> Mix:
    """A mix of about two bits or less: `fine` where it matters most."""
    parts = {
        "v": ((shared, "Q4_K"), (always, fine)),
        "k": ((eight, "Q4_K"),),
        "o": EIGHT_OUT + o,
        "down": ((eighth, fine),),
    }
    return Mix(id, base, "Q5_K", embedding, low=True, parts=MappingProxyType(parts))


def _finer_down(to: str) -> Rules:
    return ((both(weighed, eighth), to),)


MIXES: Mapping[str, Mix] = MappingProxyType(
    {
        "F32": Mix(0, "F32", "F32"),
        "F16": Mix(1, "F16", "F16"),
        "BF16": Mix(32, "BF16", "BF16"),
        "Q8_0": _mix(7, "Q8_0", "Q8_0"),
        "Q4_0": _mix(2, "Q4_0", down=_finer_down("Q4_1")),
        "Q4_1": _mix(3, "Q4_1"),
        "Q5_0": _mix(8, "Q5_0", down=_finer_down("Q5_1")),
        "Q5_1": _mix(9, "Q5_1"),
        "Q2_K": _mix(
            10,
            "Q2_K",
            v=((grouped, "Q4_K"), (always, "Q3_K")),
            o=(*EIGHT_OUT, (without(falcon), "Q3_K")),
            down=((always, "Q3_K"),),
        ),
        "Q2_K_S": _mix(21, "Q2_K", v=((grouped, "Q4_K"),), down=((eighth, "Q4_K"),)),
        "Q3_K_S": _mix(11, "Q3_K", o=EIGHT_OUT),
        "Q3_K_M": _mix(
            12,
            "Q3_K",
            v=((first_two, "Q5_K"), (always, "Q4_K")),
            o=(*EIGHT_OUT, (without(falcon), "Q4_K")),
            down=((sixteenth, "Q5_K"), (without(falcon), "Q4_K"), (spread, "Q4_K")),
        ),
        "Q3_K_L": _mix(
            13,
            "Q3_K",
            v=((always, "Q5_K"),),
            o=((eight, "Q3_K"), (falcon, "Q4_K"), (always, "Q5_K")),
            down=((falcon, "Q4_K"), (always, "Q5_K")),
        ),
        "Q4_K_S": _mix(
            14, "Q4_K", v=((first_four, "Q5_K"),), o=EIGHT_OUT, down=((both(eighth, without(falcon)), "Q5_K"),)
        ),
        "Q4_K_M": _mix(
            15,
            "Q4_K",
            v=((spread, "Q6_K"),),
            o=EIGHT_OUT,
            down=(
                (both(falcon, sixteenth), "Q6_K"),
                (both(falcon, spread), "Q5_K"),
                (both(spread, without(falcon)), "Q6_K"),
            ),
        ),
        "Q5_K_S": _mix(16, "Q5_K"),
        "Q5_K_M": _mix(17, "Q5_K", v=((spread, "Q6_K"),), down=((spread, "Q6_K"),)),
        "Q6_K": _mix(18, "Q6_K"),
        "IQ1_S": _low(24, "IQ1_S", "Q2_K", "Q2_K", ((always, "IQ2_XXS"),)),
        "IQ1_M": _low(31, "IQ1_M", "Q2_K", "Q2_K", ((always, "IQ2_XXS"),)),
        "IQ2_XXS": _low(19, "IQ2_XXS", "Q2_K", "Q2_K"),
        "IQ2_XS": _low(20, "IQ2_XS", "Q2_K", "Q2_K"),
        "IQ2_S": _low(28, "IQ2_XS", "IQ3_S", "IQ3_S", ((always, "IQ3_S"),)),
        "IQ2_M": _low(29, "IQ2_S", "IQ3_S", "IQ3_S", ((always, "IQ3_S"),)),
        "IQ3_XXS": _mix(
            23,
            "IQ3_XXS",
            "Q5_K",
            "IQ3_S",
            v=((grouped, "Q4_K"), (without(weighed), "IQ3_S")),
            k=((always, "IQ2_S"),),
            q=((always, "IQ2_S"),),
            o=(*EIGHT_OUT, (without(falcon), "IQ3_S")),
            down=((weighed, "IQ3_XXS"), (eighth, "Q4_K"), (always, "Q3_K")),
        ),
        "IQ3_XS": _mix(
            22,
            "IQ3_S",
            v=((grouped, "Q4_K"),),
            k=((always, "IQ3_XXS"),),
            q=((always, "IQ3_XXS"),),
            o=EIGHT_OUT,
            gate=((middle, "IQ3_XXS"),),
            up=((middle, "IQ3_XXS"),),
        ),
        "IQ3_S": _mix(26, "IQ3_S", v=((grouped, "Q4_K"),), o=EIGHT_OUT),
        "IQ3_M": _mix(
            27,
            "IQ3_S",
            v=((always, "Q4_K"),),
            o=(*EIGHT_OUT, (without(falcon), "Q4_K")),
            down=((eighth, "Q4_K"), (both(eight, spread), "Q4_K")),
        ),
        "IQ4_NL": _mix(
            25, "IQ4_NL", v=((grouped, "Q5_K"),), o=EIGHT_OUT, down=((both(eighth, without(weighed)), "Q5_K"),)
        ),
        "IQ4_XS": _mix(
            30, "IQ4_XS", v=((grouped, "Q5_K"),), o=EIGHT_OUT, down=((both(eighth, without(weighed)), "Q5_K"),)
        ),
        "TQ1_0": _mix(36, "TQ1_0", embedding="Q4_K"),
        "TQ2_0": _mix(37, "TQ2_0", embedding="Q4_K"),
        "Q1_0": _mix(40, "Q1_0"),
        "Q2_0": _mix(41, "Q2_0", embedding="Q4_K"),
        "MXFP4_MOE": Mix(38, "Q8_0", "Q8_0", experts="MXFP4"),
    }
)
"""Every file type by its name in llama.cpp, without LLAMA_FTYPE_MOSTLY_."""
