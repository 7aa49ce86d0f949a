"""Sampling on its own terms: determinism, independence of rows, distribution, one trace, bad input."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax.sampling import (
    SamplerPlan,
    SamplingParams,
    build,
    distribution,
    sample,
    start_history,
    update_history,
)
from forge_jax.sampling.sampler import noise

pytestmark = pytest.mark.usefixtures("quick_compiles")

V = 40
run_sample = jax.jit(sample, static_argnums=0)
append = jax.jit(update_history)
begin = jax.jit(start_history, static_argnums=(0, 3))


def logits_of(batch: int, size: int = V, seed: int = 0, scale: float = 3.0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, size)) * scale, jnp.float32)


def history_of(
    plan: SamplerPlan, prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]] = (), size: int = V
):
    """Prompts in a buffer of 16, then the outputs generated token by token, rows of any length."""
    tokens = np.full((len(prompts), 16), size - 1, np.int32)  # a real id as padding: it must not count as seen
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    history = begin(plan, jnp.asarray(tokens), jnp.asarray([len(p) for p in prompts], jnp.int32), size)
    for step in range(max(map(len, outputs), default=0)):
        active = jnp.asarray([step < len(row) for row in outputs])
        token = jnp.asarray([row[step] if step < len(row) else 0 for row in outputs], jnp.int32)
        history = append(history, token, active)
    return history


def draw(params, logits, prompts=None, outputs=(), stop_ids=(), base_seed=0):
    plan, values = build(params, logits.shape[0], logits.shape[1], stop_ids, base_seed)
    history = history_of(plan, prompts or [[1]] * logits.shape[0], outputs, logits.shape[1])
    return run_sample(plan, values, logits, history)


# ------------------------------------------------------------------------------------------------ greedy
def test_greedy_takes_the_lowest_id_of_the_highest_logits():
    logits = jnp.zeros((2, V), jnp.float32).at[0, jnp.asarray([9, 4])].set(5.0)
    token, info = draw(SamplingParams(temperature=0.0), logits)
    assert token.dtype == jnp.int32
    assert token.tolist() == [4, 0]
    expected = jax.nn.log_softmax(logits, axis=1)[jnp.arange(2), token]
    np.testing.assert_allclose(info["logprob"], expected, atol=1e-6)


def test_greedy_is_argmax_of_the_processed_logits():
    logits = logits_of(3)
    bias = {int(jnp.argmin(logits[0])): 1e4}
    token, _ = draw([SamplingParams(temperature=0, logit_bias=bias), *[SamplingParams(temperature=0)] * 2], logits)
    assert token.tolist() == [int(jnp.argmin(logits[0])), int(jnp.argmax(logits[1])), int(jnp.argmax(logits[2]))]


@pytest.mark.parametrize("other", [SamplingParams(), SamplingParams(top_k=5, top_p=0.5, typical_p=0.1)])
def test_a_greedy_row_is_greedy_beside_any_other_row(other: SamplingParams):
    logits = jnp.round(logits_of(20, seed=3))  # rounded: many ties
    greedy = SamplingParams(temperature=0, typical_p=0.1, top_p=0.3)
    token, _ = draw([greedy if row % 2 else other for row in range(20)], logits)
    assert token[1::2].tolist() == jnp.argmax(logits, axis=1)[1::2].tolist()


def test_a_greedy_row_is_greedy_beside_a_candidate_draw_of_a_large_vocabulary():
    logits = jnp.round(logits_of(4, size=2000, seed=3))
    plan, _ = build([SamplingParams(temperature=0), SamplingParams(top_k=30)] * 2, 4, 2000)
    assert plan.candidates == 64
    token, _ = draw([SamplingParams(temperature=0), SamplingParams(top_k=30)] * 2, logits)
    assert token[::2].tolist() == jnp.argmax(logits, axis=1)[::2].tolist()


def test_a_tiny_temperature_overflows_nothing():
    logits = logits_of(8) * 1e30
    token, info = draw(SamplingParams(temperature=1e-30, top_p=0.9), logits)
    assert token.tolist() == jnp.argmax(logits, axis=1).tolist()
    assert not info["nan"].any()


# ------------------------------------------------------------------------------------------------ draws
def chi_square(observed: np.ndarray, expected: np.ndarray) -> tuple[float, int]:
    """The statistic and its degrees of freedom; cells that expect fewer than 5 are pooled."""
    small = expected < 5
    pairs = [(o, e) for o, e in zip(observed[~small], expected[~small], strict=True)]
    pairs += [(observed[small].sum(), expected[small].sum())] if expected[small].sum() > 0 else []
    return sum((o - e) ** 2 / e for o, e in pairs), len(pairs) - 1


def limit(freedom: int, z: float = 2.3263) -> float:
    """The 1 % point of chi-square by Wilson and Hilferty (1931), right to 0.5 % for freedom >= 3."""
    return freedom * (1 - 2 / (9 * freedom) + z * (2 / (9 * freedom)) ** 0.5) ** 3


@pytest.mark.parametrize(
    ("over", "params"),
    [
        ("positions", SamplingParams()),
        ("positions", SamplingParams(top_k=7)),
        ("positions", SamplingParams(top_p=0.8)),
        ("positions", SamplingParams(min_p=0.05)),
        ("positions", SamplingParams(typical_p=0.7)),
        ("positions", SamplingParams(temperature=0.9, top_k=20, top_p=0.9, min_p=0.02, typical_p=0.9)),
        ("seeds", SamplingParams()),
    ],
)
def test_draws_follow_the_distribution(over: str, params: SamplingParams):
    """100,000 draws; the seed is fixed, so the test is deterministic. Large V with top-k takes the candidate path."""
    draws = 100_000
    size = 300 if params.top_k else V
    logits = logits_of(1, size=size, seed=11, scale=2.0)
    plan, values = build(params, 1, size)
    history = history_of(plan, [[1, 2]], size=size)
    expected = np.asarray(distribution(plan, values, logits, history))[0] * draws

    def one(number: jax.Array) -> jax.Array:
        if over == "positions":
            here = replace(history, length_B=number[None])
            return sample(plan, values, logits, here)[0][0]
        key_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(values.key_B, number)
        return sample(plan, replace(values, key_B=key_B), logits, history)[0][0]

    tokens = jax.jit(lambda: jax.lax.map(one, jnp.arange(draws, dtype=jnp.int32), batch_size=2000))()
    observed = np.bincount(np.asarray(tokens), minlength=size)
    assert (observed[expected == 0] == 0).all()
    statistic, freedom = chi_square(observed, expected)
    assert statistic < limit(freedom)


def test_noise_is_gumbel_and_fine_enough_for_rare_tokens_of_a_large_vocabulary():
    """Four million draws; of the highest thousand hardly two are equal, while 23-bit noise would repeat hundreds."""
    size = 2**22
    _, values = build(SamplingParams(seed=5), 1, V)
    ids = jnp.arange(size, dtype=jnp.int32)[None, :]
    got = np.sort(np.asarray(jax.jit(noise)(values.key_B, jnp.zeros(1, jnp.int32), ids))[0].astype(np.float64))
    exact = -np.log(-np.log((np.arange(size) + 0.5) / size))
    assert abs(got.mean() - exact.mean()) < 4 * (np.pi**2 / 6 / size) ** 0.5
    assert np.abs(np.exp(-np.exp(-got)) - (np.arange(size) + 0.5) / size).max() < 1.63 / size**0.5  # Kolmogorov, 1 %
    assert len(np.unique(got[-1000:])) > 990


ROWS = [
    SamplingParams(seed=1),
    SamplingParams(seed=2, top_k=30, top_p=0.9),
    SamplingParams(seed=3, top_p=0.7, repetition_penalty=1.3),
    SamplingParams(seed=5, temperature=0.0),
    SamplingParams(seed=6, min_p=0.1, bad_words=[[1, 5], [7]], temperature=2.0),
    SamplingParams(seed=1),
]


def test_a_row_draws_the_same_alone_in_any_batch_and_in_any_order():
    """Alone, the second row draws from candidates; in the batch everything looks at the whole vocabulary."""
    size = 500
    logits = logits_of(len(ROWS), size=size, seed=5).at[5].set(logits_of(len(ROWS), size=size, seed=5)[0])
    prompts = [[1, 2, 3 + row % 6] for row in range(len(ROWS))]
    outputs = [[5, 9, 9]] * len(ROWS)
    together, info = draw(ROWS, logits, prompts, outputs)
    backwards, _ = draw(ROWS[::-1], logits[::-1], prompts[::-1], outputs)
    alone = [draw(p, logits[b : b + 1], prompts[b : b + 1], outputs[:1]) for b, p in enumerate(ROWS)]
    assert together.tolist() == backwards[::-1].tolist()
    assert together.tolist() == [int(token[0]) for token, _ in alone]
    assert together[0] == together[5]  # equal seeds, equal logits
    np.testing.assert_allclose(info["logprob"], [float(i["logprob"][0]) for _, i in alone], atol=1e-6)


def test_seeds_make_different_draws_and_all_64_bits_count():
    logits = jnp.zeros((6, 5000), jnp.float32)
    seeds = [0, 1, 2**31, 2**32, 2**32 + 1, 2**64 - 1]
    token, _ = draw([SamplingParams(seed=seed) for seed in seeds], logits)
    assert len(set(token.tolist())) == 6
    without = [draw(SamplingParams(), logits, base_seed=seed)[0].tolist() for seed in (0, 0, 1)]
    assert without[0] == without[1]
    assert len({*without[0], *without[2], *token.tolist()}) == 18


def test_positions_make_different_draws():
    logits = jnp.zeros((1, 5000), jnp.float32)
    tokens = [int(draw(SamplingParams(seed=3), logits, [[1]], [[1] * step])[0][0]) for step in range(8)]
    assert len(set(tokens)) == 8


# ------------------------------------------------------------------------------------------------ history
def test_presence_and_frequency_count_generated_tokens_only():
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    plan, values = build([params, SamplingParams()], 2, V)
    logits = logits_of(2)
    history = history_of(plan, [[3, 3, 4], [1]], [[5, 5, 3], [5, 5]])
    assert history.length_B.tolist() == [6, 3]
    got = plan.processors[0](logits, values, history)
    expected = np.array(logits)
    expected[0, 5] -= 0.5 + 2 * 0.25
    expected[0, 3] -= 0.5 + 0.25
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_history_ignores_padding_finished_rows_and_a_full_buffer():
    plan = SamplerPlan(needs_seen=True, needs_counts=True)
    history = history_of(plan, [[3, 4], [5, 6, 7]], [[8, 9, 9], [8]])
    assert history.seen_BV is not None
    assert history.counts_BV is not None
    assert [np.flatnonzero(row).tolist() for row in history.seen_BV] == [[3, 4, 8, 9], [5, 6, 7, 8]]
    assert [np.flatnonzero(row).tolist() for row in history.counts_BV] == [[8, 9], [8]]
    assert history.counts_BV[0, 9] == 2
    assert history.tokens_BS[0, :5].tolist() == [3, 4, 8, 9, 9]
    assert history.tokens_BS[1, :5].tolist() == [5, 6, 7, 8, V - 1]
    assert history.prompt_length_B.tolist() == [2, 3]
    full = replace(history, length_B=jnp.asarray([16, 16], jnp.int32))
    after = update_history(full, jnp.asarray([1, 1], jnp.int32))
    assert after.tokens_BS.tolist() == history.tokens_BS.tolist()
    assert after.length_B.tolist() == [17, 17]


def test_bad_words_match_prompt_and_output_and_never_before_the_first_token():
    words = SamplingParams(temperature=0, bad_words=[[7], [2, 9], [1, 2, 3, 4, 11], [0, 12]])
    logits = jnp.zeros((4, V), jnp.float32).at[:, jnp.asarray([7, 9, 11, 12])].set(jnp.asarray([[9.0, 8, 7, 6]]))
    token, _ = draw(words, logits, [[1, 2], [1, 2, 3], [1], [0]], [[], [4], [], []])
    assert token.tolist() == [11, 9, 9, 9]


def test_min_tokens_bans_stop_ids_row_by_row():
    logits = jnp.zeros((3, V), jnp.float32).at[:, jnp.asarray([4, 6, 8])].set(jnp.asarray([[9.0, 8, 7]]))
    rows = [SamplingParams(temperature=0, min_tokens=n) for n in (0, 2, 3)]
    token, _ = draw(rows, logits, [[1]] * 3, [[1, 1]] * 3, stop_ids=[4, 6])
    assert token.tolist() == [4, 4, 8]


# ------------------------------------------------------------------------------------------------ reports
def test_top_logprobs_are_the_models_own_before_any_processing():
    logits = logits_of(2)
    params = [SamplingParams(temperature=0.3, top_k=1, logit_bias={0: 50.0}, logprobs=n) for n in (2, 4)]
    token, info = draw(params, logits)
    expected = np.asarray(jax.nn.log_softmax(logits, axis=1))
    order = np.argsort(-expected, axis=1)[:, :4]
    assert token.tolist() == [0, 0]
    np.testing.assert_allclose(info["logprob"], expected[:, 0], atol=1e-6)
    assert info["top_ids"].tolist() == order.tolist()
    np.testing.assert_allclose(info["top_logprobs"], np.take_along_axis(expected, order, axis=1), atol=1e-6)


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_k=3, top_p=0.9)]
)
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), "all banned"])
@pytest.mark.parametrize("place", [0, 17, 299])
def test_rows_that_cannot_be_drawn_are_flagged(params: SamplingParams, bad: float | str, place: int):
    logits = logits_of(3, size=300)
    logits = logits.at[1].set(-jnp.inf) if isinstance(bad, str) else logits.at[1, place].set(bad)
    plan, values = build(params, 3, 300)
    token, info = run_sample(plan, values, logits, history_of(plan, [[1]] * 3, size=300))
    assert info["nan"].tolist() == [False, True, False]
    assert all(0 <= t < 300 for t in token.tolist())


def test_a_nan_under_a_ban_is_still_flagged():
    _, info = draw(SamplingParams(bad_words=[[3]]), logits_of(1).at[0, 3].set(jnp.nan))
    assert info["nan"].tolist() == [True]


def test_banned_tokens_are_never_drawn():
    logits = logits_of(1, size=8).at[0, jnp.asarray([0, 2, 3, 5, 6, 7])].set(-jnp.inf)
    tokens = {int(draw(SamplingParams(seed=s, top_p=0.99, temperature=5.0), logits)[0][0]) for s in range(12)}
    assert tokens == {1, 4}


def test_distribution_is_one_token_for_greedy_rows():
    logits = jnp.round(logits_of(2))
    for rows in ([SamplingParams(temperature=0)] * 2, [SamplingParams(temperature=0), SamplingParams(top_p=0.5)]):
        plan, values = build(rows, 2, V)
        p = distribution(plan, values, logits, history_of(plan, [[1]] * 2))
        np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-6)
        assert p[0].tolist() == jax.nn.one_hot(jnp.argmax(logits[0]), V).tolist()


# ------------------------------------------------------------------------------------------------ compiling
def test_changing_values_does_not_trace_again_and_a_while_loop_runs():
    traces = []

    def generate(plan, values, logits_BV, history):
        traces.append(plan)

        def step(state):
            token_B, info = sample(plan, values, logits_BV, state[0])
            return update_history(state[0], token_B), state[1] + info["logprob"]

        return jax.lax.while_loop(lambda s: s[0].length_B[0] < 12, step, (history, jnp.zeros(2, jnp.float32)))

    run = jax.jit(generate, static_argnums=0)
    results = []
    for k, temperature, seed, word in ((40, 0.7, 1, [3]), (50, 1.5, 2, [4, 5]), (3, 0.1, None, [1, 2])):
        rows = [
            SamplingParams(temperature, k, 0.9, 0.01, 0.9, 1.1, 0.1, 0.2, {3: 1.0}, [word, [9, 9]], 3, seed),
            SamplingParams(top_k=5, seed=8),
        ]
        plan, values = build(rows, 2, 300, stop_ids=[2])
        results.append(run(plan, values, logits_of(2, size=300), history_of(plan, [[1, 2], [1]], size=300)))
    assert len(traces) == 1
    assert len({str(r[0].tokens_BS[0].tolist()) for r in results}) == 3
    assert len({str(r[0].tokens_BS[1].tolist()) for r in results}) == 1


def test_only_what_is_used_is_in_the_plan():
    plan, _ = build(SamplingParams(), 1, V)
    assert plan == SamplerPlan()
    assert hash(plan) == hash(SamplerPlan())
    plan, _ = build([SamplingParams(temperature=0, top_k=4, top_p=0.5), SamplingParams(temperature=0)], 2, V)
    assert plan == SamplerPlan(greedy=True)
    plan, _ = build([SamplingParams(top_k=4), SamplingParams()], 2, 1000)
    assert plan.candidates is None
    assert [build(SamplingParams(top_k=k), 1, 1000)[0].candidates for k in (1, 64, 65, 300)] == [64, 64, 256, None]


def test_a_processor_of_ones_own_joins_the_chain():
    plan, values = build(SamplingParams(temperature=0), 1, V)
    plan = replace(plan, processors=(*plan.processors, lambda logits, values, history: -logits))
    logits = logits_of(1)
    assert sample(plan, values, logits, history_of(plan, [[1]]))[0][0] == jnp.argmin(logits[0])


# ------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("temperature", -0.1, "[0, inf)"),
        ("temperature", float("nan"), "[0, inf)"),
        ("temperature", float("inf"), "[0, inf)"),
        ("temperature", "hot", "[0, inf)"),
        ("temperature", True, "[0, inf)"),
        ("top_k", -1, "[0, inf)"),
        ("top_k", 2.5, "[0, inf)"),
        ("top_p", 1.1, "[0, 1]"),
        ("top_p", None, "[0, 1]"),
        ("min_p", -0.5, "[0, 1]"),
        ("typical_p", 0.0, "(0, 1]"),
        ("repetition_penalty", 0.0, "(0, inf)"),
        ("presence_penalty", float("inf"), "finite"),
        ("frequency_penalty", float("nan"), "finite"),
        ("logit_bias", {-1: 1.0}, "[0, inf)"),
        ("logit_bias", {1: float("inf")}, "below inf"),
        ("logit_bias", {1.5: 1.0}, "token id"),
        ("bad_words", [[]], "remove it"),
        ("bad_words", [[1, -2]], "token id"),
        ("min_tokens", -1, "[0, inf)"),
        ("seed", -1, "[0, 18446744073709551616)"),
        ("seed", 2**64, "[0, 18446744073709551616)"),
        ("logprobs", -1, "[0, inf)"),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: object, allowed: str):
    with pytest.raises(ValueError) as error:
        SamplingParams(**{field: value})  # pyright: ignore[reportArgumentType]
    assert f"SamplingParams.{field}" in str(error.value)
    assert allowed in str(error.value)


def test_ids_outside_the_vocabulary_and_a_wrong_batch_are_named():
    with pytest.raises(ValueError, match="1 ids outside the vocabulary of 40 tokens: stop_ids 40"):
        build(SamplingParams(), 1, V, stop_ids=[2, 40])
    with pytest.raises(ValueError, match="bad_words 99"):
        build(SamplingParams(bad_words=[[1, 99]]), 1, V)
    with pytest.raises(ValueError, match="logit_bias 41"):
        build(SamplingParams(logit_bias={41: 1}), 1, V)
    with pytest.raises(ValueError, match="logprobs 40"):
        build(SamplingParams(logprobs=41), 1, V)
    with pytest.raises(ValueError, match="2 SamplingParams for a batch of 3"):
        build([SamplingParams()] * 2, 3, V)
    with pytest.raises(ValueError, match="base_seed"):
        build(SamplingParams(), 1, V, base_seed=-1)


def test_params_are_hashable_and_can_be_replaced():
    params = SamplingParams(logit_bias={3: 1.0}, bad_words=[[1, 2]])
    assert params == SamplingParams(logit_bias=((3, 1.0),), bad_words=((1, 2),))
    assert hash(replace(params, temperature=0.5)) == hash(replace(params, temperature=0.5))
    assert replace(params, top_k=None) == replace(params, top_k=0) or replace(params, top_k=None).top_k is None


def test_a_history_of_another_plan_is_an_error():
    plan, values = build(SamplingParams(repetition_penalty=1.2, presence_penalty=1.0), 1, V)
    with pytest.raises(ValueError, match="seen_BV"):
        sample(plan, values, logits_of(1), history_of(SamplerPlan(), [[1]]))
    with pytest.raises(ValueError, match="counts_BV"):
        sample(plan, values, logits_of(1), history_of(SamplerPlan(needs_seen=True), [[1]]))
