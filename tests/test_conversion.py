"""Checkpoints from and to ViTMAE, ViT and the original MAE: equal outputs, nothing at random."""

import argparse
import json
import logging
import os
import pickle
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from model_helpers import TINY, images, largest_difference, randomize, tiny_config
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from sssd_hf import (
    SSSDForImageClassification,
    SSSDForPreTraining,
    SSSDModel,
)
from sssd_hf.conversion_sssd import from_mae, from_stock, to_stock

PIXELS = images(2, 3, 32, 32)
NOISE = torch.rand(2, 16, generator=torch.Generator().manual_seed(1))
ENCODER = {key: value for key, value in TINY.items() if "decoder" not in key}


def vit_mae(**fields):
    return randomize(ViTMAEForPreTraining(ViTMAEConfig(**{**TINY, **fields}))).eval()


def vit(**fields):
    config = ViTConfig(**{**ENCODER, "id2label": {0: "a", 1: "b", 2: "c"}, **fields})
    return randomize(ViTForImageClassification(config)).eval()


def old_name(key):
    """A 5.23 name in memory -> the name that transformers up to 5.8 used, written by hand."""
    key = re.sub(r"^vit\.layers\.", "vit.encoder.layer.", key)
    for part, name in (("q", "query"), ("k", "key"), ("v", "value")):
        key = key.replace(f"attention.{part}_proj", f"attention.attention.{name}")
    key = key.replace("attention.o_proj", "attention.output.dense")
    return key.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")


def write_folder(model, folder, generation):
    model.save_pretrained(folder)
    if generation != "as saved":
        weights = {k: v.contiguous() for k, v in model.state_dict().items()}
        if generation == "old":
            weights = {old_name(k): v for k, v in weights.items()}
        if generation == "decoder_encoder":
            weights = {
                k.replace("decoder.decoder_layers", "decoder.decoder_encoder.layer"): v
                for k, v in weights.items()
            }
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


GENERATIONS = ["as saved", "new", "old", "decoder_encoder"]

# ------------------------------------------------------------------ into SSSD


@pytest.mark.parametrize("generation", GENERATIONS)
def test_pretraining_from_a_vit_mae_folder(tmp_path, generation):
    stock = vit_mae(norm_pix_loss=True)
    write_folder(stock, tmp_path, generation)
    model, info = SSSDForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not model.training
    theirs, ours = stock(PIXELS, noise=NOISE), model(PIXELS, noise=NOISE)
    assert largest_difference(theirs.loss, ours.loss) < 1e-5
    assert largest_difference(theirs.logits, ours.logits) < 1e-5
    assert model.config.layer_norm_eps == stock.config.layer_norm_eps
    assert model.name_or_path == str(tmp_path)
    assert not model.encoder.embeddings.position_embeddings.requires_grad


@pytest.mark.parametrize("generation", ["as saved", "old"])
def test_classifier_from_a_vit_folder(tmp_path, generation):
    stock = vit()
    write_folder(stock, tmp_path, generation)
    model = SSSDForImageClassification.from_pretrained(tmp_path)
    assert largest_difference(stock(PIXELS).logits, model(PIXELS).logits) < 1e-5
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_classifier_from_a_vit_mae_folder_names_its_new_head_once(tmp_path, generation, caplog):
    stock = vit_mae()
    write_folder(stock, tmp_path, generation)
    with caplog.at_level(logging.WARNING):
        model = SSSDForImageClassification.from_pretrained(tmp_path, num_labels=5)
    (record,) = caplog.records
    assert "classifier.bias, classifier.weight" in record.getMessage()
    assert str(tmp_path) in record.getMessage()
    assert "encoder" not in record.getMessage()
    assert model(PIXELS).logits.shape == (2, 5)
    assert model.classifier.weight.std().item() == pytest.approx(0.02, rel=0.3)
    ordered = torch.arange(16.0).expand(2, 16)
    stock.config.mask_ratio = stock.vit.config.mask_ratio = 0.0
    theirs = stock.vit(PIXELS, noise=ordered).last_hidden_state
    assert largest_difference(theirs, model.encoder(PIXELS).last_hidden_state) < 1e-5


def test_bare_encoders(tmp_path, caplog):
    mae = randomize(ViTMAEModel(ViTMAEConfig(**TINY)))
    plain = randomize(ViTModel(ViTConfig(**ENCODER)))  # with a pooler
    mae.save_pretrained(tmp_path / "mae")
    plain.save_pretrained(tmp_path / "vit")
    reference = plain.eval()(PIXELS).last_hidden_state
    encoder = SSSDModel.from_pretrained(tmp_path / "vit")
    assert largest_difference(reference, encoder(PIXELS).last_hidden_state) < 1e-5
    with caplog.at_level(logging.WARNING):
        model = SSSDForPreTraining.from_pretrained(tmp_path / "mae", distillation_weight=0.2)
    (record,) = caplog.records
    named = record.getMessage()
    assert "decoder.mask_token" in named
    assert "distillation.student_head" in named
    assert " encoder." not in named
    theirs = mae.eval()(PIXELS, noise=NOISE).last_hidden_state
    ours = model(PIXELS, noise=NOISE)
    assert largest_difference(theirs, ours.encoder_last_hidden_state) < 1e-5
    assert ours.loss.isfinite()


def shards(model, folder):
    model.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()


def one_pickle(model, folder):
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def two_pickles(model, folder):
    model.config.save_pretrained(folder)
    state = model.state_dict()
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    where = {key: names[i % 2] for i, key in enumerate(state)}
    for name in names:
        torch.save({k: v for k, v in state.items() if where[k] == name}, folder / name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))


@pytest.mark.parametrize("write", [shards, one_pickle, two_pickles])
def test_other_weight_files(tmp_path, write):
    stock = vit_mae()
    write(stock, tmp_path)
    model = SSSDForPreTraining.from_pretrained(tmp_path)
    assert (
        largest_difference(stock(PIXELS, noise=NOISE).logits, model(PIXELS, noise=NOISE).logits)
        < 1e-5
    )


def test_arguments_of_from_pretrained(tmp_path):
    stock = vit()
    stock.save_pretrained(tmp_path / "inner")
    load = SSSDForImageClassification.from_pretrained
    model, info = load(
        tmp_path, subfolder="inner", output_loading_info=True, device_map="cpu", revision="main"
    )
    assert not info["missing_keys"]
    assert torch.equal(model.classifier.weight, stock.classifier.weight)
    assert load(tmp_path / "inner", dtype=torch.bfloat16).dtype == torch.bfloat16
    assert (
        load(str(tmp_path / "inner"), attn_implementation="eager").config._attn_implementation
        == "eager"
    )
    given = tiny_config(num_labels=3, layer_norm_eps=1e-12, drop_path_rate=0.1)
    assert load(tmp_path / "inner", config=given).config.drop_path_rate == 0.1
    given.save_pretrained(tmp_path / "config")
    by_path = load(tmp_path / "inner", config=str(tmp_path / "config"))
    assert by_path.config.drop_path_rate == 0.1
    assert torch.equal(by_path.classifier.weight, stock.classifier.weight)
    stock.bfloat16().save_pretrained(tmp_path / "half")
    assert load(tmp_path / "half").dtype == torch.bfloat16  # the checkpoint's
    named = load(
        tmp_path / "inner", id2label={0: "x", 1: "y", 2: "z"}, label2id={"x": 0, "y": 1, "z": 2}
    )
    assert named.config.id2label[2] == "z"


def test_another_image_size(tmp_path):
    stock = vit_mae()
    stock.save_pretrained(tmp_path)
    model = SSSDForPreTraining.from_pretrained(tmp_path, image_size=48)
    assert model.config.grid_size == (6, 6)
    for own, old in (
        (model.encoder.embeddings.position_embeddings, stock.vit.embeddings.position_embeddings),
        (model.decoder.position_embeddings, stock.decoder.decoder_pos_embed),
    ):
        grid = old[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
        expected = torch.cat([old[:, :1], grid.permute(0, 2, 3, 1).reshape(1, 36, -1)], 1)
        assert largest_difference(own, expected) < 1e-5
    # own folders too, by every class
    model.save_pretrained(tmp_path / "own")
    for cls in (SSSDModel, SSSDForPreTraining, SSSDForImageClassification):
        smaller = cls.from_pretrained(tmp_path / "own", image_size=[24, 32])
        pixels = images(2, 3, 24, 32)
        assert smaller(pixels)[0].isfinite().all()
    SSSDModel.from_pretrained(tmp_path / "own").save_pretrained(tmp_path / "bare")
    bare = SSSDForImageClassification.from_pretrained(tmp_path / "bare", image_size=32)
    assert torch.equal(bare.encoder.norm.weight, model.encoder.norm.weight)
    with pytest.raises(ValueError, match="patch_size"):
        SSSDForPreTraining.from_pretrained(tmp_path, patch_size=4)


def test_to_one_channel(tmp_path):
    """A grey image's embedding equals the three-channel model's; the prediction is the mean."""
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    stock = vit_mae()
    stock.save_pretrained(tmp_path)
    ViTImageProcessor(image_mean=mean, image_std=std).save_pretrained(tmp_path)
    grey = torch.rand(2, 1, 32, 32)
    three = (grey - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    one = (grey - 0.4) / 0.25
    model = SSSDForPreTraining.from_pretrained(tmp_path, num_channels=1)
    plain = SSSDForPreTraining.from_pretrained(tmp_path)
    embedded = [
        m.encoder(x, output_hidden_states=True).hidden_states[0]
        for m, x in ((model, one), (plain, three))
    ]
    assert largest_difference(*embedded) < 1e-5
    ours, theirs = model(one, noise=NOISE).logits, stock(three, noise=NOISE).logits
    assert ours.shape == (2, 16, 64)
    assert largest_difference(ours, theirs.reshape(2, 16, 64, 3).mean(-1)) < 1e-4
    # a grey file comes as three equal channels, with one mean and spread for all
    assert largest_difference(model(one.expand(-1, 3, -1, -1), noise=NOISE).logits, ours) < 1e-4
    plain.save_pretrained(tmp_path / "own")  # no processor there: ImageNet's statistics
    own = SSSDForPreTraining.from_pretrained(tmp_path / "own", num_channels=1)
    m, s = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    three = ((grey.numpy() - m[:, None, None]) / s[:, None, None]).astype("float32")
    a = own.encoder(((grey - m.mean()) / s.mean()).float()).last_hidden_state
    assert largest_difference(a, plain.encoder(torch.from_numpy(three)).last_hidden_state) < 1e-4
    model.save_pretrained(tmp_path / "grey")
    with pytest.raises(ValueError, match=r"num_channels=1.*only three channels can become one"):
        SSSDForPreTraining.from_pretrained(tmp_path / "grey", num_channels=3)


# ------------------------------------------------------------------ between SSSD's own classes


def test_pretraining_folder_to_classifier_and_encoder(tmp_path):
    model = randomize(SSSDForPreTraining(tiny_config()))
    model.save_pretrained(tmp_path)
    load = SSSDForImageClassification.from_pretrained
    classifier, info = load(tmp_path, num_labels=4, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not info["unexpected_keys"]
    encoder, info = SSSDModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(classifier.encoder.state_dict()[key], value)
        assert torch.equal(encoder.state_dict()[key], value)
    assert classifier.classifier.weight.std().item() == pytest.approx(0.02, rel=0.3)
    classifier.save_pretrained(tmp_path / "classifier")
    back, info = SSSDForPreTraining.from_pretrained(
        tmp_path / "classifier", output_loading_info=True
    )
    assert all(key.startswith(("decoder.", "distillation.")) for key in info["missing_keys"])
    assert torch.equal(back.encoder.norm.weight, model.encoder.norm.weight)
    assert back(PIXELS, noise=NOISE).loss.isfinite()


# ------------------------------------------------------------------ what must not pass


def test_an_unknown_kind_is_refused(tmp_path):
    config = DeiTConfig(**{**ENCODER, "num_labels": 3})
    DeiTForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model_type='deit'.*'sssd', 'vit_mae' or 'vit'"):
        SSSDForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("gone", ["norm", "layers.1.mlp.fc2.bias", "position", "cls_token"])
def test_missing_encoder_weights_are_refused(tmp_path, gone):
    vit_mae().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    names = {"norm": "vit.layernorm.", "position": "vit.embeddings.position_embeddings"}
    part = names.get(gone, gone)
    if gone.startswith("layers"):
        part = next(
            k for k in weights if re.fullmatch(r"vit\..*\.1\.(mlp\.fc2|output\.dense)\.bias", k)
        )
    left = {k: v for k, v in weights.items() if part not in k}
    assert len(left) < len(weights)
    save_file(left, file, metadata={"format": "pt"})
    for cls in (SSSDModel, SSSDForPreTraining, SSSDForImageClassification):
        with pytest.raises(
            ValueError, match=r"lacks.*(norm|layers\.1\.mlp\.fc2\.bias|position|cls)"
        ):
            cls.from_pretrained(tmp_path)


def test_weights_that_find_no_place_are_refused(tmp_path):
    vit_mae().save_pretrained(tmp_path)
    for fields in ({"num_hidden_layers": 1}, {"qkv_bias": False}, {"decoder_num_hidden_layers": 1}):
        with pytest.raises(ValueError, match=r"no place.*(layers\.1|qkv\.bias)"):
            SSSDForPreTraining.from_pretrained(tmp_path, **fields)
    with pytest.raises(ValueError, match=r"lacks.*layers\.2"):
        SSSDForPreTraining.from_pretrained(tmp_path, num_hidden_layers=3)
    with pytest.raises((ValueError, RuntimeError), match=r"(?i)mismatch|size"):
        SSSDForPreTraining.from_pretrained(tmp_path, hidden_size=64)


def test_an_unknown_or_halved_weight_is_refused(tmp_path):
    stock = vit()
    state = stock.state_dict()
    with pytest.raises(ValueError, match=r"'vit\.layers\.0\.gamma'"):
        from_stock({**state, "vit.layers.0.gamma": torch.ones(1)})
    with pytest.raises(ValueError, match=r"query, key or value.*attention\.qkv\.weight"):
        from_stock({k: v for k, v in state.items() if "k_proj" not in k})
    with pytest.raises(ValueError, match="generation='newest'"):
        to_stock(state, generation="newest")


def test_a_folder_without_weights_is_refused(tmp_path):
    ViTConfig(**ENCODER).save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        SSSDForImageClassification.from_pretrained(tmp_path)


# ------------------------------------------------------------------ out of SSSD


@pytest.mark.parametrize("generation", ["new", "old"])
@pytest.mark.parametrize("bias", [True, False])
def test_to_vit_mae_and_back(generation, bias):
    model = randomize(SSSDForPreTraining(tiny_config(qkv_bias=bias)))
    stock = ViTMAEForPreTraining(ViTMAEConfig(**TINY, qkv_bias=bias))
    state = to_stock(model.state_dict(), generation)
    expected = {
        (old_name(k) if generation == "old" else k): v.shape for k, v in stock.state_dict().items()
    }
    assert {k: v.shape for k, v in state.items()} == expected
    back = from_stock(state)
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("distillation.")}
    assert back.keys() == own.keys()
    assert all(torch.equal(back[key], own[key]) for key in own)


def test_what_sssd_writes_the_stock_classes_load(tmp_path):
    model = randomize(SSSDForPreTraining(tiny_config())).eval()
    model.to_vit_mae().save_pretrained(tmp_path / "mae")
    stock, info = ViTMAEForPreTraining.from_pretrained(tmp_path / "mae", output_loading_info=True)
    assert not info["missing_keys"]
    assert (
        largest_difference(stock(PIXELS, noise=NOISE).logits, model(PIXELS, noise=NOISE).logits)
        < 1e-5
    )
    fields = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    classifier = randomize(SSSDForImageClassification(tiny_config(**fields))).eval()
    classifier.to_vit().save_pretrained(tmp_path / "vit")
    stock = AutoModelForImageClassification.from_pretrained(tmp_path / "vit")
    assert type(stock) is ViTForImageClassification
    assert stock.config.id2label == fields["id2label"]
    assert torch.equal(stock(PIXELS).logits, classifier(PIXELS).logits)


# ------------------------------------------------------------------ the original MAE


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        )
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )
        self.heads = heads

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).reshape(b, n, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        a = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(-1) @ v
        x = x + self.attn["proj"](a.transpose(1, 2).reshape(b, n, c))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class OriginalMAE(nn.Module):
    """After models_mae.py of facebookresearch/mae: its names, its forward pass."""

    def __init__(self, width=64, depth=2, heads=1, decoder_width=32, decoder_depth=1, patch=8):
        super().__init__()
        self.patch = patch
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(
            torch.zeros(1, 17, decoder_width), requires_grad=False
        )
        self.decoder_blocks = nn.ModuleList(Block(decoder_width, 16) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_width, patch * patch * 3)

    def forward(self, images, noise, mask_ratio, norm_pix_loss):
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        b, n, d = x.shape
        keep = int(n * (1 - mask_ratio))
        shuffle = noise.argsort(1)
        restore = shuffle.argsort(1)
        x = torch.gather(x, 1, shuffle[:, :keep, None].repeat(1, 1, d))
        mask = torch.ones(b, n)
        mask[:, :keep] = 0
        mask = torch.gather(mask, 1, restore)
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(b, -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        y = torch.cat([x[:, 1:], self.mask_token.repeat(b, n + 1 - x.shape[1], 1)], 1)
        y = torch.gather(y, 1, restore[:, :, None].repeat(1, 1, y.shape[2]))
        y = torch.cat([x[:, :1], y], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            y = block(y)
        prediction = self.decoder_pred(self.decoder_norm(y))[:, 1:]
        p, h = self.patch, images.shape[2] // self.patch
        target = images.reshape(b, 3, h, p, h, p)
        target = torch.einsum("nchpwq->nhwpqc", target).reshape(b, h * h, p * p * 3)
        if norm_pix_loss:
            var, mean = target.var(-1, keepdim=True), target.mean(-1, keepdim=True)
            target = (target - mean) / (var + 1e-6) ** 0.5
        loss = ((prediction - target) ** 2).mean(-1)
        return (loss * mask).sum() / mask.sum(), prediction, mask


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_pretraining_from_an_original_mae_file(tmp_path, norm_pix_loss):
    original = randomize(OriginalMAE())
    args = argparse.Namespace(mask_ratio=0.6, norm_pix_loss=norm_pix_loss, lr=1e-3, output_dir="x")
    path = tmp_path / "mae.pth"
    torch.save({"model": original.state_dict(), "args": args, "epoch": 3, "optimizer": {}}, path)
    for name in (path, str(path)):
        model = SSSDForPreTraining.from_pretrained(name)
    loss, prediction, mask = original(PIXELS, NOISE, 0.6, norm_pix_loss)
    out = model(PIXELS, noise=NOISE)
    assert torch.equal(out.mask, mask)
    assert largest_difference(out.logits, prediction) < 1e-5
    assert largest_difference(out.loss, loss) < 1e-4
    assert model.config.layer_norm_eps == 1e-6
    larger = SSSDForPreTraining.from_pretrained(path, image_size=48, distillation_weight=0.2)
    assert larger(images(2, 3, 48, 48)).distillation_loss > 0
    grey = SSSDForImageClassification.from_pretrained(path, num_channels=1, num_labels=3)
    assert grey(images(2, 1, 32, 32)).logits.shape == (2, 3)


def test_mae_files_without_decoder_or_with_a_head():
    state = OriginalMAE().state_dict()
    encoder = {k: v for k, v in state.items() if not k.startswith(("decoder", "mask_token"))}
    fields, weights = from_mae({"model": encoder})
    assert fields["num_hidden_layers"] == 2
    assert fields["mask_ratio"] == 0.75
    assert not any(key.startswith("decoder") for key in weights)
    head = {"head.weight": torch.ones(7, 64), "head.bias": torch.ones(7)}
    fields, weights = from_mae({**encoder, **head})
    assert fields["num_labels"] == 7
    assert weights["classifier.weight"].shape == (7, 64)
    with pytest.raises(ValueError, match="fc_norm"):
        from_mae({**encoder, "fc_norm.weight": torch.ones(64)})


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["mae.pth", "pytorch_model.bin"])
def test_a_foreign_pickle_is_refused(tmp_path, name):
    target = str(tmp_path / "executed")
    torch.save({"model": OriginalMAE().state_dict(), "args": Payload(target)}, tmp_path / name)
    ViTConfig(**ENCODER).save_pretrained(tmp_path)
    where = tmp_path / name if name.endswith(".pth") else tmp_path
    with pytest.raises(pickle.UnpicklingError):
        SSSDForImageClassification.from_pretrained(where)
    assert not os.path.exists(target)
