"""Seeds and orders are pure functions of (seed, epoch, image, purpose)."""

import pytest
import torch
from scipy import stats

from sssd_hf.modeling_sssd import sample_uniform
from sssd_hf.training.seeding import PURPOSES, epoch_order, image_seeds

MASK = (1 << 64) - 1


def mix(x):
    """SplitMix64's finaliser in Python's integers (Steele et al. 2014)."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_seeds_equal_a_reference_in_python_integers(purpose):
    index = [0, 1, 2, 977, 2**40]
    for seed, epoch in ((0, 0), (0, 3), (7, 0), (2**31, 12345)):
        expected = [mix(mix(mix(mix(seed) ^ epoch) ^ PURPOSES[purpose]) ^ i) for i in index]
        found = image_seeds(seed, epoch, torch.tensor(index), purpose)
        assert [value & MASK for value in found.tolist()] == expected


def test_each_argument_changes_every_seed():
    index = torch.arange(1000)
    drawn = [
        image_seeds(seed, epoch, index, purpose)
        for seed in (0, 1, 2)
        for epoch in (0, 1, 2)
        for purpose in PURPOSES
    ]
    assert torch.cat(drawn).unique().numel() == 3 * 3 * len(PURPOSES) * 1000


def test_composition_of_the_batch_is_irrelevant():
    index = torch.tensor([5, 90, 3, 41, 8])
    whole = image_seeds(3, 4, index, "augment")
    alone = torch.cat([image_seeds(3, 4, i[None], "augment") for i in index])
    assert torch.equal(whole, alone)
    shuffled = torch.tensor([4, 0, 2, 1, 3])
    assert torch.equal(image_seeds(3, 4, index[shuffled], "augment"), whole[shuffled])


def test_torchs_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), epoch_order(0, 0, 50)
    torch.manual_seed(2)
    assert torch.equal(epoch_order(0, 0, 50), first)
    torch.manual_seed(1)
    epoch_order(0, 0, 50)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("length", [1, 2, 7, 1000])
def test_order_is_a_permutation(length):
    order = epoch_order(0, 3, length)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(length))


def test_order_changes_by_epoch_and_seed_and_repeats():
    orders = [epoch_order(seed, epoch, 200) for seed in (0, 1) for epoch in (0, 1, 2)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            # two random orders of 200 agree in about one place
            assert (first == second).sum() < 12
    assert torch.equal(orders[0], epoch_order(0, 0, 200))


def test_positions_are_uniform():
    """Where each of ten images stands, over 3,000 epochs, and which image follows which."""
    length, epochs = 10, 3000
    orders = torch.stack([epoch_order(11, epoch, length) for epoch in range(epochs)])
    places = torch.zeros(length, length)
    follows = torch.zeros(length, length)
    for place in range(length):
        places[:, place] = torch.bincount(orders[:, place], minlength=length)
    for first, second in zip(orders[:, :-1].flatten().tolist(), orders[:, 1:].flatten().tolist()):
        follows[first, second] += 1
    expected = epochs / length
    statistic = ((places - expected) ** 2 / expected).sum().item()
    assert 1e-4 < stats.chi2.sf(statistic, df=(length - 1) ** 2) < 1 - 1e-4
    pairs = follows[~torch.eye(length, dtype=torch.bool)]
    assert stats.chisquare(pairs.numpy()).pvalue > 1e-4
    assert follows.diagonal().sum() == 0


def test_draws_of_neighbouring_images_and_purposes_are_uncorrelated():
    index = torch.arange(4000)
    draws = {p: sample_uniform(image_seeds(0, 0, index, p), 0, 8) for p in PURPOSES}
    for uniform in draws.values():
        assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-4
        correlation = torch.corrcoef(torch.stack([uniform[:-1, 0], uniform[1:, 0]]))[0, 1]
        assert abs(correlation) < 5 / len(index) ** 0.5
    both = torch.corrcoef(torch.stack([uniform[:, 0] for uniform in draws.values()]))
    assert (both - torch.eye(len(draws))).abs().max() < 5 / len(index) ** 0.5
