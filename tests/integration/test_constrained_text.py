"""Constraints from the front: texts, chats, streams, stop strings, the command line; the tokens of a real model."""

import json
import re
from dataclasses import replace

import jsonschema
import pytest
from tiny_checkpoint import write_chat_model

from converters.checkpoint import open_checkpoint
from converters.tokenizer import from_gguf
from forge_jax import Constraint, Forge, ForgeConfig, SamplingParams, text
from forge_jax.cli import main
from forge_jax.hub import resolve
from forge_jax.loading import Model

pytestmark = pytest.mark.usefixtures("quick_compiles")

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
JSON = Constraint.json(PERSON, compact=True)
DIGITS = Constraint.regex("[0-9]{3}")


@pytest.fixture(scope="module")
def forge(tmp_path_factory) -> Forge:
    return Forge.from_any(write_chat_model(tmp_path_factory.mktemp("models") / "chat"), progress=False)


def test_texts_chats_and_streams(forge):
    assert re.fullmatch("[0-9]{3}", forge.complete("Hello", constraint=DIGITS))
    jsonschema.validate(json.loads(forge.chat("Who?", constraint=JSON)), PERSON)
    stream = forge.stream([{"role": "user", "content": "Who?"}], constraint=JSON)
    pieces = list(stream)
    assert len(pieces) > 10
    assert "".join(pieces) == stream.reply.text == forge.chat("Who?", constraint=JSON)
    assert stream.reply.finish_reason == "stop"
    # another turn of the same session is constrained from its beginning
    end = forge.tokenizer.decode([stream.reply.ids[-1]], skip_special=False)
    assert end == "<|im_end|>"
    before = stream.session.ids()[0]
    stream.session.extend([forge.tokenizer.encode("More")], max_new_tokens=60)
    stream.session.advance()
    again = stream.session.ids()[0]
    jsonschema.validate(json.loads(forge.tokenizer.decode(again)), PERSON)
    assert again[0] == before[0] == forge.tokenizer.encode("{")[0]


def test_a_stop_string_cuts_a_text_that_goes_on_being_what_it_was(forge):
    whole, _ = text.complete(forge.model, ["Hello"], constraint=JSON, max_new_tokens=60)
    cut, _ = text.complete(forge.model, ["Hello"], constraint=JSON, max_new_tokens=60, stop=[":", "}"])
    assert cut[0].text == '{"name"' == whole[0].text[:7]
    assert cut[0].finish_reason == "stop"
    row = SamplingParams(constraint=DIGITS)
    with pytest.raises(ValueError, match="give one or the other"):
        text.complete(forge.model, ["Hello"], sampling=row, constraint=JSON)
    with pytest.raises(ValueError, match="give one or the other"):
        text.complete(forge.model, ["Hello"] * 2, sampling=[SamplingParams(), row], constraint=JSON)


def test_the_command_line(forge, tmp_path, capsys):
    schema, grammar = tmp_path / "schema.json", tmp_path / "sum.gbnf"
    schema.write_text(JSON.text)
    grammar.write_text('root ::= [0-9] "+" [0-9]')

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["generate", "Hello", "-m", str(forge.model.path), "--no-stats", *words])
        out = capsys.readouterr()
        return code, out.out.removesuffix("\n"), out.err

    jsonschema.validate(json.loads(run("--json-schema", str(schema))[1]), PERSON)
    assert re.fullmatch(r"\d\+\d", run("--grammar", str(grammar))[1])
    assert re.fullmatch("[0-9]{3}", run("--regex", "[0-9]{3}")[1])
    assert run("--choice", "yes", "--choice", "no")[1] in ("yes", "no")
    code, out, err = run("--regex", "(a")
    assert (code, out) == (1, "")
    assert "the regex constraint (a: " in err
    assert "unclosed group" in err
    code, _, err = run("--json-schema", str(tmp_path / "none.json"))
    assert code == 1
    assert "none.json" in err


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_real_vocabulary(forge, seed):
    """A random model with the 49,152 tokens of SmolLM2; 33 texts a seed."""
    try:
        path = resolve("smollm2", offline=True, progress=False)
    except FileNotFoundError as error:
        pytest.skip(f"the default model is not on this machine: {error}")
    checkpoint = open_checkpoint(path)
    tokenizer = from_gguf(checkpoint.source.metadata)
    checkpoint.source.close()
    config = ForgeConfig(tokenizer.vocab_size, dim=16, n_layers=1, n_heads=2, max_seq_len=512, dropout=0)
    model: Model = replace(Forge(config=config, seed=seed).model, tokenizer=tokenizer)
    kinds = [JSON, DIGITS, Constraint.regex(r"[A-Za-zäöü ,]{20,40}\."), Constraint.json(PERSON)]
    kinds += [Constraint.json({"type": "array", "items": {"enum": ["ä", True, {"a": None}, 1.5]}, "maxItems": 4})]
    kinds += [Constraint.choice(["Ada Lovelace", "Ada", "Grace Hopper", "🦀"]), None]
    rows = [SamplingParams(seed=100 * seed + i, constraint=kinds[i % 7]) for i in range(35)]
    replies, _ = text.complete(model, ["Hello"] * len(rows), sampling=rows, max_new_tokens=200)
    ended = 0
    for row, reply in zip(rows, replies, strict=True):
        kind = row.constraint
        if kind is None or reply.finish_reason == "length":
            continue
        ended += 1
        if kind.kind == "json":
            jsonschema.validate(json.loads(reply.text), json.loads(kind.text))
        else:
            assert re.fullmatch(kind.text, reply.text) if kind.kind == "regex" else reply.text in kind.choices
    assert ended >= 24  # whitespace between parts may go on for ever
