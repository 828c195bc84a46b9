"""What is published of a fine-tuned classifier: the stock model that it is."""

import json

import pytest
import torch
from model_helpers import randomize, tiny_config
from transformers import AutoModelForImageClassification

from sssd_hf import SSSDForImageClassification, SSSDForPreTraining
from sssd_hf.cli import push_to_hub
from sssd_hf.cli.common import save_checkpoint

STATISTICS = ([0.5] * 3, [0.5] * 3)
LABELS = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}


def write(folder, kind=SSSDForImageClassification, **options):
    model = randomize(
        kind(tiny_config(num_channels=3, intermediate_size=64, **LABELS, **options))
    ).eval()
    save_checkpoint(model, folder, STATISTICS)
    return model


def publish(folder, *options):
    argv = ["--model_dir", str(folder), "--hub_model_id", "tester/x", *options]
    assert push_to_hub.main(argv) == 0


@pytest.mark.parametrize(("pooling", "kind"), [("cls", "vit"), ("mean", "dinov2")])
def test_a_classifier_is_published_as_the_stock_model_that_it_is(pooling, kind, hub, tmp_path):
    model = write(tmp_path / "fine", pooling=pooling)
    (tmp_path / "fine" / "finetune_recipe.yaml").write_text("finetune: {seed: 7}")
    publish(tmp_path / "fine")
    files = hub.files("tester/x")
    assert b"seed: 7" in files["finetune_recipe.yaml"]
    assert json.loads(files["config.json"])["model_type"] == kind
    assert not [name for name in files if name.endswith(".py")]
    for name, data in files.items():
        (tmp_path / "pulled").mkdir(exist_ok=True)
        (tmp_path / "pulled" / name).write_bytes(data)
    stock = AutoModelForImageClassification.from_pretrained(tmp_path / "pulled").eval()
    assert type(stock).__module__.startswith("transformers.")
    pixels = torch.randn(2, 3, *[model.config.image_size] * 2)
    with torch.no_grad():
        torch.testing.assert_close(stock(pixels).logits, model(pixels).logits, rtol=0, atol=1e-5)
    # a second push uploads nothing, one after another training the other weights
    before = list(hub.repositories["tester/x"].messages)
    publish(tmp_path / "fine")
    assert hub.repositories["tester/x"].messages == before
    model.classifier.weight.data *= 2
    save_checkpoint(model, tmp_path / "fine", STATISTICS)
    publish(tmp_path / "fine")
    assert len(hub.repositories["tester/x"].messages) == len(before) + 1


def test_other_checkpoints_and_wishes_are_published_as_they_are(hub, tmp_path, caplog):
    write(tmp_path / "pre", SSSDForPreTraining)
    publish(tmp_path / "pre")
    assert "modeling_sssd.py" in hub.files("tester/x")
    write(tmp_path / "fine")
    publish(tmp_path / "fine", "--form", "sssd")
    assert json.loads(hub.files("tester/x")["config.json"])["model_type"] == "sssd"
    assert not (tmp_path / "fine" / "plain").exists()


def test_what_no_stock_model_can_do_is_published_as_it_is(hub, tmp_path, caplog):
    write(tmp_path / "fine", preparation={"resize_mode": "letterbox"})
    publish(tmp_path / "fine")
    assert json.loads(hub.files("tester/x")["config.json"])["model_type"] == "sssd"
    assert "published as it is, with remote code" in caplog.text
