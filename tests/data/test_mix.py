"""Mixup and cutmix against the distributions and, pixel by pixel, the definitions of the papers."""

import numpy as np
import pytest
import torch
from scipy import stats

from sssd_hf.data.mix import MixDraw, Mixing, mix, mix_partners
from sssd_hf.modeling_sssd import sample_uniform

COUNT = 20_000


def draw(mixing, count=COUNT, num_images=1000, center=None):
    def sample(stream, *shape):
        numbers = sample_uniform(torch.arange(count), stream, *shape)
        if center is not None:
            numbers[:, -2:] = center
        return numbers

    return mix_partners(sample, num_images, mixing)


def cut(drawn):
    return drawn.box[:, 2] > drawn.box[:, 0]


def check_beta(values, alpha):
    """Between the ends, and at each by its share: fp32 has 1 for all that is very near to it."""
    values, beta = values.double().numpy(), stats.beta(alpha, alpha)
    for part, expected in ((values < 0.01, beta.cdf(0.01)), (values > 0.99, beta.cdf(0.01))):
        assert stats.binomtest(int(part.sum()), len(values), expected).pvalue > 1e-3
    between = values[(values >= 0.01) & (values <= 0.99)]
    low, high = beta.cdf([0.01, 0.99])
    assert stats.kstest(between, lambda x: (beta.cdf(x) - low) / (high - low)).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 2.0, 8.0])
def test_weights_are_beta_distributed(alpha):
    drawn = draw(Mixing(mixup_alpha=alpha))
    assert not cut(drawn).any()
    check_beta(drawn.weight, alpha)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_areas_of_boxes_are_beta_distributed(alpha):
    drawn = draw(Mixing(cutmix_alpha=alpha), center=0.5)  # where the edges clip none
    assert (drawn.weight == 1).all()
    top, left, bottom, right = drawn.box.unbind(1)
    assert torch.allclose(bottom - top, right - left, atol=1e-6)
    check_beta((bottom - top) * (right - left), alpha)


def test_boxes_are_centred_anywhere_and_clipped():
    free, middle = draw(Mixing(cutmix_alpha=8.0)), draw(Mixing(cutmix_alpha=8.0), center=0.5)
    assert free.box.min() == 0
    assert free.box.max() == 1
    half = (middle.box[:, 2:] - 0.5).double()  # of the sides before clipping, the same numbers
    unclipped_y, unclipped_x = (free.box[:, :2] > 0).T & (free.box[:, 2:] < 1).T
    for axis, kept in enumerate((unclipped_y, unclipped_x)):
        center = (free.box[kept, axis] + half[kept, axis]).double()
        # uniform between half a side from either edge
        place = (center - half[kept, axis]) / (1 - 2 * half[kept, axis])
        assert stats.kstest(place.numpy(), "uniform").pvalue > 1e-3


def test_partners_are_uniform_and_independent_of_the_weight():
    drawn = draw(Mixing(mixup_alpha=1.0), num_images=50)
    counts = np.bincount(drawn.partner.numpy(), minlength=50)
    assert len(counts) == 50
    assert stats.chisquare(counts).pvalue > 1e-3
    assert stats.spearmanr(drawn.partner.numpy(), drawn.weight.numpy()).pvalue > 1e-3
    assert stats.spearmanr(drawn.partner[1:].numpy(), drawn.partner[:-1].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("num_images", [1, 2, 3, 2**24 + 1, 10**9])
@pytest.mark.parametrize("value", [0.0, 0.3, 1 - 2.0**-24])
def test_partner_is_the_floor_of_48_bits_times_the_number_of_images(num_images, value):
    def sample(stream, *shape):
        return torch.full((1, *shape), value)

    bits = int(torch.tensor(value).double().item() * 2**24)
    expected = ((bits << 24) + bits) * num_images >> 48  # Python's integers have no end
    found = mix_partners(sample, num_images, Mixing(mixup_alpha=1.0)).partner.item()
    assert found == expected
    assert 0 <= found < num_images


@pytest.mark.parametrize(
    ("mixing", "shares"),
    [
        (Mixing(0.2, 0.0, 1.0), (1.0, 0.0)),
        (Mixing(0.0, 1.0, 1.0), (0.0, 1.0)),
        (Mixing(0.5, 1.0, 1.0), (0.5, 0.5)),
        (Mixing(0.5, 1.0, 0.4), (0.2, 0.2)),
        (Mixing(0.5, 1.0, 0.0), (0.0, 0.0)),
        (Mixing(0.0, 0.0, 1.0), (0.0, 0.0)),
    ],
    ids=str,
)
def test_kinds_have_their_shares(mixing, shares):
    drawn = draw(mixing)
    # the smallest weights of Beta(0.2, 0.2) are 1 in fp32
    blended = ((drawn.weight < 1) & ~cut(drawn)).double().mean().item()
    assert blended == pytest.approx(shares[0], abs=0.04 if mixing.mixup_alpha else 0)
    assert cut(drawn).double().mean().item() == pytest.approx(shares[1], abs=0.015)
    assert ((drawn.weight == 1) | ~cut(drawn)).all(), "each is one of the two"
    assert bool(mixing) == (sum(shares) > 0)


def test_mixtures_are_those_of_the_papers():
    generator = torch.Generator().manual_seed(0)
    own, partners = torch.rand(2, 64, 3, 9, 14, generator=generator) * 255
    drawn = draw(Mixing(1.0, 1.0, 0.8), count=64)
    mixed, weight = mix(own, partners, drawn)
    kinds = set()
    for i in range(64):
        expected, kept = own[i].clone(), 0
        top, left, bottom, right = drawn.box[i].tolist()
        for row in range(9):
            for column in range(14):
                y, x = (row + 0.5) / 9, (column + 0.5) / 14
                if top <= y < bottom and left <= x < right:
                    expected[:, row, column] = partners[i, :, row, column]
                else:
                    kept += 1
        if bottom > top:
            kinds.add("cutmix")
            assert torch.equal(mixed[i], expected)
            assert weight[i].item() == pytest.approx(kept / (9 * 14), abs=1e-7)
        elif drawn.weight[i] == 1:
            kinds.add("none")
            assert torch.equal(mixed[i], own[i])
            assert weight[i] == 1
        else:
            kinds.add("mixup")
            share = drawn.weight[i]
            assert torch.allclose(mixed[i], share * own[i] + (1 - share) * partners[i], atol=1e-4)
            assert weight[i] == share
    assert kinds == {"cutmix", "mixup", "none"}


def test_a_mixture_does_not_depend_on_its_batch():
    mixing, seeds = Mixing(0.3, 1.0, 0.9), torch.arange(20) * 31
    own, partners = torch.rand(2, 20, 1, 16, 16)

    def mixed(rows):
        drawn = mix_partners(lambda *a: sample_uniform(seeds[rows], *a), 70, mixing)
        return drawn.partner, *mix(own[rows], partners[rows], drawn)

    whole = mixed(list(range(20)))
    for rows in ([5], [19, 0, 7]):
        for found, expected in zip(mixed(rows), whole):
            assert torch.equal(found, expected[rows])


def test_whole_and_empty_boxes():
    own, partners = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
    mixed, weight = mix(own, partners, MixDraw(torch.zeros(2).long(), torch.ones(2), box))
    assert torch.equal(mixed, torch.tensor([1.0, 0.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8))
    assert weight.tolist() == [0.0, 1.0]
