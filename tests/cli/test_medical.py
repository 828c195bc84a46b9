"""DICOM and NIfTI files through predict.py, and the options of how images are prepared."""

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "data"))
from medical_files import ct_values, dicom, encode, save_nifti

from sssd_hf import SSSDConfig, SSSDForImageClassification
from sssd_hf.cli import common, predict
from sssd_hf.cli.data import preparation_of
from sssd_hf.cli.parsing import parse
from sssd_hf.data.preparation import Preparation

VOLUME = np.random.default_rng(0).integers(-1200, 2500, (16, 16, 5)).astype(np.int16)


@pytest.fixture
def model_folder(tmp_path):
    """A classifier of random weights whose config asks for the lung window, sagittally."""
    config = SSSDConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        decoder_hidden_size=16,
        decoder_num_attention_heads=1,
        num_channels=1,
        image_size=16,
        patch_size=8,
        num_labels=2,
    )
    model = SSSDForImageClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=2)
    folder = tmp_path / "model"
    common.save_checkpoint(model, folder, ([0.5] * 3, [0.5] * 3))
    stored = json.loads((folder / "config.json").read_text())
    preparation = Preparation((16, 16), 1, windows=((-600, 1500),), slice_axis="sagittal")
    stored["preparation"] = preparation.to_dict()
    (folder / "config.json").write_text(json.dumps(stored))
    return folder


def probability(folder, values):
    """Of the second class, for (16, 16) HU through the lung window."""
    model = SSSDForImageClassification.from_pretrained(folder).eval()
    grey = ((values + 600.0) / 1500 + 0.5).clip(0, 1)
    pixels = torch.tensor(np.rint(grey * 255) / 255 * 2 - 1, dtype=torch.float32)
    with torch.no_grad():
        return model(pixel_values=pixels[None, None]).logits.softmax(-1)[0, 1].item()


def test_prediction_of_series_frames_and_volumes(tmp_path, model_folder, caplog):
    folder = tmp_path / "images"
    (folder / "series").mkdir(parents=True)
    planes = {}
    for i in range(3):
        stored = ct_values(16, 16, seed=i)
        (folder / f"series/IM{i}").write_bytes(encode(dicom(stored)))
        planes[f"series/IM{i}", ""] = stored
    frames = np.stack([ct_values(16, 16, seed=10 + i) for i in range(2)])
    (folder / "frames.dcm").write_bytes(encode(dicom(frames)))
    planes |= {("frames.dcm", str(k)): frames[k] for k in range(2)}
    affine = np.diag([1, 1, 3.0, 1])
    cube = np.repeat(VOLUME, [4, 3, 3, 3, 3], axis=2)  # sagittal planes of 16 x 16
    save_nifti(folder / "volume.nii.gz", cube, affine)
    planes |= {("volume.nii.gz", str(k)): cube[k].T[::-1, ::-1] for k in range(16)}
    (folder / "broken.nii.gz").write_bytes((folder / "volume.nii.gz").read_bytes()[:-500])
    (folder / "cut.dcm").write_bytes(encode(dicom(frames))[:-300])
    report = dicom(frames)
    del report.Rows, report.Columns, report.PixelData
    (folder / "DICOMDIR").write_bytes(encode(report))

    argv = ["--model_name_or_path", str(model_folder), "--images", str(folder)]
    assert predict.main([*argv, "--output_file", str(tmp_path / "a.csv")]) == 1
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(str(Path(r["file"]).relative_to(folder)), r["frame"]): r for r in rows}
    extra = {place for place in found if place[0] == "cut.dcm"}
    assert extra <= {("cut.dcm", "0")}  # its first frame is whole
    assert found.keys() - extra == planes.keys()
    for place, plane in planes.items():
        expected = probability(model_folder, plane)
        assert float(found[place]["probability_LABEL_1"]) == pytest.approx(expected, abs=1e-4)
    errors = [r.message for r in caplog.records if r.levelname == "ERROR"]
    assert len(errors) == 3, "one a file, and the count"
    assert "2 files could not be read" in errors[-1]
    assert "Secret" not in caplog.text

    assert predict.main([*argv, "--output_file", str(tmp_path / "a.jsonl")]) == 1
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(records) == len(rows)
    for record, row in zip(records, rows):
        assert str(record.get("frame", "")) == row["frame"]


def test_without_frames_there_is_no_such_column(tmp_path, model_folder):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "b.dcm").write_bytes(encode(dicom(ct_values())))
    argv = ["--model_name_or_path", str(model_folder), "--images", str(tmp_path / "a.png")]
    argv += [str(tmp_path / "b.dcm"), "--output_file", str(tmp_path / "a.csv")]
    assert predict.main(argv) == 0
    header = (tmp_path / "a.csv").read_text().splitlines()[0]
    assert header == "file,label,probability_LABEL_0,probability_LABEL_1"


def test_options_before_the_checkpoints_before_the_defaults():
    stored = Preparation((8, 8), 3, "letterbox", ((0, 80),), "coronal").to_dict()
    new = SimpleNamespace(num_channels=3)
    trained = SimpleNamespace(num_channels=3, preparation=stored)
    (none, *_), (some, *_) = (
        parse("evaluate", "", ["--data_dir", "x", *words])
        for words in ([], ["--window", "-600/1500", "--slice_axis", "sagittal"])
    )
    size = (8, 8)
    assert preparation_of(new, size, none) == Preparation(size, 3)
    assert preparation_of(trained, size, none) == Preparation.from_dict(stored, size, 3)
    assert preparation_of(trained, size) == Preparation.from_dict(stored, size, 3)
    expected = Preparation(size, 3, "letterbox", ((-600.0, 1500.0),), "sagittal")
    assert preparation_of(trained, size, some) == expected
    assert preparation_of(new, size, some).windows == ((-600.0, 1500.0),)


@pytest.mark.parametrize("words", [["--window", "liver"], ["--resize_mode", "zoom"]])
def test_wrong_options_end_the_script(words, capsys):
    with pytest.raises(SystemExit):
        parse("pretrain", "", ["--data_dir", "x", *words])
    assert words[0] in capsys.readouterr().err


def test_a_negative_window_in_a_recipe(tmp_path):
    (tmp_path / "r.yaml").write_text("common:\n  window: -600/1500\n  data_dir: x\n")
    data, *_ = parse("pretrain", "", ["--recipe", str(tmp_path / "r.yaml")])
    assert data.window == "-600/1500"
