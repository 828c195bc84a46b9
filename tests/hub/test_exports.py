"""Exports of tiny random models, against the stock classes, ONNX Runtime and timm's names."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from model_helpers import images, largest_difference, randomize, tiny_config
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageClassification,
    Dinov2ForImageClassification,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMAEForPreTraining,
    pipeline,
)

from sssd_hf import SSSDForImageClassification, SSSDForPreTraining
from sssd_hf.cli import export
from sssd_hf.cli.classifiers import load_classifier
from sssd_hf.cli.common import save_checkpoint
from sssd_hf.conversion_sssd import from_mae

CALIBRATION = {"temperature": 1.7, "threshold": 0.4, "rule": "youden", "fitted_on": "validation"}
LABELS = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}


def checkpoint(folder, cls=SSSDForImageClassification, **fields):
    config = tiny_config(**{**LABELS, "intermediate_size": 64, **fields})
    model = randomize(cls(config), 0.2).eval()
    save_checkpoint(model, folder, ([0.4] * 3, [0.25] * 3))
    return model


def run(source, to, output, *options):
    argv = ["--model_name_or_path", source, "--to", to, "--output_dir", output, *options]
    assert export.main([str(word) for word in argv]) == 0
    return json.loads((output / "all_results.json").read_text())


def refused(source, to, output, *options):
    """The message of the refusal; nothing may be left behind."""
    before = set(output.parent.iterdir())
    with pytest.raises((ValueError, SystemExit)) as error:
        run(source, to, output, *options)
    assert set(output.parent.iterdir()) == before
    return str(error.value)


@pytest.fixture
def source(tmp_path):
    return tmp_path / "source"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "exports" / "one"


# ------------------------------------------------------------------ ViT and DINOv2


@pytest.mark.parametrize(
    "fields",
    [{}, {"image_size": (32, 48)}, {"qkv_bias": False}, {"patch_size": (8, 16)}],
    ids=str,
)
@torch.no_grad()
def test_a_three_channel_vit_has_the_same_logits_to_the_last_bit(source, output, fields):
    model = checkpoint(source, calibration=CALIBRATION, **fields)
    results = run(source, "vit", output)
    stock, info = ViTForImageClassification.from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    pixels = images(3, 3, 32, 48 if fields.get("image_size") else 32)
    assert torch.equal(stock(pixels).logits, model(pixels).logits)
    assert results["largest_difference"] == 0
    assert stock.config.calibration == CALIBRATION
    assert stock.config.id2label == LABELS["id2label"]
    assert {p.suffix for p in output.iterdir()} == {".json", ".safetensors", ".md"}  # no code
    assert "auto_map" not in json.loads((output / "config.json").read_text())


def test_this_package_reads_an_exported_vit_with_its_threshold_and_window(source, output):
    preparation = {"windows": [[-600.0, 1500.0]], "slice_axis": "coronal"}
    checkpoint(source, calibration=CALIBRATION, preparation=preparation)
    run(source, "vit", output)
    before, after = load_classifier(str(source)), load_classifier(str(output))
    assert after.calibration == before.calibration == CALIBRATION
    assert after.preparation == before.preparation
    assert after.preparation.slice_axis == "coronal"
    other = SSSDForImageClassification.from_pretrained(
        output, num_labels=3, ignore_mismatched_sizes=True
    )
    assert other.config.calibration is None  # it is of the two classes stored


@torch.no_grad()
def test_a_one_channel_vit_takes_rgb_and_makes_it_grey_as_the_model_does(source, output):
    model = checkpoint(source, num_channels=1)
    run(source, "vit", output)
    stock = ViTForImageClassification.from_pretrained(output)
    assert stock.config.num_channels == 3
    colours = images(3, 3, 32, 32)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    grey = (colours * weights).sum(1, keepdim=True)
    assert largest_difference(stock(colours).logits, model(grey).logits) < 1e-5


def test_the_pipeline_answers_alike_for_a_grey_and_a_colour_file(source, output, tmp_path):
    model = checkpoint(source, num_channels=1)
    run(source, "vit", output)
    rng = np.random.default_rng(0)
    for name, shape in (("grey", (40, 50)), ("colour", (40, 50, 3))):
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(tmp_path / f"{name}.png")
        answers = []
        for folder in (source, output):
            classify = pipeline("image-classification", model=str(folder))
            found = classify(str(tmp_path / f"{name}.png"))
            answers.append({a["label"]: a["score"] for a in found})
        assert answers[0] == pytest.approx(answers[1], abs=1e-5)
    assert model.config.num_channels == 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@torch.no_grad()
def test_a_stock_dinov2_can_read_the_mean(source, output, channels, pooling):
    model = checkpoint(source, num_channels=channels, pooling=pooling)
    run(source, "dinov2", output)
    stock, info = Dinov2ForImageClassification.from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    pixels = images(3, 3, 32, 32)
    assert largest_difference(stock(pixels).logits, model(pixels).logits) < 1e-5
    assert isinstance(ViTImageProcessor.from_pretrained(output), ViTImageProcessor)


@torch.no_grad()
def test_a_folded_temperature_makes_the_softmax_calibrated(source, output):
    model = checkpoint(source, calibration=CALIBRATION)
    (source / "README.md").write_text("Divide the logits by the temperature 1.7.\n")
    results = run(source, "vit", output, "--fold_temperature", "true")
    stock = AutoModelForImageClassification.from_pretrained(output)
    pixels = images(3, 3, 32, 32)
    assert largest_difference(stock(pixels).logits, model(pixels).logits / 1.7) < 1e-6
    assert stock.config.calibration == {**CALIBRATION, "temperature": 1.0}
    assert stock.config.folded_temperature == 1.7
    assert results["calibration"] == stock.config.calibration
    text = (output / "README.md").read_text()
    assert "divided by the calibration's temperature (1.7000" in text
    assert text.index("do not divide again") > text.index("Divide the logits")


# ------------------------------------------------------------------ ViTMAE and timm


@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_vit_mae_is_written_under_the_old_names(source, output, channels):
    model = checkpoint(source, SSSDForPreTraining, num_channels=channels)
    run(source, "vit_mae", output)
    names = load_file(output / "model.safetensors").keys()
    assert "vit.encoder.layer.0.attention.attention.query.weight" in names
    assert "decoder.decoder_layers.1.output.dense.bias" in names
    stock = ViTMAEForPreTraining.from_pretrained(output).eval()
    pixels, noise = images(2, channels, 32, 32), torch.rand(2, 16)
    ours, theirs = model(pixels, noise=noise), stock(pixels, noise=noise)
    assert largest_difference(ours.logits, theirs.logits) < 1e-5
    assert largest_difference(ours.reconstruction_loss, theirs.loss) < 1e-5


TIMM_BLOCK = "norm1 attn.qkv attn.proj norm2 mlp.fc1 mlp.fc2".split()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_timm_gets_the_names_and_arguments_of_its_own(source, output, pooling):
    """The names of timm 1.0.31's VisionTransformer, written by hand (timm itself needs torchvision;
    test_loaders.py loads into the real one)."""
    model = checkpoint(source, pooling=pooling, calibration=CALIBRATION, num_channels=1)
    run(source, "timm", output)
    modules = ["patch_embed.proj", "norm", "head"]
    modules += [f"blocks.{i}.{name}" for i in range(2) for name in TIMM_BLOCK]
    expected = {f"{name}.{part}" for name in modules for part in ("weight", "bias")}
    weights = load_file(output / "model.safetensors")
    assert weights.keys() == expected | {"cls_token", "pos_embed"}
    assert weights["patch_embed.proj.weight"].shape == (32, 3, 8, 8)
    description = json.loads((output / "config.json").read_text())
    arguments = description["model_args"]
    assert arguments["global_pool"] == {"cls": "token", "mean": "avg"}[pooling]
    assert arguments["fc_norm"] is False
    assert int(arguments["embed_dim"] * arguments["mlp_ratio"]) == 64
    assert description["sssd_hf"]["calibration"] == CALIBRATION
    back = from_mae({"model": weights})[1]
    assert torch.equal(back["classifier.weight"], model.classifier.weight)


class FakeTimm(torch.nn.Module):
    """A ViT that is filled by timm's names and built, as timm's, with norms of 1e-6; what it
    computes is this package's."""

    def __init__(self, arguments):
        super().__init__()
        self.model = SSSDForImageClassification(
            tiny_config(**LABELS, intermediate_size=64, image_size=arguments["img_size"][0])
        )

    def load_state_dict(self, weights, strict=True):
        return self.model.load_state_dict(from_mae({"model": weights})[1], strict=strict)

    def forward(self, pixels):
        return self.model(pixels).logits


def fake_timm(sources):
    """`timm` as a module; `sources` are those of its `create_model`."""

    def create_model(name, pretrained=False, **arguments):
        source, _, folder = name.rpartition(":")
        assert source in sources
        if source:
            with open(f"{folder}/config.json") as file:
                arguments = json.load(file)["model_args"]
        model = FakeTimm(arguments)
        if source and pretrained:
            model.load_state_dict(load_file(f"{folder}/model.safetensors"))
        return model.eval()

    module = types.ModuleType("timm")
    module.create_model = create_model
    return module


def told_code(folder):
    """The lines of Python in an export's README.md."""
    return (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("eps", [0.5, 1e-6])
@torch.no_grad()
def test_timms_norms_get_the_models_epsilon_by_what_the_readme_tells(
    source, output, monkeypatch, caplog, eps
):
    """Without timm, which this environment lacks: what was told is run on a stand-in."""
    monkeypatch.setitem(sys.modules, "timm", fake_timm(["", "local-dir"]))
    model = checkpoint(source, layer_norm_eps=eps)
    results = run(source, "timm", output)
    assert results["largest_difference"] < 1e-5
    names = {"timm": sys.modules["timm"], "FOLDER": str(output)}
    exec(told_code(output), names)
    pixels = images(3, 3, 32, 32)
    assert largest_difference(names["model"](pixels), model(pixels).logits) < 1e-5
    plain = names["timm"].create_model(f"local-dir:{output}", pretrained=True)
    differs = largest_difference(plain(pixels), model(pixels).logits) > 1e-3
    told = "epsilon of 1e-06 instead of 0.5" in (output / "README.md").read_text()
    warned = "epsilon of 1e-06, this model has 0.5" in caplog.text
    assert differs == told == warned == (eps != 1e-6)


def test_a_timm_whose_own_epsilon_changed_is_noticed(source, output, monkeypatch):
    """The check leaves alone what users are not told to set."""
    module = fake_timm(["", "local-dir"])
    built = module.create_model

    def changed(*args, **kwargs):
        model = built(*args, **kwargs)
        export.exports.set_norm_eps(model, 0.5)
        return model

    module.create_model = changed
    monkeypatch.setitem(sys.modules, "timm", module)
    checkpoint(source)
    output.parent.mkdir()
    assert "differs from the checkpoint" in refused(source, "timm", output)


def test_an_older_timm_is_compared_by_its_class_alone(source, output, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "timm", fake_timm([""]))
    checkpoint(source)
    assert run(source, "timm", output)["largest_difference"] < 1e-5
    assert "this timm can't load from a folder" in caplog.text


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("to", "fields", "words"),
    [
        ("vit", {"pooling": "mean"}, ["pooling='mean'", "--to dinov2", "--pooling cls"]),
        ("vit", {"preparation": {"resize_mode": "letterbox"}}, ["letterbox", "squash"]),
        ("dinov2", {"image_size": (32, 48)}, ["image_size", "--to timm"]),
        ("dinov2", {"intermediate_size": 48}, ["intermediate_size=48", "hidden_size=32"]),
        ("timm", {"hidden_act": "mish"}, ["hidden_act='mish'", "--to onnx"]),
        ("onnx", {"id2label": {0: "a"}, "label2id": {"a": 0}}, ["num_labels=1"]),
        ("vit_mae", {}, ["decoder", "--to vit"]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_a_form_cannot_hold_is_refused_by_name(source, output, to, fields, words):
    checkpoint(source, **fields)
    output.parent.mkdir()
    message = refused(source, to, output)
    assert all(word in message for word in words), message


def test_refused_pretraining_checkpoints_and_shapes(source, output):
    checkpoint(source, SSSDForPreTraining, image_size=(32, 48))
    output.parent.mkdir()
    assert "scripts/finetune.py" in refused(source, "vit", output)
    assert "square" in refused(source, "vit_mae", output)


def test_hostile_options(source, output, capsys):
    checkpoint(source)
    output.parent.mkdir()
    assert "no calibration" in refused(source, "vit", output, "--fold_temperature", "true")
    for options in (("vit", "--int8", "true"), ("vit_mae", "--fold_temperature", "true"), ("tf",)):
        refused(source, options[0], output, *options[1:])
    errors = capsys.readouterr().err
    assert "--int8 is for --to onnx" in errors
    assert "--to vit_mae writes none" in errors
    assert "holds the checkpoint itself" in refused(source, "vit", source)
    assert "holds the checkpoint itself" in refused(
        source, "vit", source.parent, "--overwrite_output_dir", "true"
    )
    assert "no config.json" in refused(output.parent, "vit", output)


def test_only_an_earlier_export_is_replaced_and_only_when_asked(source, output):
    checkpoint(source, calibration=CALIBRATION)
    run(source, "vit", output)
    first = (output / "model.safetensors").read_bytes()
    assert "--overwrite_output_dir" in refused(source, "vit", output)
    options = ("--fold_temperature", "true", "--overwrite_output_dir", "true")
    run(source, "vit", output, *options)
    assert (output / "model.safetensors").read_bytes() != first
    assert [path.name for path in output.parent.iterdir()] == ["one"]
    mine = output.parent / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    assert "something else" in refused(source, "vit", mine, "--overwrite_output_dir", "true")
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_a_failure_on_the_way_leaves_the_earlier_export(source, output, monkeypatch):
    checkpoint(source)
    run(source, "vit", output)
    first = (output / "model.safetensors").read_bytes()
    monkeypatch.setattr(export.exports, "check_classifier", lambda *args: 0.5)
    message = refused(source, "vit", output, "--overwrite_output_dir", "true")
    assert "differs from the checkpoint by 5.00e-01" in message
    assert (output / "model.safetensors").read_bytes() == first


def test_windows_are_marked_and_warned_of(source, output, caplog):
    checkpoint(source, preparation={"windows": [[-600.0, 1500.0]]})
    results = run(source, "vit", output)
    assert "-600.0" in results["preparation_warning"]
    assert results["preparation_warning"] in caplog.text
    assert json.loads((output / "config.json").read_text())["preparation"]["windows"]
