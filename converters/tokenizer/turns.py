"""Tokens that are known by their text alone: those that end a turn, and those that only look like control tokens.

Files often name one end of text and leave out the end of a turn that chats are written with; llama.cpp keeps this
list for the same reason.
"""

from collections.abc import Collection, Mapping

_END_TEXTS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
)
# HTML has them too: they end a turn only where the vocabulary marks them as control tokens.
_END_TEXTS_IF_CONTROL = ("</s>", "<eos>")

SHOWN_TEXTS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
"""Marks of gpt-oss that are part of an answer's text, though its files call them control tokens."""


def end_ids(ids: Mapping[str, int], control: Collection[int]) -> list[int]:
    """The ids, ascending, of the tokens that end a turn by their text; `control` are the ids marked as control."""
    found = {text for text in _END_TEXTS if text in ids}
    found |= {text for text in _END_TEXTS_IF_CONTROL if ids.get(text) in control}
    if found & {"<|call|>", "<|calls|>"} and found & {"<|return|>", "<|flush|>"}:
        found.discard("<|end|>")  # in these vocabularies it ends a message, not the turn
    if "<|tool_response>" in found:
        found.discard("</s>")
    return sorted(ids[text] for text in found)
