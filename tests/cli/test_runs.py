"""Batches of both trainings: what an image becomes depends on itself, the seed and the epoch."""

import dataclasses

import pytest
import torch

from sssd_hf.cli.arguments import FinetuneAugmentation, PretrainAugmentation
from sssd_hf.cli.common import Images
from sssd_hf.cli.runs import augmentation_of, augmented_batch, mixed_batch, mixing_of
from sssd_hf.data.augment import Augmentation
from sssd_hf.data.mix import Mixing

STATISTICS = ([0.5] * 3, [0.25] * 3)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    large = torch.randint(0, 256, (12, 1, 20, 20), generator=generator).byte()
    rows = torch.arange(12) * 5 + 3
    return Images(rows, large[..., :16, :16], large, labels=torch.arange(12) % 2)


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
    augmentation = augmentation_of(FinetuneAugmentation(noise=0.1))
    everything = augmented_batch(images, torch.arange(12), 4, 7, augmentation, STATISTICS)
    pictures = everything["pixel_values"]
    arguments = (4, 7, augmentation, STATISTICS, mixing)
    batch, partners, weights = mixed_batch(images, torch.arange(12), *arguments)
    assert torch.equal(batch["sample_seeds"], everything["sample_seeds"])
    assert len(set(partners.tolist())) > 3
    assert weights.min() < 1
    for i, (partner, weight) in enumerate(zip(partners.tolist(), weights.tolist())):
        mixed = batch["pixel_values"][i]
        blend = weight * pictures[i] + (1 - weight) * pictures[partner]
        own, other = mixed == pictures[i], mixed == pictures[partner]
        if (own | other).all():  # a box, or nothing
            if partner != i:
                assert own.float().mean().item() == pytest.approx(weight, abs=1e-6)
        else:
            assert torch.allclose(mixed, blend, atol=1e-5)
    for part in ([3], [11, 2, 5]):
        alone, partner, weight = mixed_batch(images, torch.tensor(part), *arguments)
        assert torch.equal(alone["pixel_values"], batch["pixel_values"][part])
        assert torch.equal(partner, partners[part])
        assert torch.equal(weight, weights[part])
    _, other_partners, _ = mixed_batch(images, torch.arange(12), 5, *arguments[1:])
    assert not torch.equal(other_partners, partners), "another epoch, another partner"
