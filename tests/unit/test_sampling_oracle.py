"""Every logits processor, and their chain, against the classes of transformers."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import GenerationConfig  # noqa: E402
from transformers.generation import GenerationMixin, logits_process  # noqa: E402

from forge_jax.sampling import SamplingParams, build, distribution, process, start_history  # noqa: E402
from forge_jax.sampling.processors import TRUNCATIONS, keep_min_p, keep_top_k, keep_top_p, keep_typical  # noqa: E402
from forge_jax.sampling.sampler import truncate  # noqa: E402

pytestmark = pytest.mark.torch

V = 97
PROMPTS = np.tile(np.random.default_rng(1).integers(0, V, size=(6, 9)).astype(np.int32), (6, 1))
B = len(PROMPTS)


def hard_logits() -> np.ndarray:
    """Six rows each of random logits; with ties; peaked; nearly flat; huge; with banned tokens."""
    plain = np.random.default_rng(2).normal(size=(6, V)).astype(np.float32) * 4
    banned = plain.copy()
    banned[:, ::3] = -np.inf
    return np.concatenate([plain, np.round(plain), plain * 20, plain / 100, plain * 1e30, banned])


LOGITS = hard_logits()
begin = jax.jit(start_history, static_argnums=(0, 3))


def theirs(processor, logits: np.ndarray) -> np.ndarray:
    return processor(torch.tensor(PROMPTS, dtype=torch.long), torch.tensor(logits)).numpy()


def ours(params: SamplingParams, logits: np.ndarray, stop_ids=(), generated: int = 4) -> np.ndarray:
    """The processed logits, when the last `generated` of the nine tokens count as output."""
    plan, values = build(params, B, V, stop_ids)
    prompt = jnp.full(B, PROMPTS.shape[1], jnp.int32)
    history = begin(plan, jnp.asarray(PROMPTS), prompt, V)
    history = type(history)(history.tokens_BS, prompt, prompt - generated, history.seen_BV, history.counts_BV)
    return np.asarray(run_chain(plan, values, jnp.asarray(logits), history))


@partial(jax.jit, static_argnums=0)
def run_chain(plan, values, logits, history):
    return truncate(plan, values, process(plan, values, logits, history))


def close(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------------------------ processors
@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_repetition_penalty(penalty: float):
    params = SamplingParams(repetition_penalty=penalty)
    close(ours(params, LOGITS), theirs(logits_process.RepetitionPenaltyLogitsProcessor(penalty), LOGITS))


def test_logit_bias():
    bias = {3: 2.5, 50: -7.0, 96: -np.inf}
    oracle = logits_process.SequenceBiasLogitsProcessor({(token,): float(value) for token, value in bias.items()})
    close(ours(SamplingParams(logit_bias=bias), LOGITS), theirs(oracle, LOGITS))


def test_bad_words():
    words = [[5], [int(PROMPTS[0, -1]), 7], PROMPTS[1, -3:].tolist() + [8], [*PROMPTS[2].tolist(), 9], [1, 2, 3]]
    words += [[0, *PROMPTS[3].tolist(), 10], [96, 11]]  # longer than the context; no match
    close(
        ours(SamplingParams(bad_words=words), LOGITS), theirs(logits_process.NoBadWordsLogitsProcessor(words), LOGITS)
    )


@pytest.mark.parametrize("minimum", [0, 4, 5])
def test_min_tokens(minimum: int):
    oracle = logits_process.MinNewTokensLengthLogitsProcessor(5, minimum, [3, 60])
    close(ours(SamplingParams(min_tokens=minimum), LOGITS, stop_ids=[3, 60]), theirs(oracle, LOGITS))


# ------------------------------------------------------------------------------------------------ truncations
@pytest.mark.parametrize("k", [1, 5, 96, 200])
def test_top_k(k: int):
    """Where the k-th value is tied, transformers keeps every equal one; here k stay, those of the lowest ids."""
    got, expected = ours(SamplingParams(top_k=k), LOGITS), theirs(logits_process.TopKLogitsWarper(k), LOGITS)
    for row, (a, b) in enumerate(zip(got, expected, strict=True)):
        if np.isfinite(b).sum() <= k:
            close(a, b)
        else:
            order = np.argsort(-LOGITS[row], kind="stable")[:k]
            assert sorted(order) == np.flatnonzero(np.isfinite(a)).tolist()
            assert a[np.isfinite(a)].tolist() == LOGITS[row][np.isfinite(a)].tolist()


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_top_p(p: float):
    """The same values stay; of equal ones, which transformers chooses by the order of its sort, the lowest ids."""
    got, expected = ours(SamplingParams(top_p=p), LOGITS), theirs(logits_process.TopPLogitsWarper(p), LOGITS)
    close(np.sort(got, axis=1), np.sort(expected, axis=1))
    order = np.argsort(-LOGITS, axis=1, kind="stable")
    kept = np.isfinite(np.take_along_axis(got, order, axis=1))
    assert (np.diff(kept.astype(int), axis=1) <= 0).all()


@pytest.mark.parametrize("p", [0.01, 0.3, 1.0])
def test_min_p(p: float):
    close(ours(SamplingParams(min_p=p), LOGITS), theirs(logits_process.MinPLogitsWarper(p), LOGITS))


@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
def test_typical_p(p: float):
    close(ours(SamplingParams(typical_p=p), LOGITS), theirs(logits_process.TypicalLogitsWarper(p), LOGITS))


# ------------------------------------------------------------------------------------------------ the chain
def their_chain(params: SamplingParams, stop_ids: list[int]):
    """The list that `generate` of transformers builds for the same options."""
    config = GenerationConfig(
        do_sample=True,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p or None,
        typical_p=params.typical_p,
        repetition_penalty=params.repetition_penalty,
        sequence_bias=[[[token], value] for token, value in params.bias_pairs] or None,
        bad_words_ids=[list(word) for word in params.bad_words] or None,
        min_new_tokens=params.min_tokens or None,
        num_beams=1,
    )
    config._eos_token_tensor = torch.tensor(stop_ids)
    model = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False))
    model._merge_criteria_processor_list = lambda ours, custom: ours
    return GenerationMixin._get_logits_processor(model, config, input_ids_seq_length=5, device="cpu")


@pytest.mark.parametrize("seed", range(8))
def test_the_chain_is_that_of_generate(seed: int):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(B, V)) * 5).astype(np.float32)
    params = SamplingParams(
        temperature=float(rng.uniform(0.4, 2.0)),
        top_k=int(rng.integers(3, 40)),
        top_p=float(rng.uniform(0.5, 0.98)),
        min_p=float(rng.uniform(0.001, 0.1)),
        typical_p=float(rng.uniform(0.3, 0.9)),
        repetition_penalty=float(rng.uniform(0.8, 1.6)),
        logit_bias={int(token): float(rng.normal() * 5) for token in rng.integers(0, V, size=4)},
        bad_words=[[int(PROMPTS[0, -1]), int(np.argmax(logits[0]))], [int(np.argmax(logits[1]))]],
        min_tokens=5,
    )
    stop_ids = [int(np.argmax(logits[2])), 2]
    chain = their_chain(params, stop_ids)
    assert [type(step).__name__ for step in chain] == [
        "SequenceBiasLogitsProcessor",
        "RepetitionPenaltyLogitsProcessor",
        "NoBadWordsLogitsProcessor",
        "MinNewTokensLengthLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "MinPLogitsWarper",
        "TypicalLogitsWarper",
    ]
    expected = torch.tensor(theirs(chain, logits)).softmax(dim=1).numpy()
    plan, values = build(params, B, V, stop_ids)
    prompt = jnp.full(B, 9, jnp.int32)
    history = begin(plan, jnp.asarray(PROMPTS), prompt, V)
    history = type(history)(history.tokens_BS, prompt, prompt - 4, history.seen_BV, history.counts_BV)
    got = np.asarray(jax.jit(distribution, static_argnums=0)(plan, values, jnp.asarray(logits), history))
    assert (expected[0] > 0).sum() < 40
    close(got, expected)


def test_the_truncations_run_in_the_order_of_transformers():
    assert TRUNCATIONS == (keep_top_k, keep_top_p, keep_min_p, keep_typical)
