#!/usr/bin/env bash
# The environment that tests/peers.py runs in: TRL's last release line with PPO, and transformers,
# apart from this project's own packages.
#
#   tests/peer_env.sh [FOLDER]      default: .venv-peer in the repository's root
set -euo pipefail
cd "$(dirname "$0")/.."
FOLDER=${1:-.venv-peer} TRL=1.9.2 TRANSFORMERS=5.23.0
[[ $FOLDER = /* ]] || FOLDER=$PWD/$FOLDER
if ! "$FOLDER/bin/python" -c "import torch, trl, transformers
assert (trl.__version__, transformers.__version__) == ('$TRL', '$TRANSFORMERS')" 2>/dev/null; then
    python3 -m venv "$FOLDER"
    "$FOLDER/bin/python" -m pip install --quiet --disable-pip-version-check \
        "torch==2.13.0" "trl==$TRL" "transformers==$TRANSFORMERS"
fi
echo "$FOLDER/bin/python"
