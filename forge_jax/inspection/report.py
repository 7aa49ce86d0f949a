"""An inspection as a page of text. Knows how facts look, and nothing of how they are found."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forge_jax.inspection.facts import Inspection, Layers, Memory, Parameters, RopePlan, TokenizerFacts

LONG = 6  # numbers of a list that are shown


def page(facts: "Inspection") -> str:
    """Everything, one topic after another."""
    lines = [
        facts.name,
        row("format", facts.format),
        row("architecture", f"{facts.model_type} (converters/architectures/{facts.family}.py)"),
        row("model", listed(facts.model)),
        *parameters(facts.parameters),
        "",
        f"{'stored as':<16}{'tensors':>9}{'numbers':>18}{'bytes':>18}",
    ]
    for kind in facts.storage:
        lines.append(f"  {kind.type:<14}{kind.tensors:>9,}{kind.numbers:>18,}{kind.nbytes:>18,}")
    lines += ["", f"{sum(len(run.blocks) * run.repeats for run in facts.layers)} layers"]
    for run in facts.layers:
        lines += layers(run)
    for i, rope in enumerate(facts.ropes, 1):
        lines += ["", *rotary(i, rope)]
    lines += ["", row("tokenizer", tokenizer(facts.tokenizer)), "", *memory(facts.memory)]
    return "\n".join(lines)


def row(title: str, text: str) -> str:
    """A title and what it is about."""
    return f"{title:<16}{text}"


def listed(settings: Mapping[str, Any]) -> str:
    """Settings in one line: "heads 9, kv_heads 3, gated"."""
    return ", ".join(key if value is True else f"{key} {shown(value)}" for key, value in settings.items())


def shown(value: Any) -> str:
    """One value; long lists by their length and ends."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) > LONG:
            return f"[{shown(value[0])}, {shown(value[1])}, ... {shown(value[-1])}] ({len(value)} numbers)"
        return f"[{', '.join(map(shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def parameters(counted: "Parameters") -> Iterator[str]:
    """Totals, and each layer's if they differ."""
    yield row("parameters", f"{counted.total:,}")
    yield row("  embedding", f"{counted.embedding:,}")
    yield row("  head", f"{counted.head:,}" if counted.head else "the embedding")
    kinds = [(size, len(list(run))) for size, run in groupby(counted.layers)]
    yield row("  layers", " + ".join(f"{number} x {size:,}" for size, number in kinds))
    yield row("  other", f"{counted.other:,}")


def layers(run: "Layers") -> Iterator[str]:
    """A run of layers; equal neighbours in its period are told once."""
    last = run.first + run.repeats * len(run.blocks) - 1
    place = f"layer {run.first}" if last == run.first else f"layers {run.first} to {last}"
    times = f", {run.repeats} times over" if run.repeats > 1 and len(run.blocks) > 1 else ""
    yield f"  {place}{times}:"
    for block, same in groupby(run.blocks):
        number = len(list(same))
        if len(run.blocks) > 1:
            yield f"    {number} x"
        for line in block:
            yield f"      {line}"


def rotary(number: int, rope: "RopePlan") -> Iterator[str]:
    """One kind of rotary positions."""
    yield row(f"rope #{number}", f"{rope.kind}: {listed({k: v for k, v in rope.settings.items() if v is not False})}")
    yield row("  layers", ranges(rope.layers))
    yield row("  attention", f"cos and sin times {rope.attention_factor:g}")
    still = f"; {rope.still} pairs stand still" if rope.still else ""
    yield row("  wavelengths", f"{rope.shortest:,.2f} to {rope.longest:,.0f} tokens{still}")


def ranges(numbers: Sequence[int]) -> str:
    """Numbers in order as "0 to 4, 6, 8 to 9"."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def tokenizer(facts: "TokenizerFacts | None") -> str:
    """The tokenizer in one line."""
    if facts is None:
        return "none"
    ids = {"bos": facts.bos, "eos": list(facts.eos), "pad": facts.pad, "unk": facts.unk}
    templates = ", ".join(facts.chat_templates)
    return f"{facts.vocab_size:,} tokens, {listed(ids)}, chat template: {templates or 'none'}"


def memory(counted: "Memory") -> Iterator[str]:
    """What running takes."""
    yield f"memory for {counted.batch} x {counted.context:,} tokens"
    yield row("  weights", f"{amount(counted.weights)}, {counted.dtype}")
    slots = ", ".join(f"{number:,} slots ({key})" for key, number in counted.slots.items())
    yield row("  cache", f"{amount(counted.cache)}, {counted.cache_dtype}, {slots}")
    yield row("  logits", amount(counted.logits))
    yield row("  total", f"{amount(counted.total)}, and intermediate results")


def amount(nbytes: int) -> str:
    """Bytes for people."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes} bytes"
