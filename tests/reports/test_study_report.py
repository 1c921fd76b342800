"""The report of a study of teacher, baseline and student."""

import pathlib
import shutil

from kdnet_jax.reports import study_report
from tests.helpers import compared_runs


def test_the_shares_are_described_as_they_are_drawn(tmp_path: pathlib.Path) -> None:
    sides = {
        role: [compared_runs.write_run(tmp_path / role, role, [dice, dice + 0.1])]
        for role, dice in (("teacher", 0.8), ("baseline", 0.4), ("student", 0.5))
    }
    for (run,) in sides.values():
        scores = shutil.copytree(run / "evaluation", tmp_path / "copy")
        scores.rename(run / "evaluation" / "postprocessed")
    page, verdict = study_report.write(
        tmp_path, sides, noun="tumour", facts=[("command", "main")], synthetic=True
    )
    text = page.read_text("utf-8")
    assert verdict[0] in text
    # As the axes say; Dice is no error of which little is good.
    assert 'alt="Share of cases with Dice above x, and share with HD95 below x"' in text
    assert "How many cases are better than x: with Dice above it, with HD95 below it." in text
