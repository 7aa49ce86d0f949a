"""An ONNX model, understood: its config to a spec, and the weights of its graph under HuggingFace names.

The counterpart of `checkpoint.understand`: what the graph holds is brought to the names and the layout that a
checkpoint has, so that the table of the family reads it with its usual strictness.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from converters import rules
from converters.architectures.family import Family
from converters.checkpoint import Checkpoint, account, interpret
from converters.composite import is_composite, text_config
from converters.onnx import genai
from converters.onnx.buffers import Buffers, idle
from converters.onnx.checks import check
from converters.onnx.config import config_of
from converters.onnx.flow import by_flow
from converters.onnx.graph import Graph, transposed
from converters.onnx.names import Claim, Templates, claims, placed
from converters.onnx.source import OnnxSource
from converters.onnx.uses import uses
from converters.onnx.view import Weight, Weights
from converters.packed.source import INPUTS_FIRST, INPUTS_FIRST_NAMES, said_of
from forge_jax.params import abstract, flatten
from forge_jax.spec import ModelSpec

Recovered = tuple[tuple[rules.Rule, ...], dict[str, Claim], bool]


def understand(path: Path, source: OnnxSource, allow: Iterable[str] = ()) -> Checkpoint:
    """Turn a config and an opened graph into a spec and concrete rules.

    Args:
        path: what errors name.
        source: the opened file.
        allow: config keys that may stay unread.

    Raises:
        FileNotFoundError: there is no config.
        ValueError: a config that is not understood, weights that are missing or left over, or buffers that contradict
            the config.
    """
    config = said_of(config_of(path, source))[1]  # how the weights are packed, the graph says
    if is_composite(config):
        config = text_config(config, str(path))
    family, spec = interpret(config, str(path), allow)
    table, found, built = recovered(source.graph, family, spec)
    check(source.graph, spec, built=built)
    if spec.tied and apart(table, found):
        config = {**config, "tie_word_embeddings": False}
        family, spec = interpret(config, str(path), allow)
    claims_and_offsets = with_offsets(found, table, spec)
    weights = [weight_of(claim, offset, flipped=inputs_first(claim, config)) for claim, offset in claims_and_offsets]
    used = {leaf for claim in found.values() for leaf in claim.expr.leaves()}
    rest = Buffers(source.graph, spec).unexplained(used)
    return account(path, Weights(source, weights, rest), config, family, spec, table)


def recovered(graph: Graph, family: Family, spec: ModelSpec) -> Recovered:
    """The tensors of a model by name, the table that these names are from, and whether that is the GenAI builder's.

    What claims a name that the model does not have must be without effect: the zeros and ones that some exporters
    put where a norm has no bias or no scale.

    Raises:
        ValueError: two tensors of one name.
    """
    found, own, builders = list(uses(graph)), family.table(spec), genai.rules(spec)

    def named(table: Iterable[rules.Rule], prefix: str) -> dict[str, Claim]:
        return claims(graph, found, Templates((rule.theirs for rule in table), prefix))

    table, claimed = own, named(own, family.prefix)
    built = len(named(builders, "")) > len(claimed)
    if built:  # of what other decoders do not have, it keeps the family's names
        table = (*builders, *own)
        claimed = named(table, "")
    instances = rules.instances(table, abstract(spec), claimed)
    wanted = {i.theirs: i.stored_shape for i in instances}
    missing = {name: shape for name, shape in wanted.items() if name not in claimed}
    for claim in placed(graph, found, missing):
        claimed[claim.name] = claim
    if any(name not in claimed for name in wanted):
        ends = rules.instances(table, abstract(replace(spec, tied=False)), claimed)
        claimed |= {claim.name: claim for claim in by_flow(graph, found, ends, claimed)}
    for name in set(claimed) - set(wanted):
        if idle(graph, claimed[name].expr.main().leaf):
            del claimed[name]
    if built:  # the builder's names are its own: it has added what it adds
        claimed = {name: replace(claim, own=False) for name, claim in claimed.items()}
    return table, claimed, built


def inputs_first(claim: Claim, config: Mapping[str, Any]) -> bool:
    """Whether the checkpoints of a family have a matrix as [in, out], which a few do."""
    return claim.matrix and config.get("model_type") in INPUTS_FIRST and bool(INPUTS_FIRST_NAMES.search(claim.name))


def with_offsets(
    found: Mapping[str, Claim], table: Iterable[rules.Rule], spec: ModelSpec
) -> Iterable[tuple[Claim, float]]:
    """Every tensor, with what to subtract: a norm's offset, where an exporter has folded it into the scale."""
    described = abstract(spec)
    offsets = {path: 1.0 - param.fill for path, param in flatten(described) if path.endswith(".scale")}
    asked = {i.theirs: i.paths[0] for i in rules.instances(list(table), described, found)}
    for name, claim in found.items():
        yield claim, 0.0 if claim.own else offsets.get(asked.get(name, ""), 0.0)


def weight_of(claim: Claim, offset: float, *, flipped: bool) -> Weight:
    """A tensor of the model, made of stored ones; `flipped`: a matrix as [in, out]."""
    return Weight(claim.name, transposed(claim.expr) if flipped else claim.expr, offset, int(flipped))


def apart(table: Iterable[rules.Rule], found: Mapping[str, Claim]) -> bool:
    """Whether a head and an embedding that were one are quantised each in its own way, so that they differ now."""
    ends = [
        [found[rule.theirs] for rule in table if rule.ours == end and rule.theirs in found] for end in ("head", "embed")
    ]
    if not all(ends):
        return False
    head, embed = (claims[0].expr for claims in ends)
    quantised = len(head.leaves()) > 1 or len(embed.leaves()) > 1
    return quantised and head.main().leaf != embed.main().leaf
