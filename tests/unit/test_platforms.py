"""Which of two ways is traced: on CPUs alone only theirs, unless programs are to be lowered for other platforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax import kernels
from forge_jax.kernels import platforms
from forge_jax.kernels.once import chosen


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ways that were traced, with kernels, whether there are any or not."""
    monkeypatch.setattr(platforms, "available", lambda: True)
    return []


def both(traced: list[str], x: jax.Array) -> jax.Array:
    def way(name: str, y: jax.Array) -> jax.Array:
        traced.append(name)
        return y

    return kernels.by_platform(x, cpu=lambda x: way("cpu", x + 1), default=lambda x: way("default", x * 2))


def test_only_the_way_of_cpus_is_traced_where_there_is_nothing_else(traced: list[str]):
    assert jax.jit(lambda x: both(traced, x))(3.0) == 4
    assert traced == ["cpu"]


def test_every_way_is_traced_for_other_platforms_and_programs_are_kept_apart(traced: list[str]):
    run = jax.jit(lambda x: both(traced, x))
    run(3.0)
    with kernels.everywhere(True):
        assert run(3.0) == 4
        text = run.trace(jnp.ones(4)).lower(lowering_platforms=("tpu",)).as_text()
    assert sorted(set(traced[1:])) == ["cpu", "default"]
    assert "stablehlo.multiply" in text
    assert "stablehlo.add" not in text


def test_other_devices_mean_both(traced: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platforms, "only_cpus", lambda: False)
    assert jax.jit(lambda x: both(traced, x))(3.0) == 4
    assert sorted(traced) == ["cpu", "default"]


@pytest.mark.parametrize(("asked", "alone"), [("", True), ("cpu", True), ("cpu,cuda", False)])
def test_cpus_that_come_before_others_are_not_alone(asked: str, alone: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platforms, "asked", lambda: asked.split(","))
    assert platforms.only_cpus() == alone
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not platforms.only_cpus()


@pytest.mark.parametrize("numbers", [[1.0, -2.0, 0.5], [jnp.nan, 1.0, jnp.inf], [jnp.nan] * 3, []])
def test_the_wall_without_kernels_changes_nothing(numbers: list[float]):
    x = jnp.asarray([numbers, numbers])
    np.testing.assert_array_equal(jax.jit(chosen)(x), x)
    np.testing.assert_array_equal(jax.vmap(chosen)(x), x)
