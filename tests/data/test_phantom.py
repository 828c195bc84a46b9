import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from sssd_hf.data import phantom
from sssd_hf.data.phantom import CLASS_NAMES, lesion_masks, make_phantoms, write_phantoms
from sssd_hf.evaluation.baselines import thumbnail_baselines

PATIENTS = 200  # the demo's number; 64 pixels a side, as a thumbnail sees no more of 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("phantoms")
    return write_phantoms(target, num_patients=PATIENTS, image_size=64, progress=False)


@pytest.fixture(scope="module")
def table(folder):
    with open(folder / "metadata.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def few():
    return make_phantoms(12)


def test_same_seed_same_pictures_other_seed_others(few):
    again, other = make_phantoms(2), make_phantoms(2, seed=1)
    for first, second, third in zip(few[:8], again, other, strict=True):
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.lesion_mask, second.lesion_mask)
        # Another person, not the same one with other noise.
        assert np.abs(first.image.astype(int) - third.image).mean() > 10


def test_more_patients_leave_the_earlier_ones_alone(few):
    for short, long in zip(make_phantoms(3), few, strict=False):
        assert short.patient_id == long.patient_id
        assert short.label == long.label
        assert np.array_equal(short.image, long.image)


def test_shapes_and_names(few):
    assert len(few) == 48
    assert len({item.patient_id for item in few}) == 12
    assert [item.slice_index for item in few[:4]] == [0, 1, 2, 3]
    for item in few:
        assert item.image.shape == item.lesion_mask.shape == (128, 128)
        assert item.image.dtype == np.uint8
        assert item.lesion_mask.dtype == bool
        assert item.image.max() > 200  # bone
        assert np.median(item.image[:6]) < 30  # air above the chest
    assert make_phantoms(1, 2, image_size=96)[1].image.shape == (96, 96)


def test_no_two_slices_are_alike(few):
    pictures = np.stack([item.image for item in few]).astype(float).reshape(48, -1)
    for one in range(48):
        distance = np.abs(pictures[one + 1 :] - pictures[one]).mean(axis=1)
        assert distance.size == 0 or distance.min() > 3


def test_labels_are_balanced_and_not_a_matter_of_parity(table):
    labels = {row["patient_id"]: row["label"] for row in table}
    assert len(labels) == PATIENTS
    assert list(labels.values()).count("opacity") == PATIENTS // 2
    odd = [label for name, label in labels.items() if int(name[1:]) % 2]
    assert 0.35 < odd.count("opacity") / len(odd) < 0.65


def test_masks_belong_to_the_positives(few):
    for item in few:
        assert item.lesion_mask.any() == (item.label == 1)
        if item.label:
            assert item.lesion_mask.sum() >= 40


def test_masks_of_written_slices_are_those_they_were_drawn_with(tmp_path):
    write_phantoms(tmp_path, 4, 3, image_size=48, seed=5, progress=False)
    names = ["images/p0003_s2.png", "images/p0001_s0.png", "images/p0004_s1.png"]
    masks = lesion_masks(tmp_path, names)
    drawn = {f"images/{s.patient_id}_s{s.slice_index}.png": s for s in make_phantoms(4, 3, 48, 5)}
    for name, mask in zip(names, masks, strict=True):
        assert np.array_equal(mask, drawn[name].lesion_mask)
        with Image.open(tmp_path / name) as picture:
            assert np.array_equal(np.asarray(picture), drawn[name].image)
        assert mask.any() == (drawn[name].label == 1)
    for name in ("images/p0005_s0.png", "images/p0001_s3.png", "p0001_s0.png", "other.png"):
        with pytest.raises(ValueError, match=re.escape(name)):
            lesion_masks(tmp_path, [name])
    note = json.loads((tmp_path / "phantom.json").read_text())
    (tmp_path / "phantom.json").write_text(json.dumps(note | {"version": 1}))
    with pytest.raises(ValueError, match=r"version 1.*anew"):
        lesion_masks(tmp_path, names)
    with pytest.raises(FileNotFoundError, match="no folder of phantoms"):
        lesion_masks(tmp_path / "images", names)


def test_lesions_are_visible_and_lie_in_the_lungs():
    """Each slice against its surroundings, and against the same slice drawn without lesions."""
    checked = 0
    for number in range(1, 13):
        patient = phantom._draw_patient(0, number)
        if not patient.label:
            continue
        healthy_patient = replace(patient, lesions=())
        for index in range(4):
            item = phantom._render(patient, 0, number, index, 4, 128)
            healthy = phantom._render(healthy_patient, 0, number, index, 4, 128)
            mask, image = item.lesion_mask, item.image.astype(float)
            traits = patient.traits
            noise = 255 * traits["noise"] / (traits["white"] - traits["black"])  # grey levels
            gain = np.median(image[mask] - healthy.image[mask])
            assert gain > max(35, 3 * noise)
            # The lower tenth: part of the ring may be chest wall, heart or another lesion.
            ring = ndimage.binary_dilation(mask, iterations=6)
            ring &= ~ndimage.binary_dilation(mask, iterations=3)
            assert np.median(image[mask]) - np.percentile(image[ring], 10) > 35
            assert np.mean(healthy.image[mask] < 110) > 0.7  # dark without the lesion: lung
            far = ~ndimage.binary_dilation(mask, iterations=24)
            assert np.array_equal(item.image[far], healthy.image[far])
            assert not healthy.lesion_mask.any()
            checked += 1
    assert checked >= 20


def test_slices_of_a_patient_share_their_anatomy(few):
    pictures = np.stack([item.image for item in few]).astype(float).reshape(12, 4, -1)
    within = np.abs(pictures[:, 0] - pictures[:, 1]).mean()
    between = np.abs(pictures[:-1, 0] - pictures[1:, 0]).mean()
    assert within < 0.7 * between


def test_folder_is_complete_and_grey(folder, table):
    assert len(table) == 4 * PATIENTS
    assert list(table[0]) == ["file_name", "label", "patient_id", "split"]
    files = {f"images/{path.name}" for path in (folder / "images").iterdir()}
    assert files == {row["file_name"] for row in table}
    made = {(item.patient_id, item.slice_index): item for item in make_phantoms(2, image_size=64)}
    for row in table[:8]:
        with Image.open(folder / row["file_name"]) as picture:
            assert picture.mode == "L"
            assert picture.format == "PNG"
            slice_index = int(row["file_name"].split("_s")[1].removesuffix(".png"))
            item = made[row["patient_id"], slice_index]
            assert np.array_equal(np.asarray(picture), item.image)
        assert row["label"] == CLASS_NAMES[item.label]


def test_splits_hold_whole_patients_and_both_classes(table):
    seen = {}
    for row in table:
        seen.setdefault(row["patient_id"], set()).add((row["split"], row["label"]))
    assert all(len(pairs) == 1 for pairs in seen.values())
    pairs = [next(iter(values)) for values in seen.values()]
    for label in CLASS_NAMES:
        counts = [pairs.count((split, label)) for split in ("train", "validation", "test")]
        assert counts == [60, 15, 25]


def test_file_size_and_name_do_not_give_the_class_away(folder, table):
    labels = [row["label"] == "opacity" for row in table]
    sizes = [(folder / row["file_name"]).stat().st_size for row in table]
    names = [int(row["patient_id"][1:]) for row in table]
    for values in (sizes, names):
        area = roc_auc_score(labels, values)
        assert max(area, 1 - area) < 0.65


def test_thumbnails_do_not_solve_the_task(folder, table):
    images, labels, splits = [], [], []
    for row in table:
        with Image.open(folder / row["file_name"]) as picture:
            images.append(np.asarray(picture)[None])
        labels.append(CLASS_NAMES.index(row["label"]))
        splits.append(row["split"])
    images, labels, splits = np.stack(images), np.array(labels), np.array(splits)
    train, test = splits == "train", splits == "test"
    result = thumbnail_baselines(images[train], labels[train], images[test], labels[test])
    assert result["nearest_neighbor_accuracy"] < 0.75
    assert result["ridge_accuracy"] < 0.75
    # The same slices as training set: the probe itself is able to find a class.
    known = thumbnail_baselines(images[train], labels[train], images[train], labels[train])
    assert known["nearest_neighbor_accuracy"] > 0.99


def test_a_complete_folder_is_left_alone_and_another_is_redone(tmp_path):
    write_phantoms(tmp_path, num_patients=4, image_size=32, progress=False)
    assert json.loads((tmp_path / "phantom.json").read_text())["num_patients"] == 4
    picture = tmp_path / "images" / "p0001_s0.png"
    before = picture.read_bytes()
    picture.write_bytes(b"mine")
    write_phantoms(tmp_path, num_patients=4, image_size=32, progress=False)
    assert picture.read_bytes() == b"mine"
    (tmp_path / "phantom.json").unlink()  # as after an interruption
    write_phantoms(tmp_path, num_patients=4, image_size=32, progress=False)
    assert picture.read_bytes() == before
    write_phantoms(tmp_path, num_patients=2, image_size=32, progress=False)
    assert len(list((tmp_path / "images").iterdir())) == 8
