"""Heat maps of where a classifier's answer comes from, and two checks that they can be believed.

A method is a function of (model, pixel_values, target) that gives maps (batch, grid_h, grid_w) in
fp32, >= 0, one value a patch; `explain` is the entry to all. Maps of different images or methods
have no common scale. The score explained is the class's log-odds: unlike a logit it does not change
if all logits move together, and unlike a probability it does not saturate.

All are a few lines here, because the model itself gives its attentions and hidden states and takes
a part of its patches. Captum has none of the attention methods, its Grad-CAM takes a ViT's tokens
for channels, and its occlusion's peaks move into the corners (see `occlusion`).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import product

import numpy as np
import torch
from torch import Tensor

from ..modeling_sssd import SSSDForImageClassification

# rank correlations of maps before and after the weights are randomised: below the first they
# depend on the weights, above the second they hardly do. A convention of ours.
DEPENDS, HARDLY_DEPENDS = 0.5, 0.8
# the one whose peaks fall on the phantoms' lesions well above the best fixed place with either
# pooling (0.67 and 0.72; gradient_attention 0.56 and 0.81: benchmarks/explanations.py)
DEFAULT_METHOD = "leave_out"


# ---------------------------------------------------------------------- methods


def class_score(model: SSSDForImageClassification, logits: Tensor, target: Tensor) -> Tensor:
    """(batch,) fp32 log-odds of class `target` (batch,): its logit against the log-sum-exp of the
    others'; with one output or several labels an image the logit itself, which is that already."""
    logits, target = logits.float(), target[:, None]
    chosen = logits.gather(1, target)[:, 0]
    if logits.shape[1] == 1 or model.config.problem_type == "multi_label_classification":
        return chosen
    return chosen - logits.scatter(1, target, -torch.inf).logsumexp(1)


def attention_rollout(
    model: SSSDForImageClassification, pixel_values: Tensor, target: Tensor | None = None
) -> Tensor:
    """Rollout (Abnar & Zuidema 2020): the product over the layers of (A + I) / 2, A the attention
    averaged over heads. Knows no class and not the classifier: it shows which patches reach the
    pooled token, not which speak for an answer."""
    with torch.no_grad():
        attentions = model(pixel_values, output_attentions=True, return_dict=True).attentions
        identity = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
        flow = identity
        for attention in attentions:  # (batch, heads, tokens, tokens)
            flow = (attention.float().mean(1) + identity) / 2 @ flow
        return _into_pooled_token(model, flow, pixel_values)


def gradient_attention(
    model: SSSDForImageClassification, pixel_values: Tensor, target: Tensor
) -> Tensor:
    """Attention weighted by the gradient of the class's score (Chefer et al. 2021, "Generic
    attention-model explainability"): R += mean over heads of relu(A * dS/dA) @ R, from R = I. The
    identity is left out of the map: to each patch its own token adds the same."""
    with torch.enable_grad():
        # so that a model with frozen weights has a graph too
        inputs = pixel_values.detach().requires_grad_()
        output = model(inputs, output_attentions=True, return_dict=True)
        score = class_score(model, output.logits, target).sum()  # images do not touch each other
        gradients = torch.autograd.grad(score, output.attentions)
    identity = torch.eye(gradients[0].shape[-1], device=score.device)
    flow = identity
    for attention, gradient in zip(output.attentions, gradients):
        weighted = (attention.detach().float() * gradient.float()).relu().mean(1)
        flow = flow + weighted @ flow
    return _into_pooled_token(model, flow - identity, pixel_values)


def grad_cam(model: SSSDForImageClassification, pixel_values: Tensor, target: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017): the features of the patches weighted by the mean over the
    patches of the score's gradient, summed, the positive part. Taken at the last tokens through
    which patches reach the classifier: with mean pooling those that leave the last layer, with CLS
    pooling those that enter it."""
    last = -2 if model.config.pooling == "cls" else -1
    with torch.enable_grad():
        inputs = pixel_values.detach().requires_grad_()
        output = model(inputs, output_hidden_states=True, return_dict=True)
        tokens = output.hidden_states[last]  # (batch, 1 + patches, width), before the final norm
        score = class_score(model, output.logits, target).sum()
        (gradient,) = torch.autograd.grad(score, tokens)
    weights = gradient[:, 1:].float().mean(1, keepdim=True)
    maps = (weights * tokens[:, 1:].detach().float()).sum(-1).relu()
    return maps.unflatten(1, _grid(model, pixel_values))


def occlusion(
    model: SSSDForImageClassification,
    pixel_values: Tensor,
    target: Tensor,
    block: int = 1,
    batch_size: int = 256,
) -> Tensor:
    """Occlusion (Zeiler & Fergus 2014): how far the class's score falls when a block of patches is
    replaced by the image's mean; a patch gets the mean over the blocks that cover it, if positive.
    What the mean looks like matters: in a dark lung it is itself a bright spot (see `leave_out`).

    Args:
        block: side of the block in patches. It moves patch by patch, from where it covers the first
            patch alone to where it covers the last alone: else a corner, covered by a single block,
            would outdo the patch beside it that made that block count.
        batch_size: images of a forward pass, at most (and at least those given). An image takes
            (grid_h + block - 1) (grid_w + block - 1) of them.
    """
    grid, patch = _grid(model, pixel_values), model.encoder.embeddings.patch
    places = list(product(*(range(1 - block, side) for side in grid)))
    covered = torch.zeros(len(places), *grid, dtype=torch.bool, device=pixel_values.device)
    for cells, (top, left) in zip(covered, places):
        cells[max(top, 0) : top + block, max(left, 0) : left + block] = True
    pixels = covered.repeat_interleave(patch[0], 1).repeat_interleave(patch[1], 2)
    mean = pixel_values.mean((2, 3), keepdim=True)
    falls = []
    with torch.no_grad():
        whole = class_score(model, model(pixel_values, return_dict=True).logits, target)
        for some in pixels.split(max(1, batch_size // max(1, len(pixel_values)))):
            hidden = torch.where(
                some[:, None, None], mean, pixel_values
            )  # (places, batch, c, h, w)
            logits = model(hidden.flatten(0, 1), return_dict=True).logits
            scores = class_score(model, logits, target.repeat(len(some)))
            falls.append(whole - scores.unflatten(0, (len(some), -1)))
    total = torch.einsum("pb,phw->bhw", torch.cat(falls), covered.float())
    return total.relu() / block**2


def leave_out(
    model: SSSDForImageClassification,
    pixel_values: Tensor,
    target: Tensor,
    batch_size: int = 256,
) -> Tensor:
    """How far the class's score falls, if it does, when a patch is not shown to the encoder at all,
    as the hidden patches in pretraining: occlusion without the question of what to put in its place
    (Jain et al. 2022, "Missingness bias in model debugging").

    Args:
        batch_size: images of a forward pass, at most (and at least those given). An image takes
            grid_h grid_w of them.
    """
    grid = _grid(model, pixel_values)
    patches = torch.arange(grid[0] * grid[1], device=pixel_values.device)
    if len(patches) < 2:
        raise ValueError("leave_out needs an image of at least two patches; this one is one patch")
    others = patches.expand(len(patches), -1)[patches[:, None] != patches].unflatten(
        0, (len(patches), -1)
    )  # (places, patches - 1): in each row all but one
    falls = []
    with torch.no_grad():
        images = model.encoder.embeddings.prepare(pixel_values, interpolate=False)
        whole = class_score(model, model(pixel_values, return_dict=True).logits, target)
        for some in others.split(max(1, batch_size // max(1, len(images)))):
            shown = images.repeat(len(some), 1, 1, 1)  # (places * batch, channels, h, w)
            encoded = model.encoder.encode(shown, some.repeat_interleave(len(images), 0))
            logits = model.classifier(encoded.pooler_output)
            scores = class_score(model, logits, target.repeat(len(some)))
            falls.append(whole - scores.unflatten(0, (len(some), -1)))
    return torch.cat(falls).T.unflatten(1, grid).relu()


METHODS: dict[str, Callable[..., Tensor]] = {
    "attention_rollout": attention_rollout,
    "gradient_attention": gradient_attention,
    "grad_cam": grad_cam,
    "occlusion": occlusion,
    "leave_out": leave_out,
}


def explain(
    model: SSSDForImageClassification,
    pixel_values: Tensor,
    method: str = DEFAULT_METHOD,
    target: Tensor | None = None,
) -> Tensor:
    """Heat maps (batch, grid_h, grid_w), fp32, >= 0, on the device of the images.

    Args:
        model: in eval mode; neither it nor its gradients are changed.
        pixel_values: (batch, channels, height, width), normalised, of the model's size.
        method: one of `METHODS`.
        target: (batch,) int64, the class each map speaks of; None: the one the model predicts.

    Raises:
        ValueError: unknown method, a model in training mode, or targets that do not fit.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    if model.training:
        raise ValueError(
            "the model is in training mode, whose dropout blurs maps; call model.eval()"
        )
    if target is None:
        with torch.no_grad():
            target = model(pixel_values, return_dict=True).logits.argmax(1)
    target = torch.as_tensor(target, device=pixel_values.device)
    classes = model.config.num_labels
    if target.shape != pixel_values.shape[:1] or target.is_floating_point():
        raise ValueError(
            f"target has shape {tuple(target.shape)} and dtype {target.dtype}; expected an integer "
            f"for each of the {len(pixel_values)} images"
        )
    if len(target) and not (target.min() >= 0 and target.max() < classes):
        raise ValueError(
            f"target goes from {target.min()} to {target.max()}; the model has the classes 0 to "
            f"{classes - 1}"
        )
    return METHODS[method](model, pixel_values, target.long())


def _grid(model: SSSDForImageClassification, pixel_values: Tensor) -> tuple[int, int]:
    return model.encoder.embeddings.grid(pixel_values)


def _into_pooled_token(
    model: SSSDForImageClassification, flow: Tensor, pixel_values: Tensor
) -> Tensor:
    """Of (batch, tokens to, tokens from): what reaches the pooled token from each patch."""
    pooled = flow[:, 0] if model.config.pooling == "cls" else flow[:, 1:].mean(1)
    return pooled[:, 1:].unflatten(1, _grid(model, pixel_values))


# ---------------------------------------------------------------------- checks


def rank_correlations(first: Tensor, second: Tensor) -> np.ndarray:
    """(batch,) Spearman's rank correlation of each map with its counterpart; NaN where one of them
    is the same everywhere."""
    from scipy.stats import rankdata

    ranks = [rankdata(maps.flatten(1).cpu().numpy(), axis=1) for maps in (first, second)]
    a, b = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    spread = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    products = (a * b).sum(axis=1)
    return np.divide(products, spread, out=np.full(len(a), np.nan), where=spread > 0)


def randomisation_check(
    model: SSSDForImageClassification,
    pixel_values: Tensor,
    method: str = DEFAULT_METHOD,
    num_draws: int = 3,
    seed: int = 0,
) -> dict[str, float | int | str | None]:
    """Whether maps depend on what was learned (Adebayo et al. 2018, "Sanity checks for saliency
    maps"): those of the model against those of the same model with its classifier, and with all its
    weights, drawn anew as at the start of a training. The class explained stays the one that the
    given model predicts; the model is not changed.

    Args:
        num_draws: of random weights; the correlations are means over draws and images.

    Returns:
        `classifier_correlation`, `all_layers_correlation`: mean rank correlation, -1 to 1, or None
        where every map is the same everywhere; `num_images`, and a `verdict` in words.
    """
    with torch.no_grad():
        target = model(pixel_values, return_dict=True).logits.argmax(1)
    before = explain(model, pixel_values, method, target)
    found = {"classifier": [], "all_layers": []}
    for draw in range(num_draws):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + draw)
            fresh = type(model)(deepcopy(model.config)).eval()
        fresh.to(pixel_values.device, model.dtype)
        found["all_layers"].append(
            rank_correlations(before, explain(fresh, pixel_values, method, target))
        )
        fresh.encoder = model.encoder  # shared for the call; nothing writes to it
        found["classifier"].append(
            rank_correlations(before, explain(fresh, pixel_values, method, target))
        )
    means = {}
    for part, values in found.items():
        values = np.concatenate(values)
        means[part] = float(np.nanmean(values)) if np.isfinite(values).any() else None
    return {
        "method": method,
        "classifier_correlation": means["classifier"],
        "all_layers_correlation": means["all_layers"],
        "num_images": len(pixel_values),
        "verdict": _verdict(**means),
    }


def _verdict(classifier: float | None, all_layers: float | None) -> str:
    if all_layers is None or classifier is None:
        return "can't be judged: the maps are the same everywhere"
    if all_layers > HARDLY_DEPENDS:
        return "hardly depends on the weights: do not read it as an explanation"
    words = "depends on the weights" if all_layers < DEPENDS else "depends on the weights in part"
    if classifier > HARDLY_DEPENDS:
        words += ", but hardly on the classifier: it speaks of the image, not of the class"
    return words


def pointing_game(maps: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """Whether each map's peak falls on what it should show (Zhang et al. 2018, "Top-down neural
    attention by excitation backprop", without their margin).

    Args:
        maps: (images, rows, columns) >= 0 of any resolution; the place of a cell is its centre.
        masks: (images, height, width) bool.

    Returns:
        `hits` (images,) bool (a map that is zero everywhere has no peak, and misses); `chance`
        (images,), the share of the cells that would hit; `fixed` (images,) bool, the hits of the
        one cell that, named for all images alike, hits most: what knowing the data set's habits but
        not the image gives.

    Raises:
        ValueError: arrays of other shapes.
    """
    maps, masks = np.asarray(maps), np.asarray(masks)
    if maps.ndim != 3 or masks.ndim != 3 or len(maps) != len(masks) or not len(maps):
        raise ValueError(
            f"maps have shape {maps.shape} and masks {masks.shape}; expected (images, rows, "
            "columns) and (images, height, width) of the same images"
        )
    rows, columns = (
        ((np.arange(cells) + 0.5) * pixels / cells).astype(int)
        for cells, pixels in zip(maps.shape[1:], masks.shape[1:])
    )
    inside = masks[:, rows][:, :, columns].reshape(len(maps), -1).astype(bool)
    flat = maps.reshape(len(maps), -1)
    hits = inside[np.arange(len(maps)), flat.argmax(axis=1)] & (flat.max(axis=1) > 0)
    fixed = inside[:, inside.mean(axis=0).argmax()]
    return {"hits": hits, "chance": inside.mean(axis=1), "fixed": fixed}
