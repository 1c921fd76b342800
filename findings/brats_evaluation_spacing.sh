#!/usr/bin/env bash
# brats-evaluation 0.0.10 (panoptica 2.1.7, SimpleITK 2.5.7), glioma settings, masks given as files:
# the voxel sizes come in the order x, y, z, the voxels in the order z, y, x. So a cube of 6 voxels
# that is shifted by one voxel of 5.5 mm along z has a lesion-wise HD95 of 0.7 mm, the size in x, and
# one that is shifted by one voxel of 0.7 mm along x one of 5.5 mm. HD95 over the whole mask leaves
# the voxel sizes out: 1 for both. In files of cubic 1 mm voxels neither shows.
# Seen: prints "along z: lesion 0.70, whole 1.00; along x: lesion 5.50, whole 1.00".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet brats-evaluation==0.0.10 panoptica==2.1.7 numpy==2.2.6 \
    simpleitk==2.5.7 nibabel==5.4.2

"$folder/venv/bin/python" -I - "$folder" <<'PYTHON'
import contextlib
import pathlib
import sys

import brats_evaluation
import nibabel as nib
import numpy as np
import panoptica

folder = pathlib.Path(sys.argv[1])
SIZES = np.array([0.7, 1.3, 5.5])


def mask(name, x, y, z):
    voxels = np.zeros((20, 20, 20), np.uint8)
    voxels[x : x + 6, y : y + 6, z : z + 6] = 3
    nib.save(nib.Nifti1Image(voxels, np.diag([*SIZES, 1])), folder / name)
    return str(folder / name)


def scores(axis, corner):
    reference, prediction = mask("reference.nii.gz", 5, 5, 5), mask(f"{axis}.nii.gz", *corner)
    with contextlib.redirect_stdout(sys.stderr):  # its notices
        config = str(brats_evaluation.config_path("gli"))
        evaluator = panoptica.Panoptica_Evaluator.load_from_config(config)
        found = brats_evaluation.evaluate_single_exam(prediction, reference, axis, evaluator)["et"]
    return found["sq_hd95"], found["global_bin_hd95"]


found = {axis: scores(axis, corner) for axis, corner in {"z": (5, 5, 6), "x": (6, 5, 5)}.items()}
print("; ".join(f"along {k}: lesion {a:.2f}, whole {b:.2f}" for k, (a, b) in found.items()))
print("right would be 5.50 and 5.50 along z, 0.70 and 0.70 along x")
assert np.allclose(found["z"], (0.7, 1)), found
assert np.allclose(found["x"], (5.5, 1)), found
PYTHON
