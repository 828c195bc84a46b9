"""LoRA by the peft package on the classifier: trained, saved, loaded, merged."""

import pytest
import torch
from model_helpers import images, largest_difference, tiny_config
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageClassification

from sssd_hf import SSSDForImageClassification, SSSDForPreTraining


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A classifier's folder, made from a pretrained encoder."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("base")
    SSSDForPreTraining(tiny_config()).save_pretrained(root / "pretrained")
    model = SSSDForImageClassification.from_pretrained(
        root / "pretrained", id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}
    )
    model.save_pretrained(root / "classifier")
    return root / "classifier"


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """(the model with its adapter, the adapter's folder, losses)"""
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["qkv", "proj"], modules_to_save=["classifier"]
    )
    model = get_peft_model(SSSDForImageClassification.from_pretrained(base), config).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    pixel_values, labels = images(12, 3, 32, 32), torch.arange(12) % 2
    losses = []
    for _ in range(12):
        loss = model(pixel_values=pixel_values, labels=labels, sample_seeds=torch.arange(12)).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return model.eval(), folder, losses


def logits(model):
    with torch.no_grad():
        return model.eval()(pixel_values=images(5, 3, 32, 32, seed=9)).logits


def test_only_the_adapter_and_the_head_learn(trained, base):
    model, _, losses = trained
    assert losses[-1] < 0.5 * losses[0]
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    layers = {name.split(".lora_")[0] for name in learning if "lora_" in name}
    assert layers == {
        f"base_model.model.encoder.layers.{i}.attention.{name}"
        for i in range(2)
        for name in ("qkv", "proj")
    }
    assert all("lora_" in name or "classifier" in name for name in learning)
    before = SSSDForImageClassification.from_pretrained(base).state_dict()
    after = model.get_base_model().state_dict()
    for name, weight in before.items():
        kept = name.replace("qkv.", "qkv.base_layer.").replace("proj.", "proj.base_layer.")
        if "classifier" not in name:
            assert torch.equal(weight, after[kept]), name


def test_the_saved_adapter_is_loaded_on_its_base_model(trained, base):
    model, folder, _ = trained
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors", ".md"}
    again = PeftModel.from_pretrained(SSSDForImageClassification.from_pretrained(base), folder)
    assert largest_difference(logits(again), logits(model)) == 0
    found = AutoModelForImageClassification.from_pretrained(folder)
    assert largest_difference(logits(found), logits(model)) == 0
    untrained = logits(SSSDForImageClassification.from_pretrained(base))
    assert largest_difference(untrained, logits(model)) > 0.1
    with pytest.raises(ValueError, match=r"no config\.json.* adapter"):
        SSSDForImageClassification.from_pretrained(folder)


def test_merged_it_is_an_ordinary_checkpoint(trained, base, tmp_path):
    model, folder, _ = trained
    again = PeftModel.from_pretrained(SSSDForImageClassification.from_pretrained(base), folder)
    merged = again.merge_and_unload()
    assert type(merged) is SSSDForImageClassification
    assert largest_difference(logits(merged), logits(model)) < 1e-5
    merged.save_pretrained(tmp_path)
    alone = SSSDForImageClassification.from_pretrained(tmp_path)
    assert alone.config.id2label == {0: "no", 1: "yes"}
    assert largest_difference(logits(alone), logits(merged)) == 0
    assert largest_difference(logits(alone.to_vit()), logits(model)) < 1e-5
