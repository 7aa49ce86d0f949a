"""Which parameter a use of a stored tensor is: from names that survived an export, and from where its node stands.

Exporters fold transposes and casts into new tensors with new names (`onnx::MatMul_123`, `val_45`). What they leave is
the module of the node: as the node's own name (`/model/layers.0/self_attn/q_proj/MatMul`, TorchScript and GenAI) or
as notes on it (`pkg.torch.onnx.name_scopes`, dynamo). Known names are given as templates; no model is known here.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from converters.files import quote
from converters.onnx.graph import Expr, Graph, Shape
from converters.onnx.messages import Node
from converters.onnx.uses import Use

NUMBER = re.compile(r"(?<=\.)(\d+|\{\w+\})(?=\.|\Z)")
# what quantisers append to the name of a tensor
QUANTISED = re.compile(r"(_quantized|_Q\d+(G\d+)?|_q\d+|_DequantizeLinear|_transposed|_fp16|_dequantized)\Z")
FX_PARAMETER = re.compile(r"%p_(\w+)")
LAST = 9  # the rank of a guess
MOST_GUESSES = 500
LONGEST_NAME = 400
SCOPES, FX_NODE = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.fx_node"


class Templates:
    """The names that a model's parameters can have, with letters in braces for numbers."""

    def __init__(self, names: Iterable[str], prefix: str) -> None:
        self.prefix = prefix
        self.known = {NUMBER.sub("#", name) for name in names}
        flat = {name: re.escape(name.replace(".", "_")).replace(r"\#", r"(\d+)") for name in self.known}
        self.flat = [(re.compile(rf"(?:.*_)?{text}\Z"), name) for name, text in flat.items()]

    def match(self, name: str) -> str | None:
        """The longest end of a dotted name that is known; one without the usual prefix gets it."""
        parts = name.split(".") if len(name) < LONGEST_NAME else []
        for i in range(min(len(parts), 8)):
            rest = ".".join(parts[i:])
            for choice in (rest, self.prefix + rest):
                if NUMBER.sub("#", choice) in self.known:
                    return choice
        return None

    def match_flat(self, name: str) -> str | None:
        """The same for a name as dynamo writes it, with underscores for dots."""
        found = [(pattern.match(name), template) for pattern, template in self.flat if len(name) < LONGEST_NAME]
        fits = [(match, template) for match, template in found if match]
        if not fits:
            return None
        match, template = max(fits, key=lambda fit: len(fit[1]))
        numbers = iter(match.groups())
        return re.sub("#", lambda _: next(numbers), template)


@dataclass(frozen=True)
class Claim:
    """One tensor of a model, found. `own`: it is stored under the name of a parameter, so no folding changed it."""

    name: str
    expr: Expr
    matrix: bool
    own: bool
    rank: tuple[int, bool]


def claims(graph: Graph, found: Sequence[Use], templates: Templates) -> dict[str, Claim]:
    """The tensors of a model by name: of several claims to one name, the surest.

    Raises:
        ValueError: two different tensors claim the same name equally.
    """
    best: dict[str, Claim] = {}
    for use in found:
        claim = claim_of(graph, templates, use)
        other = best.get(claim.name) if claim else None
        if claim is None or (other and other.rank < claim.rank):
            continue
        if other and other.rank == claim.rank and claim.expr.leaves() != other.expr.leaves():
            both = " and ".join(quote(one.expr.main().leaf) for one in (other, claim))
            raise ValueError(f"{graph.path}: {both} both seem to be {quote(claim.name)}; expected one tensor")
        best[claim.name] = claim
    return best


def claim_of(graph: Graph, templates: Templates, use: Use) -> Claim | None:
    """What a use is: by its place in the model, by its own name, or by what the exporter noted.

    The place goes first: of tensors that are equal, some exporters keep one, under one of the names.
    """
    stored = use.expr.main().leaf
    expr, parameter = use.expr, templates.match(cleaned(stored))
    if expr.op == "number" and parameter is not None:
        expr = use.expr.main()  # a parameter and a number that the model adds to it
    noted = (name for name in FX_PARAMETER.findall(graph.note(use.node, FX_NODE)) if name.endswith(f"_{use.role}"))
    choices = (
        *(templates.match(f"{scope}.{use.role}") for scope in scopes(graph, use.node)),
        templates.match(cleaned(use.value)),
        parameter,
        *map(templates.match_flat, noted),
    )
    for rank, name in enumerate(choices):
        if name is not None:
            return Claim(name, expr, use.matrix, parameter is not None, (rank, not use.matrix))
    return None


def placed(graph: Graph, found: Sequence[Use], missing: Mapping[str, Shape]) -> Iterator[Claim]:
    """Tensors without a name of their own or their module's: the only one of its shape that a module around uses."""
    for name, shape in missing.items() if len(missing) < MOST_GUESSES else ():
        fits = [
            use for use in found if use.expr.shape == shape and any(inside(name, s) for s in scopes(graph, use.node))
        ]
        if len({use.expr.main().leaf for use in fits}) == 1:
            yield Claim(name, fits[0].expr, fits[0].matrix, False, (LAST, False))


def inside(name: str, scope: str) -> bool:
    """Whether a parameter is in a module, or in one inside it; the module has a number, as each layer's have."""
    parts = scope.split(".")
    ends = (".".join(parts[i:]) for i in range(len(parts)))
    return any(name.startswith(f"{end}.") and NUMBER.search(f".{end}") for end in ends)


def cleaned(name: str) -> str:
    """The name of a tensor without what quantisers append."""
    for _ in range(3):
        name = QUANTISED.sub("", name)
    return name


def scopes(graph: Graph, node: Node) -> Iterator[str]:
    """The modules that a node may belong to, dotted: what its name says, and what its notes say."""
    path = node.name.strip("/").split("/")
    if len(path) > 1:
        yield ".".join(path[:-1])
        if len(path) > 2:
            yield ".".join(path[:-2])
    noted = re.findall(r"'([^']*)'", graph.note(node, SCOPES))
    if len(noted) > 1:
        yield noted[-2]
