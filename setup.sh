#!/usr/bin/env bash
# Makes .venv once (again when pyproject.toml or the constraints change), then runs what is asked:
#   ./setup.sh            only set up
#   ./setup.sh run        train PPO on CartPole-v1 with entropy regularisation beside a twin without
#   ./setup.sh test       the test suite         ./setup.sh lint    ruff and mypy
#   ./setup.sh check      the fast tests         ./setup.sh soak    the long fault tests
#   ./setup.sh docs       the documentation as a site, in site/
#   ./setup.sh test-verl     the plugin for verl, in an environment of its own
#   ./setup.sh test-postgres sweeps over a PostgreSQL server of this machine's packages, on loopback
#   ./setup.sh test-triton   the Triton kernels, in Triton's interpreter where there is no GPU; in an environment of its own
# PYTHON chooses the interpreter, TORCH_INDEX_URL the index torch comes from (PyTorch's CPU index spares people without a GPU gigabytes).
set -euo pipefail
cd "$(dirname "$0")"
task="${1:-}"
case "$task" in
    "" | run) extra=run ;;
    test | check | soak | test-postgres) extra=test ;;
    lint) extra=test,lint ;;
    docs) extra=docs ;;
    test-triton | test-verl) extra="" ;;
    *) echo "setup.sh: unknown task '$task': run, test, check, soak, lint, docs, test-triton, test-verl, test-postgres or nothing" >&2; exit 2 ;;
esac
extra="${ENTREG_EXTRA:-$extra}"
[ "$task" = run ] && extra="$extra,fused"

find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then echo "$candidate"; return; fi
    done
    echo "setup.sh: Python 3.10 or newer is needed; set PYTHON=/path/to/python" >&2; exit 1
}

stamp_of() { cat pyproject.toml constraints/ci.txt setup.sh | cksum | cut -d' ' -f1; }

set_up() {
    local stamp=".venv/stamp-$(stamp_of)"
    local have=""; [ -f "$stamp" ] && have=$(cat "$stamp")
    local missing=""
    for one in ${extra//,/ }; do case " $have " in *" $one "* | *" all "*) ;; *) missing="$missing,$one" ;; esac; done
    [ -z "$missing" ] && return
    [ -x .venv/bin/python ] || "$(find_python)" -m venv .venv
    echo "setting up .venv (${missing#,}); the first time takes a minute or two" >&2
    if [ -n "${TORCH_INDEX_URL:-}" ]; then .venv/bin/python -m pip install -q --disable-pip-version-check -c constraints/ci.txt --index-url "$TORCH_INDEX_URL" torch; fi
    .venv/bin/python -m pip install -q --disable-pip-version-check -c constraints/ci.txt -e ".[${missing#,}]"
    rm -f .venv/stamp-*
    echo "$have ${missing//,/ }" >"$stamp"
}

test_triton() {  # its interpreter needs NumPy below 2.4
    local here=.venv-triton; local python="$here/bin/python"
    if [ ! -f "$here/stamp-$(stamp_of)" ]; then
        "$(find_python)" -m venv "$here"
        grep -v '^numpy==' constraints/ci.txt >"$here/constraints.txt"
        if [ -n "${TORCH_INDEX_URL:-}" ]; then "$python" -m pip install -q --disable-pip-version-check -c "$here/constraints.txt" --index-url "$TORCH_INDEX_URL" torch; fi
        "$python" -m pip install -q --disable-pip-version-check -c "$here/constraints.txt" -e ".[kernels]" "numpy<2.4" pytest
        touch "$here/stamp-$(stamp_of)"
    fi
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || export TRITON_INTERPRET=1
    exec "$python" -m pytest ${PYTEST_ARGS:-} tests/functional/triton_kernels.py
}

[ "$task" = test-triton ] && test_triton
[ "$task" = test-verl ] && exec tests/verl.sh
set_up
export PATH="$PWD/.venv/bin:$PATH"
case "$task" in
    run) exec entreg train ppo --env CartPole-v1 --coef 'linear(0.01, 0)' --coef 0 --seeds 5 --update fused --threads 2 ;;
    test) exec python -m pytest -n 2 ${PYTEST_ARGS:-} ;;
    check) exec python -m pytest -n 2 -m 'not slow and not browser' ${PYTEST_ARGS:-} ;;
    soak) exec python -m bench.soak ;;
    test-postgres) exec tests/postgres.sh ;;
    docs) NO_MKDOCS_2_WARNING=1 exec mkdocs build --strict --quiet ;;
    lint) ruff check && ruff format --check && mypy ;;
esac
