"""Which parameters of a model are packed, and how: what people ask for, before anything is computed.

Of themselves, the matrices of the layers get the scheme that was asked for; the embedding, the head and whatever else
stands outside of the layers get another, int8, because errors there go into every token. Routers, the mixing of streams
and maps to one number a head are small and decide much: they stay, unless a pattern names them. Norms, biases, filters
of convolutions and other tables always stay.
"""

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from forge_jax.params import Param, abstract, flatten
from forge_jax.quantization.packers import Packer, packer
from forge_jax.spec import ModelSpec

FINE = ("router", "router_mlp", "shared_gate", "streams")
"""Parts of a path that say that a matrix decides much."""


def packable(param: Param) -> bool:
    """Whether products sum over the rows of a parameter, or tokens are the numbers of its rows."""
    if param.fill is not None or len(param.shape) < 2:
        return False
    if not param.inputs:
        return param.axes[0] == "vocab"  # not a table of positions or hashes
    return len(param.shape) > param.stacked + param.inputs  # else a filter: it has inputs and no outputs


def fine(path: str, param: Param) -> bool:
    """Whether a packable parameter stays as it is unless it is named."""
    return any(part in FINE for part in path.split(".")) or param.axes[-1] in ("heads", "kv_heads")


def usual(path: str, param: Param, scheme: str, outside: str | None) -> str | None:
    """The scheme of a packable parameter that no pattern is about."""
    if fine(path, param):
        return None
    return scheme if path.startswith(("layers.", "shared.")) else outside


def names(path: str, param: Param, pattern: str) -> bool:
    """Whether a pattern is about a packable parameter; fine ones must be named by a last part without wildcards."""
    last = pattern.rpartition(".")[2]
    return fnmatchcase(path, pattern) and (not fine(path, param) or not set("*?[") & set(last))


def choose(
    spec: ModelSpec,
    scheme: str,
    *,
    policy: Mapping[str, str | None] | None = None,
    outside: str | None = "int8",
    fallback: str | None = None,
) -> dict[str, Packer]:
    """The packer of every parameter that is packed, by its path.

    Args:
        outside: the scheme of what stands outside of the layers, None to leave it.
        policy: patterns of paths, "embed", "layers.*.mlp.down", "layers.0.*" ("*" goes over dots), and the schemes of
            what they match, None to leave it; the first that matches decides.
        fallback: the scheme of rows that are no whole number of a scheme's blocks.

    Raises:
        ValueError: a scheme that there is not, a pattern that matches nothing that can be packed, or rows that are no
            whole number of blocks without a fallback that takes them.
    """
    described = {path: param for path, param in flatten(abstract(spec)) if packable(param)}
    policy = policy or {}
    for pattern in policy:
        check_pattern(pattern, described, (path for path, _ in flatten(abstract(spec))))
    chosen: dict[str, Packer] = {}
    misfits: list[str] = []
    for path, param in described.items():
        own = [to for pattern, to in policy.items() if names(path, param, pattern)]
        asked = own[0] if own else usual(path, param, scheme, outside)
        found = [packer(name) for name in (asked, fallback) if asked is not None and name is not None]
        fitting = [one for one in found if row_length(param) % one.block == 0]
        if fitting:
            chosen[path] = without_rounding(fitting[0]) if param.stacked else fitting[0]
        elif found:
            misfits.append(f"{path} of {row_length(param)}, blocks of {found[0].block} ({found[0].name})")
    if misfits:
        raise ValueError(
            f"quantize: {len(misfits)} parameters have rows that are no whole number of blocks: "
            f"{'; '.join(misfits[:5])}; give a fallback for them, such as fallback='int8', or a policy"
        )
    return chosen


def without_rounding(found: Packer) -> Packer:
    """For stacked matrices (experts): int8 for int8-dynamic. They are multiplied in several ways, depending on how many
    tokens there are, and not every way could round its inputs."""
    return packer("int8") if found.scheme.rounds else found


def row_length(param: Param) -> int:
    """How many numbers a row of a packed parameter has."""
    return param.fan_in if param.inputs else param.shape[-1]


def check_pattern(pattern: str, described: Mapping[str, Param], every: Iterable[str]) -> None:
    """Raise ValueError for a pattern that is about nothing that can be packed; the message names near paths."""
    if any(names(path, param, pattern) for path, param in described.items()):
        return
    paths = list(every)
    stays = [path for path in paths if fnmatchcase(path, pattern)]
    if stays:
        raise ValueError(
            f"quantize: {pattern!r} matches only what is not packed, such as {stays[0]}; norms, biases and filters "
            "stay as they are, routers and other small maps must be named ('layers.*.router')"
        )
    near = difflib.get_close_matches(pattern, paths, 3, 0.3)
    raise ValueError(f"quantize: {pattern!r} matches no parameter; near are {', '.join(near) or ', '.join(paths[:3])}")
