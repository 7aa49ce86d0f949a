"""Chat templates: a conversation becomes the text of a prompt.

A template is text that came with a model, so it is treated as a stranger's program: it runs in a sandbox (sandbox.py),
sees nothing but copies made of plain JSON types, and ends in a ValueError whatever goes wrong in it.
Renders what transformers renders.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2.environment import Template
from jinja2.exceptions import TemplateError, TemplateSyntaxError

from converters.tokenizer.sandbox import MAX_TEXT, Sandbox

Message = Mapping[str, Any]

_MAX_SOURCE = 1 << 18
_MAX_DEPTH = 64
_REASONING = ("reasoning_content", "thinking", "reasoning")
# Content that never enters the text: a template asks whether the key is there, the model gets the thing itself.
_MEDIA = frozenset(("image", "images", "audio", "audios", "video", "videos"))


class ChatTemplate:
    """A compiled template. Immutable, may be used by several threads.

    Raises:
        ValueError: not valid Jinja; the message has the line.
    """

    def __init__(self, source: str) -> None:
        if len(source) > _MAX_SOURCE:
            raise ValueError(f"chat template: {len(source)} characters, the limit is {_MAX_SOURCE}")
        self.source = source
        try:
            self._code = Sandbox().compile(source)
        except TemplateSyntaxError as error:
            raise ValueError(f"chat template, line {error.lineno}: {error.message}") from error
        except TemplateError as error:
            raise ValueError(f"chat template: {error.message}") from error
        except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
            raise ValueError(f"chat template: cannot be compiled: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: oldest first. Keys whose value is None count as absent; reasoning is found under any of its names.
            add_generation_prompt: end with the header of the assistant's turn.
            variables: everything else the template may refer to, JSON-like.

        Raises:
            ValueError: a value that is not JSON-like, or the template failed: it refused the conversation, used what is
                not there or not allowed, or ran out of bounds.
        """
        given = {name: plain(value, name) for name, value in (variables or {}).items()}
        given["messages"] = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
        given["add_generation_prompt"] = add_generation_prompt
        sandbox = Sandbox(given=_length(given))
        try:
            text = Template.from_code(sandbox, self._code, sandbox.make_globals(None)).render(given)
        except TemplateError as error:
            raise ValueError(f"chat template: {error.message}") from error
        except Exception as error:  # whatever a stranger's program may raise
            raise ValueError(f"chat template: {type(error).__name__}: {error}") from error
        if len(text) > MAX_TEXT:
            raise ValueError(f"chat template: the text has {len(text)} characters, the limit is {MAX_TEXT}")
        return text


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy made of str, int, float, bool, None, list and dict only.

    Tuples become lists, NumPy scalars numbers, subclasses their base. ValueError for anything else, with its place.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"{where}: nested more than {_MAX_DEPTH} deep")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {_key(key, where): _item(key, item, where, depth) for key, item in value.items()}
    raise ValueError(f"{where}: a chat template takes JSON-like values, found {type(value).__name__}")


def _key(key: Any, where: str) -> str | int | float | bool | None:
    if isinstance(key, str | int | float | bool | None):
        return plain(key, where)
    raise ValueError(f"{where}: a key is of type {type(key).__name__}, expected a string")


def _item(key: Any, item: Any, where: str, depth: int) -> Any:
    if key in _MEDIA and not isinstance(item, str | Mapping | list | None):
        return f"<{type(item).__name__}>"
    return plain(item, f"{where}[{key!r}]", depth + 1)


def _message(message: Message, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ValueError(f"{where}: expected a mapping with role and content, found {type(message).__name__}")
    kept = plain({key: value for key, value in message.items() if value is not None}, where)
    reasoning = next((kept[name] for name in _REASONING if name in kept), None)
    return kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning}


def _length(value: Any) -> int:
    """The number of characters in a plain value."""
    if isinstance(value, str):
        return len(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_length, parts))
