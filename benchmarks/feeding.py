"""How much of a pretraining step the model waits for its images: drawing them, augmentation and
normalisation, as share of the step, with decoded images in memory (on a GPU: on the device)."""

from functools import partial

import torch
from measuring import interleave, options, precisions, timed, write
from models import own_model

from sssd_hf import SSSDConfig
from sssd_hf.cli.arguments import PretrainAugmentation
from sssd_hf.cli.batches import Batches, augmentation_of
from sssd_hf.data.cache import Images
from sssd_hf.training.feeds import ImageFeed


def measure(size: str, pixels: int, batch: int, precision: str, arguments) -> dict:
    device, side = arguments.device, round(1.25 * pixels)
    stored = torch.randint(0, 256, (batch * 4, 1, side, side), dtype=torch.uint8, device=device)
    images = Images(torch.arange(len(stored), device=device), None, stored)
    feed = ImageFeed(len(images), batch, device=device)
    augmentation = augmentation_of(PretrainAugmentation())
    statistics = ([0.5] * 3, [0.5] * 3)
    place = torch.device(device)
    batches = Batches(images, (pixels, pixels), 0, augmentation, statistics, place)
    config = SSSDConfig.from_size(size, image_size=pixels, num_channels=1)
    model = own_model(config, device, precision)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-5, fused=True)
    ready = batches.augmented(feed.step(0).parts[0], with_labels=False)
    turn = iter(range(10**9))

    def feed_one():
        return batches.augmented(feed.step(next(turn)).parts[0], with_labels=False)

    def learn(given=ready):
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            output = model(**given)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    turns = {
        "feed": partial(timed, feed_one, device),
        "learn": partial(timed, learn, device),
        "both": partial(timed, lambda: learn(feed_one()), device),
    }
    figures = interleave(turns, 2 * arguments.repeats)
    clock = arguments.clock
    share = figures["feed"][clock] / (figures["feed"][clock] + figures["learn"][clock])
    print("feeding", size, pixels, precision, f"{share:.1%} of the step")
    case = {"size": size, "pixels": pixels, "batch": batch, "precision": precision}
    return {**case, "seconds": figures, "share": share}


def main(argv: list[str] | None = None) -> None:
    arguments = options(__doc__, argv)
    cases = [("tiny", 112, 64, "no"), ("tiny", 112, 64, "bf16"), ("small", 112, 32, "no")]
    if arguments.device == "cuda":
        cases = [("tiny", 112, 512, "bf16"), ("base", 224, 128, "bf16")]
    cases = [case for case in cases if case[3] in precisions(arguments.device)]
    cases = cases[: 1 if arguments.quick else None]
    write("feeding", arguments, [measure(*case, arguments) for case in cases])


if __name__ == "__main__":
    main()
