"""Greedy texts of a real model with drafts are those without: 200 prompts, each drafter, alone and in batches.

All of it is a long sweep. Drafts are made whether they pay or not; that some are accepted and some are not is checked.
"""

import dataclasses
import functools
import itertools
from typing import Any

import pytest

from forge_jax import Constraint, EarlyExit, Lookup, SamplingParams, Session, loading, text
from forge_jax.generation.speculation import DraftModel
from forge_jax.hub import resolve
from forge_jax.loading import Model

pytestmark = pytest.mark.slow

SUBJECTS = [
    *("the sea", "a clockmaker", "two rivers", "prime numbers", "an old bridge", "the moon", "bread", "a violin"),
    *("winter", "a lighthouse", "chess", "the printing press", "a garden", "volcanoes", "trains", "honey", "maps"),
    *("a fox", "paper", "the wind"),
]
FORMS = [
    *("Write about {}.", "Once upon a time, there was {}", "Q: What do you know of {}?\nA:", "def describe(): # {}\n"),
    *("1. {}\n2. {}\n3.", "{}, {}, {},", 'The title of the book was "{}" and', "Dear Ada,\n\nyou asked me about {}."),
    *("{} is not {}, but", "In 1850, {}"),
]
PROMPTS = [form.format(subject, subject, subject) for subject, form in itertools.product(SUBJECTS, FORMS)]
NEW, LAYERS = 12, 20
WAYS = {
    "plain": SamplingParams(temperature=0),
    "penalties": SamplingParams(
        temperature=0, repetition_penalty=1.02, presence_penalty=0.1, frequency_penalty=0.05, logit_bias={29: -3.0}
    ),
    "constraint": SamplingParams(temperature=0, constraint=Constraint.regex(r"([A-Za-z]{1,9}[ ,.\n]){1,6}[0-9]{2}")),
}
DRAFTERS = ("lookup", "draft model", "early exit")


@functools.cache
def model() -> Model:
    try:
        return loading.load(resolve("smollm2", offline=True, progress=False), packed=False, progress=False)
    except FileNotFoundError as error:
        pytest.skip(f"the default model is not on this machine: {error}")


def drafter(kind: str) -> Any:
    """One of every kind. The draft model is the first layers as a model of its own."""
    if kind == "lookup":
        return Lookup(tokens=4, shortest=1)
    if kind == "early exit":
        return EarlyExit(layers=LAYERS, tokens=3)
    spec = model().spec
    return DraftModel(dataclasses.replace(spec, layers=spec.layers[:LAYERS]), model().params, tokens=3)


def texts(way: str, batch: int, draft: Any = None) -> tuple[list[list[int]], int, int]:
    """The new ids of every prompt; drafts proposed and accepted."""
    known, found, proposed, accepted = model(), [], 0, 0
    for at in range(0, len(PROMPTS), batch):
        session = Session(
            known.spec,
            known.params,
            [text.encode(known, prompt) for prompt in PROMPTS[at : at + batch]],
            max_new_tokens=NEW,
            sampling=WAYS[way],
            stop_ids=text.stop_ids(known),
            vocabulary=known.vocabulary,
            draft=draft,
            draft_always=draft is not None,
        )
        session.advance()
        found += session.ids()
        if report := session.speculation:
            proposed, accepted = proposed + report.proposed, accepted + report.accepted
    return found, proposed, accepted


@functools.cache
def without(way: str) -> list[list[int]]:
    """Every prompt alone, without drafts."""
    return texts(way, 1)[0]


def test_there_are_200_prompts() -> None:
    assert len(set(PROMPTS)) == 200


@pytest.mark.parametrize("batch", [4, 1])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", DRAFTERS)
def test_every_text_is_the_text_without_drafts(kind: str, way: str, batch: int) -> None:
    found, proposed, accepted = texts(way, batch, drafter(kind))
    assert found == without(way)
    assert 0 < accepted < proposed
