#!/usr/bin/env bash
# nibabel 5.4.2 gives the content of a NIfTI header extension that it writes itself only for some codes:
# get_content() of code 30, "caret" (label tables of Caret and the Connectome Workbench), raises a bare
# NotImplementedError after reading, where 5.2.1 returned the bytes. Code 0 and 6 are returned by both;
# in 5.4.2 `.content` holds the bytes of code 30 too.
# Seen: "nibabel 5.2.1: 0 bytes, 6 bytes, 30 bytes", "nibabel 5.4.2: 0 bytes, 6 bytes,
# 30 NotImplementedError, content equal".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/read.py" <<'PYTHON'
import sys

import nibabel as nib
import numpy as np

XML = b'<?xml version="1.0"?><CaretExtension><VolumeInformation Index="0"/></CaretExtension>'
found = []
for code in (0, 6, 30):
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension(code, XML))
    nib.save(image, f"{sys.argv[1]}/{code}.nii")
    (extension,) = nib.load(f"{sys.argv[1]}/{code}.nii").header.extensions
    assert extension.get_code() == code
    try:
        assert extension.get_content().rstrip(b"\0") == XML
        found.append(f"{code} bytes")
    except NotImplementedError:
        assert extension.content == XML
        found.append(f"{code} NotImplementedError, content equal")
print(f"nibabel {nib.__version__}: {', '.join(found)}")
sys.exit(found[2] != sys.argv[2] or found[:2] != ["0 bytes", "6 bytes"])
PYTHON

check() {
    python3.11 -m venv "$folder/$1"
    "$folder/$1/bin/pip" install --quiet "nibabel==$1" numpy==1.26.4
    "$folder/$1/bin/python" -I "$folder/read.py" "$folder" "$2"
}

check 5.2.1 "30 bytes"
check 5.4.2 "30 NotImplementedError, content equal"
