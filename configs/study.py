r"""A study: teacher, baseline and student over folds and seeds, compared in one report.

Hu, Maillard et al., "Knowledge distillation from multi-modal to mono-modal segmentation networks",
MICCAI 2020 (arXiv 2106.09564): the comparison that its table 1 makes, with seeds and intervals.

    python -m kdnet_jax.main --config=configs/study.py
        100 synthetic cases, 50 of them test cases, 3 seeds; about 35 minutes on 2 CPU cores
    python -m kdnet_jax.main --config=configs/study.py:brats --config.data.data_dir=DIR
        5 folds, 3 seeds at the paper's scale: 45 trainings, not measured
    python -m kdnet_jax.main --config=configs/study.py:smoke
        2 folds, 2 seeds in about two minutes; shows that everything runs, and nothing else

All keys but --config.study.* are the student's (configs/student.py); the baseline is the same run
without a teacher, and the teacher differs by --config.teacher.{modalities,widths,steps}. A study
lands in runs/study-<preset> unless --workdir says otherwise. The same command resumes
wherever it was stopped and never repeats a finished part; more seeds add to what is there.
"""

from ml_collections import config_dict

from configs import common


def get_config(preset: str = "phantom") -> config_dict.ConfigDict:
    """Returns the config for a preset: phantom, brats or smoke."""
    return common.base_config("study", preset)
