#!/usr/bin/env bash
# TensorStore 0.1.86 (Python 3.11): two calls that Orbax makes for each array that it saves keep some
# memory for good, however often the garbage is collected: `KvStore.Spec.to_json` and
# `experimental_collect_matching_metrics`. Making a spec, the control, keeps none.
# Seen: prints "bytes kept for a call: to_json 236, metrics 10275, control 0". The metrics' share grows
# with the number of metrics that the process has. Fails below 50 and 500 bytes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorstore==0.1.86 numpy==2.4.6

"$folder/venv/bin/python" -I - "$folder/array" <<'PYTHON'
import gc
import sys
import tracemalloc

import tensorstore as ts

CALLS = 500
KVSTORE = {"driver": "file", "path": sys.argv[1] + "/"}
array = ts.open(
    {"driver": "zarr", "kvstore": KVSTORE}, create=True, dtype=ts.float32, shape=[4]
).result()
array[...] = 1.0
spec = array.kvstore.spec()


def kept(call):
    for _ in range(100):
        call()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(CALLS):
        call()
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / CALLS


to_json = kept(spec.to_json)
metrics = kept(lambda: ts.experimental_collect_matching_metrics("/tensorstore/"))
control = kept(lambda: ts.KvStore.Spec(KVSTORE))
print(
    f"bytes kept for a call: to_json {to_json:.0f}, metrics {metrics:.0f}, control {control:.0f}"
)
assert to_json > 50 and metrics > 500 and control < 5
PYTHON
