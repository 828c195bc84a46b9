"""The self-distillation loss against loops over numbers, written from its formulas."""

import itertools
import math

import numpy as np
import pytest
import torch
from model_helpers import images, largest_difference, randomize, tiny_config

from sssd_hf import DISTILLATION_PRESETS, SSSDForPreTraining

DINO = {"distillation_head": "dino", "distillation_distance": "cross_entropy"}
SMALL = {
    "image_size": 24,
    "hidden_size": 16,
    "decoder_hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "mask_ratio": 0.6,
}  # 9 patches, 3 of them visible


def build(**fields):
    model = randomize(SSSDForPreTraining(tiny_config(**{**SMALL, **fields}))).eval()
    with torch.no_grad():  # a variance and a weight are not negative
        for name, tensor in model.distillation.named_buffers():
            if name in ("teacher_variance", "teacher_weight"):
                tensor.abs_()
    return model


def forward(model, pixels=None, noise=None):
    """The model's output, and the decoder's hidden states that the config makes the teacher."""
    seen = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: seen.append(out[0]))
        for layer in model.decoder.layers
    ]
    pixels = images(3, 3, 24, 24) if pixels is None else pixels
    noise = torch.rand(len(pixels), 9) if noise is None else noise
    out = model(pixels, noise=noise)
    for hook in hooks:
        hook.remove()
    layer = model.config.distillation_layer
    return out, out.decoder_last_hidden_state if layer is None else seen[layer], noise


# ------------------------------------------------------------------ the formulas, by loops


def gelu(x):
    return np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])


def linear(weights, name, x):
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]


def dino_head(weights, name, x):
    """DINO (arXiv 2104.14294): MLP, L2 norm, weight-normalised linear without bias."""
    for i in (0, 2):
        x = gelu(linear(weights, f"{name}.mlp.{i}", x))
    x = linear(weights, f"{name}.mlp.4", x)
    x = x / np.linalg.norm(x)
    return np.array([p @ x / np.linalg.norm(p) for p in weights[f"{name}.prototypes"]])


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def expected_loss(model, out, decoded, noise):
    config = model.config
    weights = {k: v.double().numpy() for k, v in model.distillation.state_dict().items()}
    encoded = out.encoder_last_hidden_state.detach().double().numpy()
    decoded = decoded.detach().double().numpy()
    get = lambda name: getattr(config, f"distillation_{name}")  # noqa: E731
    dino = get("head") == "dino"

    def student(z):
        if get("head") == "linear":
            return linear(weights, "student_head", z)
        if get("head") == "mlp":
            return linear(weights, "student_head.2", gelu(linear(weights, "student_head.0", z)))
        if get("teacher_head") != "joint":
            z = linear(weights, "student_projection", z)
        return dino_head(weights, "student_head", z)

    def normalise(h, place):
        if get("target") == "raw":
            return h
        if get("target") == "layer_norm":
            return (h - h.mean()) / math.sqrt(h.var() + config.layer_norm_eps)
        mean, variance = weights["teacher_mean"], weights["teacher_variance"]
        if get("target") == "standardize_per_position":
            mean, variance = mean[place], variance[place]
        return (h - mean) / np.sqrt(variance + 1e-6)

    def teacher(h, place):
        h = normalise(h, place)
        if not dino:
            return h
        head = {"ema": "teacher_ema", "shared": "student_head", "joint": "joint_head"}
        return dino_head(weights, head[get("teacher_head")], h)

    def distance(s, t):
        d = s - t
        if get("distance") == "smooth_l1":
            return np.mean([0.5 * v * v if abs(v) < 1 else abs(v) - 0.5 for v in d])
        if get("distance") == "mse":
            return np.mean(d * d)
        if get("distance") == "cosine":
            return 1 - s @ t / (np.linalg.norm(s) * np.linalg.norm(t))
        t = softmax((t - weights["teacher_center"]) / get("teacher_temperature"))
        return -np.sum(t * np.log(softmax(s / get("student_temperature"))))

    losses = []
    for i in range(len(encoded)):
        visible = np.argsort(noise[i].numpy(), kind="stable")[:3]
        z = [encoded[i, 1 + k] for k in range(3)]
        places = [1 + int(v) for v in visible]
        if get("tokens") == "visible_cls":
            z, places = [encoded[i, 0], *z], [0, *places]
        if get("tokens") == "all":
            places = list(range(1, 10))
        h = [decoded[i, place] for place in places]
        if get("pooling") == "features":
            pairs = [(student(np.mean(z, 0)), teacher(np.mean(h, 0), None))]
        elif get("pooling") == "logits":
            s = np.mean([student(v) for v in z], 0)
            pairs = [(s, np.mean([teacher(v, p) for v, p in zip(h, places)], 0))]
        else:
            pairs = [(student(a), teacher(b, p)) for a, b, p in zip(z, h, places)]
        losses += [distance(s, t) for s, t in pairs]
    return np.mean(losses)


def accepted_options():
    """Every combination of the options that the config accepts (a head's teacher only where there
    is one); the layer goes round, so that each option meets both."""
    names = ("tokens", "pooling", "head", "distance", "target", "stop_gradient", "teacher_head")
    choices = (
        ("visible", "visible_cls", "all"),
        ("none", "features", "logits"),
        ("linear", "mlp", "dino"),
        ("smooth_l1", "mse", "cosine", "cross_entropy"),
        ("layer_norm", "standardize", "standardize_per_position", "raw"),
        (True, False),
        ("ema", "shared", "joint"),
    )
    found = []
    for values in itertools.product(*choices):
        fields = {f"distillation_{n}": v for n, v in zip(names, values)}
        if fields["distillation_head"] != "dino" and fields["distillation_teacher_head"] != "ema":
            continue
        fields["distillation_layer"] = (None, 0, 1)[len(found) % 3]
        try:
            tiny_config(**fields)
        except ValueError:
            continue
        found.append(fields)
    return found


OPTIONS = accepted_options()


def test_every_option_is_in_an_accepted_combination():
    seen = {(name, value) for fields in OPTIONS for name, value in fields.items()}
    assert len(seen) == 3 + 3 + 3 + 4 + 4 + 2 + 3 + 3
    assert len(OPTIONS) > 300


@pytest.mark.parametrize("part", range(8))
def test_every_accepted_combination_equals_the_formula(part):
    pixels, noise = images(3, 3, 24, 24), torch.rand(3, 9)
    for fields in OPTIONS[part::8]:
        model = build(**fields)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        out, decoded, _ = forward(model, pixels, noise)
        expected = expected_loss(model, out, decoded, noise)
        assert out.distillation_loss.item() == pytest.approx(expected, rel=2e-4), fields
        out.loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(grad.isfinite().all() for grad in grads), fields
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), fields


@pytest.mark.parametrize("name", ["stable", "sd_mae", "global"])
def test_presets_equal_the_formula(name):
    model = build(**DISTILLATION_PRESETS[name])
    out, decoded, noise = forward(model)
    expected = expected_loss(model, out, decoded, noise)
    assert out.distillation_loss.item() == pytest.approx(expected, rel=1e-4)
    weight = model.distillation.teacher_weight.item()
    l_rec, l_sd = out.reconstruction_loss.item(), out.distillation_loss.item()
    kept = 1 - weight if name == "sd_mae" else 1
    assert out.loss.item() == pytest.approx(kept * l_rec + weight * l_sd, rel=1e-5)


def test_weight_zero_is_plain_mae():
    config = tiny_config(distillation_weight=0.0)
    plain = SSSDForPreTraining(config)
    assert plain.distillation is None
    assert not any("distillation" in key for key in plain.state_dict())
    with_head = SSSDForPreTraining(tiny_config())
    with_head.load_state_dict(plain.state_dict(), strict=False)
    pixels, noise = images(2, 3, 32, 32), torch.rand(2, 16)
    a, b = plain(pixels, noise=noise), with_head(pixels, noise=noise)
    assert torch.equal(a.loss, b.reconstruction_loss)
    assert torch.equal(a.loss, a.reconstruction_loss)
    assert a.distillation_loss is a.distillation_statistics is None
    plain.update_teacher(1, 10)  # nothing to step


# ------------------------------------------------------------------ gradients


def touched(model, loss):
    model.zero_grad()
    loss.backward()
    return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize(
    "fields",
    [{}, DISTILLATION_PRESETS["global"], DINO, {**DINO, "distillation_teacher_head": "shared"}],
)
def test_behind_the_stop_gradient_only_the_student_learns(fields):
    model = build(**fields)
    names = touched(model, forward(model)[0].distillation_loss)
    assert not any(name.startswith(("decoder.", "distillation.teacher")) for name in names)
    assert "encoder.layers.0.mlp.fc2.weight" in names
    assert "encoder.embeddings.projection.weight" in names
    assert any(name.startswith("distillation.student_head") for name in names)


def test_a_shared_head_learns_from_the_students_side_alone():
    """The gradient is that of a loss whose target is a constant."""
    model = build(**DINO, distillation_teacher_head="shared")
    out, _, noise = forward(model)
    touched(model, out.distillation_loss)
    found = model.distillation.student_head.prototypes.grad.clone()
    constant = build(**DINO, distillation_teacher_head="ema")
    state = model.distillation.state_dict()
    heads = {k: v for k, v in state.items() if "student_head" in k}
    heads |= {k.replace("student_head", "teacher_ema"): v for k, v in heads.items()}
    constant.load_state_dict(model.state_dict(), strict=False)
    constant.distillation.load_state_dict(heads, strict=False)
    touched(constant, forward(constant, noise=noise)[0].distillation_loss)
    expected = constant.distillation.student_head.prototypes.grad
    assert largest_difference(found, expected) < 1e-6


def test_without_the_stop_gradient_the_decoder_and_a_joint_head_learn():
    model = build(**DISTILLATION_PRESETS["sd_mae"])
    names = touched(model, forward(model)[0].distillation_loss)
    assert {"decoder.layers.1.mlp.fc2.weight", "decoder.norm.weight", "decoder.mask_token"} <= names
    assert {"distillation.joint_head.prototypes", "distillation.student_head.prototypes"} <= names
    assert "decoder.pred.weight" not in names
    # a frozen average passes the gradient on to the decoder and keeps none
    model = build(**DINO, distillation_stop_gradient=False)
    names = touched(model, forward(model)[0].distillation_loss)
    assert "decoder.layers.1.mlp.fc2.weight" in names
    assert not any("teacher" in name for name in names)


def test_the_teacher_is_no_business_of_the_optimiser(tmp_path):
    model = build(**DINO)
    model.save_pretrained(tmp_path)
    for each in (model, SSSDForPreTraining.from_pretrained(tmp_path)):
        trained = {name for name, p in each.named_parameters() if p.requires_grad}
        assert not any("teacher" in name or "position" in name for name in trained)
        assert any("student_head" in name for name in trained)


# ------------------------------------------------------------------ the teacher's state


def two_halves(model, pixels, noise):
    parts = [
        model(pixels[i], noise=noise[i]).distillation_statistics for i in (slice(2), slice(2, 5))
    ]
    assert parts[0].keys() == parts[1].keys()
    return {key: parts[0][key] + parts[1][key] for key in parts[0]}


STATEFUL = [
    {"distillation_target": "standardize"},
    {"distillation_target": "standardize_per_position", "distillation_tokens": "visible_cls"},
    {"distillation_target": "standardize_per_position", **DINO},
    {"distillation_target": "standardize", "distillation_pooling": "features"},
    {**DINO, "distillation_pooling": "logits"},
    {**DISTILLATION_PRESETS["sd_mae"]},
]


@pytest.mark.parametrize("fields", STATEFUL, ids=str)
def test_statistics_add_up_over_part_batches(fields):
    pixels, noise = images(5, 3, 24, 24), torch.rand(5, 9)
    whole, halves = build(**fields), build(**fields)
    halves.update_teacher(3, 10, two_halves(halves, pixels, noise))
    whole.update_teacher(3, 10, whole(pixels, noise=noise).distillation_statistics)
    for key, value in whole.state_dict().items():
        assert largest_difference(value, halves.state_dict()[key]) < 1e-5, key


@pytest.mark.parametrize("per_position", [False, True])
def test_running_statistics_by_hand(per_position):
    kind = "standardize_per_position" if per_position else "standardize"
    model = build(distillation_target=kind, distillation_tokens="visible_cls")
    head = model.distillation
    mean, variance = head.teacher_mean.clone(), head.teacher_variance.clone()
    out, decoded, noise = forward(model)
    vectors = {}
    for i in range(3):
        for place in [0, *(1 + np.argsort(noise[i].numpy())[:3])]:
            vectors.setdefault(int(place) if per_position else 0, []).append(decoded[i, place])
    model.update_teacher(1, 10, out.distillation_statistics)
    for place in range(10) if per_position else [0]:
        at = place if per_position else ...
        if place not in vectors:  # never visible: left as it was
            assert torch.equal(head.teacher_mean[at], mean[at])
            assert torch.equal(head.teacher_variance[at], variance[at])
            continue
        seen = torch.stack(vectors[place]).detach()
        expected = 0.9 * mean[at] + 0.1 * seen.mean(0)
        assert largest_difference(head.teacher_mean[at], expected) < 1e-5
        expected = 0.9 * variance[at] + 0.1 * seen.var(0, correction=0)
        assert largest_difference(head.teacher_variance[at], expected) < 1e-5
    if per_position:
        assert 0 < len(vectors) < 10


@pytest.mark.parametrize("pooling", ["none", "logits"])
def test_centre_and_average_by_hand(pooling):
    """SD-MAE: c <- 0.9 c + 0.1 mean over the batch of softmax((t - c) / 0.04), here with the mean
    over an image's tokens where they are not pooled."""
    model = build(**DINO, distillation_pooling=pooling)
    head, out, decoded, noise = model.distillation, *forward(model)
    weights = {k: v.double().numpy() for k, v in head.state_dict().items()}
    probabilities = []
    for i in range(3):
        logits = []
        for k in np.argsort(noise[i].numpy())[:3]:
            h = decoded[i, 1 + k].detach().double().numpy()
            h = (h - h.mean()) / math.sqrt(h.var() + 1e-6)
            logits.append(dino_head(weights, "teacher_ema", h))
        logits = [np.mean(logits, 0)] if pooling == "logits" else logits
        probabilities.append(
            np.mean([softmax((t - weights["teacher_center"]) / 0.04) for t in logits], 0)
        )
    model.update_teacher(1, 10, out.distillation_statistics)
    expected = 0.9 * weights["teacher_center"] + 0.1 * np.mean(probabilities, 0)
    assert largest_difference(head.teacher_center, torch.from_numpy(expected)) < 1e-5
    new = dict(head.teacher_ema.named_parameters())
    for name, student in head.student_head.named_parameters():
        expected = (
            0.996 * weights[f"teacher_ema.{name}"] + 0.004 * student.detach().double().numpy()
        )
        assert largest_difference(new[name], torch.from_numpy(expected)) < 1e-6
        assert not torch.equal(new[name].double(), torch.from_numpy(weights[f"teacher_ema.{name}"]))


def test_the_average_moves_in_a_bf16_model():
    model = build(**DINO).bfloat16()
    head = model.distillation
    before = head.teacher_ema.prototypes.clone()
    out = model(images(3, 3, 24, 24), noise=torch.rand(3, 9))
    model.update_teacher(1, 10, out.distillation_statistics)
    expected = 0.996 * before + 0.004 * head.student_head.prototypes.float()
    assert largest_difference(head.teacher_ema.prototypes, expected) < 1e-7
    assert largest_difference(head.teacher_ema.prototypes, before) > 1e-5


def test_schedule_of_the_weight():
    model = build(distillation_weight=0.4, distillation_warmup_ratio=0.1)
    for step, expected in ((0, 0.0), (5, 0.2), (10, 0.4), (11, 0.4), (100, 0.4)):
        model.update_teacher(step, 100)
        assert model.distillation.teacher_weight.item() == pytest.approx(expected)
        assert model.distillation.teacher_step.item() == step
        out = forward(model)[0]
        total = out.reconstruction_loss + expected * out.distillation_loss
        assert out.loss.item() == pytest.approx(total.item(), rel=1e-5)
    constant = build(distillation_weight=0.4, distillation_schedule="constant")
    constant.update_teacher(0, 100)
    assert constant.distillation.teacher_weight.item() == pytest.approx(0.4)
    none = build(distillation_weight=0.4, distillation_warmup_ratio=0.0)
    none.update_teacher(0, 100)
    assert none.distillation.teacher_weight.item() == pytest.approx(0.4)
    # until a loop counts steps, the weight is whole
    fresh = SSSDForPreTraining(tiny_config(distillation_weight=0.4))
    assert fresh.distillation.teacher_weight.item() == pytest.approx(0.4)


def test_the_teachers_state_is_saved_and_restored(tmp_path):
    model = build(**DINO, distillation_target="standardize")
    out = forward(model)[0]
    model.update_teacher(7, 100, out.distillation_statistics)
    model.save_pretrained(tmp_path)
    loaded = SSSDForPreTraining.from_pretrained(tmp_path)
    noise = torch.rand(3, 9)
    assert loaded.distillation.teacher_step.item() == 7
    assert loaded.distillation.teacher_weight.item() == pytest.approx(0.2 * 0.7)
    assert torch.equal(forward(loaded, noise=noise)[0].loss, forward(model, noise=noise)[0].loss)


def test_the_spread_of_the_target_tells_a_collapse():
    model = build(distillation_target="raw", distillation_pooling="features")
    out, decoded, noise = forward(model)
    vectors = []
    for i in range(3):
        visible = np.argsort(noise[i].numpy())[:3]
        vectors.append(decoded[i, 1 + visible].detach().double().mean(0))
    expected = torch.stack(vectors).var(0, correction=0).mean().sqrt().item()
    found = model.distillation.target_std(out.distillation_statistics).item()
    assert found == pytest.approx(expected, rel=1e-3)
    same = images(1, 3, 24, 24).expand(3, -1, -1, -1)
    out = model(same, noise=torch.rand(1, 9).expand(3, -1))
    assert model.distillation.target_std(out.distillation_statistics) < 1e-2 * expected
    out = model(same[:1])  # of one image nothing can be told
    assert model.distillation.target_std(out.distillation_statistics).isnan()


@pytest.mark.parametrize("target", ["standardize", "standardize_per_position"])
def test_statistics_are_fp32_under_autocast(target):
    """Features that vary little around a large mean: in bf16 most variances would be zero."""
    model = build(distillation_target=target)
    features = 3 + 0.1 * torch.randn(300, 4, 8)
    position = torch.arange(4).expand(300, 4)
    exact = model.distillation._statistics(features, features, position)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.distillation._statistics(features, features, position)
    assert exact["count"].max() == (1200 if target == "standardize" else 300)
    for name, value in exact.items():
        assert mixed[name].dtype == torch.float32
        assert torch.equal(mixed[name], value), name
    some = exact["count"] > 0
    variance = exact["square_sum"] / exact["count"] - (exact["sum"] / exact["count"]).square()
    values = variance if target == "standardize" else variance[some.squeeze(-1)]
    assert values == pytest.approx(0.01, rel=0.4)
