"""Doctests are collected from every module: those whose host is not installed are left out."""

from importlib.util import find_spec

LANGUAGE = ["entreg/integrations/*.py", "entreg/lm/*.py", *(f"entreg/recipes/{name}.py" for name in ("sft", "grpo", "dpo", "rlhf", "decode"))]
collect_ignore_glob = LANGUAGE if find_spec("trl") is None else []
