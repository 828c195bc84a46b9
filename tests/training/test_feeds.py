"""What a step learns from, against plain loops."""

import pytest
import torch

from sssd_hf.training.feeds import Ahead, ImageFeed, balanced_order


def images_of(feed, step):
    draws = feed.step(step)
    pairs = [(p.index.tolist(), p.epoch.tolist()) for p, r in zip(draws.parts, draws.real) if r]
    return [i for index, _ in pairs for i in index], draws


@pytest.mark.parametrize("images", [1, 3, 16, 29, 64])
@pytest.mark.parametrize(
    ("batch", "parts", "processes"), [(4, 2, 1), (2, 2, 2), (1, 2, 4), (8, 1, 1)]
)
def test_shares_make_up_the_global_batch(images, batch, parts, processes):
    """Whatever the processes and parts: the same images a step, each once, as many parts each."""
    whole = ImageFeed(images, 8, seed=3)
    feeds = [ImageFeed(images, batch, parts, processes, rank, 3) for rank in range(processes)]
    for step in range(3 * whole.steps_per_epoch):
        expected = whole.global_draw(step)
        shares = [images_of(feed, step) for feed in feeds]
        assert [i for share, _ in shares for i in share] == expected.index.tolist()
        for _, draws in shares:
            assert len(draws.parts) == len(shares[0][1].parts), "all meet as often"
            assert draws.count == len(expected)
            assert all(1 <= len(part) <= batch for part in draws.parts)
            assert set(expected.epoch.tolist()) == {step // whole.steps_per_epoch}


def test_an_epoch_has_every_image_once_and_its_own_order():
    feed = ImageFeed(29, 8, seed=1)
    orders = []
    for epoch in range(3):
        steps = range(epoch * feed.steps_per_epoch, (epoch + 1) * feed.steps_per_epoch)
        orders.append([i for step in steps for i in images_of(feed, step)[0]])
        assert sorted(orders[-1]) == list(range(29))
    assert orders[0] != orders[1] != orders[2]
    assert feed.step(feed.steps_per_epoch - 1).epoch == 1.0


def test_a_step_is_a_function_of_its_number():
    feed = ImageFeed(29, 4, seed=1)
    there = [images_of(feed, step)[0] for step in range(20)]
    back = [images_of(feed, step)[0] for step in reversed(range(20))]
    assert there == back[::-1]


@pytest.mark.parametrize("counts", [(10, 10), (3, 40), (1, 7, 25), (50, 1)])
def test_balanced_sampling(counts):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    drawn = torch.zeros(len(counts))
    for epoch in range(6):
        order, times = balanced_order(7, epoch, labels)
        assert len(order) == len(labels)
        share = torch.bincount(labels[order], minlength=len(counts))
        assert share.max() - share.min() <= 1, "every class equally often"
        drawn += share
        pairs = set(zip(order.tolist(), times.tolist()))
        assert len(pairs) == len(order), "a repeated image has another number each time"
        assert ((times & 0xFFFFFFFF) == epoch).all()
        for label, count in enumerate(counts):
            seen = torch.bincount(order[labels[order] == label], minlength=len(labels))
            seen = seen[labels == label]
            assert seen.max() - seen.min() <= 1, "within a class every image equally often"
            assert seen.sum() == share[label]
            assert (seen > 0).sum() == min(count, share[label])
    assert drawn.max() - drawn.min() <= 1, "what a division leaves over goes round"


def test_reading_ahead_changes_nothing():
    feed = ImageFeed(29, 8, seed=1)
    calls = []

    def fetch(index):
        calls.append(index.tolist())
        return index[:, None].to(torch.uint8)

    ahead = Ahead(feed, fetch)
    for step in (0, 1, 2, 7, 8):  # 7: a resumed run begins anywhere
        draws = ahead.step(step)
        expected = feed.step(step)
        for part, other in zip(draws.parts, expected.parts, strict=True):
            assert torch.equal(part.index, other.index)
            assert part.pixels[:, 0].tolist() == other.index.tolist()
    assert ahead.global_batch == 8


def test_reading_ahead_shows_its_errors():
    def fetch(index):
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        Ahead(ImageFeed(9, 4), fetch).step(0)
