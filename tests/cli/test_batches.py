"""Batches of both trainings: what an image becomes depends on itself, the seed and the epoch."""

import dataclasses

import pytest
import torch

from sssd_hf import SSSDConfig, SSSDForImageClassification
from sssd_hf.cli.arguments import FinetuneAugmentation, PretrainAugmentation
from sssd_hf.cli.batches import (
    Batches,
    augmentation_of,
    images_at_once,
    label_weights,
    mixing_of,
    predict_probabilities,
)
from sssd_hf.data.augment import Augmentation
from sssd_hf.data.cache import Images
from sssd_hf.data.mix import Mixing
from sssd_hf.training.feeds import Draw

STATISTICS = ([0.5] * 3, [0.25] * 3)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (12, 1, 20, 20), generator=generator).byte()
    return Images(torch.arange(12) * 5 + 3, torch.arange(12) % 2, pixels)


def test_a_cpu_takes_no_more_images_than_its_cache_holds():
    def at_once(size, pixels, batch_size, device="cpu"):
        config = SSSDConfig.from_size(size, image_size=pixels)
        with torch.device("meta"):
            model = SSSDForImageClassification(config)
        model.to_empty(device=device)
        return images_at_once(model, batch_size)

    assert at_once("small", 224, 64) == 2**24 // (197 * 1536 * 4) == 13
    assert at_once("tiny", 112, 64) == 64
    assert at_once("base", 1024, 64) == 1
    assert at_once("small", 224, 64, "meta") == 64  # another device


def test_a_model_in_training_mode_is_not_measured(images):
    config = SSSDConfig.from_size(
        "tiny", image_size=16, patch_size=8, num_channels=1, num_hidden_layers=1
    )
    model = SSSDForImageClassification(config)
    assert predict_probabilities(model.eval(), images, STATISTICS, 4).shape == (12, 2)
    with pytest.raises(RuntimeError, match="training mode"):
        predict_probabilities(model.train(), images, STATISTICS, 4)


def draw(index, epoch=4):
    index = torch.as_tensor(index)
    return Draw(index, torch.full_like(index, epoch))


def batches(images, **augmentation):
    arguments = FinetuneAugmentation(**augmentation)
    return Batches(images, (16, 16), 7, augmentation_of(arguments), STATISTICS, torch.device("cpu"))


def test_every_option_reaches_the_augmentation():
    names = {f.name for f in dataclasses.fields(PretrainAugmentation)}
    values = {name: 0.5 + i / 100 for i, name in enumerate(sorted(names))}
    values["max_crop_scale"] = 1.5
    augmentation = augmentation_of(PretrainAugmentation(**values))
    other = {"min_crop_scale": "min_scale", "max_crop_scale": "max_scale"}
    other["horizontal_flip"] = "flip"
    for name, value in values.items():
        assert getattr(augmentation, other.get(name, name)) == value
    fields = {f.name for f in dataclasses.fields(Augmentation)} - {"max_aspect"}
    assert fields == {other.get(name, name) for name in names}
    mixing = FinetuneAugmentation(mixup_alpha=0.3, cutmix_alpha=2.0, mix_probability=0.7)
    assert mixing_of(mixing) == Mixing(0.3, 2.0, 0.7)


def test_new_operations_are_off_unless_asked_for():
    for arguments in (PretrainAugmentation(), FinetuneAugmentation()):
        augmentation = augmentation_of(arguments)
        for name in "vertical_flip shear translation gamma blur noise erasing".split():
            assert getattr(augmentation, name) == 0
    assert not mixing_of(FinetuneAugmentation())


@pytest.mark.parametrize("mixing", [Mixing(0.5, 1.0, 0.8), Mixing(cutmix_alpha=1.0)], ids=str)
def test_mixtures_are_made_of_augmented_images_in_any_batch(images, mixing):
    """Labels that are the images themselves tell the partner and its share."""
    images.labels = torch.arange(12)
    make = batches(images, noise=0.1)
    plain = make.augmented(draw(range(12)))
    pictures = plain["pixel_values"]
    batch = make.mixed(draw(range(12)), mixing, 12)
    assert torch.equal(batch["sample_seeds"], plain["sample_seeds"])
    assert torch.allclose(batch["labels"].sum(1), torch.ones(12))
    partners = set()
    for i, shares in enumerate(batch["labels"]):
        others = [j for j in shares.nonzero()[:, 0].tolist() if j != i]
        assert len(others) <= 1
        partner, weight = others[0] if others else i, shares[i].item()
        partners.add(partner)
        mixed = batch["pixel_values"][i]
        own, other = mixed == pictures[i], mixed == pictures[partner]
        if (own | other).all():  # a box, or nothing
            assert own.float().mean().item() == pytest.approx(weight, abs=1e-6)
        else:
            blend = weight * pictures[i] + (1 - weight) * pictures[partner]
            assert torch.allclose(mixed, blend, atol=1e-5)
    assert len(partners) > 3
    for part in ([3], [11, 2, 5]):
        alone = make.mixed(draw(part), mixing, 12)
        for name in batch:
            assert torch.equal(alone[name], batch[name][part]), name
    other = make.mixed(draw(range(12), epoch=5), mixing, 12)
    assert not torch.equal(other["labels"].ceil(), batch["labels"].ceil()), "another partner"


def test_a_stream_gives_what_the_same_images_at_hand_give(images):
    """Positions stand for rows; partners come from the batch."""
    index = torch.tensor([4, 1, 7])
    here, there = batches(images), batches(None)
    read = Draw(images.rows[index], torch.full((3,), 4), images.pixels[index], images.labels[index])
    one, other = here.augmented(draw(index)), there.augmented(read)
    assert set(one) == set(other) == {"pixel_values", "sample_seeds", "labels"}
    for name in one:
        assert torch.equal(one[name], other[name]), name
    assert set(there.augmented(read, with_labels=False)) == {"pixel_values", "sample_seeds"}
    mixed = there.mixed(read, Mixing(mixup_alpha=1.0), 2)
    assert mixed["labels"].shape == (3, 2)


def test_pixels_fetched_ahead_change_nothing(images):
    index = torch.tensor([4, 1, 7])
    make = batches(images)
    ahead = Draw(index, torch.full((3,), 4), images.batch(index, "cpu"))
    one, other = make.augmented(draw(index)), make.augmented(ahead)
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_weights_of_mixed_labels():
    weights = torch.tensor([0.5, 2.0])
    assert label_weights(torch.tensor([0, 1, 1]), weights) == 4.5
    shares = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    assert label_weights(shares, weights) == 0.5 + 0.125 + 1.5
