"""Perplexity and KL divergence, against formulas written out in float64 over the logits of plain forward passes."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from helpers import compilations
from tiny_checkpoint import write_chat_model, write_golden_directory

import forge_jax
from forge_jax import Forge, evaluate, forward, inputs
from forge_jax.cli import main
from forge_jax.evaluation import scoring
from forge_jax.evaluation.rows import Row, packed
from forge_jax.loading import Model, load
from forge_jax.parallel import make_mesh

pytestmark = pytest.mark.usefixtures("quick_compiles")

TEXT = "It was the best of times, it was the worst of times.\nIt was the age of wisdom; 1859 <|im_end|> " * 2
CONTEXT = 16


def varied(model: Model, noise: float = 0.1, gain: float = 1.0) -> Model:
    """The same model with larger weights, so that it prefers some tokens to others, and noise on them."""
    rng = np.random.default_rng(1)

    def vary(leaf: jax.Array) -> jax.Array:
        x = np.asarray(leaf)
        return jnp.asarray(gain * (x + noise * x.std() * rng.normal(size=x.shape)), leaf.dtype)

    return dataclasses.replace(model, params=jax.tree.map(vary, model.params))


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("models") / "chat", context=64)


@pytest.fixture(scope="module")
def model(directory) -> Model:
    return varied(load(directory, progress=False), gain=4.0)


@pytest.fixture(scope="module")
def other(model) -> Model:
    return varied(model)


def ids_of(model: Model, text: str) -> list[int]:
    assert model.tokenizer is not None
    return model.tokenizer.encode(text, add_special=False, parse_special=False)


# ------------------------------------------------------------------------------------------------ the oracle
Logp = Callable[[list[int]], np.ndarray]
Windows = list[tuple[list[int], range]]

plain = jax.jit(forward, static_argnums=0)


def logp_of(model: Model) -> Logp:
    """Ids of one window to log-probabilities [T, V] in float64, by a plain forward pass."""

    def logp(ids: list[int]) -> np.ndarray:
        z = np.asarray(plain(model.spec, model.params, inputs(jnp.asarray([ids])))[0][0], np.float64)
        z -= z.max(1, keepdims=True)
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    return logp


def second_halves(ids: list[int], context: int, bos: int | None = None) -> Windows:
    """llama.cpp's windows, and the places in each whose logits are compared with the next token."""
    out = []
    for chunk in range(len(ids) // context):
        window = ids[chunk * context : (chunk + 1) * context]
        if bos is not None:
            window[0] = bos
        out.append((window, range(context // 2, context - 1)))
    return out


def every_token(ids: list[int], context: int, stride: int, bos: int | None = None) -> Windows:
    """The same for a window that ends every `stride` tokens behind the first; what it adds is scored."""
    out, done = [], 1
    while done < len(ids):
        stop = min(done + stride, len(ids))
        window = ids[max(0, stop - context) : stop]
        scored = range(len(window) - 1 - (stop - done), len(window) - 1)
        if bos is not None:
            window[0] = bos
        out.append((window, scored))
        done = stop
    return out


def sums(model: Logp, base: Logp, windows: Windows) -> dict[str, float]:
    """The figures as llama.cpp's perplexity tool adds them up, from sums and sums of squares."""
    nll, nll_base, kld, dp, same = [], [], [], [], []
    for window, places in windows:
        q, p = model(window), base(window)
        for j in places:
            token = window[j + 1]
            nll.append(-q[j, token])
            nll_base.append(-p[j, token])
            kld.append(sum(np.exp(p[j]) * (p[j] - q[j])))
            dp.append(np.exp(q[j, token]) - np.exp(p[j, token]))
            same.append(q[j].argmax() == p[j].argmax())
    n = len(nll)

    def average(values: list[float]) -> tuple[float, float]:
        value = sum(values) / n
        return value, np.sqrt((sum(x * x for x in values) / n - value**2) / (n - 1))

    (ln, ln_error), (base_ln, base_error) = average(nll), average(nll_base)
    covariance = (sum(a * b for a, b in zip(nll, nll_base, strict=True)) / n - ln * base_ln) / (n - 1)
    ratio_error = np.sqrt(ln_error**2 + base_error**2 - 2 * covariance)
    square, square_error = average([x * x for x in dp])
    ordered, top = sorted(kld), sum(same) / n
    at = 0.99 * (n - 1)
    return {
        "tokens": n,
        "nll": ln,
        "nll error": ln_error,
        "perplexity": np.exp(ln),
        "perplexity error": np.exp(ln) * ln_error,
        "base nll": base_ln,
        "base perplexity error": np.exp(base_ln) * base_error,
        "kl": average(kld)[0],
        "kl error": average(kld)[1],
        "kl median": (ordered[(n - 1) // 2] + ordered[n // 2]) / 2,
        "kl 99": ordered[int(at)] * (1 - at % 1) + ordered[int(at) + 1] * (at % 1),
        "kl max": ordered[-1],
        "same": 100 * top,
        "same error": 100 * np.sqrt(top * (1 - top) / (n - 1)),
        "dp": 100 * average(dp)[0],
        "dp error": 100 * average(dp)[1],
        "rms": 100 * np.sqrt(square),
        "rms error": 100 * 0.5 / np.sqrt(square) * square_error,
        "ln ratio": ln - base_ln,
        "ln ratio error": ratio_error,
        "ratio error": np.exp(ln - base_ln) * ratio_error,
        "correlation": covariance / (ln_error * base_error),
    }


def found(result: forge_jax.Evaluation) -> dict[str, float | None]:
    """The same figures of an evaluation."""
    c = result.comparison
    assert c is not None
    return {
        "tokens": result.tokens,
        "nll": result.nll.value,
        "nll error": result.nll.error,
        "perplexity": result.perplexity.value,
        "perplexity error": result.perplexity.error,
        "base nll": c.nll.value,
        "base perplexity error": c.perplexity.error,
        "kl": c.divergence.value,
        "kl error": c.divergence.error,
        "kl median": c.divergence_percentiles[50.0],
        "kl 99": c.divergence_percentiles[99.0],
        "kl max": c.divergence_percentiles[100.0],
        "same": c.same_top1.value,
        "same error": c.same_top1.error,
        "dp": c.mean_dp.value,
        "dp error": c.mean_dp.error,
        "rms": c.rms_dp.value,
        "rms error": c.rms_dp.error,
        "ln ratio": c.log_ratio.value,
        "ln ratio error": c.log_ratio.error,
        "ratio error": c.ratio.error,
        "correlation": c.correlation,
    }


def check(result: forge_jax.Evaluation, expected: dict[str, float]) -> None:
    assert found(result) == pytest.approx(expected, rel=2e-5, abs=2e-6)


# ------------------------------------------------------------------------------------------------ figures
def test_second_halves_of_windows_as_llama_cpp(model, other):
    ids = ids_of(model, TEXT)
    result = evaluate(other, TEXT, reference=model, context=CONTEXT)
    check(result, sums(logp_of(other), logp_of(model), second_halves(ids, CONTEXT)))
    assert result.windows == len(ids) // CONTEXT
    assert result.tokens == result.windows * (CONTEXT - CONTEXT // 2 - 1)
    assert 20 < result.comparison.same_top1.value < 90  # the two models are neither the same nor strangers


@pytest.mark.parametrize("stride", [5, CONTEXT - 1])
def test_every_token(model, other, stride):
    ids = ids_of(model, TEXT)
    result = evaluate(other, ids, reference=model, context=CONTEXT, stride=stride, batch=4)
    check(result, sums(logp_of(other), logp_of(model), every_token(ids, CONTEXT, stride)))
    assert result.tokens == len(ids) - 1
    assert result.bits_per_byte is None


def test_a_text_shorter_than_a_window(model):
    short = evaluate(model, TEXT[:9], stride=4)
    logp = logp_of(model)(ids_of(model, TEXT[:9]))
    nll = [-logp[i, token] for i, token in enumerate(ids_of(model, TEXT[:9])[1:])]
    assert short.nll.value == pytest.approx(np.mean(nll), rel=1e-5)
    assert short.context == 64  # that of the model, which is less than 512


def test_a_model_beside_itself(model):
    result = evaluate(model, TEXT, reference=model, context=CONTEXT)
    c = result.comparison
    assert c.divergence == (0, 0)
    assert set(c.divergence_percentiles.values()) == {0.0}
    assert (c.same_top1, c.mean_dp, c.rms_dp, c.log_ratio, c.ratio) == ((100, 0), (0, 0), (0, 0), (0, 0), (1, 0))
    assert c.correlation == pytest.approx(1)
    assert result.perplexity == c.perplexity


def test_the_token_before_a_text_begins_every_window(model, other, directory, tmp_path):
    """Where the tokenizer adds one: it comes before the text, and takes a token's place in every later window."""
    backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    bos = backend.token_to_id("<|im_start|>")
    backend.post_processor = tokenizers.processors.TemplateProcessing("<|im_start|> $A", None, [("<|im_start|>", bos)])
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    backend.save(str(tmp_path / "tokenizer.json"))
    told = dataclasses.replace(model, tokenizer=load(tmp_path, progress=False).tokenizer)
    ids = [bos, *ids_of(model, TEXT)]
    halves = evaluate(dataclasses.replace(other, tokenizer=None), TEXT, reference=told, context=CONTEXT)
    check(halves, sums(logp_of(other), logp_of(model), second_halves(ids, CONTEXT, bos)))
    every = evaluate(dataclasses.replace(other, tokenizer=None), TEXT, reference=told, context=CONTEXT, stride=5)
    check(every, sums(logp_of(other), logp_of(model), every_token(ids, CONTEXT, 5, bos)))
    assert every.tokens == len(TEXT)
    with pytest.raises(ValueError, match="reads the text as other ids than .* from token 0 on"):
        evaluate(other, TEXT, reference=told, context=CONTEXT)


def test_bits_per_byte(model):
    """A token of this vocabulary is a byte."""
    result = evaluate(model, TEXT, context=CONTEXT)
    assert result.bits_per_byte == pytest.approx(result.nll.times(1 / np.log(2)))


def test_only_so_many_tokens(model):
    assert evaluate(model, TEXT, context=CONTEXT, tokens=50).windows == 3


def test_no_length_of_text_compiles_again(model, other):
    def run(length: int) -> None:
        evaluate(other, [7] * length, reference=model, context=CONTEXT, batch=3)
        evaluate(other, [7] * length, reference=model, context=CONTEXT, stride=5, batch=3)

    run(CONTEXT * 4)
    with compilations() as seen:
        run(CONTEXT * 3)
        run(CONTEXT * 7 + 3)
    assert seen == []


def test_logits_are_made_a_few_places_at_a_time(model, other, monkeypatch):
    """However many, the numbers are the same; the last piece need not be full."""
    rows = packed([Row(np.asarray(ids_of(model, TEXT)[:40]), 37)], 1, 39, 37)
    args = (model.spec, other.spec), (model.params, other.params), rows, (None, None)
    whole = scoring.score(*args)
    monkeypatch.setattr(scoring, "LOGITS", 10 * model.spec.logits + 1)
    pieces = jax.jit(lambda params: scoring.score.__wrapped__(args[0], params, rows, args[3]))(args[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), pieces, whole)


def test_the_divergence_of_close_models_is_exact():
    """Float32 normalises to a millionth; a divergence that is smaller than that comes out right all the same."""
    rng = np.random.default_rng(0)
    z = rng.normal(0, 3, (4, 5000))
    y = z + rng.normal(0, 1e-3, z.shape)
    p, q = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (z, y))
    made = scoring.divergence(*(jax.nn.log_softmax(jnp.asarray(x, jnp.float32), axis=1) for x in (z, y)))
    # a tenth: float32 keeps log-probabilities near 10 to 1e-6, beside differences of 1e-3 whose squares make these 5e-7
    np.testing.assert_allclose(made, (np.exp(p) * (p - q)).sum(1), rtol=0.1)
    assert (np.exp(p) * (p - q)).sum(1).max() < 1e-6
    certain, even = jnp.asarray([[0.0, -jnp.inf]]), jnp.log(jnp.full((1, 2), 0.5))
    assert float(scoring.divergence(certain, even)[0]) == pytest.approx(np.log(2))


def test_split_over_devices(tmp_path, model):
    path = write_golden_directory("llama", tmp_path / "llama")
    ids = list(np.random.default_rng(0).integers(0, 160, 48))
    whole, split = load(path, progress=False), load(path, mesh=make_mesh(2), progress=False)
    alone = evaluate(split, ids, context=CONTEXT)
    assert alone.nll.value == pytest.approx(evaluate(whole, ids, context=CONTEXT).nll.value, rel=1e-5)
    beside = evaluate(split, ids, reference=whole, context=CONTEXT)
    assert beside.comparison.divergence.value == pytest.approx(0, abs=1e-7)
    assert beside.comparison.same_top1.value == 100


# ------------------------------------------------------------------------------------------------ errors
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 65}, "context = 65; expected 5 to 64, the context of the model"),
        ({"context": 4}, "context = 4; expected 5 to 64"),
        ({"context": 16, "stride": 16}, "stride = 16; expected 1 to 15, less than the window of 16"),
        ({"context": 16, "stride": 0}, "stride = 0; expected 1 to 15"),
        ({"batch": 0}, "batch = 0; expected 1 or more"),
        (
            {"tokens": 20},
            "the text has 20 tokens, a window needs 64; give a longer text, a smaller context, or a stride",
        ),
        ({"tokens": 2, "stride": 2}, "the text has 2 tokens, a window needs 3; give a longer text$"),
        ({"tokens": 0}, "tokens = 0; expected 1 or more"),
    ],
)
def test_sizes_out_of_range(model, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(model, TEXT, **options)


def test_what_cannot_be_evaluated(model, tmp_path):
    mute = dataclasses.replace(model, tokenizer=None)
    with pytest.raises(ValueError, match="has no tokenizer; give the text as token ids"):
        evaluate(mute, TEXT)
    with pytest.raises(ValueError, match=r"ids are float64\[1, 64\]; expected a row of integers"):
        evaluate(model, np.ones((1, 64)))
    with pytest.raises(ValueError, match="ids reach from 3 to 99; the vocabulary has 98"):
        evaluate(model, [3, 99] * 40)
    stranger = load(write_golden_directory("llama", tmp_path / "llama"), progress=False)
    with pytest.raises(ValueError, match="gives 160 logits, .* 98; models can be compared only if they share a"):
        evaluate(stranger, [3] * 64, reference=mute)
    broken = dataclasses.replace(model, params=model.params | {"embed": model.params["embed"] * jnp.nan})
    with pytest.raises(ValueError, match=r"logits are not numbers; weights or dtype are at fault \(try float32\)"):
        evaluate(broken, TEXT)


# ------------------------------------------------------------------------------------------------ command line
def test_the_command(directory, tmp_path, capsys):
    """Several models beside a reference: a row each in every table, and the same figures as JSON."""
    forge = Forge.from_any(directory, progress=False)
    forge.model = varied(forge.model)
    forge.save_pretrained(tmp_path / "noisy")
    (tmp_path / "text").write_bytes(TEXT.encode())
    models, reference = [str(directory), str(tmp_path / "noisy")], str(directory)
    words = [*models, "--reference", reference, "--text", str(tmp_path / "text"), "--context", "16"]
    assert main(["evaluate", *words, "--json", str(tmp_path / "out.json")]) == 0
    out, err = capsys.readouterr()
    assert "tok/s" in err
    lines = out.splitlines()
    assert lines[0] == "77 tokens scored in 11 windows of 16 (second halves of windows, as llama.cpp)"
    assert [sum(line.startswith(f"{name}  ") for line in lines) for name in models] == [3, 3]
    assert lines[3].startswith(f"{reference} (reference)")
    assert {len(line) for line in lines[2:6]} == {len(lines[2])}
    made = json.loads((tmp_path / "out.json").read_text())
    again = evaluate(forge, TEXT, reference=load(directory, progress=False), context=16)
    assert [each["name"] for each in made["models"]] == models
    noisy = made["models"][1]
    assert noisy["nll"] == pytest.approx({"value": again.nll.value, "error": again.nll.error})
    assert noisy["comparison"]["divergence_percentiles"]["99.9"] > 0
    assert noisy["comparison"]["divergence"]["value"] == pytest.approx(again.comparison.divergence.value)
    assert f"{again.comparison.divergence.value:.6f} ± " in out
    assert again.table().splitlines()[0] == lines[0]


def test_texts_that_cannot_be_read(directory, tmp_path, capsys):
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    assert main(["evaluate", str(directory), "--text", str(tmp_path / "latin")]) == 1
    assert "latin: byte 3 is not UTF-8; convert the file first" in capsys.readouterr().err
    assert main(["evaluate", str(directory), "--text", str(tmp_path / "missing")]) == 1
    assert "missing" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ transformers
@pytest.mark.torch
def test_against_transformers(shared, tmp_path):
    """A real small model and a coarser copy: all figures from transformers' logits in float64."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = shared / "models" / "stories260K" / "hf"
    coarse = Forge.from_any(path, progress=False)
    coarse.params = jax.tree.map(lambda x: jnp.round(x * 16) / 16, coarse.params)
    coarse.save_pretrained(tmp_path / "coarse")
    base = load(path, progress=False)
    text = "Once upon a time, there was a little girl named Lily. She had a red ball. " * 6

    def theirs(directory: Path) -> Logp:
        read = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
        return lambda ids: read(torch.tensor([ids])).logits[0].detach().log_softmax(-1).numpy()

    ids = ids_of(base, text)
    windows = second_halves([1, *ids], 32, 1)  # the tokenizer puts <s> = 1 before a text
    result = evaluate(coarse, text, reference=base, context=32, batch=2)
    check(result, sums(theirs(tmp_path / "coarse"), theirs(path), windows))
    scored = [window[j + 1] for window, places in windows for j in places]
    bits = result.nll.value * len(scored) / np.log(2) / len("".join(base.tokenizer.id_to_token(i) for i in scored))
    assert result.bits_per_byte.value == pytest.approx(bits)
