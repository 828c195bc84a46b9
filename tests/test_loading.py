"""`from_pretrained` with other classes, another loss or another place than the checkpoint's."""

from functools import partial

import pytest
import torch
from accelerate import disk_offload
from model_helpers import images, randomize, tiny_config

from sssd_hf import DISTILLATION_PRESETS, SSSDForImageClassification, SSSDForPreTraining

CALIBRATION = {"temperature": 1.3, "threshold": 0.2, "rule": "youden", "fitted_on": "validation"}


@pytest.mark.parametrize("resized", [{}, {"image_size": 48}])
def test_other_classes_leave_calibration_and_class_weights_behind(tmp_path, resized, caplog):
    config = tiny_config(calibration=CALIBRATION, class_weights=[1.0, 2.0])
    config.id2label, config.label2id = {0: "well", 1: "ill"}, {"well": 0, "ill": 1}
    SSSDForImageClassification(config).save_pretrained(tmp_path)
    load = partial(SSSDForImageClassification.from_pretrained, tmp_path, **resized)
    for same in ({}, {"num_labels": 2}, {"id2label": {0: "well", 1: "ill"}}):
        kept = load(**same).config
        assert (kept.calibration, kept.class_weights) == (CALIBRATION, [1.0, 2.0])
        assert kept.id2label == {0: "well", 1: "ill"}
    others = {0: "left", 1: "right"}
    renamed = load(id2label=others, label2id={v: k for k, v in others.items()}).config
    assert (renamed.calibration, renamed.class_weights) == (None, None)
    assert renamed.id2label == others
    given = load(id2label=others, class_weights=[3.0, 1.0]).config
    assert given.class_weights == [3.0, 1.0]
    caplog.clear()
    three = load(num_labels=3, ignore_mismatched_sizes=True)
    assert (three.config.calibration, three.config.class_weights) == (None, None)
    assert three.classifier.out_features == 3
    if resized:  # in the other case the library tells
        assert "new and untrained are classifier.bias, classifier.weight" in caplog.text
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes=True"):
            load(num_labels=3)


@pytest.mark.parametrize("kind", ["mae", "global", "per_position"])
def test_another_loss_at_another_size(tmp_path, kind, caplog):
    """What the old loss's head has learned is left behind, as at the same size."""
    target = {"distillation_target": "standardize_per_position"} if kind == "per_position" else {}
    before = randomize(SSSDForPreTraining(tiny_config(**target)))
    before.save_pretrained(tmp_path)
    fields = target or DISTILLATION_PRESETS[kind]
    model = SSSDForPreTraining.from_pretrained(tmp_path, image_size=48, **fields)
    assert torch.equal(model.encoder.norm.weight, before.encoder.norm.weight)
    assert model(images(2, 3, 48, 48)).loss.isfinite()
    if kind == "per_position":
        assert "distillation.teacher_mean" in caplog.text
        assert len(model.distillation.teacher_mean) == 37


def test_pairs_of_sizes_become_stocks_numbers():
    model = SSSDForPreTraining(tiny_config(image_size=[32, 32], patch_size=[8, 8]))
    stock = model.to_vit_mae()
    assert (stock.config.image_size, stock.config.patch_size) == (32, 8)
    wide = SSSDForPreTraining(tiny_config(image_size=[32, 48]))
    with pytest.raises(ValueError, match=r"image_size=\[32, 48\] can't .*square"):
        wide.to_vit_mae()


def test_disk_offload_of_both_models(tmp_path):
    """Accelerate's hooks fetch each module's weights when it is called."""
    for cls in (SSSDForPreTraining, SSSDForImageClassification):
        model = cls(tiny_config(distillation="mae")).eval()
        pixels, noise = images(2, 3, 32, 32), {}
        if cls is SSSDForPreTraining:
            noise = {"noise": torch.rand(2, model.config.num_patches)}
        with torch.no_grad():
            expected = model(pixels, **noise)
            disk_offload(model, tmp_path / cls.__name__, execution_device="cpu")
            found = model(pixels, **noise)
        assert torch.allclose(found.logits, expected.logits, atol=1e-5)
