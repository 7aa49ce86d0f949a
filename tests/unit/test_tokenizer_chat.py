"""Chat templates: what transformers renders, and what strangers' templates may not do."""

import json
import threading
from datetime import datetime
from enum import Enum
from typing import Any

import numpy as np
import pytest

from converters.tokenizer.chat import ChatTemplate, plain

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' + tool_call.arguments | tojson + "}<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = """{{ bos_token }}
{%- for message in messages -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""
TOOLS = """{%- macro arguments(call) -%}
    {%- for key, value in call.arguments|items %}
        {{- key }}={{ value if value is string else value|tojson }};
    {%- endfor -%}
{%- endmacro -%}
{%- set ns = namespace(last=-1, calls=[]) -%}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- if tools -%}
    {{ '# Tools\\n' + tools | map(attribute='function') | map(attribute='name') | join(', ') }}
    {%- for tool in tools -%}{{ '\\n' ~ (tool | tojson) }}{%- endfor -%}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.tool_calls is defined -%}
        {%- for call in message.tool_calls -%}
            {{ '<tool>' ~ call.function.name ~ '(' ~ arguments(call.function) ~ ')' }}
        {%- endfor -%}
        {%- continue -%}
    {%- endif -%}
    {%- if message.reasoning_content and loop.index0 > ns.last -%}
        {{ '<think>' + message.reasoning_content + '</think>' }}
    {%- endif -%}
    {%- generation -%}{{ message.content.split('</think>')[-1].lstrip('\\n') }}{%- endgeneration -%}
    {{ '|%s|%05.1f' % (message.role, 3.14159) }}{{ '-' * 3 }}{{ [1, 2] + [3] }}{{ {'a': none}.get('b', 'x') }}
{%- endfor -%}
{{ strftime_now('%Y') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{%- for i in range(9) -%}{%- if i == 2 -%}{%- break -%}{%- endif -%}{{ i }}{%- endfor -%}
"""
PLAIN_CHAT = [
    {"role": "user", "content": "Hi, what's «up»? <b>"},
    {"role": "assistant", "content": "  Not much.\n"},
    {"role": "user", "content": "日本\n"},
]
SYSTEM_CHAT = [{"role": "system", "content": " Be brief. "}, *PLAIN_CHAT]
TOOL_CHAT = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "w", "arguments": {"city": "Ü", "days": [1, 2.5]}}}],
    },
    {"role": "assistant", "content": "Rain.", "reasoning": "clouds"},
]
PARTS_CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " what? "}]}]
WEATHER = [
    {
        "type": "function",
        "function": {"name": "w", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize(
    ("template", "chat", "tools"),
    [
        (CHATML, PLAIN_CHAT, None),
        (CHATML, SYSTEM_CHAT, None),
        (LLAMA3, SYSTEM_CHAT, None),
        (LLAMA3, TOOL_CHAT, WEATHER),
        (MISTRAL, PLAIN_CHAT, None),
        (GEMMA, PLAIN_CHAT, None),
        (GEMMA, PARTS_CHAT, None),
        (TOOLS, TOOL_CHAT, WEATHER),
        (TOOLS, PLAIN_CHAT, None),
    ],
)
def test_equals_transformers(template: str, chat: list[Any], tools: Any, add_generation_prompt: bool) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    kept = [{key: value for key, value in message.items() if value is not None} for message in chat]
    expected, _ = utils.render_jinja_template(
        [kept], tools=tools, chat_template=template, add_generation_prompt=add_generation_prompt, **TOKENS
    )
    variables = {"tools": tools, "documents": None, **TOKENS}
    text = ChatTemplate(template).render(chat, add_generation_prompt=add_generation_prompt, variables=variables)
    assert text == expected[0]


def render(source: str, **variables: Any) -> str:
    return ChatTemplate(source).render([{"role": "user", "content": "hi"}], variables=variables)


def test_a_template_may_refuse_a_conversation() -> None:
    with pytest.raises(ValueError, match="chat template: Conversation roles must alternate"):
        ChatTemplate(MISTRAL).render([{"role": "assistant", "content": "x"}], variables=TOKENS)


def test_functions_that_templates_have() -> None:
    assert render("{{ strftime_now('%Y') }}") == str(datetime.now().year)
    assert render("{{ {'a': 'ü<', 'b': [1]} | tojson }}") == '{"a": "ü<", "b": [1]}'
    assert render("{{ x | tojson(indent=2) }}", x={"a": [1]}) == json.dumps({"a": [1]}, indent=2)
    assert render("{{ 'a,b'.replace(',', ';').split(';') | join('+') | upper }}{{ 'x' | indent(2, true) }}") == "A+B  x"
    assert render("{% set a, b = 1, 2 %}{{ a ~ b }}{{ 7 // 2 }}{{ 2 ** 3 }}{{ '%s!' % 'y' }}{{ 'z{}'.format(1) }}") == (
        "1238y!z1"
    )


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ (1).__class__ }}",
        "{{ messages.__len__() }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ joiner.__init__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['os'] }}",
        "{{ lipsum.__globals__ }}",
        "{{ self.__init__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ '' | attr('__class__') }}",
        "{{ '' | attr('for' ~ 'mat') | attr('__globals__') }}",
        "{{ [messages] | map(attribute='__class__') | list }}",
        "{{ '{0.__class__}'.format('') }}",
        "{{ '{0.__class__}'.format_map({'0': 1}) }}",
        "{{ messages['__class__'] }}{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ messages[0].pop('role') }}",
        "{{ dict.mro() }}",
        "{{ ''.encode() }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{% set ns = namespace() %}{{ ns }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
    ],
)
def test_no_way_out_of_the_sandbox(source: str) -> None:
    with pytest.raises(ValueError, match="chat template"):
        render(source)


GROW = "{% set ns = namespace(s=SEED) %}{% for i in range(60) %}STEP{% endfor %}{{ ns.s | length }}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(1000000000) %}{% endfor %}",
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}{% for b in range(100000) if false %}x{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ loop.index }}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
        "{% for i in range(100000) %}" + "x" * 100_000 + "{% endfor %}",
        GROW.replace("SEED", "'aa'").replace("STEP", "{% set ns.s = ns.s ~ ns.s %}"),
        GROW.replace("SEED", "'aa'").replace("STEP", "{% set ns.s = ns.s + ns.s %}"),
        GROW.replace("SEED", "'aa'").replace("STEP", "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"),
        GROW.replace("SEED", "'aa'").replace("STEP", "{% set ns.s = [ns.s, ns.s] | join %}"),
        GROW.replace("SEED", "'aa'").replace("STEP", "{% set ns.s = '%s%s' % (ns.s, ns.s) %}"),
        GROW.replace("SEED", "'aa'").replace("STEP", "{% set ns.s = '{0}{0}'.format(ns.s) %}"),
        GROW.replace("SEED", "'aa'").replace("STEP", "{% set ns.s = ns.s | replace('a', 'aa') %}"),
        GROW.replace("SEED", "[1]").replace("STEP", "{% set ns.s = ns.s + ns.s %}"),
        GROW.replace("SEED", "[1]").replace("STEP", "{% set ns.s = [ns.s, ns.s] %}") + "{{ ns.s }}",
        GROW.replace("SEED", "[1]").replace("STEP", "{% set ns.s = (ns.s, ns.s) %}") + "{{ ns.s == ns.s }}",
        GROW.replace("SEED", "{}").replace("STEP", "{% set ns.s = {'a': ns.s, 'b': ns.s} %}") + "{{ ns.s | tojson }}",
        GROW.replace("SEED", "{}").replace("STEP", "{% set ns.s = dict(a=ns.s, b=ns.s) %}"),
        GROW.replace("SEED", "3").replace("STEP", "{% set ns.s = ns.s * ns.s %}").replace(" | length", ""),
        "{{ 'a' * 10 ** 10 }}",
        "{{ 10 ** 1000000000 }}",
        "{{ [0] * 1000000000 }}",
        "{{ 'a'.ljust(10 ** 10) }}",
        "{{ 'a'.zfill(10 ** 10) }}",
        "{{ 'a' | center(10 ** 10) }}",
        "{{ 'a' | indent(10 ** 10) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (9999999999, 1) }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=9999999999) }}",
        "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
        "{{ ('a' * 1000000) | replace('', 'b' * 1000000) }}",
        "{{ ('a' * 1000000) | replace(new='b' * 1000000, old='') }}",
        "{{ range(100000) | map('string') | join(',' * 100000) }}",
        "{{ (',' * 100000).join(range(100000) | map('string')) }}",
        "{{ range(99) | map('replace', '', 'x' * 9000000) | list }}",
        "{{ 1 | tojson(indent=1000000000) }}",
        "{{ [[1]] * 100 | sum(start=[]) }}",
        "{{ 3.14 | round(1000000000, 'floor') }}",
        "{{ [1] | batch(1000000000, 'x') | list }}",
        "{{ strftime_now('%1000000000d') }}",
        "{{ (1).to_bytes(1000000000, 'big') }}",
    ],
)
def test_bombs_end_in_an_error(source: str) -> None:
    with pytest.raises(ValueError, match="chat template"):
        render(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for", "line 1: unexpected 'end of template'"),
        ("\n{{ x | nofilter }}", "line 2: No filter named 'nofilter'"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "cannot be compiled"),
        ("x" * 300_000, "300000 characters, the limit is"),
    ],
)
def test_templates_that_are_no_templates(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatTemplate(source)


def test_bounds_hold_in_threads_and_do_not_add_up() -> None:
    template = ChatTemplate("{% for i in range(1000) %}{{ messages[0].content }}{% endfor %}")
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda: texts.extend(template.render([{"content": "x"}]) for _ in range(40)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["x" * 1000] * 160


def test_long_conversations_are_not_bombs() -> None:
    chat = [{"role": ("user", "assistant")[i % 2], "content": "word " * 200} for i in range(2000)]
    assert len(ChatTemplate(CHATML).render(chat)) > 2_000_000
    one = [{"role": "user", "content": "x" * 5_000_000}]
    assert len(ChatTemplate(GEMMA).render(one, variables=TOKENS)) > 5_000_000


class Role(str, Enum):  # noqa: UP042  a str of an old kind, as callers have them
    USER = "user"


def test_inputs_become_plain_values() -> None:
    value = plain({"a": (Role.USER, np.int64(3), np.float32(0.5), True, None), 1: [np.bool_(False)]}, "x")
    assert value == {"a": ["user", 3, 0.5, True, None], 1: [False]}
    assert [type(item) for item in value["a"]] == [str, int, float, bool, type(None)]
    assert plain({"type": "image", "image": object()}, "x") == {"type": "image", "image": "<object>"}
    with pytest.raises(ValueError, match=r"messages\[0\]\['content'\]: .* found ndarray"):
        ChatTemplate("x").render([{"role": "user", "content": np.zeros(2)}])
    with pytest.raises(ValueError, match="expected a mapping"):
        ChatTemplate("x").render(["hi"])  # pyright: ignore[reportArgumentType]
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        render("x", y=circle)


def test_the_callers_messages_stay_as_they_are() -> None:
    chat = [{"role": "user", "content": "x", "thinking": "t"}]
    assert ChatTemplate("{{ messages[0].reasoning_content }}").render(chat) == "t"
    assert chat == [{"role": "user", "content": "x", "thinking": "t"}]
