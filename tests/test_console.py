"""What the package says: nothing where it is imported, and everything in a command."""

import os
import pathlib

import pytest

from tests.helpers import forks

_SPEAK = """
import logging
from kdnet_jax import console
log = logging.getLogger("kdnet_jax.data.somewhere")
log.info("100 % done")
log.warning("a warning")
list(console.bar([1], "a bar", unit="case"))
"""


@pytest.mark.parametrize(
    ("before", "out", "err"),
    [
        ("", "", ()),
        ("from kdnet_jax import console; console.show()", "100 % done\n", ("a warning\n", "a bar")),
        (
            "import logging, kdnet_jax\n"
            "logging.basicConfig(format='%(message)s')\n"
            "logging.getLogger('kdnet_jax').setLevel('INFO')",
            "",
            ("100 % done\n", "a warning\n", "a bar"),
        ),
    ],
    ids=["imported", "command", "asked for"],
)
def test_messages_and_bars(
    tmp_path: pathlib.Path, before: str, out: str, err: tuple[str, ...]
) -> None:
    ended = forks.python(["-c", before + _SPEAK], cwd=tmp_path, env=os.environ, limit_s=60)
    assert (ended.code, ended.out) == (0, out)
    assert all(text in ended.err for text in err)
    assert err or not ended.err
