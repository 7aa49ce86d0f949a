"""The default model, SmolLM2-135M-Instruct: reference ids and perplexity, the memory of loading and of a step.

The file is looked for where `forge_jax.load("smollm2")` would find it without a download, or at $FORGE_JAX_SMOLLM2.
References: transformers in float32 on the same weights, greedy.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax import Session, forward, inputs, loading, text
from forge_jax.generation.programs import LOCAL
from forge_jax.hub import resolve
from forge_jax.loading import Model
from forge_jax.ops import Context
from forge_jax.params import flatten
from forge_jax.tensor import unpacked

PLAIN = "The capital of France is"
PLAIN_IDS = [504, 3575, 282, 4649, 314]
PLAIN_OUT = [7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33, 40, 29, 32, 33, 29, 34, 34, 216]
PLAIN_LOGITS = [1.61363, -11.87189, -7.94445, -9.34692, -10.08523, -10.81283, -3.94151, -10.80558]

CHAT = "What is the capital of France?"
CHAT_IDS = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182]
CHAT_IDS += [2, 198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
CHAT_OUT = [504, 3575, 282, 4649, 314, 7042, 30, 2]

COUNT = "1, 2, 3, 4, 5, 6, 7, 8, 9,"
COUNT_OUT = [216, 33, 32, 28, 216, 33, 33, 28, 216, 33, 34, 28, 216, 33, 35, 28, 216, 33, 36, 28]

WINDOW = 512
NLL = [3.0433595661081214, 3.5247375129953524, 3.495975262964775, 3.538381916202911, 3.3983159074578033]
NLL += [3.210840990398728, 3.491624208812378, 3.600759129234956, 3.8830721681598583, 3.9471896595217713]
"""Mean negative log-likelihood in nats of the first windows of the text."""

PARAMETERS = 134_515_008
EMBEDDING = 49_152 * 576


@pytest.fixture(scope="module")
def path() -> Path:
    if given := os.environ.get("FORGE_JAX_SMOLLM2"):
        return Path(given)
    try:
        return resolve("smollm2", offline=True, progress=False)
    except FileNotFoundError as error:
        pytest.skip(f"the default model is not on this machine: {error}")


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return loading.load(path, dtype="float32", progress=False)


def ids(model: Model, prompt: str | list[dict[str, str]], count: int) -> list[int]:
    """The greedy continuation."""
    replies, _ = text.complete(model, [prompt], max_new_tokens=count)
    return list(replies[0].ids)


def test_what_it_is(model: Model):
    assert sum(leaf.size for _, leaf in flatten(model.params)) == PARAMETERS
    assert sum(leaf.nbytes for _, leaf in flatten(model.params)) < 100e6  # packed, as in the file
    assert (len(model.spec.layers), model.spec.dim, model.spec.max_seq_len, model.spec.tied) == (30, 576, 8192, True)
    assert model.spec.vocab_size * model.spec.dim == EMBEDDING


def test_a_plain_prompt(model: Model):
    assert text.encode(model, PLAIN) == PLAIN_IDS
    assert ids(model, PLAIN, 20) == PLAIN_OUT


def test_the_first_logits(model: Model):
    logits, _ = LOCAL.forward(model.spec, model.params, inputs(jnp.asarray([PLAIN_IDS])))
    np.testing.assert_allclose(logits[0, -1, : len(PLAIN_LOGITS)], PLAIN_LOGITS, atol=1e-4)  # given to 5 decimals


def test_a_chat(model: Model):
    messages = [{"role": "user", "content": CHAT}]
    assert text.encode(model, messages) == CHAT_IDS
    assert ids(model, messages, 30) == CHAT_OUT  # ends by itself
    replies, _ = text.complete(model, [messages], max_new_tokens=30)
    assert (replies[0].text, replies[0].finish_reason) == ("The capital of France is Paris.", "stop")


def test_counting_in_a_batch_with_another(model: Model):
    replies, _ = text.complete(model, [COUNT, PLAIN], max_new_tokens=20)
    assert [list(reply.ids) for reply in replies] == [COUNT_OUT, PLAIN_OUT]
    assert COUNT + replies[0].text == "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,"


@pytest.mark.slow
def test_counting_in_bfloat16(path: Path):
    assert ids(loading.load(path, dtype="bfloat16", progress=False), COUNT, 20) == COUNT_OUT


@pytest.mark.slow
def test_perplexity(model: Model, shared: Path):
    assert model.tokenizer is not None
    tokens = model.tokenizer.encode((shared / "text" / "wiki.test.head.raw").read_text(), add_special=False)

    @jax.jit
    def nll(params, row):
        logits, _ = forward(model.spec, params, inputs(row[None]))
        chosen = jnp.take_along_axis(logits[0, :-1], row[1:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(logits[0, :-1], axis=1) - chosen).mean()

    rows = np.array(tokens[: len(NLL) * WINDOW], np.int32).reshape(len(NLL), WINDOW)
    np.testing.assert_allclose([float(nll(model.params, row)) for row in rows], NLL, atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------------------ memory
STATUS = Path("/proc/self/status")
PEAK = f"""
import sys
from forge_jax import loading
model = loading.load(sys.argv[1], dtype=sys.argv[2], progress=False)
print(next(line for line in open({str(STATUS)!r}) if line.startswith("VmHWM:")).split()[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="ru_maxrss would be that of pytest, which the new process begins as")
@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_the_peak_of_loading(path: Path, dtype: str, width: int):
    """Whole process, Python and JAX included: the weights in the target dtype + 400 MB."""
    command = [sys.executable, "-c", PEAK, str(path), dtype]
    root = str(Path(__file__).parents[2])
    out = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": root})
    assert int(out.stdout) * 1024 < PARAMETERS * width + 400e6


@pytest.mark.parametrize("packed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_step_makes_no_copy_of_weights(model: Model, packed: bool):
    """The tied head is the embedding itself, read where it lies, and packed weights are opened one by one.

    (In bfloat16, XLA for CPUs widens every weight.)
    """
    params, held = (model.params, 100e6) if packed else (unpacked(model.params), 4 * PARAMETERS)
    session = Session(model.spec, params, [[1, 2, 3]], max_new_tokens=4)
    step = session.programs.advance.lower(  # pyright: ignore[reportFunctionMemberAccess]
        model.spec, session.plan, params, session.values, session.state, np.int32(1), Context()
    )
    used = step.compile().memory_analysis()
    assert used.temp_size_in_bytes < 4 * EMBEDDING / 20
    assert used.argument_size_in_bytes < held + 20e6  # the weights once, and the cache
    assert used.output_size_in_bytes - used.alias_size_in_bytes < 1e6  # the cache is updated in place
