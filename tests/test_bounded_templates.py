"""Chat templates: what they write is what transformers writes, and none makes more than the memory holds."""

from typing import Any

import pytest

from medvllm.engine.model_runner.generation.bounded_templates import TooLargeError, literal_text, render_bounded
from medvllm.engine.model_runner.generation.step_limit import limit_template_steps
from tests.support import decoders
from tests.support.spread import spread

_NESTED = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
_MANY = "{% set b = 'x' * 10000000 %}{% set ns = namespace(l=[]) %}{% for i in range(100000) %}"
LARGE = [
    "{{ 'x' * 10**10 }}",
    "{{ 10**10 * 'x' }}",
    '{{ [0] * 10**10 }}',
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '%.*f' % (1000000000, 1.0) }}",
    "{{ 'x'.ljust(10**10) }}",
    "{{ 'x'.center(10**10) }}",
    "{{ '1'.zfill(10**10) }}",
    "{{ '\t'.expandtabs(10**10) }}",
    "{{ 'x'|center(10**10) }}",
    "{{ ('\n'*1000)|indent(10**8) }}",
    "{{ 'x\ny'|indent('a'*19000000) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:>{w}}'.format(1, w=10**10) }}",
    "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "{% set ns = namespace(x='x') %}"
    '{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x|length }}',
    "{% set ns = namespace(x='x') %}"
    '{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}',
    '{% set ns = namespace(x=[1]) %}'
    '{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}',
    _NESTED + '{{ ns.x }}',
    _NESTED + '{{ ns.x|tojson|length }}',
    _NESTED + '{{ ns.x|string|length }}',
    _NESTED + "{{ ('%s' % [ns.x])|length }}",
    _NESTED + "{{ '{}'.format(ns.x)|length }}",
    "{% set ns = namespace(x='x') %}"
    '{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}',
    "{% set b = 'x' * 10000000 %}{% for i in range(100000) %}{{ b }}{% endfor %}",
    _MANY + '{% set ns.l = ns.l + [b[1:]] %}{% endfor %}',
    _MANY + '{% set ns.l = ns.l + [b.upper()] %}{% endfor %}',
    _MANY + '{% set ns.l = ns.l + [b|upper] %}{% endfor %}',
    "{% set b = 'x'*1000000 %}{{ ([b]*100000)|join|length }}",
    "{% set b = 'x'*1000000 %}{{ ''.join([b]*100000)|length }}",
    "{% set b = 'x'*1000000 %}{{ b.join('y'*100000)|length }}",
    "{% set b = 'x'*1000000 %}{{ ([{'a': b}]*100000)|join(attribute='a')|length }}",
    "{% set b = 'x'*1000000 %}{{ ([{'a': b}]*100000)|map(attribute='a')|join|length }}",
    "{% set b = 'x'*1000000 %}{{ b|replace('x', b)|length }}",
    "{% set b = 'x'*1000000 %}{{ b.replace('', b)|length }}",
    "{% set b = 'x'*1000000 %}{{ (b|safe)|replace('x', b)|length }}",
    "{% set b = 'x'*1000000 %}{{ b.translate({120: b})|length }}",
    "{{ [1]|batch(10**10, 'x')|list }}",
    '{{ [1]|slice(10**10)|list }}',
    '{{ [[1]]|tojson(indent=10**10) }}',
    "{{ 1.5|round(10**9, 'ceil') }}",
    "{{ (1).to_bytes(10**10, 'big') }}",
    "{% set b = 'x'*1000000 %}{{ ('%s'*1000 % ((b,)*1000))|length }}",
    "{% set b = 'x'*1000000 %}{{ ('{0}'*10000).format(b)|length }}",
    "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='x') %}"
    '{% for i in range(60) %}{% set ns.x = m(ns.x) %}{% endfor %}{{ ns.x|length }}',
    '{{ ([[1]*100000]*100000)|sum(start=[])|length }}',
    "{{ strftime_now('%c' * 9000000)|length }}",
    "{% set b = 'x y '*1000000 %}{{ b|wordwrap(1, wrapstring=b)|length }}",
    '{% set ns = namespace(x=2) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ 1 }}',
    "{{ ('x'|center(20000000)) ~ ('x'|center(20000000)) }}",
    '{{ 10**(10**10) }}',
    "{{ 'x'|urlencode * 10**10 }}",
    "{{ ['x' * 19000000]|map('center', 10**10)|list }}",
]  # fmt: skip


@pytest.mark.parametrize("template", spread(LARGE, 2))
def test_what_is_too_large_is_not_made(template: str) -> None:
    """By one operation, by doubling again and again, or by many large values that are kept."""
    with pytest.raises(TooLargeError), limit_template_steps(1_000_000):
        render_bounded(template)


def test_what_does_not_run_does_no_harm() -> None:
    """Jinja computes constants before it runs a template."""
    assert render_bounded("{% if false %}{{ 'x' * 10**10 }}{{ 'x' | center(10**10) }}{% endif %}y") == "y"


MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate.') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}{% else %}{{ message['content'] ~ eos_token }}{% endif %}"
    "{% endfor %}"
)
LLAMA = (
    "{%- set ns = namespace(text='') %}{%- for m in messages %}"
    "{%- set header = '<|' ~ m.role | upper ~ '|>' ~ '\\n\\n' %}"
    "{%- set ns.text = ns.text + header + m['content'] | trim %}{%- endfor %}{{- ns.text }}\n"
    "{%- if tools is not none %}{{ tools | tojson(indent=4) }}{% endif %}"
    "{%- if add_generation_prompt %}{{- '%s: {}'.format('x') % 'assistant' }}{%- endif %}"
)
OTHERS = (
    "{% macro turn(m) %}<{{ m.role }}>{{ m.content.replace('a', 'bb').split('b') | join('-') }}{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{{ m.content[1:4] }}{{ m.content[::-1] }}"
    "{{ [m.role] * 2 + ['x'] }}{% endfor %}"
    "{% set kept %}{{ messages | map(attribute='content') | list | tojson }}{% endset %}{{ kept }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(', ') | indent(2) }}"
    "{{ messages | map('string') | first | length }}{{ 2 ** 10 + 3 * 4 % 5 }}"
    "{{ messages[0].content.center(20) | wordwrap(5) }}"
    "{% for m in messages %}{% if not loop.last %}{% continue %}{% endif %}{{ m.role }}{% endfor %}"
    "{{ dict(a=1) }}{{ missing }}"
    "{{ 'x' | default('y') }}",
)


@pytest.mark.parametrize("template", [decoders.CHATML, MISTRAL, LLAMA, *OTHERS])
def test_a_template_writes_what_transformers_writes(template: str) -> None:
    """Also the tokens that stand in it as text."""
    from transformers.utils.chat_template_utils import _get_template_literal_text

    tokenizer = decoders.tokenizer(template)
    messages = [
        {"role": role, "content": content}
        for role, content in (("user", " a fever, é\n "), ("assistant", "<b>{'a'}%s"), ("user", "ab" * 50))
    ]
    variables: dict[str, Any] = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    found = render_bounded(template, **variables, **tokenizer.special_tokens_map)
    assert found == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert set(literal_text(template).split("\0")) == set(_get_template_literal_text(template).split("\0"))
