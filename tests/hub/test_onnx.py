"""ONNX exports in ONNX Runtime: any batch size, calibrated probabilities, facts inside, int8."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from model_helpers import images, randomize, tiny_config
from PIL import Image

from sssd_hf import SSSDForImageClassification
from sssd_hf.cli import export
from sssd_hf.cli.common import save_checkpoint
from sssd_hf.hub import quantization
from sssd_hf.hub.onnx import open_session, run_session

CALIBRATION = {"temperature": 1.7, "threshold": 0.4, "rule": "youden", "fitted_on": "validation"}
LABELS = {"id2label": {0: "dark", 1: "light"}, "label2id": {"dark": 0, "light": 1}}
# one that no other form but timm holds
FIELDS = {"pooling": "mean", "num_channels": 1, "image_size": (32, 48), "calibration": CALIBRATION}


def write_checkpoint(folder, **fields):
    model = randomize(SSSDForImageClassification(tiny_config(**{**LABELS, **fields})), 0.2).eval()
    save_checkpoint(model, folder, ([0.5] * 3, [0.25] * 3))
    return model


def run(source, output, *options):
    argv = ["--model_name_or_path", source, "--to", "onnx", "--output_dir", output, *options]
    assert export.main([str(word) for word in argv]) == 0
    return json.loads((output / "all_results.json").read_text())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(model, its folder, the folder of its export, all_results.json)"""
    root = tmp_path_factory.mktemp("onnx")
    model = write_checkpoint(root / "source", **FIELDS)
    results = run(root / "source", root / "onnx")
    return model, root / "source", root / "onnx", results


def session_of(folder):
    return onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("batch", [1, 2, 5, 33])
@torch.no_grad()
def test_onnx_answers_as_the_model_for_any_batch_size(exported, batch):
    model, _, folder, results = exported
    pixels = images(batch, 3, 32, 48, seed=11)
    logits, probabilities = session_of(folder).run(None, {"pixel_values": pixels.numpy()})
    expected = model(pixels).logits
    assert np.abs(logits - expected.numpy()).max() < 1e-5
    calibrated = np.exp(expected.double().numpy() / 1.7)
    calibrated /= calibrated.sum(1, keepdims=True)
    assert np.abs(probabilities - calibrated).max() < 1e-6
    assert results["largest_difference_by_batch_size"].keys() == {"1", "2", "7"}
    assert results["largest_difference"] < 1e-5


def test_the_file_says_what_it_needs(exported):
    _, source, folder, results = exported
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [
        results["opset"]
    ]
    inside = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert inside == json.loads((folder / "model.json").read_text())
    assert inside["labels"] == ["dark", "light"]
    assert inside["temperature"] == 1.7
    assert inside["threshold"] == 0.4
    assert inside["input"]["shape"] == ["batch", 3, 32, 48]
    assert inside["preprocessing"]["image_mean"] == [0.5] * 3
    stored = json.loads((source / "preprocessor_config.json").read_text())
    assert json.loads((folder / "preprocessor_config.json").read_text()) == stored
    assert not list(folder.glob("*.data"))  # all weights inside


@pytest.mark.slow
def test_int8_without_images_is_dynamic_and_says_so(exported, tmp_path, caplog):
    results = run(exported[1], tmp_path / "int8", "--int8", "true")
    assert "nobody has measured" in caplog.text
    assert results["int8"]["way"] == "dynamic"
    # of the file that is there, not of the fp32 one that it was made from
    difference = max(results["largest_difference_by_batch_size"].values())
    assert results["largest_difference"] == difference > 1e-4
    text = (tmp_path / "int8" / "README.md").read_text()
    assert f"original's output on random images: {difference:.1e}" in text
    assert "(dynamic quantisation). What that costs in accuracy was not measured" in text
    graph = onnx.load(tmp_path / "int8" / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MatMulInteger") == 8  # qkv, proj, fc1, fc2 of two layers
    head = [node for node in graph.node if any("classifier" in name for name in node.input)]
    assert {node.op_type for node in head} <= {"Gemm", "MatMul", "Add"}
    assert head
    assert sorted(path.name for path in (tmp_path / "int8").iterdir()) == [
        "README.md",
        "all_results.json",
        "model.json",
        "model.onnx",
        "preprocessor_config.json",
    ]


@pytest.mark.parametrize("static", [False, True])
def test_int8_is_near_fp32(exported, tmp_path, static):
    pixels = images(24, 3, 32, 48, seed=5)
    source, target = exported[2] / "model.onnx", tmp_path / "int8.onnx"
    quantization.quantize(source, target, pixels if static else None)
    fp32, int8 = (run_session(open_session(path), pixels)[0] for path in (source, target))
    assert 0 < np.abs(fp32 - int8).max() < 0.1 * np.abs(fp32).max()
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]


class Answers:
    """Stands for `measure`: figures by the order in which the files are measured."""

    def __init__(self, *figures):
        self.figures = list(figures)

    def __call__(self, *args):
        accuracy, speed = self.figures.pop(0)
        names = ("images_per_second_batch_1", "images_per_second_batch_32")
        return {"accuracy": accuracy, **dict.fromkeys(names, speed)}


@pytest.mark.parametrize(
    ("static", "dynamic", "chosen"),
    [
        ((0.9, 30), (0.9, 20), "static"),
        ((0.9, 20), (0.9, 30), "dynamic"),
        ((0.894, 99), (0.895, 1), "dynamic"),  # half a point is allowed, more is not
        ((0.8, 99), (0.894, 99), None),
    ],
)
def test_the_faster_of_those_that_hold_the_accuracy(tmp_path, monkeypatch, static, dynamic, chosen):
    monkeypatch.setattr(quantization, "measure", Answers((0.9, 10), static, dynamic))
    monkeypatch.setattr(quantization, "open_session", lambda path: path)
    monkeypatch.setattr(
        quantization, "quantize", lambda source, target, data: target.write_text(target.stem)
    )
    target = tmp_path / "model.onnx"
    arguments = (tmp_path / "fp32.onnx", target, None, [0] * 200, None, None)
    if chosen is None:
        with pytest.raises(ValueError, match=r"0.9000 to 0.8000 \(static\) and 0.8940"):
            quantization.choose_int8(*arguments)
        return
    assert quantization.choose_int8(*arguments)[0] == chosen
    assert target.read_text() == chosen
    assert list(tmp_path.iterdir()) == [target]


def write_images(root):
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4), ("test", 5)):
        for label, level in (("dark", 40), ("light", 190)):
            for i in range(count):
                path = root / split / label / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.normal(level, 20, (32, 48)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(path)
    return root


@pytest.mark.slow
def test_int8_with_images_never_calibrates_on_the_test_split(exported, tmp_path, monkeypatch):
    seen = []
    own = quantization.quantize

    def spy(source, target, calibration):
        seen.append(None if calibration is None else len(calibration))
        own(source, target, calibration)

    monkeypatch.setattr(quantization, "quantize", spy)
    monkeypatch.setattr(quantization, "MAX_LOSS", 1.0)  # random weights
    data = write_images(tmp_path / "images")
    results = run(exported[1], tmp_path / "int8", "--int8", "true", "--data_dir", data)
    assert seen == [12, None]
    found = results["int8"]
    assert found["chosen_on"] == "validation"
    assert found["validation"]["num_images"] == 8
    assert found["measured"]["on"] == "test"
    assert found["measured"]["num_images"] == 10
    accuracies = {
        found["measured"][name]["accuracy"] for name in ("pytorch_fp32", "onnx_fp32", "pipeline")
    }
    assert len(accuracies) == 1
    assert found["way"] in ("static", "dynamic")
    inside = onnx.load(tmp_path / "int8" / "model.onnx").metadata_props
    assert any("int8" in entry.value for entry in inside)
    accuracy = found["measured"]["onnx_int8"]["accuracy"]
    text = (tmp_path / "int8" / "README.md").read_text()
    assert f"({found['way']} quantisation): accuracy {accuracy:.4f}, in fp32" in text
    assert "on 10 test images" in text


def test_a_missing_package_is_named_with_what_to_install(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[export\]'"):
        run(exported[1], tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
