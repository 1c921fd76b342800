"""The artifact by itself: what it refuses, and what it does not give away."""

import pathlib

import jax
import numpy as np
import pytest
from jax import export

from kdnet_jax import task as task_lib
from kdnet_jax.interop.export import artifact
from kdnet_jax.models import heads, networks, unet


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("artifact") / "model.jaxexport"
    network = unet.UNetConfig(widths=(2, 4, 8))
    params = networks.init_params(network, 1, jax.random.key(0))
    head = heads.Head(task_lib.DEFAULT)
    artifact.write(path, network, params, head=head, modalities=1)
    return path


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 8, 8, 9, 1), "remainder 1 when computing the value of 'w'"),
        ((1, 6, 8, 8, 1), "remainder 2 when computing the value of 'd'"),
        ((1, 8, 8, 8, 2), "expected"),
        ((0, 8, 8, 8, 1), "dimension variable 'b'"),
    ],
)
def test_windows_that_do_not_fit_are_refused(
    written: pathlib.Path, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        artifact.run(written, np.zeros(shape, np.float32))


def test_it_does_not_say_where_the_code_lay(written: pathlib.Path) -> None:
    held = written.read_bytes()
    assert b".py" not in held
    assert str(pathlib.Path(artifact.__file__).parent).encode() not in held
    # The setting is put back: other programs keep their tracebacks.
    assert jax.config.jax_traceback_in_locations_limit > 0


def test_no_kernel_of_one_backend_is_called(written: pathlib.Path) -> None:
    exported = export.deserialize(written.read_bytes())
    assert exported.platforms == artifact.PLATFORMS
    lines = exported.mlir_module().splitlines()
    called = [line for line in lines if "custom_call" in line]
    assert all("@shape_assertion" in line for line in called), called
