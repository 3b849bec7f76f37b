#!/usr/bin/env bash
# The verl plugin against verl's own configuration, losses, workers, FSDP engine and checkpoints, on a CPU: makes .venv-verl once (verl pins an older
# transformers than everything else here).
#   tests/verl.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3.11}"
[ -x .venv-verl/bin/python ] || "$python" -m venv .venv-verl
stamp=".venv-verl/stamp-$(cat constraints/verl.txt tests/verl.sh | cksum | cut -d' ' -f1)"
install() { .venv-verl/bin/python -m pip install -q --disable-pip-version-check -c constraints/verl.txt "$@"; }
if [ ! -f "$stamp" ]; then
    echo "setting up .venv-verl; the first time takes some minutes" >&2
    if [ -n "${TORCH_INDEX_URL:-}" ]; then install --index-url "$TORCH_INDEX_URL" torch; fi
    install torch
    install verl uvicorn fastapi cachetools pytest jaxtyping  # verl imports the three without requiring them
    install --no-deps -e .  # for the entry point
    rm -f .venv-verl/stamp-*
    touch "$stamp"
fi
export PYTHONPATH="$PWD/src:$PWD" HF_HUB_OFFLINE=1 WANDB_MODE=disabled OMP_NUM_THREADS=1
exec .venv-verl/bin/python -m pytest -p no:cacheprovider -q -W default tests/integrations/verl_worker.py "$@"
