"""What the names of files say: sequence, mask, case."""

import pytest

from kdnet_jax.data.sources import names


@pytest.mark.parametrize(
    ("stem", "prefix", "sequence"),
    [
        # What stands before the grid counts.
        ("T1_to_T1CE", "", "t1"),
        ("T1_n4_to_SRI24", "", "t1"),
        ("p_FLAIR_in_T1", "p", "flair"),
        ("t2_reg_t1ce", "", "t2"),
        ("p-t1_2_flair", "p", "t1"),
        ("T1toT1CE", "", "t1"),
        ("p_T1_rigid_T1CE", "p", "t1"),
        ("T1-in-T1CE-space", "", "t1"),
        ("p1-t1_space-flair", "p1", "t1"),
        ("CT1_r2s_bet_reg", "", "t1ce"),
        ("seg_to_T1", "", "label"),
        # Two words for one sequence.
        ("T2_FLAIR", "", "flair"),
        ("T2_SPACE_FLAIR", "", "flair"),
        ("p_T1_Gd", "p", "t1ce"),
        ("T1_post_contrast", "", "t1ce"),
        ("T1_pre_contrast", "", "t1"),
        ("ce_T1", "", "t1ce"),
        ("P_post-contrast_3D_T1w", "P", "t1ce"),
        ("P_Gd_3D_T1", "P", "t1ce"),
        ("P_ce_axial_t1", "P", "t1ce"),
        ("P_gadovist_T1", "P", "t1ce"),
        ("P_contrastEnhanced_3D_T1", "P", "t1ce"),
        ("P_postGd3D_T1", "P", "t1ce"),
        ("P_without_contrast_3D_T1", "P_without_contrast_3D", "t1"),
        ("T1_to_T1_Gd", "", "t1"),
        ("GD_001_t1", "GD_001", "t1"),
        ("anna_post_t2", "anna_post", "t2"),
        ("anna_pre_t1ce", "anna_pre", "t1ce"),
        ("md_t1", "md", "t1"),
        # BIDS.
        ("sub-X_ses-1_ce-gadolinium_T1w", "sub-X_ses-1", "t1ce"),
        ("sub-X_ce-none_T1w", "sub-X", "t1"),
        ("sub-X_ce-none_rec-norm_T1w", "sub-X", "t1"),
        ("sub-X_ce-gadovist_T1w", "sub-X", "t1ce"),
        ("sub-X_part-mag_T1w", "sub-X", "t1"),
        ("sub-X_ce-7ml_run-1_T1w", "sub-X", "t1ce"),
        ("sub-X_acq-pre_ce-gadovist_T1w", "sub-X", "t1ce"),
        ("sub-X_ce-gadolinium_rec-norm_T1w", "sub-X", "t1ce"),
        ("sub-X_ce-gadolinium_desc-preproc_T1w", "sub-X", "t1ce"),
        ("sub-X_space-T1w_FLAIR", "sub-X", "flair"),
        ("sub-X_space-MNI152_desc-brain_T2w", "sub-X", "t2"),
        ("sub-X_ses-post_T1w", "sub-X_ses-post", "t1"),
        ("sub-X_acq-mprage_run-1_T1w", "sub-X", "t1"),
        ("sub-X_label-tumor_mask", "sub-X", "label"),
        ("sub-X_ses-1_space-MNI_label-lesion_desc-T1lesion_mask", "sub-X_ses-1", "label"),
        ("sub-X_T1w_label-lesion_roi", "sub-X", "label"),
        ("sub-X_dseg", "sub-X", "label"),
        ("sub-01_2021_t1", "sub-01_2021", "t1"),
        # Public sets as they are downloaded.
        ("UCSF-PDGM-0004_T1c_bias", "UCSF-PDGM-0004", "t1ce"),
        ("UCSF-PDGM-0004_tumor_segmentation", "UCSF-PDGM-0004", "label"),
        ("UPENN-GBM-00001_11_automated_approx_segm", "UPENN-GBM-00001_11", "label"),
        (
            "TCGA-02-0003_1997.06.08_GlistrBoost_ManuallyCorrected",
            "TCGA-02-0003_1997.06.08",
            "label",
        ),
        ("RHUH-0001_0_segmentations", "RHUH-0001_0", "label"),
        ("Patient_3_Timepoint_1_brain_t1c", "Patient_3_Timepoint_1", "t1ce"),
        ("Patient_3_Timepoint_1_tumorMask", "Patient_3_Timepoint_1", "label"),
        # Words before a number belong to the case.
        ("brain_001_mask", "brain_001", "label"),
        ("label_003_t1", "label_003", "t1"),
        ("brain-tumor-mask", "", "label"),
        ("p_flair_seg", "p", "label"),
        ("p_in_t1_seg", "p", "label"),
        ("p_tumor_in_t1_seg", "p", "label"),
        ("p_t1_foo", "p_t1", None),
        # Nothing but the case.
        ("sub-X", "sub-X", None),
        ("sub-X_ses-1", "sub-X_ses-1", None),
        ("sub-X_run-1", "sub-X", None),
        ("_", "", None),
    ],
)
def test_what_a_name_says(stem: str, prefix: str, sequence: str | None) -> None:
    found = names.read(stem)
    assert (found.prefix, found.sequence) == (prefix, sequence)
    assert not found.doubt
    assert not found.aside


@pytest.mark.parametrize(
    ("stem", "aside"),
    [
        ("brain_mask", "another structure"),
        ("p_brainMask", "another structure"),
        ("p_brain_dilated_mask", "another structure"),
        ("p_brain_v2_mask", "another structure"),
        ("BraTS2021_00000_t1_bet_mask", "another structure"),
        ("t1_hd-bet_mask", "another structure"),
        ("skull_seg", "another structure"),
        ("T1_to_SRI_brain_mask", "another structure"),
        ("UCSF-PDGM-0004_brain_parenchyma_segmentation", "another structure"),
        ("sub-X_desc-brain_mask", "another structure"),
        ("sub-X_label-GM_dseg", "another structure"),
        ("sub-X_label-putamen_mask", "another structure"),
        ("sub-X_desc-thalamus_mask", "not said to be of a tumour"),
        ("BraTS-GLI-00000-000-mask-healthy", "inpainting"),
        ("BraTS-GLI-00000-000-mask-unhealthy", "inpainting"),
        ("BraTS-GLI-00000-000-t1n-voided", "inpainting"),
        ("p_whole_tumor_mask", "one region"),
        ("p_ET_seg", "one region"),
        ("p_t1_mask", "either the brain or the tumour"),
        ("seg_t1ce", "either a mask or a sequence"),
        ("sub-X_ce-gadolinium_FLAIR", "contrast agent"),
        ("sub-X_ce-gadovist_rec-norm_T2w", "contrast agent"),
        ("p_ADC_to_T1", "another kind"),
        ("UCSF-PDGM-0004_SWI", "another kind"),
    ],
)
def test_what_is_neither_a_sequence_nor_a_segmentation(stem: str, aside: str) -> None:
    found = names.read(stem)
    assert found.sequence is None
    assert aside in found.aside


@pytest.mark.parametrize(
    ("stem", "doubt"),
    [
        ("p_T1_foo_T1CE", "t1 and t1ce"),
        ("T1_FLAIR", "flair and t1"),
        ("rT1_T1ce", "t1 and t1ce"),
        ("FLAIR_space_T1", "flair and t1"),
        ("sub-X_acq-FLAIR_T2w", "flair and t2"),
        ("p_post_T1", "after surgery"),
        ("sub-X_acq-post_T1w", "after surgery"),
        ("P01_to_T1", "brought to t1"),
        ("P_post_AX_T1", "after surgery"),
        ("sub-X_desc-T1map_T1w", "names t1map and t1"),
        ("sub-X_part-phase_T1w", "names part-phase and t1"),
        ("P_subtraction_T1", "names subtraction and t1"),
        ("P_T1_to_MNI_Gd", "behind the grid"),
        ("P_Gd_2_T1", "before a number"),
    ],
)
def test_what_cannot_be_told(stem: str, doubt: str) -> None:
    found = names.read(stem)
    assert found.sequence is None
    assert doubt in found.doubt


def test_of_the_name_of_the_folder_nothing_is_concluded() -> None:
    assert names.read("T2-study_003_flair").doubt
    assert names.read("T2-study_003_flair", "T2-study_003").sequence == "flair"
    assert names.read("anna_post_t1", "anna_post").sequence == "t1"
    # Unless the folder is called by a sequence itself, or by what is in its files.
    assert names.read("T1_to_T1CE", "T1").sequence == "t1"
    assert "another structure" in names.read("anna_brain_mask", "anna_brain").aside


@pytest.mark.parametrize(
    ("stem", "secondary"),
    [
        ("a_T1", False),
        ("a_T1_bias", True),
        ("a_T1_bias_reg", False),
        ("a_T1_brain", False),
        ("a_segm", False),
        ("a_automated_approx_segm", True),
        ("a_GlistrBoost", True),
        ("a_GlistrBoost_ManuallyCorrected", False),
    ],
)
def test_files_behind_which_a_better_one_may_stand(stem: str, secondary: bool) -> None:
    assert names.read(stem).secondary is secondary
