"""Fine-tuning and pretraining from checkpoints of others, and for other classes."""

import json

import pytest
import torch
from script_runs import TRAINING, draw, read
from transformers import ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTMAEForPreTraining

from sssd_hf import SSSDForImageClassification, SSSDForPreTraining
from sssd_hf.cli import finetune, pretrain
from sssd_hf.cli.batches import normalize

pytestmark = pytest.mark.usefixtures("no_figures")


def finetuned_from(checkpoint, tmp_path, data, *argv):
    argv = ["--model_name_or_path", str(checkpoint), *argv]
    argv = ["--data_dir", str(data), *TRAINING, "--max_train_steps", "1", *argv]
    argv += ["--layer_decay", "1e-9", "--learning_rate", "1e-9", "--pooling", "cls"]
    assert finetune.main([*argv, "--output_dir", str(tmp_path / "out")]) == 0
    return SSSDForImageClassification.from_pretrained(tmp_path / "out").eval()


STOCK = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.mark.parametrize("with_processor", [True, False])
def test_from_a_stock_vit_mae_folder(tmp_path, class_folders, with_processor):
    decoder = {f"decoder_{k}": v for k, v in STOCK.items() if not k.endswith(("_size",))}
    decoder |= {"decoder_hidden_size": 32, "decoder_intermediate_size": 64}
    stock = ViTMAEForPreTraining(ViTMAEConfig(**STOCK, **decoder, mask_ratio=0.0)).eval()
    stock.save_pretrained(tmp_path / "stock")
    if with_processor:
        processor = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.1, 0.2, 0.3]}
        processor["image_std"] = [0.4, 0.5, 0.6]
        (tmp_path / "stock/preprocessor_config.json").write_text(json.dumps(processor))
    model = finetuned_from(tmp_path / "stock", tmp_path, class_folders)
    saved = read(tmp_path / "out/preprocessor_config.json")
    if with_processor:
        assert saved["image_mean"] == [0.1, 0.2, 0.3]
    else:  # what MAE was trained with
        assert saved["image_mean"] == [0.485, 0.456, 0.406]
        assert saved["image_std"] == [0.229, 0.224, 0.225]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        noise = torch.arange(16.0).expand(2, -1)
        expected = stock.vit(images, noise=noise).last_hidden_state
        found = model.encoder(images).last_hidden_state
    assert (found - expected).abs().max() < 1e-4
    pretrain_argv = ["--data_dir", str(class_folders), *TRAINING, "--max_train_steps", "1"]
    pretrain_argv += ["--model_name_or_path", str(tmp_path / "stock"), "--mask_ratio", "0.5"]
    assert pretrain.main([*pretrain_argv, "--output_dir", str(tmp_path / "further")]) == 0
    assert SSSDForPreTraining.from_pretrained(tmp_path / "further").config.mask_ratio == 0.5


def test_from_a_stock_vit_folder_to_one_channel(tmp_path, class_folders):
    """The processor of the result has the statistics that the conversion assumes."""
    labels = {
        "id2label": {0: "cat", 1: "dog", 2: "cow"},
        "label2id": {"cat": 0, "dog": 1, "cow": 2},
    }
    stock = ViTForImageClassification(ViTConfig(**STOCK, **labels)).eval()
    stock.save_pretrained(tmp_path / "stock")
    mean, std = [0.2, 0.4, 0.6], [0.2, 0.3, 0.4]
    processor = {"image_processor_type": "ViTImageProcessor", "image_mean": mean, "image_std": std}
    (tmp_path / "stock/preprocessor_config.json").write_text(json.dumps(processor))
    model = finetuned_from(tmp_path / "stock", tmp_path, class_folders, "--num_channels", "1")
    assert model.config.id2label == {0: "down", 1: "up"}
    saved = read(tmp_path / "out/preprocessor_config.json")
    assert saved["image_mean"] == pytest.approx([0.4] * 3)
    assert saved["image_std"] == pytest.approx([0.3] * 3)
    pixels = torch.randint(0, 256, (2, 1, 32, 32)).byte()
    grey = normalize(pixels, saved["image_mean"], saved["image_std"])
    colour = normalize(pixels.expand(-1, 3, -1, -1), mean, std)
    with torch.no_grad():
        found = model.encoder(grey).last_hidden_state
        expected = stock.vit(colour).last_hidden_state
    assert (found - expected).abs().max() < 1e-4


def test_from_an_original_mae_file(tmp_path, class_folders):
    """No folder and so no processor: MAE's own statistics."""
    model = SSSDForPreTraining.from_pretrained  # the conversion itself is tested elsewhere
    weights = {}
    width, decoder = 64, 32
    generator = torch.Generator().manual_seed(0)

    def fill(name, *shape):
        weights[name] = 0.02 * torch.randn(*shape, generator=generator)

    fill("cls_token", 1, 1, width)
    fill("pos_embed", 1, 17, width)
    fill("patch_embed.proj.weight", width, 3, 8, 8)
    fill("patch_embed.proj.bias", width)
    fill("mask_token", 1, 1, decoder)
    fill("decoder_pos_embed", 1, 17, decoder)
    for prefix, size in (("blocks.0", width), ("decoder_blocks.0", decoder)):
        for name, shape in (
            ("norm1.weight", (size,)),
            ("norm1.bias", (size,)),
            ("attn.qkv.weight", (3 * size, size)),
            ("attn.qkv.bias", (3 * size,)),
            ("attn.proj.weight", (size, size)),
            ("attn.proj.bias", (size,)),
            ("norm2.weight", (size,)),
            ("norm2.bias", (size,)),
            ("mlp.fc1.weight", (4 * size, size)),
            ("mlp.fc1.bias", (4 * size,)),
            ("mlp.fc2.weight", (size, 4 * size)),
            ("mlp.fc2.bias", (size,)),
        ):
            fill(f"{prefix}.{name}", *shape)
    for name, out, size in (
        ("norm", None, width),
        ("decoder_norm", None, decoder),
        ("decoder_embed", decoder, width),
        ("decoder_pred", 192, decoder),
    ):
        fill(f"{name}.weight", *((size,) if out is None else (out, size)))
        fill(f"{name}.bias", out or size)
    torch.save({"model": weights}, tmp_path / "mae.pth")
    argv = ["--data_dir", str(class_folders), *TRAINING, "--max_train_steps", "1"]
    argv += ["--model_name_or_path", str(tmp_path / "mae.pth"), "--learning_rate", "1e-9"]
    assert pretrain.main([*argv, "--output_dir", str(tmp_path / "out")]) == 0
    assert read(tmp_path / "out/preprocessor_config.json")["image_mean"] == [0.485, 0.456, 0.406]
    found = model(tmp_path / "out").state_dict()["encoder.layers.0.attention.qkv.weight"]
    assert torch.allclose(found, weights["blocks.0.attn.qkv.weight"], atol=1e-6)


def test_a_finetuned_checkpoint_can_be_finetuned_for_other_classes(tmp_path, runs):
    """Its head is left behind, its encoder is not."""
    for i in range(18):
        draw(tmp_path / "images" / f"class{i % 3}" / f"{i}.png", i % 2, i)
    model = finetuned_from(runs / "finetuned", tmp_path, tmp_path / "images")
    assert model.config.num_labels == 3
    assert list(model.config.id2label.values()) == ["class0", "class1", "class2"]
    before = SSSDForImageClassification.from_pretrained(runs / "finetuned").state_dict()
    name = "encoder.layers.1.mlp.fc1.weight"
    assert torch.allclose(model.state_dict()[name], before[name], atol=1e-5)


@pytest.mark.parametrize("preset", ["sd_mae", "global", "mae", "stable"])
def test_the_preset_decides_the_loss_whatever_the_checkpoint(tmp_path, runs, preset, class_folders):
    head = "distillation_num_prototypes=8,distillation_head_hidden_size=8"
    head += ",distillation_bottleneck_size=4"
    argv = ["--data_dir", str(class_folders), *TRAINING, "--max_train_steps", "1"]
    argv += ["--model_name_or_path", str(runs / "pretrained"), "--config_overrides", head]
    first = [*argv, "--distillation", preset, "--output_dir", str(tmp_path / "first")]
    assert pretrain.main(first) == 0
    model = SSSDForPreTraining.from_pretrained(tmp_path / "first")
    assert (model.distillation is None) == (preset == "mae")
    argv[argv.index(str(runs / "pretrained"))] = str(tmp_path / "first")
    assert pretrain.main([*argv, "--output_dir", str(tmp_path / "second")]) == 0
    config = SSSDForPreTraining.from_pretrained(tmp_path / "second").config
    fresh = SSSDForPreTraining.from_pretrained(runs / "pretrained").config
    for name in ("head", "distance", "pooling", "weight", "weighting", "stop_gradient"):
        name = f"distillation_{name}"
        assert getattr(config, name) == getattr(fresh, name), "stable, the default"
