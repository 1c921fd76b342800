"""The data of a run of two real processes: built once, opened by both, refused where they differ.

The processes run this file as a script:
`python -m tests.experiment.test_run_data_processes PORT PROCESS FOLDER`.
"""

import json
import pathlib
import shutil
import sys
import time

import jax
import pytest

from configs import common
from kdnet_jax.config import reading
from kdnet_jax.data.records import building, store
from kdnet_jax.errors import UserError
from kdnet_jax.experiment import run_data
from kdnet_jax.parallel import sharding
from tests.helpers import companies, tiny_cases

# For each: where process 0 and process 1 find the scans, and keep the built dataset.
SCENES = {
    "one disk": (("scans", "datasets"), ("scans", "datasets")),
    "own disks": (("scans", "disk-0"), ("copy", "disk-1")),
    "other scans": (("scans", "datasets"), ("fewer", "disk-1")),
    "no scans on one": (("scans", "datasets"), ("none", "disk-1")),
}


@pytest.mark.once
def test_two_processes_open_the_same_data(tmp_path: pathlib.Path) -> None:
    tiny_cases.write_cohort(tmp_path / "scans", 8)
    shutil.copytree(tmp_path / "scans", tmp_path / "copy")
    tiny_cases.write_cohort(tmp_path / "fewer", 7)
    port = companies.free_port()
    done = companies.run(
        [
            ("tests.experiment.test_run_data_processes", port, process, tmp_path)
            for process in (0, 1)
        ]
    )
    assert [each.returncode for each in done] == [0, 0], done[0].stderr + done[1].stderr
    ours, theirs = (json.loads((tmp_path / f"{p}.json").read_text()) for p in (0, 1))
    # One build where the disk is shared, although it is slow; one on each disk otherwise.
    assert (ours["one disk"]["builds"], theirs["one disk"]["builds"]) == (1, 0)
    assert (ours["own disks"]["builds"], theirs["own disks"]["builds"]) == (1, 1)
    for scene in ("one disk", "own disks"):
        for told in (ours, theirs):
            assert told[scene]["fingerprint"] == ours["one disk"]["fingerprint"]
            # Both say the same, although each measured its own memory.
            assert told[scene]["place"] == ours[scene]["place"]
    message = ours["other scans"]["error"]
    assert message == theirs["other scans"]["error"]
    for part in ("process 0 opened", "datasets", "process 1", "disk-1", "fingerprint differs"):
        assert part in message
    assert "none" in ours["no scans on one"]["error"]
    assert ours["no scans on one"]["error"].startswith("process 1: ")
    assert theirs["no scans on one"]["error"] in ours["no scans on one"]["error"]


def _main(port: str, process: str, folder: str) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process))
    builds = []
    build = building._download_and_prepare

    def slowly(builder: object) -> None:
        builds.append(builder)
        time.sleep(1)
        build(builder)

    building._download_and_prepare = slowly
    told = {}
    for scene, places in SCENES.items():
        builds.clear()
        scans, root = (pathlib.Path(folder) / name for name in places[int(process)])
        try:
            told[scene] = {**_open(scans, root), "builds": len(builds)}
        except UserError as error:
            told[scene] = {"error": str(error)}
    (pathlib.Path(folder) / f"{process}.json").write_text(json.dumps(told))


def _open(scans: pathlib.Path, root: pathlib.Path) -> dict[str, str]:
    config = common.base_config("baseline", "smoke")
    config.data.data_dir, config.data.root = str(scans), str(root)
    config.loader.batch = 2
    values = reading.read(config)
    # As on machines of different sizes.
    store.available_memory = lambda: 10**9 * (1 + 5 * jax.process_index())
    data = run_data.open_data(values)
    with run_data.open_batches(values, data, sharding.make_mesh(), root) as batches:
        next(batches)
    return {"fingerprint": data.cases.fingerprint, "place": str(data.cases.cache_bytes)}


if __name__ == "__main__":
    _main(*sys.argv[1:])
