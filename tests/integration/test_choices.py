"""Every choice of a session at the front doors: texts, `Forge`, the command line. Each has the effect that it says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_checkpoint import write_chat_model

from forge_jax import Adapter, Forge, SamplingParams, Session, text
from forge_jax.adapting import adapted, merged
from forge_jax.cli import main
from forge_jax.loading import Model
from forge_jax.lora import Update

pytestmark = pytest.mark.usefixtures("quick_compiles")

NEW = 10
ROOM, SLOTS = 300, 384  # of invariant sessions, as asked and as made; others begin with 256
PROMPTS = ["Hello you, who are you?", "Hello you, who are they?"]  # more than a page that is the same


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("models") / "chat")


@pytest.fixture(scope="module")
def forge(directory: Path) -> Forge:
    return Forge.from_any(directory, progress=False)


@pytest.fixture(scope="module")
def plain(forge: Forge) -> list[str]:
    return forge.complete(PROMPTS, max_new_tokens=NEW)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """The sessions that texts were made with."""
    sessions: list[Session] = []

    def recorded(*args: Any, **options: Any) -> Session:
        sessions.append(Session(*args, **options))
        return sessions[-1]

    monkeypatch.setattr(text, "Session", recorded)
    return sessions


def pages(session: Session) -> np.ndarray:
    """The table of the pages of all rows."""
    return np.asarray(session.state.cache.places["full"].table_BQ)


def test_rows_that_begin_alike_share_pages(forge: Forge, plain: list[str], made: list[Session]):
    assert forge.complete(PROMPTS, max_new_tokens=NEW, layout="paged") == plain
    replies, _ = text.complete(forge.model, PROMPTS, max_new_tokens=NEW, layout="paged")
    assert [reply.text for reply in replies] == plain
    for session in made:
        first, second = pages(session)
        assert first[0] == second[0]
        assert first[1] != second[1]
    stream = text.stream(forge.model, PROMPTS[0], max_new_tokens=NEW, layout="paged")
    assert "".join(stream) == plain[0]
    assert pages(stream.session).shape[0] == 1
    ids = np.array([forge.tokenizer.encode(PROMPTS[0])])
    forge.generate(ids, 1, temperature=0, layout="paged", n=2)
    assert forge.session is not None
    assert pages(forge.session)[:, 0].tolist() == [0, 0]


def test_invariant_rows_have_the_same_bits_in_any_batch(forge: Forge, plain: list[str], made: list[Session]):
    options: dict[str, Any] = {"max_new_tokens": NEW, "sampling": SamplingParams(temperature=0, logprobs=2)}
    both, _ = text.complete(forge.model, PROMPTS, invariant=ROOM, **options)
    alone, _ = text.complete(forge.model, PROMPTS[:1], invariant=ROOM, **options)
    assert [reply.text for reply in both] == plain
    assert alone == both[:1]
    assert [session.state.cache.length for session in made] == [SLOTS, SLOTS]
    ids = np.array([forge.tokenizer.encode(PROMPTS[0])])
    forge.generate(ids, 1, temperature=0, invariant=ROOM)
    assert forge.session is not None
    assert forge.session.state.cache.length == SLOTS


def adapter(seed: int) -> Adapter:
    """A large update of one weight of a model that `write_chat_model` wrote."""
    a, b = (np.random.default_rng([seed, i]).normal(size=size) for i, size in enumerate([(32, 4), (4, 2, 16)]))
    return Adapter({"layers.0.attention.q": Update(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))})


def test_each_row_has_its_own_adapter(forge: Forge, plain: list[str]):
    first, second = adapter(1), adapter(2)
    own = [Forge.from_model(merged(adapted(forge.model, each))) for each in (first, second)]
    expected = [plain[0], *(one.complete(PROMPTS, max_new_tokens=NEW)[0] for one in own)]
    assert len(set(expected)) == 3
    model = adapted(forge.model, [first, second])
    prompts = [PROMPTS[0]] * 3
    replies, _ = text.complete(model, prompts, max_new_tokens=NEW, adapters=[1, -1, 0])
    assert [reply.text for reply in replies] == [expected[i] for i in (2, 0, 1)]
    named = Forge.from_model(forge.model)
    named.adapters.add("first", first)
    named.adapters.add("second", second)
    assert named.complete(prompts, max_new_tokens=NEW, adapters=["second", None, "first"]) == [
        expected[i] for i in (2, 0, 1)
    ]
    assert named.complete(PROMPTS, max_new_tokens=NEW) == plain  # none is active
    ids = np.array([forge.tokenizer.encode(PROMPTS[0])] * 3)
    greedy: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1.0, "stop_tokens": []}
    out, logits = named.generate(ids, NEW, adapters=["second", None, "first"], return_logits=True, **greedy)
    np.testing.assert_array_equal(out[:, ids.shape[1] :], logits.argmax(-1))
    assert len(np.unique(out, axis=0)) == 3
    steps = list(named.generate_stream(ids, NEW, adapters=["second", None, "first"], **greedy))
    assert steps == out[:, ids.shape[1] :].T.tolist()
    with pytest.raises(ValueError, match="there is no adapter 'third'; there is 'first', 'second'"):
        named.complete(PROMPTS[0], adapters=["third"])
    with pytest.raises(ValueError, match="1 adapters for 2 prompts"):
        named.complete(PROMPTS, adapters=["first"])


def test_what_was_read_is_gone_on_with(forge: Forge, plain: list[str], made: list[Session]):
    read = text.stream(forge.model, "Hello you, ", max_new_tokens=0)
    replies, _ = text.complete(forge.model, PROMPTS, max_new_tokens=NEW, held=read.session.held(), layout="paged")
    assert [reply.text for reply in replies] == plain
    with pytest.raises(ValueError, match="prompt 0 is not what is held from token 0 on"):
        forge.complete("Other", held=read.session.held())


def test_the_config_of_a_forge_holds_for_texts_too(forge: Forge, plain: list[str], made: list[Session]):
    paged = Forge.from_model(forge.model)
    paged.config = replace(paged.config, use_paged_attn=True, kv_cache_dtype="bf16")
    paged.complete(PROMPTS[0], max_new_tokens=2)
    assert pages(made[0]).shape[0] == 1
    assert made[0].state.cache.layers[0]["attention"]["k"].codec.name == "bfloat16"
    paged.complete(PROMPTS[0], max_new_tokens=2, layout="dense", cache_dtype="float32")
    assert made[1].state.cache.places["full"].table_BQ is None
    assert made[1].state.cache.layers[0]["attention"]["k"].codec.name == "float32"


def command(directory: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """What `forge-jax generate` gives for the first prompt: exit code, stdout, stderr."""
    given = ["generate", "-m", str(directory), "--max-new-tokens", str(NEW), "--no-stats", *words, PROMPTS[0]]
    code = main(given)
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_line(
    directory: Path, forge: Forge, plain: list[str], made: list[Session], capsys: pytest.CaptureFixture[str]
):
    assert command(directory, capsys, "--layout", "paged")[:2] == (0, plain[0] + "\n")
    assert pages(made[-1]).shape[0] == 1
    assert command(directory, capsys, "--invariant", str(ROOM))[:2] == (0, plain[0] + "\n")
    assert made[-1].state.cache.length == SLOTS
    narrow = Forge.from_any(directory, window=6, sinks=2, progress=False).complete(PROMPTS[0], max_new_tokens=NEW)
    assert narrow != plain[0]
    assert command(directory, capsys, "--window", "6", "--sinks", "2")[:2] == (0, narrow + "\n")
    assert list(made[-1].state.cache.places) != ["full"]
    assert command(directory, capsys, "--window", "6")[1] != narrow + "\n"  # four sinks


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sinks", "2"], "--sinks 2 are the first tokens beside a window; add --window N"),
        (["--invariant", "64", "--layout", "paged"], "invariant=64 needs layout='dense'"),
        (["--invariant", "64", "--lookup"], "invariant=64 beside a drafter"),
        (["--invariant", "16"], "33 tokens (prompt and what is to be generated) in a session with invariant=16"),
    ],
)
def test_what_does_not_go_together(directory: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str):
    code, out, said = command(directory, capsys, *words)
    assert (code, out) == (1, "")
    assert message in said


def test_what_does_not_go_together_in_calls(forge: Forge):
    model: Model = forge.model
    with pytest.raises(ValueError, match="n=2 texts, but a stream is of one"):
        text.stream(model, "Hello", n=2)
    held = text.stream(model, "Hello", max_new_tokens=0).session.held()
    with pytest.raises(ValueError, match="invariant=64 beside held texts"):
        text.complete(model, ["Hello"], max_new_tokens=2, invariant=64, held=held)
    with pytest.raises(ValueError, match="the parameters have none to choose among"):
        text.complete(model, ["Hello"], adapters=[0])
