#!/usr/bin/env bash
# MONAI 1.6.1 (torch 2.13.0, CPU): the Gaussian weights of its sliding window never go below 1e-3, and
# at the default sigma of an eighth of the edge 58 % of a window of 128^3 voxels lie at that floor:
# there every window counts alike. nnU-Net 2.8.1, which has the same sigma, has no floor: its weights
# go down to 4e-11 of the largest.
# Seen: prints "at MONAI's floor: 58.0% of 128^3; nnU-Net: least 3.8e-11 of the largest".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
# For PyTorch's CPU build, smaller, set PIP_EXTRA_INDEX_URL to PyTorch's index of it.
"$folder/venv/bin/pip" install --quiet torch==2.13.0 monai==1.6.1 nnunetv2==2.8.1

"$folder/venv/bin/python" -I -W ignore - <<'PYTHON'
import torch
from monai.data.utils import compute_importance_map
from nnunetv2.inference.sliding_window_prediction import compute_gaussian

SIZE = (128, 128, 128)
floored = compute_importance_map(SIZE, mode="gaussian")
share = float((floored == floored.min()).float().mean())
free = compute_gaussian(SIZE, dtype=torch.float32, device=torch.device("cpu"))
least = float(free.min() / free.max())
print(f"at MONAI's floor: {share:.1%} of 128^3; nnU-Net: least {least:.1e} of the largest")
assert abs(float(floored.min()) - 1e-3) < 1e-6 and 0.575 < share < 0.585, share
assert 1e-11 < least < 1e-10, least
PYTHON
