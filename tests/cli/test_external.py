"""Other sets in pretraining: without copies of the target's test images."""

import csv
from pathlib import Path

import numpy as np
import pytest
from tiny_study import changed, start

from sssd_hf.cli import reproduce
from sssd_hf.cli.external import write_external_table
from sssd_hf.data import duplicates


def test_copies_of_test_images_are_not_pretrained_on(study_images, tmp_path):
    path = tmp_path / "table" / "images.csv"
    counts = write_external_table(
        path, study_images, "draw_0", "train", [study_images.parent / "other"]
    )
    assert counts == {"target": 16, "other": 7, "other, copies left out": 1}
    with open(path, newline="") as file:
        names = [row["file_name"].rsplit("/", 1)[1] for row in csv.DictReader(file)]
    assert "copy_of_test.png" not in names
    assert "copy_of_train.png" in names
    assert "scan_00.png" not in names  # a test image itself


def test_copies_that_cannot_be_left_out_are_refused(study_images, tmp_path, monkeypatch):
    import nibabel

    folder = tmp_path / "volumes"
    folder.mkdir()
    volume = np.random.default_rng(0).uniform(0, 200, (20, 20, 4)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / "scan.nii")
    with pytest.raises(ValueError, match="volumes or files of several frames"):
        write_external_table(tmp_path / "a.csv", study_images, "draw_0", "train", [folder])
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 0)
    with pytest.raises(ValueError, match="more near copies than can be listed"):
        write_external_table(
            tmp_path / "b.csv", study_images, "draw_0", "train", [study_images.parent / "other"]
        )


def test_the_protocols_own_training_part_is_pretrained_on(
    study_recipe, study_images, tmp_path, monkeypatch
):
    """Wherever the recipe names it: with another part, test images would be pretrained on."""

    def turn_round(content):
        content["cross_validate"] = {"train_split": "test", "test_split": "train"}

    def stop(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce.pretrain, "main", stop)
    with pytest.raises(KeyboardInterrupt):
        start(
            changed(study_recipe, tmp_path, turn_round),
            study_images,
            tmp_path,
            "--variants",
            "external",
        )
    with open(tmp_path / "runs/external/draw_0-seed_0/external/images.csv", newline="") as file:
        names = [Path(row["file_name"]) for row in csv.DictReader(file)]
    own = {int(name.stem[-2:]) for name in names if name.parent == study_images}
    assert own == {i for i in range(24) if i // 2 % 3 == 0}
