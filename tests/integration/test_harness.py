"""What evaluation harnesses ask, against plain forward passes, and lm-evaluation-harness where it is installed."""

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compilations
from tiny_checkpoint import write_chat_model, write_golden_directory

from forge_jax import Forge, forward, inputs, text
from forge_jax.evaluation import requests
from forge_jax.evaluation.rows import Row
from forge_jax.loading import Model, load

PREFIX = 0  # <|im_start|>, which the vocabulary names as the token that begins a text
plain = jax.jit(forward, static_argnums=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return load(write_chat_model(tmp_path_factory.mktemp("models") / "chat", context=128), progress=False)


def expected(model: Model, ids: list[int], count: int) -> tuple[float, bool]:
    """The log-probability of the last `count` ids and whether each is the best, of a plain pass over the others."""
    z = np.asarray(plain(model.spec, model.params, inputs(jnp.asarray([ids[:-1]])))[0][0], np.float64)[-count:]
    z -= z.max(1, keepdims=True)
    logp = z - np.log(np.exp(z).sum(1, keepdims=True))
    return float(logp[np.arange(count), ids[-count:]].sum()), bool((z.argmax(1) == ids[-count:]).all())


# ------------------------------------------------------------------------------------------------ likelihoods
@pytest.mark.parametrize(
    "name",
    ["gemma3", "lfm2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama_dynamic", "jamba", "rwkv"))],
)
def test_padded_rows_are_as_likely_as_alone(tmp_path, name):
    """Rows of several lengths in one batch, padded at the end: windows, running states, angles that lengths change."""
    model = load(write_golden_directory(name, tmp_path / name), progress=False)
    rng = np.random.default_rng(0)
    rows = [Row(rng.integers(0, 160, n).astype(np.int32), count) for n, count in ((20, 5), (30, 16), (20, 1), (30, 1))]
    found = requests.likelihoods(model, rows, limit=40, batch=3)
    wanted = [expected(model, row.ids.tolist(), row.count) for row in rows]
    np.testing.assert_allclose([f[0] for f in found], [w[0] for w in wanted], rtol=1e-5)
    assert [f[1] for f in found] == [w[1] for w in wanted]


def test_greedy_continuations_are_told(model):
    """What the model writes itself is greedy; with one token exchanged it is not."""
    prompt = text.encode(model, "Hello you")
    made = list(text.complete(model, [prompt, prompt], max_new_tokens=6)[0][0].ids)
    other = [*made[:3], (made[3] + 1) % 90, *made[4:]]
    rows = [Row(np.asarray([*prompt, *new], np.int32), 6) for new in (made, other)]
    assert [greedy for _, greedy in requests.likelihoods(model, rows, limit=128, batch=2)] == [True, False]


def test_long_rows_lose_their_beginning(model):
    ids = np.random.default_rng(1).integers(0, 98, 60).tolist()
    (found,) = requests.likelihoods(model, [Row(np.asarray(ids, np.int32), 4)], limit=20, batch=1)
    assert found[0] == pytest.approx(expected(model, ids[-21:], 4)[0], rel=1e-5)
    with pytest.raises(ValueError, match="21 tokens to score do not fit the model's context of 20"):
        requests.likelihoods(model, [Row(np.asarray(ids, np.int32), 21)], limit=20, batch=1)
    with pytest.raises(ValueError, match="id 98 is outside the model's vocabulary of 98"):
        requests.likelihoods(model, [Row(np.asarray([1, 98]), 1)], limit=20, batch=1)


def test_lengths_share_programs(model):
    def run(lengths: range) -> None:
        requests.likelihoods(model, [Row(np.full(n, 7, np.int32), 3) for n in lengths], limit=128, batch=4)

    run(range(18, 26))
    with compilations() as seen:
        run(range(20, 34, 3))
    assert seen == []


@pytest.mark.parametrize("length", [1, 4, 5, 9, 10])
def test_rolling_scores_every_token_once(length):
    """The example of the harness's own documentation: windows of 4, the last one full, its old tokens not scored."""
    rows = requests.rolled(range(1, length + 1), 0, 4)
    assert [token for ids, count in rows for token in ids[-count:]] == list(range(1, length + 1))
    assert all(len(ids) <= 5 for ids, _ in rows)
    if length == 10:
        assert [ids.tolist() for ids, _ in rows] == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [6, 7, 8, 9, 10]]
        assert [count for _, count in rows] == [4, 4, 2]


# ------------------------------------------------------------------------------------------------ texts
def test_a_context_and_its_continuation(model):
    tokenizer = model.tokenizer

    def split(context: str, continuation: str) -> tuple[str, str]:
        ids, count = requests.continued(tokenizer, context, continuation, PREFIX)
        return tokenizer.decode(ids[:-count], skip_special=False), tokenizer.decode(ids[-count:], skip_special=False)

    assert split("Hello", " you") == ("Hello", " you")
    assert split("Hello ", "you") == ("Hello", " you")  # a space belongs to the word it stands before
    assert split("", "you") == ("<|im_start|>", "you")
    assert split(" ", "you") == ("<|im_start|>", " you")
    assert split("", "<|im_start|>you") == ("<|im_start|>", "you")
    with pytest.raises(ValueError, match="the continuation '' of 'Hello' adds no token"):
        split("Hello", "")
    assert requests.prefix_of(tokenizer) == PREFIX


def test_settings_of_generation():
    stops, new, sampling = requests.settings({"until": "\n", "max_new_tokens": 5, "do_sample": None}, 256)
    assert (stops, new, sampling.temperature) == (["\n"], 5, 0)
    stops, new, sampling = requests.settings({"until": ["a", ""], "temperature": 0.5, "top_p": 0.9}, 256)
    assert (stops, new, sampling.temperature, sampling.top_p) == (["a"], 256, 0.5, 0.9)
    assert requests.settings({"do_sample": False, "temperature": 0.5}, 1)[2].temperature == 0
    assert requests.settings({"do_sample": True}, 1)[2].temperature == 1
    with pytest.raises(ValueError, match=r"settings \['num_beams'\] are unknown; expected until, do_sample,"):
        requests.settings({"num_beams": 4}, 1)


def test_what_is_written(model):
    """Each prompt's own greedy text in whatever batch, cut before the first stop string; long prompts from the left."""
    prompts = [text.encode(model, prompt) for prompt in ("Hello you", "Hi", "It was the best of times " * 6)]
    twice = [[prompt[-108:]] * 2 for prompt in prompts]  # batches of two, as below: the programs are shared
    alone = [text.complete(model, pair, max_new_tokens=20)[0][0].text for pair in twice]
    given = {"max_gen_toks": 20, "until": []}
    assert requests.written(model, prompts, given, limit=128, batch=2) == alone
    stop = alone[0][7:9]
    cut = requests.written(model, prompts[:1], given | {"until": [stop]}, limit=128, batch=2)
    assert cut == [alone[0][: alone[0].index(stop)]]
    with pytest.raises(ValueError, match="128 new tokens leave no room for a prompt in a context of 128"):
        requests.written(model, prompts, {"max_gen_toks": 128}, limit=128, batch=2)


# ------------------------------------------------------------------------------------------------ the harness
def test_without_the_harness(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "forge_jax.lm_eval", raising=False)
    with pytest.raises(ImportError, match="forge_jax.lm_eval needs lm-evaluation-harness: pip install lm_eval"):
        import forge_jax.lm_eval  # noqa: F401


def asked(*requests: tuple) -> list[SimpleNamespace]:
    """Requests as the harness hands them over."""
    return [SimpleNamespace(args=args) for args in requests]


def test_the_harness_asks(model):
    pytest.importorskip("lm_eval")
    from lm_eval.api.registry import get_model

    from forge_jax.lm_eval import ForgeLM

    assert get_model("forge-jax") is ForgeLM
    lm = ForgeLM(Forge.from_any(model.path, progress=False), batch_size="2")
    ids = text.encode(model, "Hello you")
    (found,) = lm.loglikelihood(asked(("Hello", " you")), disable_tqdm=True)
    assert found[0] == pytest.approx(expected(model, ids, 4)[0], rel=1e-5)
    (rolling,) = lm.loglikelihood_rolling(asked(("Hello you",)), disable_tqdm=True)
    assert rolling == pytest.approx(expected(model, [PREFIX, *ids], len(ids))[0], rel=1e-5)
    settings = {"until": [], "max_gen_toks": 9}
    made = lm.generate_until(asked(("Hello you", settings), ("Hi", {"max_gen_toks": 3})))
    assert made[0] == text.complete(model, ["Hello you"], max_new_tokens=9)[0][0].text
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Sure"}]
    assert lm.apply_chat_template(turns).endswith("Sure<|im_end|>\n<|im_start|>assistant\n")
    assert lm.apply_chat_template(turns, add_generation_prompt=False).endswith("<|im_start|>assistant\nSure")
    assert lm.chat_template(True) == model.tokenizer.chat_template
    assert lm.chat_template(False) is None
    with pytest.raises(ValueError, match="batch_size = 'auto'; expected a number of rows"):
        ForgeLM(model, batch_size="auto")


@pytest.mark.torch
def test_as_the_harness_s_own_transformers(shared):
    """The same likelihoods and the same texts as HFLM on a real small model."""
    pytest.importorskip("lm_eval")
    pytest.importorskip("torch")
    from lm_eval.models.huggingface import HFLM

    from forge_jax.lm_eval import ForgeLM

    path = shared / "models" / "stories260K" / "hf"
    # its cache of one-token continuations reads the wrong place where continuations end alike (lm_eval 0.4.13)
    theirs = HFLM(pretrained=str(path), device="cpu", dtype="float32", batch_size=3, logits_cache=False)
    ours = ForgeLM(str(path), dtype="float32", batch_size=3)
    story = "Once upon a time, there was a girl named Lily. She had a red ball. " * 40
    pairs = asked(("Once upon a", " time"), ("Once upon ", "a time, there"), ("", "Lily"), (story, " The end."))
    for a, b in zip(theirs.loglikelihood(pairs), ours.loglikelihood(pairs), strict=True):
        assert b == (pytest.approx(a[0], rel=1e-5), a[1])
    rolled = asked((story[:50],), (story,))
    assert ours.loglikelihood_rolling(rolled) == pytest.approx(theirs.loglikelihood_rolling(rolled), rel=1e-5)
    prompts = ("Once upon a time", "Lily had", story)
    written = asked(*((prompt, {"until": ["."], "max_gen_toks": 24}) for prompt in prompts))
    assert ours.generate_until(written) == theirs.generate_until(written)
