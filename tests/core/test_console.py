"""What the package says: warnings where it is imported, and everything in a command."""

import subprocess
import sys

import pytest

_SPEAK = """
import logging
from kdnet_jax.core import console
log = logging.getLogger("kdnet_jax.data.somewhere")
log.info("100 % done")
log.warning("a warning")
list(console.bar([1], "a bar", unit="case"))
"""


@pytest.mark.parametrize(
    ("before", "out", "err"),
    [
        ("", "", ("a warning\n",)),
        (
            "from kdnet_jax.core import console; console.show()",
            "100 % done\n",
            ("a warning\n", "a bar"),
        ),
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
def test_messages_and_bars(before: str, out: str, err: tuple[str, ...]) -> None:
    words = [sys.executable, "-c", before + _SPEAK]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    assert ended.stdout == out
    assert all(text in ended.stderr for text in err)
    assert ("a bar" in ended.stderr) == ("a bar" in err)
