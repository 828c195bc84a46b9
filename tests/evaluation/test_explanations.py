"""Heat maps against loops and finite differences on other code, and where the answer is known."""

import itertools

import numpy as np
import pytest
import torch
from model_helpers import images, largest_difference, randomize, tiny_config
from scipy.stats import spearmanr

from sssd_hf import SSSDConfig, SSSDForImageClassification
from sssd_hf.evaluation import explanations
from sssd_hf.evaluation.explanations import (
    METHODS,
    class_score,
    explain,
    occlusion,
    pointing_game,
    randomisation_check,
    rank_correlations,
)

GRID = (3, 4)
SHAPE = (24, 32)


def tiny_classifier(**fields):
    fields = {"image_size": SHAPE, "num_labels": 3, "num_channels": 3, **fields}
    return randomize(SSSDForImageClassification(tiny_config(**fields))).eval()


def stock_twin(model):
    """A stock ViT with the same weights (and CLS pooling, the only one it has)."""
    config = SSSDConfig.from_dict({**model.config.to_dict(), "pooling": "cls"})
    twin = SSSDForImageClassification(config)
    twin.load_state_dict(model.state_dict())
    return twin.to_vit().eval()


def stock_logits_and_attentions(model, pixel_values):
    """By stock ViT: logits, and what each layer attends to, in one graph."""
    vit = stock_twin(model)
    vit.set_attn_implementation("eager")
    output = vit.vit(pixel_values, output_attentions=True)
    pooled = output.last_hidden_state
    pooled = pooled[:, 0] if model.config.pooling == "cls" else pooled[:, 1:].mean(1)
    return vit.classifier(pooled), output.attentions


def expected_in_pooled_token(model, matrix):
    """(tokens, tokens) numpy -> (3, 4): from each patch into CLS, or into the mean patch."""
    rows = [0] if model.config.pooling == "cls" else range(1, 13)
    return np.mean([matrix[row, 1:] for row in rows], axis=0).reshape(GRID)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_rollout_is_the_product_written_out(pooling):
    model, pixel_values = tiny_classifier(pooling=pooling), images(2, 3, *SHAPE)
    found = explain(model, pixel_values, "attention_rollout")
    with torch.no_grad():
        _, attentions = stock_logits_and_attentions(model, pixel_values)
    for i in range(2):
        flow = np.eye(13)
        for attention in attentions:
            layer = np.zeros((13, 13))
            for head in attention[i].double().numpy():
                layer += head / len(attention[i])
            flow = (0.5 * layer + 0.5 * np.eye(13)) @ flow
        assert found[i].numpy() == pytest.approx(expected_in_pooled_token(model, flow), abs=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_gradient_attention_is_its_rule_written_out(pooling):
    model, pixel_values = tiny_classifier(pooling=pooling), images(2, 3, *SHAPE)
    found = explain(model, pixel_values, "gradient_attention", torch.tensor([2, 0]))
    for i, target in enumerate((2, 0)):
        logits, attentions = stock_logits_and_attentions(model, pixel_values[i : i + 1])
        probability = logits.double().softmax(-1)[0, target]
        (probability / (1 - probability)).log().backward(
            inputs=[attention.retain_grad() or attention for attention in attentions]
        )
        relevance = np.eye(13)
        for attention in attentions:
            weighted = np.zeros((13, 13))
            for values, slopes in zip(attention[0].detach().numpy(), attention.grad[0].numpy()):
                weighted += np.maximum(values * slopes, 0) / attention.shape[1]
            relevance = relevance + weighted @ relevance
        expected = expected_in_pooled_token(model, relevance - np.eye(13))
        assert found[i].numpy() == pytest.approx(expected, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_grad_cam_has_the_slopes_of_finite_differences(pooling):
    model, pixel_values = tiny_classifier(pooling=pooling), images(1, 3, *SHAPE)
    found = explain(model, pixel_values, "grad_cam", torch.tensor([1]))
    model = model.double()
    with torch.no_grad():
        encoder = model.encoder
        tokens = encoder.layers[0](encoder.embeddings(pixel_values.double()))[0]
        if pooling == "mean":
            tokens = encoder.layers[1](tokens)[0]

        def score(tokens):
            if pooling == "cls":
                x = encoder.norm(encoder.layers[1](tokens)[0])[:, 0]
            else:
                x = encoder.norm(tokens)[:, 1:].mean(1)
            p = model.classifier(x).softmax(-1)[0, 1]
            return (p / (1 - p)).log().item()

        # a step of all patches at once has the sum of their slopes
        slopes = []
        for channel in range(tokens.shape[2]):
            step = torch.zeros_like(tokens)
            step[:, 1:, channel] = 1e-5
            slopes.append((score(tokens + step) - score(tokens - step)) / 2e-5 / 12)
    expected = np.maximum((tokens[0, 1:].numpy() * slopes).sum(1), 0).reshape(GRID)
    assert expected.max() > 0
    assert found[0].numpy() == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("block", "channels"), [(1, 3), (2, 1)])
def test_occlusion_is_a_loop_over_places(block, channels):
    model, pixel_values = tiny_classifier(num_channels=channels), images(2, 3, *SHAPE)
    found = occlusion(model, pixel_values, torch.tensor([0, 2]), block, batch_size=5)
    for i, target in enumerate((0, 2)):
        image = pixel_values[i]
        mean = np.array([float(plane.mean()) for plane in image])

        def log_odds(image, target=target):
            with torch.no_grad():
                p = model(image[None]).logits.double().softmax(-1)[0, target]
            return (p / (1 - p)).log().item()

        whole, falls, covered = log_odds(image), np.zeros(GRID), np.zeros(GRID)
        for top, left in itertools.product(range(1 - block, 3), range(1 - block, 4)):
            cells = [
                cell
                for cell in itertools.product(range(3), range(4))
                if top <= cell[0] < top + block and left <= cell[1] < left + block
            ]
            hidden = image.clone()
            for row, column in cells:
                for channel in range(3):
                    hidden[channel, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = mean[
                        channel
                    ]
            fall = whole - log_odds(hidden)
            for cell in cells:
                falls[cell] += fall
                covered[cell] += 1
        assert (covered == block**2).all()
        expected = np.maximum(falls / covered, 0)
        assert found[i].numpy() == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_leaving_out_is_to_drop_a_token_of_a_stock_model(pooling):
    model, pixel_values = tiny_classifier(pooling=pooling), images(2, 3, *SHAPE)
    found = explain(model, pixel_values, "leave_out", torch.tensor([2, 1]))
    vit = stock_twin(model)

    def log_odds(tokens, target):
        for layer in vit.vit.layers:
            tokens = layer(tokens)
        tokens = vit.vit.layernorm(tokens)
        pooled = tokens[:, 0] if pooling == "cls" else tokens[:, 1:].mean(1)
        p = vit.classifier(pooled).double().softmax(-1)[0, target]
        return (p / (1 - p)).log().item()

    with torch.no_grad():
        for i, target in enumerate((2, 1)):
            tokens = vit.vit.embeddings(pixel_values[i : i + 1])
            whole = log_odds(tokens, target)
            for patch, (row, column) in enumerate(itertools.product(range(3), range(4))):
                kept = [token for token in range(13) if token != patch + 1]
                expected = max(0.0, whole - log_odds(tokens[:, kept], target))
                assert found[i, row, column].item() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_score_is_the_log_odds_and_does_not_saturate():
    logits = torch.tensor([[1.0, -2.0, 0.5], [60.0, 0.0, 0.0]])
    model = tiny_classifier()
    p = logits.double().softmax(-1)
    found = class_score(model, logits, torch.tensor([1, 0]))
    assert found[0].item() == pytest.approx((p[0, 1] / (1 - p[0, 1])).log().item(), rel=1e-5)
    assert found[1].item() == pytest.approx(60 - np.log(2), rel=1e-6)
    moved = class_score(model, logits + 5, torch.tensor([1, 0]))
    assert torch.allclose(found, moved, atol=1e-5)
    model.config.problem_type = "multi_label_classification"
    assert class_score(model, logits, torch.tensor([1, 0])).tolist() == [-2.0, 60.0]


# ---------------------------------------------------------------------- the answer is known


def bright_patch_finder():
    """Says class 1 the surer the brighter the brightest patch: CLS attends to brightness.

    Tokens are (brightness, -brightness, 1, -1): layer norm keeps their order."""
    config = tiny_config(
        hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4,
        image_size=(40, 48), num_channels=1, num_labels=2,
    )  # fmt: skip
    model = SSSDForImageClassification(config).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
        encoder, layer = model.encoder, model.encoder.layers[0]
        for norm in (encoder.norm, layer.norm1, layer.norm2):
            norm.weight.fill_(1)
        encoder.embeddings.projection.weight[0] = 1 / 64
        encoder.embeddings.projection.weight[1] = -1 / 64
        encoder.embeddings.projection.bias[2:] = torch.tensor([1.0, -1.0])
        encoder.embeddings.cls_token[0, 0, 2:] = torch.tensor([1.0, -1.0])
        layer.attention.qkv.bias[0] = 4  # the query, of all tokens alike
        layer.attention.qkv.weight[4, 0] = 1  # the key: brightness
        layer.attention.qkv.weight[8, 0] = 1  # the value: brightness
        layer.attention.proj.weight[:2, 0] = torch.tensor([1.0, -1.0])
        model.classifier.weight[1, 0] = 1
    return model


def bright_patches(places):
    """(images, 1, 40, 48): grid 5 x 6, one patch bright on faint noise."""
    pixel_values = 0.05 * images(len(places), 1, 40, 48)
    for image, (row, column) in zip(pixel_values, places):
        image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 3
    return pixel_values


PLACES = [(2, 2), (0, 3), (1, 5), (4, 1)]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_planted_patch(method):
    model = bright_patch_finder()
    maps = explain(model, bright_patches(PLACES), method, torch.ones(4, dtype=torch.int64))
    assert [divmod(int(heat.argmax()), 6) for heat in maps] == PLACES


@pytest.mark.parametrize("method", [name for name in METHODS if name != "attention_rollout"])
def test_what_speaks_against_a_class_is_not_shown_for_it(method):
    pixel_values = bright_patches(PLACES)
    maps = explain(bright_patch_finder(), pixel_values, method, torch.zeros(4, dtype=torch.int64))
    for heat, (row, column) in zip(maps, PLACES):
        assert heat[row, column] == 0


# ---------------------------------------------------------------------- what holds for all


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("pooling", "channels"), [("cls", 1), ("mean", 3)])
def test_maps_have_their_form_and_leave_the_model_as_it_was(method, pooling, channels):
    model = tiny_classifier(pooling=pooling, num_channels=channels)
    model.requires_grad_(False)  # a frozen model can be explained too
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    config, pixel_values = model.config.to_dict(), images(3, channels, *SHAPE)
    with torch.no_grad():
        maps = explain(model, pixel_values, method)
        predicted = model(pixel_values).logits.argmax(1)
    assert maps.shape == (3, *GRID)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert maps.min() >= 0
    assert maps.isfinite().all()
    assert torch.equal(maps, explain(model, pixel_values, method, predicted))
    alone = torch.cat([explain(model, one, method) for one in pixel_values.split(1)])
    assert largest_difference(maps, alone) < 1e-4 * maps.max()
    assert not pixel_values.requires_grad
    assert model.config.to_dict() == config
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
        assert value.grad is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "magic.*attention_rollout, gradient_attention"),
        ({"target": torch.tensor([0])}, r"shape \(1,\).*2 images"),
        ({"target": torch.tensor([0.0, 1.0])}, "float32.*integer"),
        ({"target": torch.tensor([0, 3])}, "0 to 3.*classes 0 to 2"),
        ({"target": torch.tensor([-1, 0])}, "-1 to 0"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        explain(tiny_classifier(), images(2, 3, *SHAPE), **change)


def test_a_model_in_training_is_refused():
    with pytest.raises(ValueError, match=r"eval\(\)"):
        explain(tiny_classifier().train(), images(2, 3, *SHAPE))


# ---------------------------------------------------------------------- checks


def test_rank_correlations_are_those_of_scipy():
    first, second = images(3, 4, 5).relu(), images(3, 4, 5, seed=4).relu()  # with ties
    second[2] = 1
    found = rank_correlations(first, second)
    for i in range(2):
        expected = spearmanr(first[i].flatten(), second[i].flatten()).statistic
        assert found[i] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(found[2])
    assert rank_correlations(first, first**2) == pytest.approx(1)


def test_randomised_weights_change_the_maps_and_not_the_model():
    model, pixel_values = bright_patch_finder(), bright_patches(PLACES)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    rollout = randomisation_check(model, pixel_values, "attention_rollout")
    gradient = randomisation_check(model, pixel_values, "gradient_attention")
    assert rollout["classifier_correlation"] == pytest.approx(1)  # it knows no classifier
    assert "speaks of the image" in rollout["verdict"]
    assert gradient["classifier_correlation"] < 0.9
    assert rollout["all_layers_correlation"] < 0.5
    assert rollout["num_images"] == 4
    assert torch.equal(torch.get_rng_state(), random_state)
    assert randomisation_check(model, pixel_values, "gradient_attention") == gradient
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])


def test_a_map_that_does_not_look_at_the_weights_is_found_out(monkeypatch):
    def edges(model, pixel_values, target):  # what Adebayo et al. compare with
        return pixel_values.abs().mean(1).unfold(1, 8, 8).unfold(2, 8, 8).mean((3, 4))

    monkeypatch.setitem(METHODS, "edges", edges)
    found = randomisation_check(tiny_classifier(), images(2, 3, *SHAPE), "edges")
    assert found["all_layers_correlation"] == pytest.approx(1)
    assert "do not read it" in found["verdict"]
    monkeypatch.setitem(METHODS, "edges", lambda *_: torch.ones(2, *GRID))
    found = randomisation_check(tiny_classifier(), images(2, 3, *SHAPE), "edges")
    assert found["all_layers_correlation"] is None
    assert "can't be judged" in found["verdict"]


@pytest.mark.parametrize(
    ("correlations", "words"),
    [((0.0, 0.6), "in part"), ((0.1, 0.2), "depends on the weights"), ((0.1, 0.9), "hardly")],
)
def test_verdicts_follow_the_numbers(correlations, words):
    assert words in explanations._verdict(*correlations)


def test_pointing_game_counts_peaks_on_the_mask():
    masks = np.zeros((4, 12, 20), bool)
    masks[:, 3:6, 4:8] = True  # of a grid of 4 x 5 cells: the second row, the second column
    maps = np.zeros((4, 4, 5))
    maps[0, 1, 1] = maps[1, 0, 0] = maps[2, 1, 1] = 1  # hit, miss, hit; nothing in the last
    found = pointing_game(maps, masks)
    assert found["hits"].tolist() == [True, False, True, False]
    assert found["chance"] == pytest.approx(np.full(4, 1 / 20))
    assert found["fixed"].all()
    pixels = np.zeros((4, 12, 20))
    pixels[:, 5, 7] = 1
    assert pointing_game(pixels, masks)["hits"].all()
    assert pointing_game(pixels, masks)["chance"] == pytest.approx(masks.mean(axis=(1, 2)))


def test_random_maps_hit_as_often_as_chance_says():
    generator = np.random.default_rng(0)
    masks = generator.random((4000, 16, 16)) < generator.random((4000, 1, 1)) * 0.6
    found = pointing_game(generator.random((4000, 8, 8)), masks)
    assert found["hits"].mean() == pytest.approx(found["chance"].mean(), abs=0.025)  # 3.5 errors


def test_pointing_game_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3, 3\).*\(1, 9, 9\)"):
        pointing_game(np.zeros((2, 3, 3)), np.zeros((1, 9, 9), bool))
