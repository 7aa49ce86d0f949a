"""What `forge-jax doctor` tells, and the limits that benchmarks measure against."""

import json
import os
import platform

import jax
import jaxlib
import pytest

from forge_jax import checkup, kernels, limits, machine
from forge_jax.cli import main


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on arrays that take no time."""
    monkeypatch.setattr(limits, "LARGEST", 512)
    monkeypatch.setattr(machine, "memory", lambda: (1 << 30, 1 << 20))


def test_facts_are_those_of_this_process(capsys: pytest.CaptureFixture[str], small: None):
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert facts["machine"]["memory"] == 1 << 30
    assert facts["versions"]["python"] == platform.python_version()
    assert (facts["versions"]["jax"], facts["versions"]["jaxlib"]) == (jax.__version__, jaxlib.__version__)
    assert [each["device"] for each in facts["devices"]] == [str(each) for each in jax.devices()]
    assert facts["kernels"] == str(kernels.status())
    assert facts["pallas"] == "in Pallas: off (FORGE_JAX_PALLAS is not set)"
    assert facts["limits"]["copy"] > 0
    assert set(facts["limits"]["products"]) == {"float32", "bfloat16"}


def test_what_is_missing_comes_with_the_way_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checkup, "OPTIONAL", (("no-such-package", "nothing", "forge-jax[nothing]"),))
    monkeypatch.setenv("FORGE_JAX_CACHE", "/nowhere/at/all")
    assert main(["doctor", "--no-measure"]) == 0
    out = capsys.readouterr().out
    assert 'no-such-package (nothing): not installed: pip install "forge-jax[nothing]"' in out
    assert "forge-jax: /nowhere/at/all, 0.0 MB" in out
    assert "compiled programs: none" in out  # the tests switch them off
    assert "limits" not in out


@pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="read from /proc")
def test_the_machine_is_what_the_system_says():
    total, free = machine.memory()
    assert total is not None
    assert free is not None
    assert 0 < free <= total <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.processor()
    assert set(machine.features()) & {"sse2", "asimd", "fp"}


def test_the_limit_is_the_slower_of_memory_and_arithmetic():
    limit = limits.Limits(copy=100.0, products={"float32": 1000.0})
    assert limit.seconds(50) == 0.5
    assert limit.seconds(50, 1000) == 1.0
