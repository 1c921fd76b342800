#!/usr/bin/env bash
# flax 0.12.8 with jax 0.11.1, a pair that pip installs without complaint: `import flax.nnx` raises
# AttributeError ("module 'jax.experimental.hijax' has no attribute 'MutableHiType'"), while
# `import flax.linen` works. So a project on Linen must not import NNX, not even for a type.
# Needs python3.12, the oldest that jax 0.11 runs on, on the PATH.
# Seen: prints "flax.linen: imported; flax.nnx: AttributeError: module 'jax.experimental.hijax' ...".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.11.1 jaxlib==0.11.1 flax==0.12.8

"$folder/venv/bin/python" -I - <<'PYTHON'
import flax
import flax.linen
import jax

try:
    import flax.nnx
except AttributeError as error:
    raised = str(error)
else:
    raise SystemExit("flax.nnx was imported: fixed")
print(f"jax {jax.__version__}, flax {flax.__version__}")
print(f"flax.linen: imported; flax.nnx: AttributeError: {raised}")
assert "MutableHiType" in raised, raised
PYTHON
