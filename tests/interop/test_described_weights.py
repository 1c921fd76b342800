import json
import pathlib

import jax
import numpy as np
import pytest

pytest.importorskip("torch")

from kdnet_jax.errors import UserError
from kdnet_jax.interop import described_weights, foreign
from kdnet_jax.runs.model import KnownCases
from tests.helpers import foreign_folders as folders


def description(**changes: object) -> dict:
    arguments = dict(folders.network_def(folders.DYNUNET))
    return {
        "class": arguments.pop("_target_"),
        "arguments": arguments,
        "channels": ["flair", "t1", "t1ce", "t2"],
        "outputs": ["TC", "WT", "ET"],
        "axes": "RAS",
        "spacing": 1.0,
        "window": [16, 16, 8],
        "normalisation": described_weights.NORMALISATION,
    } | changes


def write(folder: pathlib.Path, **changes: object) -> pathlib.Path:
    folders.write_json(folder / "foreign.json", description(**changes))
    for seed, name in enumerate(("a.pt", "b.pth")):
        folders.save(folder / name, {"state_dict": folders.state(folders.DYNUNET, 4, seed)})
    return folder


def test_weights_with_a_description(tmp_path) -> None:
    path = write(tmp_path, licence="CC-BY-4.0", known_cases=["c1"], mirror=True, overlap=0.25)
    assert foreign.is_foreign(path)
    model = foreign.read(path)
    assert vars(model.network) == {**vars(folders.DYNUNET), "bfloat16": None}
    assert model.modalities == ("flair", "t1", "t1ce", "t2")
    assert (model.head, model.order, model.axes) == ("regions", (2, 0, 1), "RAS")
    assert (model.spacing, model.window) == (1.0, (16, 16, 8))
    assert (model.overlap, model.mirror, model.known) == (0.25, True, KnownCases(("c1",), True))
    assert model.about["licence"] == "CC-BY-4.0"
    for seed, member in enumerate(model.members):
        wanted = folders.random_params(folders.DYNUNET, 4, seed)
        jax.tree.map(np.testing.assert_array_equal, member, wanted)
    only = foreign.read(path, ("b",))
    jax.tree.map(np.testing.assert_array_equal, only.members[0], model.members[1])
    assert list(foreign.read(path / "a.pt").about["sha256"]) == ["a.pt"]


def test_weights_alone_are_refused_with_an_example_that_is_one(tmp_path) -> None:
    path = folders.save(tmp_path / "model.pt", folders.state(folders.DYNUNET, 4))
    for place in (path, tmp_path):
        assert foreign.is_foreign(place)
        with pytest.raises(UserError, match=r"foreign\.json is missing") as caught:
            foreign.read(place)
        assert described_weights.EXAMPLE in str(caught.value)
    example = json.loads(described_weights.EXAMPLE.replace(", ...", ""))
    arguments = folders.network_def(folders.DYNUNET) | example["arguments"]
    example["arguments"] = {k: v for k, v in arguments.items() if k != "_target_"}
    folders.write_json(tmp_path / "foreign.json", example)
    assert foreign.read(tmp_path).modalities == ("t1", "t1ce", "t2", "flair")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class": "UNETR"}, "class is 'UNETR'"),
        ({"arguments": []}, "arguments is"),
        ({"channels": ["t1", "ct"]}, "'ct' is none"),
        ({"outputs": ["a", "b"]}, "outputs is"),
        ({"channels": ["t1"]}, "4 input and 3 output channels, but channels and outputs name 1"),
        ({"axes": "RAR"}, "axes is 'RAR'"),
        ({"axes": None}, "axes is None"),
        ({"spacing": [1, 2]}, "edge of a voxel"),
        ({"window": [16, 16]}, "three positive"),
        ({"window": [16, 15, 8]}, r"Write \(16, 16, 8\)"),
        ({"overlap": 1.0}, "overlap is 1.0"),
        ({"mirror": "yes"}, "mirror is 'yes'; expected true or false"),
        ({"normalisation": "minmax"}, "normalisation is 'minmax'"),
        ({"spacng": 1.0}, "unknown spacng"),
    ],
)
def test_descriptions_that_cannot_be_taken(tmp_path, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        foreign.read(write(tmp_path, **changes))


def test_what_is_missing_is_named(tmp_path) -> None:
    path = write(tmp_path)
    given = description()
    del given["axes"]
    folders.write_json(path / "foreign.json", given)
    with pytest.raises(UserError, match=r"missing axes\. Put a file"):
        foreign.read(path)
    with pytest.raises(UserError, match=r"no weights c .*there are a, b"):
        foreign.read(path, ("c",))
