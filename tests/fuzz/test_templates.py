"""Chat templates, written at random and changed: each is refused or makes a text, and others go on rendering."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrt_edge.runtime import BadInputError
from rrt_edge.runtime.bundle.chat_template import ChatTemplate
from tests.fuzz.budget import cases
from tests.fuzz.documents import Draw, changed_bytes, texts
from tests.fuzz.refusals import check_message
from tests.runtime.bundle.test_chat_template import TEMPLATES

CHAT = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi <b> é"}]


def words(text: str) -> list[str]:
    return text.split()


def filled(statement: str, expression: str, inside: str) -> str:
    """A statement with an expression and what stands inside it."""
    return statement.replace("A", expression).replace("B", inside, 1)


NAMES = words("""messages m m.content messages[0] loop loop.index bos_token tools nothing namespace self range dict
cycler joiner lipsum raise_exception strftime_now add_generation_prompt caller""")
VALUES = words("0 -1 3 1.5 10**3 10**7 2**64 1e308 'x' '' [] {} none true '%s' '{}' (1,2)")
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "not in", "and", "or", "is", "if"]
FILTERS = words("""upper tojson list join length first last sort unique reverse sum trim indent batch(2) slice(3)
center(99) center(10**9) format replace('x','yy') map('upper') int float map(attribute='role') groupby('role')
selectattr('role') default(1) attr('__class__') wordwrap(2) truncate(3) xmlattr urlize safe items dictsort random
tojson(indent=10**9) pprint striptags""")
ENDINGS = words(""".x .__class__ ['role'] [0] [::-1] [1:] .items() .format(1) .mro() .upper() () (3) .append(1)
.update(a=1) ('%Y') .join('ab') .format_map({}) (messages)""")
STATEMENTS = """{% for m in A %}B{% endfor %}
{% for m in A recursive %}B{{ loop(A) }}{% endfor %}
{% if A %}B{% endif %}
{% if A %}B{% else %}x{% endif %}
{% set m = A %}B
{% set m %}B{% endset %}{{ m * 99 }}
{% set ns = namespace(a=A) %}{% set ns.a = ns.a ~ ns.a %}B
{% macro f(x) %}B{{ f(x) }}{% endmacro %}{{ f(A) }}
{% macro f() %}B{% endmacro %}{{ f() }}
{% filter upper %}B{% endfilter %}
{% block b %}B{{ self.b() }}{% endblock %}
{% generation %}B{% endgeneration %}
{% break %}B
{% continue %}B
{% raw %}B{% endraw %}
{% include A %}B
{% extends A %}B
{% import A as m %}B
{# A #}
{{ A }}B
{% call(x) m(A) %}B{% endcall %}
{% with m = A %}B{% endwith %}
{% autoescape A %}B{% endautoescape %}""".splitlines()  # A: an expression, B: what stands inside

expressions = st.recursive(
    st.sampled_from([*NAMES, *VALUES]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(OPERATORS), inner).map(lambda parts: f"({' '.join(parts)})"),
        st.tuples(inner, st.sampled_from(FILTERS)).map(" | ".join),
        st.tuples(inner, st.sampled_from(ENDINGS)).map("".join),
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]"),
    ),
    max_leaves=6,
)
bodies = st.recursive(
    st.one_of(expressions.map(lambda text: f"{{{{ {text} }}}}"), texts),
    lambda inner: st.builds(filled, st.sampled_from(STATEMENTS), expressions, inner),
    max_leaves=4,
)


@st.composite
def templates(draw: Draw) -> str:
    """A template of statements and expressions, or one that models have, changed."""
    if draw(st.integers(0, 3)):
        return draw(bodies)
    source = TEMPLATES[draw(st.sampled_from(sorted(TEMPLATES)))]
    return draw(changed_bytes(source.encode())).decode("utf-8", "replace")


@pytest.fixture(scope="module")
def honest() -> ChatTemplate:
    return ChatTemplate(TEMPLATES["chatml"], {})


@cases(20)
@given(source=templates(), special=texts)
def test_any_template_is_refused_or_makes_a_text(honest: ChatTemplate, source: str, special: str) -> None:
    try:
        text = ChatTemplate(source, {"bos_token": special}).render(CHAT)
    except BadInputError as error:
        check_message(str(error))
    else:
        assert isinstance(text, str)
    assert honest.render(CHAT).endswith("<|im_start|>user\nHi <b> é<|im_end|>\n<|im_start|>assistant\n")
