"""Spelling: every row comes back as it was spelled, and whatever else is typed gives one clean ValueError and runs nothing."""

import math
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from entreg import spelling
from entreg.control import PI, TargetEntropy, constant, linear, piecewise
from entreg.functional import SHANNON, min_entropy, renyi, tsallis
from entreg.spelling import parse_controller, parse_family, spell
from entreg.targets import fraction_of_max
from tests.controller_cases import ROWS

every = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
TEXTS = [row.text for row in ROWS] + [spell(row.closed) for row in ROWS]


@every
def test_a_row_is_spelled_as_users_write_it(row):
    assert spell(row.open) == row.text
    assert parse_controller(row.text) == row.open
    assert parse_controller(spell(row.closed)) == row.closed


@every
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_parse_undoes_spell(row, data):
    controller = data.draw(row.strategy)
    text = spell(controller)
    if len(text) <= spelling.LIMIT:
        assert parse_controller(text) == controller
        assert spell(parse_controller(text)) == text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spelling, "LIMIT", 10_000)
        assert parse_controller(text) == controller


@every
def test_repr_can_be_typed_too(row):
    assert parse_controller(repr(row.open)) == row.open


@pytest.mark.parametrize("family", [SHANNON, renyi(2), renyi(0), renyi(0.1), renyi(math.inf), tsallis(1.5), tsallis(1), min_entropy], ids=spell)
def test_families_come_back(family):
    assert parse_family(spell(family)) == family


def test_families_are_spelled_as_users_write_them():
    assert [spell(f) for f in (SHANNON, renyi(2), tsallis(1.5), min_entropy)] == ["shannon", "renyi(2)", "tsallis(1.5)", "min_entropy"]
    assert parse_family("SHANNON") == parse_family(" shannon ") == SHANNON
    assert parse_family("renyi(order=2)") == renyi(2)


def test_spellings_by_hand():
    assert parse_controller(" 1e-2 ") == constant(0.01)
    assert parse_controller("-1") == constant(-1)
    assert parse_controller("linear(0.01, 0)") == linear(0.01, 0)
    assert parse_controller("linear(end=0, start=0.01, steps=None)") == linear(0.01, 0)
    assert parse_controller("piecewise([(0, 1), (10, 0)])") == piecewise(((0, 1), (10, 0)))
    assert parse_controller("PI(0.5, 1, 0.1, [-1, 1])") == PI(0.5, 1, 0.1, (-1, 1))
    assert parse_controller("TargetEntropy(fraction_of_max(0.5), form='exp')") == TargetEntropy(fraction_of_max(0.5), form="exp")


@pytest.mark.parametrize(
    "text, named",
    [
        (
            "linar(1, 0)",
            r"'linar' is unknown here; legal: a number, constant\(value\), .*linear\(start, end, steps=None\).*TargetEntropy\(target, .*fraction_of_max\(f\)",
        ),
        ("linear", r"linear needs its arguments; legal: linear\(start, end, steps=None\)"),
        ("linear(1)", r"missing a required argument: 'end'; legal: linear\(start, end, steps=None\)"),
        ("linear(1, 0, step=3)", r"unexpected keyword argument 'step'; legal: linear\(start, end, steps=None\)"),
        ("linear(1, 0, 3, 4)", r"too many positional arguments; legal: linear\(start, end, steps=None\)"),
        ("linear(1, 0, steps=3, steps=4)", r"legal: linear\(start, end, steps=None\), each once"),
        ("linear(*[1, 0])", "is unknown here; legal: "),
        ("linear(**{})", "legal: linear"),
        ("linear(1, 'x')", "linear: end='x'; legal: a finite number"),
        ("linear(1, inf)", "linear: end=inf; legal: a finite number"),
        ("TargetEntropy(fraction_of_max(2))", r"fraction_of_max: f=2; legal: a number in \[0, 1\]"),
        ("TargetEntropy(half(2))", r"'half' is unknown here; legal: .*fraction_of_max\(f\)"),
        ("fraction_of_max(0.5)", "is no controller; legal: a number, constant"),
        ("'linear(1, 0)'", "is no controller"),
        ("", "cannot be read"),
        ("linear(1, 0", "cannot be read"),
        ("0.1 0.2", "cannot be read"),
        ("1\0", "cannot be read"),
        ("1if 1else 2", "cannot be read|unknown here"),
        ("True", "'True' is unknown here"),
        ("1j", "'1j' is unknown here"),
        ("1 + 1", r"'1 \+ 1' is unknown here"),
        ("0.1,", "is no controller"),
        ("()", "is no controller"),
        ("None", "is no controller"),
        ("auto", "'auto' is unknown here"),
        ("linear.start", "is unknown here"),
        ("(" * 100, "cannot be read"),
        ("-" * 199 + "1", "is unknown here|cannot be read"),
        ("9" * 150 + "e999", "constant: value|number"),
        ("0.1" + " " * 200, "at most 200 characters"),
        ("[" * 99 + "]" * 99, "cannot be read|no controller"),
    ],
)
def test_a_wrong_text_is_answered_with_what_is_legal(text, named):
    with pytest.raises(ValueError, match=named):
        parse_controller(text)


@pytest.mark.parametrize(
    "text", ["renyi", "renyi()", "renyi(-1)", "renyi('2')", "renyi(None)", "renyi((1,))", "tsallis(inf)", "2", "shanon", "linear(1, 0)", "", "a" * 300]
)
def test_a_wrong_family_is_answered_with_what_is_legal(text):
    with pytest.raises(ValueError, match="legal"):
        parse_family(text)


def check_clean(parse, text):
    """A value or one ValueError: of one line, not a subclass, with the legal things in it."""
    try:
        parse(text)
    except ValueError as error:
        assert type(error) is ValueError
        assert "legal" in str(error)
        assert "\n" not in str(error)


names = st.sampled_from([*spelling.CONTROLLERS, *spelling.TARGETS, "inf", "renyi", "__import__", "eval", "os"])
pieces = st.sampled_from([*"()[],=.*-+'\"\\ \n\0{}:;@#", "1", "0.5", "1e999", "steps=", "form=", "lambda:", "**", "if", "\ud800", "é", "None"]) | names


@given(text=st.text(max_size=210) | st.lists(pieces, max_size=40).map("".join))
@example("9" * 199)
@example("'\\d'")
@example("piecewise(((((0)))))")
@example("linear(1\n,0)")
@example("constant(f'{1}\n')")
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_text_gives_a_value_or_a_clean_error(text):
    for parse in (parse_controller, parse_family):
        check_clean(parse, text)


@given(
    text=st.sampled_from([*TEXTS, "renyi(2)", "tsallis(1.5)"]), cut=st.integers(0, 150), drop=st.integers(0, 20), put=st.lists(pieces, max_size=3).map("".join)
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_damaged_spelling_gives_a_value_or_a_clean_error(text, cut, drop, put):
    for parse in (parse_controller, parse_family):
        check_clean(parse, text[:cut] + put + text[cut + drop :])


ATTACKS = [
    "__import__('os').mkdir(%r)",
    "linear(__import__('os').mkdir(%r), 0)",
    "[x for x in [__import__('os').mkdir(%r)]]",
    "linear(open(%r, 'w'), 0)",
    "(lambda: open(%r, 'w'))()",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_is_executed(attack, tmp_path):
    text = attack % str(tmp_path / "owned")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="legal"):
        patch.setattr(spelling, "LIMIT", 10_000)
        parse_controller(text)
    assert not list(tmp_path.iterdir())


def test_controllers_are_parsed_without_torch():
    code = "import sys; from entreg import spelling; spelling.parse_controller('TargetEntropy(fraction_of_max(0.5))'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "src"}, check=False).returncode == 0
