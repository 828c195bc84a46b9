"""The models against the stock classes, closed forms and brute force."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from model_helpers import TINY, images, largest_difference, randomize, tiny_config
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTMAEForPreTraining

from sssd_hf import SSSDConfig, SSSDForImageClassification, SSSDForPreTraining, SSSDModel
from sssd_hf.modeling_sssd import sample_uniform

CLASSES = [SSSDModel, SSSDForPreTraining, SSSDForImageClassification]
DINO = {"distillation_head": "dino", "distillation_distance": "cross_entropy"}


def stock_pair(image_size=32, **fields):
    """A stock ViTMAE with random weights and SSSD with the same ones."""
    config = ViTMAEConfig(**{**TINY, "image_size": image_size, **fields})
    stock = randomize(ViTMAEForPreTraining(config)).eval()
    return stock, SSSDForPreTraining.from_vit_mae(stock).eval()


# ------------------------------------------------------------------ equality with the stock classes


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"norm_pix_loss": True},
        {"mask_ratio": 0.25},
        {"mask_ratio": 0.9},
        {"qkv_bias": False},
        {"num_channels": 1},
        {"hidden_act": "relu"},
        {"patch_size": 4, "mask_ratio": 0.6},
        {"attn_implementation": "eager"},
    ],
    ids=str,
)
def test_pretraining_equals_vit_mae(fields):
    stock, model = stock_pair(**fields)
    pixels = images(3, fields.get("num_channels", 3), 32, 32)
    noise = torch.rand(3, model.config.num_patches)
    theirs, ours = stock(pixels, noise=noise), model(pixels, noise=noise)
    assert largest_difference(theirs.mask, ours.mask) == 0
    assert torch.equal(theirs.ids_restore, ours.ids_restore)
    assert largest_difference(theirs.logits, ours.logits) < 1e-5
    assert largest_difference(theirs.loss, ours.loss) < 1e-5
    assert torch.equal(ours.loss, ours.reconstruction_loss)
    assert ours.distillation_loss is None
    hidden = stock.vit(pixels, noise=noise).last_hidden_state
    assert largest_difference(hidden, ours.encoder_last_hidden_state) < 1e-5


def test_pretraining_gives_the_stock_gradients():
    stock, model = stock_pair(norm_pix_loss=True)
    pixels, noise = images(2, 3, 32, 32), torch.rand(2, 16)
    stock(pixels, noise=noise).loss.backward()
    model(pixels, noise=noise).loss.backward()
    pairs = {
        "vit.embeddings.cls_token": model.encoder.embeddings.cls_token,
        "vit.embeddings.patch_embeddings.projection.bias": model.encoder.embeddings.projection.bias,
        "vit.layernorm.bias": model.encoder.norm.bias,
        "decoder.mask_token": model.decoder.mask_token,
        "decoder.decoder_pred.weight": model.decoder.pred.weight,
    }
    parameters = dict(stock.named_parameters())
    for name, ours in pairs.items():
        assert largest_difference(parameters[name].grad, ours.grad) < 1e-5, name


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_classifier_equals_vit(implementation):
    config = ViTConfig(
        **{k: v for k, v in TINY.items() if "decoder" not in k},
        num_labels=3,
        attn_implementation=implementation,
    )
    stock = randomize(ViTForImageClassification(config)).eval()
    model = SSSDForImageClassification.from_pretrained(
        None,
        config=tiny_config(num_labels=3, layer_norm_eps=config.layer_norm_eps),
        state_dict=_classifier_weights(stock),
        attn_implementation=implementation,
    ).eval()
    pixels, labels = images(4, 3, 32, 32), torch.tensor([0, 2, 1, 1])
    options = {"output_hidden_states": True, "output_attentions": implementation == "eager"}
    theirs = stock(pixels, labels=labels, **options)
    ours = model(pixels, labels=labels, **options)
    assert largest_difference(theirs.logits, ours.logits) < 1e-5
    assert largest_difference(theirs.loss, ours.loss) < 1e-5
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 3
    for a, b in zip(theirs.hidden_states, ours.hidden_states):
        assert largest_difference(a, b) < 1e-5
    if implementation == "eager":
        assert len(ours.attentions) == len(theirs.attentions) == 2
        for a, b in zip(theirs.attentions, ours.attentions):
            assert largest_difference(a, b) < 1e-5
    back = model.to_vit()
    back.set_attn_implementation(implementation)
    assert torch.equal(back(pixels).logits, ours.logits)


def _classifier_weights(stock):
    from sssd_hf.conversion_sssd import from_stock

    return from_stock(stock.state_dict())


def test_a_live_vit_mae_is_wrapped_and_given_back():
    stock, model = stock_pair()
    pixels, noise = images(2, 3, 32, 32), torch.rand(2, 16)
    back = model.to_vit_mae()
    assert not back.training
    assert torch.equal(back(pixels, noise=noise).logits, stock(pixels, noise=noise).logits)
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in stock.state_dict().items())
    with_head = SSSDForPreTraining.from_vit_mae(stock, distillation_weight=0.3)
    assert with_head(pixels, noise=noise).distillation_loss > 0
    assert SSSDForPreTraining.from_vit_mae(stock.bfloat16()).dtype == torch.bfloat16


def test_mean_pooling_cannot_become_a_vit():
    with pytest.raises(ValueError, match="pooling='mean'"):
        SSSDForImageClassification(tiny_config(pooling="mean")).to_vit()


# ------------------------------------------------------------------ initialisation


def mae_positions(height, width, size):
    """get_2d_sincos_pos_embed of facebookresearch/mae (util/pos_embed.py), with its CLS row."""

    def one_axis(dim, positions):
        omega = 1.0 / 10000 ** (np.arange(dim // 2, dtype=np.float64) / (dim / 2.0))
        out = np.einsum("m,d->md", positions.reshape(-1), omega)
        return np.concatenate([np.sin(out), np.cos(out)], axis=1)

    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)))  # "here w goes first"
    table = np.concatenate([one_axis(size // 2, grid[0]), one_axis(size // 2, grid[1])], axis=1)
    return torch.from_numpy(np.concatenate([np.zeros([1, size]), table])).float()


def assert_right_positions(model, grid=(4, 4)):
    encoder = model if isinstance(model, SSSDModel) else model.encoder
    table = encoder.embeddings.position_embeddings
    assert largest_difference(table[0].float(), mae_positions(*grid, 32)) < 1e-6
    if isinstance(model, SSSDForPreTraining):
        table = model.decoder.position_embeddings
        assert largest_difference(table[0].float(), mae_positions(*grid, 24)) < 1e-6


def assert_teacher_at_its_start(distillation, weight=0.2):
    pairs = zip(distillation.teacher_ema.parameters(), distillation.student_head.parameters())
    assert all(torch.equal(a, b.float()) for a, b in pairs)
    assert distillation.teacher_step.item() == 0
    assert distillation.teacher_weight.item() == pytest.approx(weight)
    assert not distillation.teacher_center.any()
    assert not distillation.teacher_mean.any()
    assert torch.all(distillation.teacher_variance == 1)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("image_size", [32, [24, 40]])
def test_positions_from_a_config(cls, image_size):
    grid = (4, 4) if image_size == 32 else (3, 5)
    assert_right_positions(cls(tiny_config(image_size=image_size)), grid)


def test_mae_initialisation():
    config = tiny_config(hidden_size=64, decoder_hidden_size=48, num_labels=50, **DINO)
    model = SSSDForPreTraining(config)
    patch = 8 * 8 * 3
    layers = {
        (64, patch): model.encoder.embeddings.projection.weight.flatten(1),
        (192, 64): model.encoder.layers[0].attention.qkv.weight,
        (48, 64): model.encoder.layers[1].mlp.fc1.weight,
        (patch, 48): model.decoder.pred.weight,
        (20, 48): model.distillation.student_head.mlp[0].weight,
    }
    for (
        out,
        inside,
    ), weight in layers.items():  # Glorot & Bengio: U(-a, a), a = sqrt(6 / (in + out))
        bound = math.sqrt(6 / (inside + out))
        assert weight.shape == (out, inside)
        assert 0.95 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    for token in (model.encoder.embeddings.cls_token, model.decoder.mask_token):
        assert 0.01 < token.std() < 0.03
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        if "norm" in name and name.endswith("weight"):
            assert torch.all(parameter == 1), name
    head = SSSDForImageClassification(config).classifier.weight
    assert head.std().item() == pytest.approx(0.02, rel=0.1)


FULL_TEACHER = {**DINO, "distillation_target": "standardize"}


@pytest.mark.parametrize("cls", CLASSES)
def test_after_from_pretrained(cls, tmp_path):
    model = randomize(cls(tiny_config(**FULL_TEACHER)))
    model.save_pretrained(tmp_path)
    loaded, info = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    state = loaded.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not loaded.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_a_partly_missing_checkpoint(tmp_path, dtype):
    """What the file lacks starts as from a config; what it has stays."""
    model = SSSDForPreTraining(tiny_config(**FULL_TEACHER))
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    gone = (
        "position_embeddings",
        "teacher_",
        "mask_token",
        "encoder.layers.0.mlp.fc1",
        "projection",
    )
    left = {k: v + 1 for k, v in weights.items() if not any(part in k for part in gone)}
    assert len(left) < len(weights)
    save_file(left, file, metadata={"format": "pt"})
    loaded = SSSDForPreTraining.from_pretrained(tmp_path, dtype=dtype)
    state = loaded.state_dict()
    for key, value in left.items():
        assert torch.equal(state[key], value.to(dtype)), key
    if dtype == torch.float32:
        assert_right_positions(loaded)
    else:
        table = loaded.encoder.embeddings.position_embeddings[0].float()
        assert largest_difference(table, mae_positions(4, 4, 32)) < 0.01
    assert_teacher_at_its_start(loaded.distillation)
    weight = loaded.encoder.layers[0].mlp.fc1.weight.float()
    assert 0.9 * math.sqrt(6 / 80) < weight.abs().max() <= math.sqrt(6 / 80) * 1.01
    assert 0.005 < loaded.decoder.mask_token.float().std() < 0.04


def test_from_the_meta_device():
    with torch.device("meta"):
        model = SSSDForPreTraining(tiny_config(**FULL_TEACHER))
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    model.to_empty(device="cpu")
    model.init_weights()
    assert_right_positions(model)
    assert_teacher_at_its_start(model.distillation)


@pytest.mark.parametrize("options", [{"device_map": "cpu"}, {"low_cpu_mem_usage": True}])
def test_loading_options(tmp_path, options):
    model = randomize(SSSDForPreTraining(tiny_config(**FULL_TEACHER)))
    model.save_pretrained(tmp_path)
    loaded = SSSDForPreTraining.from_pretrained(tmp_path, **options)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values())
    )


def test_the_teacher_stays_fp32_whatever_the_dtype(tmp_path):
    model = randomize(SSSDForPreTraining(tiny_config(**FULL_TEACHER)))
    teacher = {k: v.clone() for k, v in model.state_dict().items() if "teacher_" in k}
    assert len(teacher) == 5 + 7
    model.save_pretrained(tmp_path)
    load = SSSDForPreTraining.from_pretrained
    for other in (
        load(tmp_path, dtype=torch.bfloat16),
        load(tmp_path, dtype=torch.float16),
        load(tmp_path).bfloat16(),
        load(tmp_path).to(torch.float16),
        load(tmp_path).half().float(),
        load(tmp_path).to("cpu", torch.bfloat16),
    ):
        state = other.state_dict()
        for key, value in teacher.items():
            assert state[key].dtype == torch.float32, key
            assert torch.equal(state[key], value), key
    half = load(tmp_path, dtype=torch.bfloat16)
    assert half.distillation.student_head.mlp[0].weight.dtype == torch.bfloat16
    half.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert again.dtype == torch.bfloat16  # the checkpoint's
    assert all(torch.equal(again.state_dict()[key], value) for key, value in teacher.items())


def test_positions_are_frozen_in_pretraining_and_trained_in_the_classifier(tmp_path):
    model = SSSDForPreTraining(tiny_config())
    model.save_pretrained(tmp_path)
    for pretraining in (model, SSSDForPreTraining.from_pretrained(tmp_path)):
        frozen = {name for name, p in pretraining.named_parameters() if not p.requires_grad}
        assert frozen == {"encoder.embeddings.position_embeddings", "decoder.position_embeddings"}
    for classifier in (
        SSSDForImageClassification(tiny_config()),
        SSSDForImageClassification.from_pretrained(tmp_path),
    ):
        assert all(p.requires_grad for p in classifier.parameters())
        classifier(images(2, 3, 32, 32), labels=torch.tensor([0, 1])).loss.backward()
        assert classifier.encoder.embeddings.position_embeddings.grad.any()


# ------------------------------------------------------------------ randomness of an image


def splitmix(x):
    """The finaliser of SplitMix64, as published, on Python integers."""
    mask = 2**64 - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 123456789])
@pytest.mark.parametrize("stream", [0, 1, 77])
def test_sample_uniform_is_splitmix64(seed, stream):
    """Seed -> key: the (stream + 1)-th output; key -> number i: the i-th output's upper 24 bits."""
    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1
    key = splitmix((seed + (stream + 1) * golden) & mask)
    expected = [(splitmix((key + i * golden) & mask) >> 40) / 2**24 for i in range(1, 13)]
    found = sample_uniform(torch.tensor([5, seed]), stream, 3, 4)
    assert found.dtype == torch.float32
    assert found[1].flatten().tolist() == expected


def test_sample_uniform_is_uniform_and_uncorrelated():
    x = sample_uniform(torch.arange(500), 3, 400)
    assert x.min() >= 0
    assert x.max() < 1
    n = x.numel()
    assert abs(x.mean().item() - 0.5) < 5 / math.sqrt(12 * n)
    assert abs(x.var().item() - 1 / 12) < 5 * math.sqrt(1 / 180 / n)
    counts = torch.histc(x, 64, 0, 1)
    chi_square = ((counts - n / 64) ** 2 / (n / 64)).sum().item()
    assert abs(chi_square - 63) < 5 * math.sqrt(2 * 63)
    other = sample_uniform(torch.arange(500), 4, 400)
    neighbours = ((x[:, 1:], x[:, :-1]), (x[1:], x[:-1]), (x, other))
    for a, b in neighbours:
        assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 5 / math.sqrt(n)


def test_a_mask_belongs_to_its_image():
    model = SSSDForPreTraining(tiny_config()).eval()
    pixels, seeds = images(5, 3, 32, 32), torch.tensor([9, 4, 2**40, 4, -3])
    whole = model(pixels, sample_seeds=seeds)
    assert torch.equal(whole.mask.sum(1), torch.full((5,), 12.0))
    assert torch.equal(whole.mask[1], whole.mask[3])
    assert not torch.equal(whole.mask[0], whole.mask[1])
    order = torch.tensor([4, 0])
    part = model(pixels[order], sample_seeds=seeds[order])
    assert torch.equal(part.mask, whole.mask[order])
    assert largest_difference(part.logits, whole.logits[order]) < 1e-5


@pytest.mark.parametrize("cls", CLASSES)
def test_drop_path_and_dropout_belong_to_their_image(cls):
    model = randomize(cls(tiny_config(drop_path_rate=0.6, hidden_dropout_prob=0.3))).train()
    pixels, seeds = images(6, 3, 32, 32), torch.arange(10, 16)

    def run(index):
        return model(pixels[index], sample_seeds=seeds[index])[0 if cls is SSSDModel else "logits"]

    whole, order = run(torch.arange(6)), torch.tensor([5, 2, 0])
    assert largest_difference(run(order), whole[order]) < 1e-4
    other = model(pixels, sample_seeds=seeds + 1)[0 if cls is SSSDModel else "logits"]
    assert largest_difference(other, whole) > 0.01
    assert torch.equal(run(torch.arange(6)), whole)


def test_drop_path_rates_rise_and_scale():
    """At rate r, a branch is kept with probability 1 - r, and then divided by it."""
    config = tiny_config(num_hidden_layers=3, drop_path_rate=0.5)
    model = SSSDModel(config).train()
    assert [layer.drop_path for layer in model.layers] == [0.0, 0.25, 0.5]
    layer = model.layers[2]
    x = torch.ones(4000, 1, 32)
    y = layer._branch(x, torch.arange(4000), 1)[:, 0, 0]
    assert set(y.tolist()) == {0.0, 2.0}
    assert abs(y.mean().item() - 1) < 5 / math.sqrt(4000)
    z = layer._branch(x, torch.arange(4000), 0)[:, 0, 0]
    assert abs(np.corrcoef(y, z)[0, 1]) < 5 / math.sqrt(4000)
    assert torch.equal(layer.eval()._branch(x, None, 0), x)


@pytest.mark.parametrize("cls", [SSSDModel, SSSDForImageClassification])
def test_the_encoder_and_the_classifier_give_the_same_twice(cls):
    for model in (cls(tiny_config()), cls(tiny_config(mask_ratio=0.0)).eval()):
        pixels = images(2, 3, 32, 32)
        assert torch.equal(model(pixels)[0], model(pixels)[0])


def test_the_encoder_sees_all_patches_in_order():
    model = randomize(SSSDModel(tiny_config())).eval()
    pixels = images(1, 3, 32, 32)
    embedded = model(pixels, output_hidden_states=True).hidden_states[0]
    weight, bias = model.embeddings.projection.weight, model.embeddings.projection.bias
    for row in range(4):
        for column in range(4):
            patch = pixels[0, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            place = 1 + 4 * row + column
            expected = (weight * patch).sum((1, 2, 3)) + bias
            expected = expected + model.embeddings.position_embeddings[0, place]
            assert largest_difference(embedded[0, place], expected) < 1e-4


# ------------------------------------------------------------------ other sizes, channels


def cubic(t, a=-0.75):
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def resize_axis(old, new):
    """The matrix of bicubic resampling of one axis (Keys 1981, a = -0.75, half-pixel centres,
    clamped at the edges), which torch, OpenCV and MAE's fine-tuning share."""
    matrix = np.zeros((new, old))
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        base = math.floor(place)
        for k in range(base - 1, base + 3):
            matrix[i, min(max(k, 0), old - 1)] += cubic(place - k)
    return matrix


@pytest.mark.parametrize("size", [(32, 48), (64, 64), (16, 24)])
def test_positions_of_another_size_are_interpolated_in_two_dimensions(size):
    model = randomize(SSSDForPreTraining(tiny_config(image_size=[32, 24], mask_ratio=0.5))).eval()
    grid = (size[0] // 8, size[1] // 8)
    rows, columns = resize_axis(4, grid[0]), resize_axis(3, grid[1])
    tables = {}
    for name, table in (
        ("encoder", model.encoder.embeddings.position_embeddings),
        ("decoder", model.decoder.position_embeddings),
    ):
        old = table.detach()[0].double().numpy()
        patches = np.einsum("ih,jw,hwd->ijd", rows, columns, old[1:].reshape(4, 3, -1))
        tables[name] = torch.from_numpy(
            np.concatenate([old[:1], patches.reshape(-1, old.shape[1])])
        )

    seen = {}
    handle = model.decoder.layers[0].register_forward_pre_hook(lambda m, a: seen.update(x=a[0]))
    pixels = images(2, 3, *size)
    out = model(pixels, noise=torch.rand(2, grid[0] * grid[1]), interpolate_pos_encoding=True)
    handle.remove()
    assert out.logits.shape == (2, grid[0] * grid[1], 192)
    embedded = model.decoder.embed(out.encoder_last_hidden_state)
    hidden = model.decoder.mask_token.expand(2, int(out.mask[0].sum()), -1)
    unordered = torch.cat([embedded[:, 1:], hidden], 1)
    full = torch.stack([unordered[i, out.ids_restore[i]] for i in range(2)])
    found = seen["x"] - torch.cat([embedded[:, :1], full], 1)
    assert largest_difference(found[0], tables["decoder"]) < 1e-4

    encoder = model.encoder
    states = encoder(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    plain = encoder.embeddings.projection(pixels).flatten(2).transpose(1, 2)
    plain = torch.cat([encoder.embeddings.cls_token.expand(2, -1, -1), plain], 1)
    assert largest_difference(states.hidden_states[0][0] - plain[0], tables["encoder"]) < 1e-4


def test_another_size_needs_asking_and_whole_patches():
    for model in (SSSDModel(tiny_config()), SSSDForImageClassification(tiny_config())):
        with pytest.raises(ValueError, match=r"32 x 48.*32 x 32.*interpolate_pos_encoding"):
            model(images(1, 3, 32, 48))
        with pytest.raises(ValueError, match=r"32 x 44.*patch_size"):
            model(images(1, 3, 32, 44), interpolate_pos_encoding=True)
        assert model(images(1, 3, 40, 64), interpolate_pos_encoding=True)[0].shape[0] == 1


def test_patchify_and_back():
    model = SSSDForPreTraining(tiny_config(image_size=[16, 24], patch_size=[8, 4]))
    pixels = images(2, 3, 16, 24)
    patches = model.patchify(pixels)
    assert patches.shape == (2, 12, 96)
    for row in range(2):
        for column in range(6):  # a patch is (rows, columns, channels), as in MAE's patchify
            patch = pixels[1, :, 8 * row : 8 * row + 8, 4 * column : 4 * column + 4]
            expected = patch.permute(1, 2, 0).flatten()
            assert torch.equal(patches[1, 6 * row + column], expected)
    assert torch.equal(model.unpatchify(patches, (2, 6)), pixels)
    assert model(pixels, noise=torch.rand(2, 12)).loss.isfinite()


@pytest.mark.parametrize("cls", CLASSES)
def test_a_one_channel_model_makes_three_channels_grey(cls):
    model = cls(tiny_config(num_channels=1)).eval()
    rgb = images(2, 3, 32, 32)
    grey = 0.299 * rgb[:, :1] + 0.587 * rgb[:, 1:2] + 0.114 * rgb[:, 2:]
    noise = {"noise": torch.rand(2, 16)} if cls is SSSDForPreTraining else {}
    key = "last_hidden_state" if cls is SSSDModel else "logits"
    assert largest_difference(model(rgb, **noise)[key], model(grey, **noise)[key]) < 1e-5
    equal = grey.expand(-1, 3, -1, -1)
    assert largest_difference(model(equal, **noise)[key], model(grey, **noise)[key]) < 1e-5
    with pytest.raises(ValueError, match="2 channels"):
        model(images(2, 2, 32, 32), **noise)
    with pytest.raises(ValueError, match="1 channels"):
        cls(tiny_config())(grey, **noise)


# ------------------------------------------------------------------ the reconstruction loss


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_reconstruction_loss_by_hand(norm_pix_loss):
    model = randomize(SSSDForPreTraining(tiny_config(norm_pix_loss=norm_pix_loss))).eval()
    pixels = images(3, 3, 32, 32)
    out = model(pixels, noise=torch.rand(3, 16))
    errors = []
    for i in range(3):
        for k in range(16):
            if not out.mask[i, k]:
                continue
            row, column = divmod(k, 4)
            patch = pixels[i, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            target = patch.permute(1, 2, 0).flatten().double().numpy()
            if norm_pix_loss:  # torch's unbiased variance, as in MAE
                target = (target - target.mean()) / math.sqrt(target.var(ddof=1) + 1e-6)
            errors.append(((out.logits[i, k].double().detach().numpy() - target) ** 2).mean())
    assert len(errors) == 36
    assert out.reconstruction_loss.item() == pytest.approx(np.mean(errors), rel=1e-5)


def test_the_patches_of_least_noise_stay_visible():
    model = SSSDForPreTraining(tiny_config(mask_ratio=0.75)).eval()
    noise = torch.rand(2, 16)
    out = model(images(2, 3, 32, 32), noise=noise)
    for i in range(2):
        visible = set(np.argsort(noise[i].numpy())[:4].tolist())
        assert {k for k in range(16) if out.mask[i, k] == 0} == visible
    assert not torch.equal(model(images(2, 3, 32, 32)).mask, model(images(2, 3, 32, 32)).mask)


# ------------------------------------------------------------------ the classifier's loss


def softmax_loss(logits, labels, weights, smoothing):
    """Brute force: sum of weighted cross-entropies over the sum of the weights of the labels, and
    with smoothing e the target 1 - e on the label, plus e / K on every class."""
    total = normaliser = 0.0
    for row, label in zip(logits, labels):
        log_p = row - math.log(sum(math.exp(v) for v in row))
        classes = len(row)
        total += -(1 - smoothing) * weights[label] * log_p[label]
        total += -smoothing / classes * sum(w * p for w, p in zip(weights, log_p))
        normaliser += weights[label]
    return total / normaliser


@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 0.5]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("training", [True, False])
def test_single_label_loss(weights, smoothing, training):
    config = tiny_config(num_labels=3, class_weights=weights, label_smoothing=smoothing)
    model = randomize(SSSDForImageClassification(config)).train(training)
    labels = torch.tensor([0, 1, 2, 1])
    out = model(images(4, 3, 32, 32), labels=labels)
    expected = softmax_loss(
        out.logits.detach().double().numpy(),
        labels.tolist(),
        weights or [1.0] * 3,
        smoothing if training else 0.0,
    )
    assert out.loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("num_labels", "problem_type", "labels"),
    [
        (3, None, torch.tensor([0, 2])),
        (3, None, torch.tensor([0, 2], dtype=torch.int32)),
        (3, None, torch.tensor([[0.0, 1, 1], [1, 0, 0]])),
        (3, "multi_label_classification", torch.tensor([[0.0, 1, 1], [1, 0, 0]])),
        (1, None, torch.tensor([0.3, -2.0])),
        (1, None, torch.tensor([[0.3], [-2.0]])),
        (3, "regression", torch.tensor([[0.3, 1.0, 2], [-2.0, 3, 1]])),
    ],
)
def test_every_problem_type_equals_the_stock_head(num_labels, problem_type, labels):
    fields = {"num_labels": num_labels, "problem_type": problem_type}
    model = randomize(SSSDForImageClassification(tiny_config(**fields))).eval()
    stock = model.to_vit().eval()
    stock_labels = labels.long() if num_labels == 3 and not labels.is_floating_point() else labels
    pixels = images(2, 3, 32, 32)
    theirs = stock(pixels, labels=stock_labels).loss
    assert largest_difference(model(pixels, labels=labels).loss, theirs) < 1e-6


def test_pooling():
    for pooling in ("cls", "mean"):
        model = randomize(SSSDForImageClassification(tiny_config(pooling=pooling))).eval()
        pixels = images(2, 3, 32, 32)
        tokens = model.encoder(pixels).last_hidden_state
        pooled = tokens[:, 0] if pooling == "cls" else sum(tokens[:, i] for i in range(1, 17)) / 16
        assert largest_difference(model.encoder(pixels).pooler_output, pooled) < 1e-5
        expected = F.linear(pooled, model.classifier.weight, model.classifier.bias)
        assert largest_difference(model(pixels).logits, expected) < 1e-5


# ------------------------------------------------------------------ attention, memory, precision


@pytest.mark.parametrize("cls", CLASSES)
def test_sdpa_equals_eager_and_the_switch_reaches_every_layer(cls, monkeypatch):
    model = randomize(cls(tiny_config())).eval()
    noise = {"noise": torch.rand(2, 16)} if cls is SSSDForPreTraining else {}
    key = "last_hidden_state" if cls is SSSDModel else "logits"
    pixels, calls = images(2, 3, 32, 32), []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    results = {}
    for implementation in ("eager", "sdpa", "eager"):
        model.set_attn_implementation(implementation)
        calls.clear()
        results[implementation] = model(pixels, **noise)[key]
        layers = 4 if cls is SSSDForPreTraining else 2
        assert len(calls) == (layers if implementation == "sdpa" else 0)
    assert largest_difference(results["eager"], results["sdpa"]) < 1e-4
    assert cls(tiny_config()).config._attn_implementation == "sdpa"


def test_attention_weights_under_sdpa():
    model = randomize(SSSDModel(tiny_config())).eval()
    model.set_attn_implementation("sdpa")
    pixels = images(2, 3, 32, 32)
    out = model(pixels, output_attentions=True)
    assert [a.shape for a in out.attentions] == [(2, 4, 17, 17)] * 2
    assert largest_difference(out.attentions[0].sum(-1), torch.ones(2, 4, 17)) < 1e-5
    assert largest_difference(out[0], model(pixels)[0]) < 1e-4
    asking = SSSDModel(tiny_config(attn_implementation="eager"))
    asking.config.output_attentions = asking.config.output_hidden_states = True
    out = asking(pixels)
    assert len(out.attentions) == 2
    assert len(out.hidden_states) == 3
    assert isinstance(model(pixels, return_dict=False), tuple)


@pytest.mark.parametrize("cls", CLASSES)
def test_gradient_checkpointing_gives_the_same_gradients(cls):
    model = cls(tiny_config(drop_path_rate=0.3, **DINO)).train()
    arguments = {"sample_seeds": torch.arange(2)}
    if cls is SSSDForImageClassification:
        arguments["labels"] = torch.tensor([0, 1])

    def gradients():
        model.zero_grad()
        model(images(2, 3, 32, 32), **arguments)[0].square().mean().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.gradient_checkpointing_enable()
    calls = []
    layers = [m for m in model.modules() if type(m).__name__ == "SSSDLayer"]
    for layer in layers:
        layer.mlp.fc1.register_forward_hook(lambda *_: calls.append(1))
    checkpointed = gradients()
    assert len(calls) == 2 * len(layers)  # recomputed, in encoder and decoder
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


PRESETS = [
    {"distillation_weight": 0.0},
    {},
    FULL_TEACHER,
    {"distillation_target": "standardize_per_position"},
]


@pytest.mark.parametrize("preset", PRESETS, ids=str)
def test_bf16(preset):
    fields = {"drop_path_rate": 0.1, **preset}
    model = SSSDForPreTraining(tiny_config(**fields)).train()
    pixels, seeds = images(4, 3, 32, 32), torch.arange(4)
    exact = model(pixels, sample_seeds=seeds).loss
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(pixels, sample_seeds=seeds)
    mixed.loss.backward()
    assert mixed.loss.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)
    half = model.bfloat16()
    half.zero_grad()
    pure = half(pixels, sample_seeds=seeds)
    pure.loss.backward()
    assert pure.logits.dtype == torch.bfloat16
    assert pure.loss.dtype == torch.float32
    for other in (mixed, pure):
        assert torch.equal(other.mask, model(pixels, sample_seeds=seeds).mask)
        assert other.loss.item() == pytest.approx(exact.item(), rel=0.05)
    classifier = SSSDForImageClassification(tiny_config(**fields)).bfloat16()
    out = classifier(pixels, labels=torch.tensor([0, 1, 1, 0]))
    assert out.logits.dtype == torch.bfloat16
    assert out.loss.dtype == torch.float32
    out.loss.backward()


@pytest.mark.parametrize(
    ("preset", "hidden_states"), [({}, False), *((preset, True) for preset in PRESETS)], ids=str
)
def test_compiles_to_one_graph(preset, hidden_states):
    torch._dynamo.reset()
    model = SSSDForPreTraining(tiny_config(**preset)).train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    pixels, noise = images(2, 3, 32, 32), torch.rand(2, 16)
    plain = model(pixels, noise=noise, output_hidden_states=hidden_states)
    found = compiled(pixels, noise=noise, output_hidden_states=hidden_states)
    assert largest_difference(plain.loss, found.loss) < 1e-5
    assert (found.hidden_states is not None) == hidden_states
    found.loss.backward()


@pytest.mark.parametrize("cls", [SSSDModel, SSSDForImageClassification])
def test_encoder_and_classifier_compile_with_seeds(cls):
    torch._dynamo.reset()
    model = cls(tiny_config(drop_path_rate=0.5, class_weights=[1.0, 2.0])).train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    arguments = {"sample_seeds": torch.arange(2), "output_hidden_states": True}
    if cls is SSSDForImageClassification:
        arguments["labels"] = torch.tensor([0, 1])
    pixels = images(2, 3, 32, 32)
    plain, found = model(pixels, **arguments), compiled(pixels, **arguments)
    assert largest_difference(plain[0], found[0]) < 1e-5


@pytest.mark.parametrize("channels", [1, 3])
def test_the_classifier_exports(channels):
    model = SSSDForImageClassification(tiny_config(num_channels=channels)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(
        model, (images(2, 3, 32, 32),), dynamic_shapes={"pixel_values": {0: batch}}
    )
    pixels = images(5, 3, 32, 32)
    assert largest_difference(exported.module()(pixels).logits, model(pixels).logits) < 1e-5


def test_frozen_settings():
    assert SSSDConfig().distillation_weight == 0.2
    assert SSSDModel.config_class.model_type == "sssd"


@pytest.mark.parametrize("class_weights", [None, [0.5, 2.0, 1.25]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_of_mixed_labels(class_weights, smoothing):
    """One-hot shares give torch's loss; a mixture is the mean of its labels' losses by weight."""
    config = SSSDConfig(
        **TINY,
        num_labels=3,
        class_weights=class_weights,
        label_smoothing=smoothing,
        problem_type="single_label_classification",
    )
    model = SSSDForImageClassification(config).train()
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels, partners = torch.tensor([0, 1, 2, 2, 1]), torch.tensor([1, 1, 0, 2, 0])
    one_hot = F.one_hot(labels, 3).float()
    expected = model.classification_loss(logits, labels)
    torch.testing.assert_close(model.classification_loss(logits, one_hot), expected)
    share = torch.tensor([1.0, 0.5, 0.25, 0.9, 0.0])[:, None]
    mixed = share * one_hot + (1 - share) * F.one_hot(partners, 3)
    weights = torch.tensor(class_weights or [1.0] * 3)
    total = count = 0.0
    for i in range(5):
        for label, part in ((labels[i], share[i, 0]), (partners[i], 1 - share[i, 0])):
            loss = F.cross_entropy(logits[i : i + 1], label[None], label_smoothing=0.0)
            smooth = -(weights * logits[i].log_softmax(-1)).mean()
            own = (1 - smoothing) * weights[label] * loss + smoothing * smooth
            total, count = total + part * own, count + part * weights[label]
    torch.testing.assert_close(model.classification_loss(logits, mixed), total / count)
