"""Configs of released models, as data: each must translate to the spec that lies beside it, and have its size.

`configs/hf/<name>.json` is a config.json as it was published. `configs/forge/<name>.json` holds the number of
parameters that its publisher counts and what the spec is, runs of equal layers once. After a wanted change:

    python tests/architectures/test_configs.py
"""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from converters.architectures import families, find
from converters.take import Take
from forge_jax.params import count
from forge_jax.spec import ModelSpec, segments

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in (CONFIGS / "hf").glob("*.json"))


def describe(value: Any) -> Any:
    """A value of a spec as JSON: of a dataclass its name and the fields that are not at their default."""
    if isinstance(value, ModelSpec):
        runs = [{"times": run.repeats, "layers": describe(run.period)} for run in segments(value.layers)]
        return {key: part for key, part in told(value).items() if key != "layers"} | {"runs": runs}
    if is_dataclass(value):
        return {type(value).__name__: told(value)}
    return [describe(part) for part in value] if isinstance(value, tuple) else value


def told(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not at their default."""
    return {
        field.name: describe(getattr(value, field.name))
        for field in fields(value)
        if getattr(value, field.name) != field.default
    }


def translate(name: str) -> ModelSpec:
    """The spec of a published config."""
    config = json.loads((CONFIGS / "hf" / f"{name}.json").read_text())
    take = Take(config, name)
    spec = find(config["model_type"], name).config(take)
    take.done()
    return spec


def test_published_configs_are_of_known_families() -> None:
    found = {json.loads((CONFIGS / "hf" / f"{name}.json").read_text())["model_type"] for name in NAMES}
    assert found <= set(families())
    assert len(found) >= 25


def test_layers_by_number_with_and_without_a_zero_in_front() -> None:
    """transformers writes "05" where there are more than ten layers."""
    wide = {
        "model_type": "gemma4_text",
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 12,
        "hidden_size": 16,
    }

    def sizes(*numbers: str) -> list[int]:
        layers = {"per_layer_config": {number: {"head_dim": 512} for number in numbers}}
        spec = find("gemma4_text", "here").config(Take(wide | layers, "here"))
        return [block.branches[0].op.head_dim for block in spec.layers]

    assert sizes("05", "11") == sizes("5", "11") == [256] * 5 + [512] + [256] * 5 + [512]
    with pytest.raises(ValueError, match="per_layer_config has a layer .*12.*; expected numbers below 12"):
        sizes("12")


@pytest.mark.parametrize("name", NAMES)
def test_config_translates(name: str) -> None:
    expected = json.loads((CONFIGS / "forge" / f"{name}.json").read_text())
    spec = translate(name)
    assert count(spec) == expected["parameters"]
    assert json.loads(json.dumps(describe(spec))) == expected["spec"]


if __name__ == "__main__":
    for name in NAMES:
        spec = translate(name)
        text = json.dumps({"parameters": count(spec), "spec": describe(spec)}, indent=2)
        (CONFIGS / "forge" / f"{name}.json").write_text(text + "\n")
        print(f"{count(spec):>14,}  {name}")
