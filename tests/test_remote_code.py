"""The Auto classes and the pipeline: with the package, and from a folder that carries its code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from model_helpers import images, randomize, tiny_config
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    ViTImageProcessor,
    pipeline,
)

from sssd_hf import SSSDConfig, SSSDForImageClassification, SSSDForPreTraining, SSSDModel
from sssd_hf.hub.remote_code import save_with_code

LABELS = {"id2label": {0: "no", 1: "yes", 2: "maybe"}}
MODES = ("L", "RGB", "RGBA")


def save_folder(folder, channels, save=lambda model, folder: model.save_pretrained(folder)):
    """A classifier with its processor; a one-channel model's repeats one mean and spread."""
    config = tiny_config(num_channels=channels, **LABELS)
    model = randomize(SSSDForImageClassification(config)).eval()
    save(model, folder)
    mean, std = ([0.4] * 3, [0.25] * 3) if channels == 1 else ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=mean, image_std=std)
    processor.save_pretrained(folder)
    return model, mean, std


def write_files(folder):
    generator = np.random.default_rng(0)
    paths = {}
    for mode in MODES:
        shape = (32, 32) if mode == "L" else (32, 32, len(mode))
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        paths[mode] = folder / f"{mode}.png"
        Image.fromarray(pixels, mode=None).save(paths[mode])
    return paths


def probabilities(model, path, mean, std):
    """By hand: Pillow's RGB (alpha dropped), scaled to 0..1, normalised, softmax."""
    x = np.asarray(Image.open(path).convert("RGB"), dtype=np.float64) / 255
    x = ((x - mean) / std).transpose(2, 0, 1)[None]
    return model(torch.from_numpy(x).float()).logits.softmax(-1)[0]


def assert_scores(found, expected):
    scores = {entry["label"]: entry["score"] for entry in found}
    for index, label in LABELS["id2label"].items():
        assert scores[label] == pytest.approx(expected[index].item(), abs=1e-4)


def test_auto_classes_by_import(tmp_path):
    assert type(AutoConfig.for_model("sssd")) is SSSDConfig
    pairs = (
        (AutoModel, SSSDModel),
        (AutoModelForPreTraining, SSSDForPreTraining),
        (AutoModelForImageClassification, SSSDForImageClassification),
    )
    for auto, cls in pairs:
        model = randomize(cls(tiny_config()))
        model.save_pretrained(tmp_path / cls.__name__)
        loaded = auto.from_pretrained(tmp_path / cls.__name__)
        assert type(loaded) is cls
        assert type(AutoConfig.from_pretrained(tmp_path / cls.__name__)) is SSSDConfig
        state = loaded.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert type(auto.from_config(tiny_config())) is cls
    # options of the config by name, also through the Auto class
    folder = tmp_path / "SSSDForPreTraining"
    loaded = AutoModelForImageClassification.from_pretrained(folder, num_labels=5, image_size=40)
    assert loaded.classifier.out_features == 5
    assert loaded.config.grid_size == (5, 5)


@pytest.mark.parametrize("channels", [1, 3])
def test_pipeline_on_grey_rgb_and_rgba_files(tmp_path, channels):
    model, mean, std = save_folder(tmp_path, channels)
    classify = pipeline("image-classification", model=str(tmp_path), device="cpu", top_k=None)
    assert type(classify.model) is SSSDForImageClassification
    for path in write_files(tmp_path).values():
        assert_scores(classify(str(path)), probabilities(model, path, mean, std))


def test_saving_with_code_leaves_the_model_as_it_was(tmp_path):
    model = SSSDForPreTraining(tiny_config())
    save_with_code(model, tmp_path / "a")
    assert not hasattr(model.config, "auto_map")
    model.save_pretrained(tmp_path / "b")
    assert "auto_map" not in json.loads((tmp_path / "b" / "config.json").read_text())
    assert len(json.loads((tmp_path / "a" / "config.json").read_text())["auto_map"]) == 4
    assert len(list((tmp_path / "a").glob("*.py"))) == 5
    assert type(AutoModel.from_pretrained(tmp_path / "a")) is SSSDModel  # the package wins


CHILD = """
import json, sys

class Block:  # an installed package is as good as absent
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sssd_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
try:
    import sssd_hf
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("sssd_hf is importable")

import torch
torch.set_num_threads(1)
from transformers import (AutoConfig, AutoModel, AutoModelForImageClassification,
                          AutoModelForPreTraining, pipeline)

folder, mae, files = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
trust = {"trust_remote_code": True}
assert AutoConfig.from_pretrained(folder, **trust).model_type == "sssd"
pixels, noise, seeds = torch.load(f"{folder}/inputs.pt", weights_only=True)
classifier = AutoModelForImageClassification.from_pretrained(folder, **trust)
assert classifier.__module__.startswith("transformers_modules")
pretraining = AutoModelForPreTraining.from_pretrained(f"{folder}/pretraining", **trust)
encoder = AutoModel.from_pretrained(f"{folder}/pretraining", **trust)
larger = AutoModelForPreTraining.from_pretrained(f"{folder}/pretraining", image_size=40, **trust)
converted = type(pretraining).from_pretrained(mae)
out = pretraining(pixels, noise=noise)
frozen = [name for name, p in pretraining.named_parameters() if not p.requires_grad]
results = {
    "logits": classifier(pixels).logits,
    "loss": out.loss,
    "distillation": out.distillation_loss,
    "reconstruction": out.logits,
    "encoder": encoder(pixels).last_hidden_state,
    "larger": larger.decoder.position_embeddings,
    "converted": converted(pixels, noise=noise).logits,
    "frozen": torch.tensor(len(frozen)),
}
pretraining.save_pretrained(f"{folder}/again")
again = AutoModelForPreTraining.from_pretrained(f"{folder}/again", **trust)
results["again"] = again(pixels, noise=noise).logits
torch.save({k: v.detach() for k, v in results.items()}, f"{folder}/results.pt")
classify = pipeline("image-classification", model=folder, device="cpu", top_k=None, **trust)
print("SCORES" + json.dumps({mode: classify(path) for mode, path in files.items()}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_remote_code_where_the_package_is_not_installed(tmp_path, channels):
    folder = tmp_path / "model"
    model, mean, std = save_folder(folder, channels, save_with_code)
    fields = {"distillation_head": "dino", "distillation_distance": "cross_entropy"}
    pretraining = SSSDForPreTraining(tiny_config(num_channels=channels, **fields)).eval()
    save_with_code(randomize(pretraining), folder / "pretraining")
    plain = SSSDForPreTraining(tiny_config(num_channels=channels, distillation_weight=0.0)).eval()
    randomize(plain).to_vit_mae().save_pretrained(tmp_path / "mae")
    pixels, noise = images(2, 3, 32, 32), torch.rand(2, 16)
    torch.save((pixels, noise, torch.arange(2)), folder / "inputs.pt")
    files = write_files(tmp_path)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(tmp_path / "mae"),
         json.dumps({mode: str(path) for mode, path in files.items()})],
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    found = torch.load(folder / "results.pt", weights_only=True)
    out = pretraining(pixels, noise=noise)
    larger = SSSDForPreTraining.from_pretrained(folder / "pretraining", image_size=40)
    expected = {
        "logits": model(pixels).logits,
        "loss": out.loss,
        "distillation": out.distillation_loss,
        "reconstruction": out.logits,
        "again": out.logits,
        "encoder": pretraining.encoder(pixels).last_hidden_state,
        "larger": larger.decoder.position_embeddings,
        "converted": plain(pixels, noise=noise).logits,
        "frozen": torch.tensor(sum(not p.requires_grad for p in pretraining.parameters())),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    (line,) = [line for line in child.stdout.splitlines() if line.startswith("SCORES")]
    for mode, scores in json.loads(line.removeprefix("SCORES")).items():
        assert_scores(scores, probabilities(model, files[mode], mean, std))
    assert Path(tmp_path / "home").exists()


def test_code_goes_along_where_the_config_names_it(tmp_path):
    """Whoever loads a checkpoint that has its code, and saves it, has one that has it too."""
    save_with_code(SSSDForImageClassification(tiny_config()), tmp_path / "first")
    SSSDForImageClassification.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "two")
    saved = json.loads((tmp_path / "two" / "config.json").read_text())
    for place in saved["auto_map"].values():
        assert (tmp_path / "two" / f"{place.split('.')[0]}.py").is_file()
    assert {p.name for p in (tmp_path / "two").glob("*.py")} == {
        p.name for p in (tmp_path / "first").glob("*.py")
    }
    SSSDForImageClassification(tiny_config()).save_pretrained(tmp_path / "plain")
    assert not list((tmp_path / "plain").glob("*.py"))
    config = tiny_config()
    config.auto_map = {"AutoConfig": "some/where--configuration_sssd.SSSDConfig"}
    config.save_pretrained(tmp_path / "hub")
    assert not list((tmp_path / "hub").glob("*.py"))
