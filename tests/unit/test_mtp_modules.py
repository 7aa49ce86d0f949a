"""Several modules for multi-token prediction: each draft is its own module's, on what the one before it made."""

import dataclasses

import numpy as np
import pytest
from test_speculation import PROMPTS, SMALL, TRAINED, drafted, module_layer, numbers, rms, states, trained

from forge_jax import MtpHead, SamplingParams, Session
from forge_jax.params import Tree

pytestmark = pytest.mark.usefixtures("quick_compiles")


def chained(count: int) -> MtpHead:
    """Modules with the ends of one, and layers of their own."""
    ends = trained().params[0]
    return MtpHead(TRAINED, tuple(ends | {"layers": numbers(TRAINED, 6 + k)["layers"]} for k in range(count)), count)


def chain(head: MtpHead, params: Tree, h_TD: np.ndarray, tokens: list[int]) -> list[int]:
    """The drafts of arXiv:2412.19437, 2.2, in float64; h_TD are the model's hidden states of all tokens but one."""
    embed, start = np.asarray(params["embed"], np.float64), len(tokens)
    for depth in range(1, head.modules + 1):
        out_TD = h_TD
        for k, p in enumerate(head.params[:depth]):
            token_TD = rms(embed[tokens[k + 1 :][: len(out_TD)]], p["embed_norm"]["scale"])
            pair = np.concatenate([token_TD, rms(out_TD, p["hidden_norm"]["scale"])], -1)
            out_TD = rms(
                module_layer(p["layers"]["0"], pair @ np.asarray(p["join"], np.float64)), p["final_norm"]["scale"]
            )
        tokens = [*tokens, int((out_TD[-1] @ embed.T).argmax())]
    return tokens[start:]


@pytest.mark.slow
def test_every_draft_is_its_modules() -> None:
    """After a prompt, and after some rounds, in which the modules learned from what was accepted and what was not."""
    head, params = chained(3), numbers(SMALL)
    options = {"sampling": SamplingParams(temperature=0), "max_new_tokens": 40, "stop_ids": ()}
    plain = Session(SMALL, params, PROMPTS, **options)
    ours = Session(SMALL, params, PROMPTS, draft=head, draft_always=True, **options)
    plain.advance()
    for tokens, drafts in drafted(ours, head):
        assert drafts == chain(head, params, states(SMALL, params, tokens), tokens)
    ours.advance()
    assert ours.ids() == plain.ids()


def test_no_more_drafts_than_modules() -> None:
    """One module goes on with what it gave; several end with the last."""
    trained().check(SMALL, {}, 37)
    with pytest.raises(ValueError, match="tokens = 4; expected 1 to 3"):
        dataclasses.replace(chained(3), tokens=4).check(SMALL, {}, 37)
