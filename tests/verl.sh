#!/usr/bin/env bash
# The verl plugin against verl's own loss and worker code, on a CPU: makes .venv-verl once (verl pins an older transformers than everything else here).
#   tests/verl.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3.11}"
[ -x .venv-verl/bin/python ] || "$python" -m venv .venv-verl
stamp=".venv-verl/stamp-$(cat constraints/verl.txt tests/verl.sh | cksum | cut -d' ' -f1)"
if [ ! -f "$stamp" ]; then
    echo "setting up .venv-verl; the first time takes some minutes" >&2
    if [ -n "${TORCH_INDEX_URL:-}" ]; then .venv-verl/bin/python -m pip install -q --disable-pip-version-check -c constraints/verl.txt --index-url "$TORCH_INDEX_URL" torch; fi
    .venv-verl/bin/python -m pip install -q --disable-pip-version-check -c constraints/verl.txt torch
    .venv-verl/bin/python -m pip install -q --disable-pip-version-check -c constraints/verl.txt verl pytest jaxtyping
    rm -f .venv-verl/stamp-*
    touch "$stamp"
fi
export PYTHONPATH="$PWD/src:$PWD" HF_HUB_OFFLINE=1 WANDB_MODE=disabled
exec .venv-verl/bin/python -m pytest -p no:cacheprovider -q tests/integrations/verl_worker.py "$@"
