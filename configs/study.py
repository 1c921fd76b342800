r"""A study: teacher, baseline and student over folds and seeds, compared in one report.

Hu, Maillard et al., "Knowledge distillation from multi-modal to mono-modal segmentation networks",
MICCAI 2020 (arXiv 2106.09564): the comparison that its table 1 makes, with seeds and intervals.

    python -m kdnet_jax.main --config=configs/study.py
        100 synthetic cases, 50 of them test cases, 3 seeds; about 35 minutes on 2 CPU cores
    python -m kdnet_jax.main --config=configs/study.py:brats --config.data.data_dir=DIR
        5 folds, 3 seeds at the paper's scale: 45 trainings, not measured
    python -m kdnet_jax.main --config=configs/study.py:smoke
        2 folds, 2 seeds in about two minutes; shows that everything runs, and nothing else

    python -m kdnet_jax.main --config=configs/study.py:fewlabels
        does a student profit from scans without a reference? 5 seeds of five arms, 25 trainings, on
        100 synthetic cases, of which 8 of the 40 training cases keep their labels; on scans add
        --config.task=DIR --config.data.data_dir=DIR --config.split.labelled=N

All keys but --config.study.* are the student's (configs/student.py); the baseline is the same run
without a teacher, and the teacher differs by --config.teacher.{modalities,widths,steps}. A study
lands in runs/study-<preset> unless --workdir says otherwise. The same command resumes
wherever it was stopped and never repeats a finished part; more seeds add to what is there.

A study of few labels (--config.study.arms, docs/statistics.md) runs for each seed E, a teacher on
n = --config.split.labelled training cases; A, a baseline on these; D, a baseline on all training
cases with their labels; B, a student on all without the other labels, whose teacher is A's run
(self-training); C, a student likewise, whose teacher is E. The seed draws the labelled cases too,
the same for all arms; validation and test cases are the same for all seeds. E, A and D come first;
where they leave no room (D - A below --config.study.least_room), B and C are not trained. E, A and
D do not depend on --config.distillation: a second study may begin with copies of their folders.
"""

from ml_collections import config_dict

from configs import common


def get_config(preset: str = "phantom") -> config_dict.ConfigDict:
    """Returns the config for a preset: phantom, brats, smoke or fewlabels."""
    return common.base_config("study", preset)
