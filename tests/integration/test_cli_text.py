"""`forge-jax generate` and `forge-jax chat`, against the library and against reference texts."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from tiny_checkpoint import write_chat_model

from forge_jax import Forge
from forge_jax.cli import chat, main, options
from forge_jax.cli.conversation import Conversation
from forge_jax.inspection import inspect

pytestmark = pytest.mark.usefixtures("quick_compiles")

NEW = 12  # new tokens; one number for all, so that few programs are compiled
SETTINGS = {name: setting.default for name, setting in options.SETTINGS.items()} | {"max-new-tokens": NEW}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("models") / "chat")


@pytest.fixture(scope="module")
def model(directory) -> Forge:
    return Forge.from_any(directory, progress=False)


@pytest.fixture
def run(directory, capsys, monkeypatch):
    """Run a command line on the model with a text at stdin; gives (exit code, stdout, stderr)."""

    def call(command: str, *words: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = main([command, "-m", str(directory), "--max-new-tokens", str(NEW), *words])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


# --- generate


def test_a_prompt_from_anywhere_gives_the_library_s_text(run, model, tmp_path):
    expected = model.complete("Hello you", max_new_tokens=NEW) + "\n"
    code, out, err = run("generate", "Hello you")
    assert (code, out) == (0, expected)
    assert "prompt 9 tokens" in err
    assert f"generation {NEW} tokens" in err
    assert "peak memory" in err
    assert run("generate", "Hello", "you")[1] == expected
    code, out, err = run("generate", "--no-stats", stdin="Hello you\n")
    assert (code, out, err) == (0, expected, "")
    code, out, err = run("generate", "--lookup", "--draft-tokens", "3", "Hello you")
    assert (code, out) == (0, expected)
    assert "passes of the model" in err
    (tmp_path / "prompt.txt").write_text("Hello you\n")
    assert run("generate", "--prompt-file", str(tmp_path / "prompt.txt"))[1] == expected


def test_a_message_goes_through_the_template(run, model):
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    expected = model.chat(turns, max_new_tokens=NEW) + "\n"
    assert run("generate", "--chat", "--system", "Be kind.", "Hello")[:2] == (0, expected)


def test_options_reach_the_sampler(run, model):
    from forge_jax import SamplingParams

    sampling = SamplingParams(0.9, 20, 0.95, min_p=0.01, repetition_penalty=1.2)
    words = "--temperature 0.9 --top-k 20 --top-p 0.95 --min-p 0.01 --repetition-penalty 1.2 --seed 5".split()
    texts = model.complete("Hello", max_new_tokens=NEW, sampling=sampling, seed=5, n=2)
    code, out, _ = run("generate", "Hello", "--n", "2", *words)
    assert (code, out) == (0, f"--- 1 of 2\n{texts[0]}\n--- 2 of 2\n{texts[1]}\n")
    assert texts[0] != texts[1]


def test_a_stop_text_is_not_printed(run, model):
    text = model.complete("Hello", max_new_tokens=NEW)
    stop = text[6]
    assert run("generate", "Hello", "--stop", stop)[1] == text[: text.index(stop)] + "\n"


@pytest.mark.parametrize(
    ("words", "stdin", "message"),
    [
        (["x", "--top-k", "3", "--min-p", "0.1"], "", "--top-k and --min-p without a temperature"),
        (["x", "--n", "3"], "", "--n 3 at temperature 0 gives the same text 3 times"),
        (["x", "--system", "y"], "", "--system is a message of a chat; add --chat"),
        (["x", "--prompt-file", "y"], "", "a prompt and --prompt-file; give one of them"),
        (["--prompt-file", "no such file"], "", "no such file"),
        (["x", "--temperature", "-1"], "", "SamplingParams.temperature"),
        (["x", "--subfolder", "nothing"], "", "nothing: no such directory"),
        (["x" * 600], "", "a prompt of 600 tokens is longer than the model's context of 512"),
        ([], "", "prompt 0 is empty"),
    ],
)
def test_what_cannot_be_generated_is_one_line(run, words, stdin, message):
    code, out, err = run("generate", *words, stdin=stdin)
    assert (code, out) == (1, "")
    assert message in err
    assert err.startswith("forge-jax: ")
    assert err.count("\n") == 1


def test_debug_shows_where_an_error_came_from(run):
    with pytest.raises(ValueError, match="add --chat"):
        run("generate", "x", "--system", "y", "--debug")


def test_ctrl_c_while_loading(run, monkeypatch):
    def interrupted(*_):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(options, "load", interrupted)
    assert run("generate", "x") == (130, "", "\n")


@pytest.mark.parametrize("file", ["hf", "stories260K-f32.gguf"])
def test_a_real_model_tells_its_story(shared, capsys, file):
    path = shared / "models" / "stories260K"
    reference = json.loads((path / "reference.json").read_text())["text"]
    assert main(["generate", "-m", str(path / file), "--max-new-tokens", "60", "--no-stats", ""]) == 0
    out = capsys.readouterr().out.rstrip("\n")
    assert len(out) > 100
    assert reference.lstrip().startswith(out.lstrip())


def test_a_process_of_its_own_without_readers(directory):
    """`python -m`, stdin as the prompt, and a reader that has seen enough."""
    command = [sys.executable, "-W", "error", "-m", "forge_jax.cli", "generate", "-m", str(directory)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        command, input=b"Hello", stdout=write, stderr=subprocess.PIPE, env=environment, timeout=120, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


# --- chat


def test_three_turns_through_a_pipe(run, model, tmp_path):
    turns = []
    for question in ("One", "Two", "Three"):
        turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": model.chat(turns, max_new_tokens=NEW)})
    saved = tmp_path / "chat.json"
    code, out, err = run("chat", stdin=f"One\n\nTwo\nThree\n/stats\n/save {saved}\n/exit\nFour\n")
    assert code == 0
    assert out == "".join(turn["content"] + "\n" for turn in turns if turn["role"] == "assistant")
    assert json.loads(saved.read_text()) == {"messages": turns}
    assert "of 512 tokens of context in use" in err
    assert "; 0 of them were kept" not in err


def test_commands(run, model, tmp_path):
    system = {"role": "system", "content": "Be kind."}
    with_system = model.chat([system, {"role": "user", "content": "One"}], max_new_tokens=NEW)
    without = model.chat([{"role": "user", "content": "One"}], max_new_tokens=NEW)
    code, out, _ = run("chat", "--system", "Be kind.", stdin="One\n/clear\nOne\n/system\n/clear\nOne\n")
    assert (code, out.splitlines()) == (0, [with_system, with_system, without])
    saved = tmp_path / "chat.json"
    saved.write_text(json.dumps({"messages": [system]}))
    code, out, err = run("chat", stdin=f"/load {saved}\nOne\n/set\n/set max-new-tokens 3\nTwo\n/help\n")
    assert code == 0
    first, second = out.splitlines()
    assert first == with_system
    assert len(second) == 3
    assert "temperature 0.0\n" in err
    assert "max-new-tokens 3\n" in err
    assert "/regenerate" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nothing", "no command /nothing"),
        ("/set speed 3", "no setting 'speed'; there are max-new-tokens"),
        ("/set seed x", "seed: 'x' is not a number"),
        ("/set top-k 3", "--top-k without a temperature"),
        ("/load nothing.json", "nothing.json"),
        ("/save", "which file?"),
        ("/regenerate", "no answer to make anew"),
        ("x" * 600, "the conversation has 6"),
    ],
)
def test_mistakes_in_a_chat_do_not_end_it(run, line, message):
    code, out, err = run("chat", stdin=f"{line}\n/set seed 7\n")
    assert (code, out) == (1, "")  # a script notices
    assert message in err
    assert err.splitlines()[-1] == "seed 7"


def test_saved_conversations_are_checked(run, tmp_path):
    for content in ("[]", '{"messages": [{"role": "user"}]}', "{", '{"messages": {"role": "a", "content": "b"}}'):
        (tmp_path / "bad.json").write_text(content)
        assert run("chat", stdin=f"/load {tmp_path / 'bad.json'}\n")[0] == 1


def test_a_model_without_a_template_does_not_chat(shared, capsys):
    assert main(["chat", "-m", str(shared / "models" / "stories260K" / "hf")]) == 1
    assert "no chat template" in capsys.readouterr().err


# --- the conversation itself


def test_the_cache_is_kept_and_counted_right(model, directory):
    talk = Conversation(model.model, dict(SETTINGS), (), None)
    "".join(talk.ask("One"))
    before = talk.session
    held = talk.held()
    answer = "".join(talk.ask("Two"))
    assert talk.session is before
    assert talk.kept == len(held) > 0
    assert answer == model.chat(talk.messages[:-1], max_new_tokens=NEW)
    assert talk.session is not None
    allocated = sum(leaf.nbytes for leaf in jax.tree.leaves(talk.session.state.cache))
    assert inspect(directory, context=talk.session.state.cache.length).memory.cache == allocated


@pytest.mark.parametrize("how", ["close", "interrupt"])
def test_an_answer_that_was_stopped_stays_as_far_as_it_was(model, how):
    talk = Conversation(model.model, dict(SETTINGS), (), None)
    pieces = talk.ask("One")
    seen = "".join(next(pieces) for _ in range(4))
    if how == "close":
        pieces.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            pieces.throw(KeyboardInterrupt)
    assert talk.messages == [{"role": "user", "content": "One"}, {"role": "assistant", "content": seen}]
    assert "generation 5 tokens" in talk.figures  # one more than was seen: it is made before the first is shown
    answer = "".join(talk.ask("Two"))
    assert answer == model.chat(talk.messages[:-1], max_new_tokens=NEW)


def test_an_interrupt_before_the_first_word_forgets_the_question(model, monkeypatch):
    talk = Conversation(model.model, dict(SETTINGS), (), None)
    "".join(talk.ask("One"))
    messages = talk.messages
    extend = type(talk.session).extend

    def interrupted(*args):
        extend(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr("forge_jax.generation.Session.extend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(talk.ask("Two"))
    monkeypatch.undo()
    assert talk.messages == messages
    assert "".join(talk.ask("Three")) == model.chat(talk.messages[:-1], max_new_tokens=NEW)


def test_another_answer(model):
    talk = Conversation(model.model, SETTINGS | {"temperature": 2.0}, (), None)
    first = "".join(talk.ask("One"))
    second = "".join(talk.regenerate())
    assert first != second
    assert talk.messages == [{"role": "user", "content": "One"}, {"role": "assistant", "content": second}]
    greedy = Conversation(model.model, dict(SETTINGS), (), None)
    "".join(greedy.ask("One"))
    with pytest.raises(ValueError, match="at temperature 0 the answer stays the same"):
        greedy.regenerate()


def test_ctrl_c_ends_an_answer_and_not_the_chat(model, capsys):
    talk = chat.Chat(Conversation(model.model, dict(SETTINGS), (), None))

    def pieces():
        yield "half"
        signal.raise_signal(signal.SIGINT)

    talk.show(pieces())
    assert capsys.readouterr() == ("half\n", "(stopped)\n")


def test_at_a_terminal(directory):
    """A person sees a banner, a prompt, the answer, and is let go by Ctrl-D."""
    command = [sys.executable, "-m", "forge_jax.cli", "chat", "-m", str(directory), "--max-new-tokens", "3"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TERM": "dumb"}
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        for wanted, typed in ((b"> ", b"Hello\n"), (b"\n> ", b"\x04")):
            start = len(seen)
            while wanted not in seen[start:]:
                seen += os.read(ours, 1000)
            os.write(ours, typed)
        assert process.wait(60) == 0
    os.close(ours)
    text = seen.decode()
    assert "context 512\r\n/help shows the commands, Ctrl-D leaves\r\n" in text
    assert "\r\x1b[K" in text  # the notice is wiped away
