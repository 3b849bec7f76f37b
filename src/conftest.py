"""Doctests are collected from every module: those whose host is not installed are left out."""

from importlib.util import find_spec

LANGUAGE = [
    "entreg/integrations/trl*.py",
    "entreg/integrations/verl.py",
    "entreg/lm/*.py",
    *(f"entreg/recipes/{name}.py" for name in ("sft", "grpo", "dpo", "rlhf", "decode")),
]
HOSTS = {"sb3": "sb3_contrib", "torchrl": "torchrl", "lightning": "lightning", "transformers": "transformers"}
collect_ignore_glob = [
    *(f"entreg/integrations/{file}.py" for file, host in HOSTS.items() if find_spec(host) is None),
    *(LANGUAGE if find_spec("trl") is None else []),
    *(["entreg/kernels/triton.py"] if find_spec("triton") is None else []),
]
