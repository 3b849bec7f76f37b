"""griffe extension: docstrings are plain text with doctests; the site shows doctests as code and keeps lists of columns as they stand."""

import re

import griffe

DOCTEST = re.compile(r"(?m)^>>> .*(?:\n(?!\n|[A-Z][a-z]+: ).+)*")
COLUMNS = re.compile(r"(?m)(?:^(?:[a-z_]+|[ ]{2,}\S+)[ ]{3,}\S.*\n?(?:^[ ]{8,}\S.*\n?)*)+")


class Docstrings(griffe.Extension):
    def on_instance(self, *, obj, **_):
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text):
    """The docstring as Markdown."""
    text = COLUMNS.sub(lambda found: f"```text\n{found[0].rstrip()}\n```\n", text)
    return DOCTEST.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
