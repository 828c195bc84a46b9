"""The whole way on DICOM series and NIfTI volumes: one preparation from training to prediction."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import SIZES, TRAINING, read

sys.path.append(str(Path(__file__).parents[1] / "data"))
from medical_files import dicom, encode, save_nifti

from sssd_hf import SSSDForImageClassification
from sssd_hf.cli import evaluate, finetune, predict, pretrain

# centre, width in HU
LUNG, MEDIASTINUM, BONE = (-600.0, 1500.0), (50.0, 350.0), (400.0, 1800.0)
PATIENTS, SLICES = 12, 2
MODEL = ["--image_size", "16", "--patch_size", "8", "--config_overrides", SIZES]
GROUPS = ["--group_column_name", "patient_id"]


pytestmark = pytest.mark.usefixtures("no_figures")


def hounsfield(patient, place, columns=16):
    """(16, columns) HU: air to bone, of odd patients denser above."""
    rng = np.random.default_rng(100 * patient + place)
    values = rng.integers(-1100, 200, (16, columns))
    values[8 * (patient % 2 == 0) :][:8] += 600
    return values.astype(np.int16)


def class_of(patient):
    return ("below", "above")[patient % 2]


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """(folder, HU by file name, names of inverted files): DICOM files named as scanners name them,
    in class folders, a series a patient."""
    root, planes, inverted = tmp_path_factory.mktemp("dicom"), {}, set()
    for patient in range(PATIENTS):
        elements = {"PatientID": f"Secret^{patient}", "PatientName": f"Doe^{patient}"}
        elements |= {"RescaleSlope": 1, "RescaleIntercept": -1024}
        if patient % 3 == 0:
            elements["PhotometricInterpretation"] = "MONOCHROME1"
        for place in range(SLICES):
            values = hounsfield(patient, place)
            name = f"{class_of(patient)}/series{patient}/IM{place}"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(encode(dicom(values + 1024, **elements)))
            planes[name] = values
            inverted |= {name} if patient % 3 == 0 else set()
    return root, planes, inverted


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """(folder, HU by file name and slice): 16 rows of 8 columns, so that squashing shows."""
    root, planes = tmp_path_factory.mktemp("nifti"), {}
    for patient in range(PATIENTS):
        slices = [hounsfield(patient, place, columns=8) for place in range(SLICES)]
        name = f"{class_of(patient)}/p{patient}.nii.gz"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        # axial pictures show the patient's right on the left and the front above
        stored = np.stack([plane[::-1, ::-1].T for plane in slices], axis=2)
        save_nifti(root / name, stored)
        planes |= {f"{name}#{place}": plane for place, plane in enumerate(slices)}
    return root, planes


def whole_way(root, output, *options):
    """pretrain -> finetune -> evaluate -> predict on the files of the test split: (evaluate's,
    predict's) probability of "above" by file name, a slice's with "#" and its number."""
    data = ["--data_dir", str(root), *GROUPS]
    few = ["--max_train_steps", "2", *TRAINING]
    folders = {name: str(output / name) for name in ("pretrained", "finetuned", "evaluation")}
    argv = [*data, *MODEL, *few, *options, "--output_dir", folders["pretrained"]]
    assert pretrain.main(argv) == 0
    # no word of the preparation from here on
    argv = [*data, *few, "--model_name_or_path", folders["pretrained"]]
    argv += ["--learning_rate", "1e-2", "--layer_decay", "1", "--max_train_steps", "20"]
    assert finetune.main([*argv, "--output_dir", folders["finetuned"]]) == 0
    argv = [*data, "--model_name_or_path", folders["finetuned"], "--num_resamples", "10"]
    assert evaluate.main([*argv, "--output_dir", folders["evaluation"]]) == 0
    with open(output / "evaluation/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    evaluated = {row["file_name"]: float(row["probability_above"]) for row in rows}
    assert sorted(evaluated) == sorted(read(output / "finetuned/splits.json")["test"])
    files = sorted({str(root / name.partition("#")[0]) for name in evaluated})
    argv = ["--model_name_or_path", folders["finetuned"], "--images", *files]
    assert predict.main([*argv, "--output_file", str(output / "predictions.jsonl")]) == 0
    predicted = {}
    for line in (output / "predictions.jsonl").read_text().splitlines():
        record = json.loads(line)
        frame = f"#{record['frame']}" if "frame" in record else ""
        name = Path(record["file"]).relative_to(root).as_posix() + frame
        predicted[name] = record["probabilities"]["above"]
    return evaluated, predicted


def window(values, centre, width):
    """uint8 by the definition of a linear window."""
    return np.rint(((values - centre) / width + 0.5).clip(0, 1) * 255).astype(np.uint8)


def probability(folder, pixels):
    """Of "above", for uint8 pixels (channels, 16, 16) as they are."""
    model = SSSDForImageClassification.from_pretrained(folder).eval()
    values = torch.tensor(pixels / 255 * 2 - 1, dtype=torch.float32)
    with torch.no_grad():
        logits = model(pixel_values=values[None]).logits[0]
    return logits.softmax(-1)[model.config.label2id["above"]].item()


def check(evaluated, predicted, expected):
    assert evaluated.keys() == predicted.keys()
    assert max(evaluated.values()) - min(evaluated.values()) > 1e-3, "the images are told apart"
    for name, value in evaluated.items():
        assert predicted[name] == pytest.approx(value, abs=1e-5)
        assert expected(name) == pytest.approx(value, abs=1e-5)


def check_whole_patients(output, patient_of):
    splits = read(output / "finetuned/splits.json")
    sets = [{patient_of(n) for n in splits[part]} for part in ("train", "validation", "test")]
    assert all(sets)
    assert sum(map(len, sets)) == len(set.union(*sets)) == PATIENTS
    return splits


def stored(output):
    """What both stages note of the preparation."""
    first, second = (
        read(output / name / "config.json").get("preparation")
        for name in ("pretrained", "finetuned")
    )
    assert first == second
    return first


@pytest.mark.parametrize(
    ("words", "windows"),
    [
        (["--window", "lung"], [LUNG]),
        (["--window", "lung,mediastinum,bone", "--num_channels", "3"], [LUNG, MEDIASTINUM, BONE]),
    ],
    ids=["grey", "three_windows"],
)
def test_dicom_series(series, tmp_path, caplog, words, windows):
    root, planes, inverted = series
    evaluated, predicted = whole_way(root, tmp_path, *words)
    assert stored(tmp_path) == {
        "resize_mode": "squash",
        "windows": [list(pair) for pair in windows],
        "slice_axis": "axial",
    }

    def expected(name):
        pixels = np.stack([window(planes[name], *pair) for pair in windows])
        pixels = 255 - pixels if name in inverted else pixels
        return probability(tmp_path / "finetuned", pixels)

    check(evaluated, predicted, expected)
    splits = check_whole_patients(tmp_path, lambda name: name.split("/")[1])
    assert inverted & set(splits["train"])
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert not any(b"Secret^" in p.read_bytes() for p in written), "no patient is named"
    assert "Secret^" not in caplog.text


def test_nifti_volumes_in_letterboxes(volumes, tmp_path, caplog):
    root, planes = volumes
    words = ["--window", "-600/1500", "--resize_mode", "letterbox", "--num_channels", "1"]
    evaluated, predicted = whole_way(root, tmp_path, *words)
    assert stored(tmp_path) == {
        "resize_mode": "letterbox",
        "windows": [list(LUNG)],
        "slice_axis": "axial",
    }

    def expected(name):
        pixels = np.zeros((1, 16, 16), np.uint8)
        pixels[0, :, 4:12] = window(planes[name], *LUNG)
        return probability(tmp_path / "finetuned", pixels)

    check(evaluated, predicted, expected)
    check_whole_patients(tmp_path, lambda name: name.partition("#")[0])
    argv = ["--data_dir", str(root), *GROUPS, "--num_resamples", "10"]
    argv += ["--model_name_or_path", str(tmp_path / "finetuned")]
    argv += ["--window", "bone", "--output_dir", str(tmp_path / "evaluation")]
    assert "differ from those the model was trained with" not in caplog.text
    assert evaluate.main(argv) == 0
    assert "differ from those the model was trained with" in caplog.text
    with open(tmp_path / "evaluation/predictions.csv", newline="") as file:
        for row in csv.DictReader(file):
            pixels = np.zeros((1, 16, 16), np.uint8)
            pixels[0, :, 4:12] = window(planes[row["file_name"]], *BONE)
            other = probability(tmp_path / "finetuned", pixels)
            assert float(row["probability_above"]) == pytest.approx(other, abs=1e-5)


def test_pictures_leave_no_note(tmp_path):
    """The stock image processor prepares them; they are squashed as it does."""
    root = tmp_path / "images"
    for patient in range(PATIENTS):
        for place in range(SLICES):
            path = root / class_of(patient) / f"{patient}_{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(window(hounsfield(patient, place, 8), *LUNG)).save(path)
    rows = [
        [path.relative_to(root).as_posix(), path.parent.name, path.name.partition("_")[0]]
        for path in sorted(root.rglob("*.png"))
    ]
    with open(root / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "label", "patient_id"], *rows])
    evaluated, predicted = whole_way(root, tmp_path)
    assert stored(tmp_path) is None

    def expected(name):
        with Image.open(root / name) as image:
            pixels = np.array(image.resize((16, 16), Image.Resampling.BILINEAR))
        return probability(tmp_path / "finetuned", pixels[None])

    check(evaluated, predicted, expected)
