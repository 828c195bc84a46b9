"""What is evaluated during a training: on any device, with any images."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin

from sssd_hf import SSSDConfig, SSSDForPreTraining
from sssd_hf.cli import pretrain, runs
from sssd_hf.cli.arguments import DataArguments, PretrainTraining
from sssd_hf.cli.common import prepare_sharding
from sssd_hf.cli.finetune import class_weights_of
from sssd_hf.data.cache import Images
from sssd_hf.data.preparation import Preparation
from sssd_hf.evaluation.probes import probe

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
    "num_channels": 1,
}
STATISTICS = [0.5], [0.5]


class Rows:
    """Rows that lie elsewhere than the model; "meta" stands for a second device."""

    device = torch.device("meta")

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        assert index.device == self.device
        return self.values[: len(index)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SSSDForPreTraining(SSSDConfig(**SIZES)).eval()


@pytest.mark.parametrize("function", ["held_out_losses", "write_reconstructions"])
def test_images_and_model_may_lie_on_two_devices(model, function, tmp_path):
    """A stream's held-out images lie on the host, and so does the whole copy of a sharded model."""
    pixels = torch.randint(0, 256, (3, 1, 32, 32)).byte()
    images = Images(Rows(torch.arange(3)), None, pixels)
    if function == "held_out_losses":
        found = pretrain.held_out_losses(model, images, STATISTICS, 3)
        here = Images(torch.arange(3), None, pixels)
        assert found == pretrain.held_out_losses(model, here, STATISTICS, 3)
    else:
        path = tmp_path / "reconstructions.png"
        pretrain.write_reconstructions(model, images, STATISTICS, path)
        assert path.stat().st_size > 0


@pytest.mark.parametrize("pixels", ["cpu", "meta", None])
def test_indices_are_drawn_where_the_pixels_lie(monkeypatch, pixels):
    """With pixels on the host and indices on a GPU each batch would make the host wait."""
    data = None if pixels is None else torch.empty(9, 1, 8, 8, dtype=torch.uint8, device=pixels)
    images = Images(torch.arange(9), None, data)
    monkeypatch.setattr(runs, "decode_split", lambda *arguments: images)
    accelerator = SimpleNamespace(num_processes=1, process_index=0, device=torch.device("meta"))
    feed = runs.open_images(
        *(object(), {"validation": []}, list(range(9)), Preparation((8, 8), 1)),
        *(DataArguments(), PretrainTraining(), accelerator),
    )[2]
    assert torch.device(feed.device) == torch.device(pixels or "cpu")


def test_black_held_out_images_stop_no_run(model):
    """All patches are constant, so that predicting their means costs nothing to compare with."""
    images = Images(torch.arange(2), None, torch.zeros(2, 1, 32, 32, dtype=torch.uint8))
    found = pretrain.held_out_losses(model, images, STATISTICS, 2)
    assert found["eval_reconstruction_loss"] > 0
    assert found["eval_reconstruction_ratio"] != found["eval_reconstruction_ratio"]


def test_one_class_alone_is_not_probed():
    features = torch.randn(8, 4).numpy()
    labels = torch.zeros(8).long().numpy()
    assert probe(features, labels, features, labels) == {}


@pytest.mark.parametrize("option", ["1", "1,0", "1,-2", "nan,1", "inf,1", "1,x"])
def test_class_weights_are_positive_numbers(option):
    with pytest.raises(ValueError, match=r"--class_weights .*2 positive numbers .* no, yes"):
        class_weights_of(option, ["no", "yes"], [0, 1])
    assert class_weights_of("0.5,2", ["no", "yes"], [0, 1]) == [0.5, 2.0]


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("no", None)])
def test_what_fsdp_can_not_do_is_said_at_the_start(precision, dtype):
    prepare_sharding(None)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    if dtype is not None:
        plugin.set_mixed_precision(precision)
    prepare_sharding(plugin)
    policy = plugin.mixed_precision_policy
    assert (policy and policy.param_dtype) == dtype
    if dtype is not None:
        assert (policy.reduce_dtype, policy.output_dtype) == (torch.float32, None)
    with pytest.raises(ValueError, match="fsdp_version: 1"):
        prepare_sharding(SimpleNamespace(fsdp_version=1, cpu_ram_efficient_loading=False))
    with pytest.raises(ValueError, match="fsdp_cpu_ram_efficient_loading: true"):
        prepare_sharding(SimpleNamespace(fsdp_version=2, cpu_ram_efficient_loading=True))
