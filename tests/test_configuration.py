"""The config: what it refuses, what it keeps, and the named sizes and presets."""

import json

import pytest
from model_helpers import TINY, tiny_config
from transformers import ViTMAEConfig

from sssd_hf import DISTILLATION_PRESETS, SSSDConfig, SSSDForPreTraining, SSSDModel

DINO = {"distillation_head": "dino", "distillation_distance": "cross_entropy"}
# (field named by the message, value shown, part of what is allowed, the other fields)
IMPOSSIBLE = [
    ("preparation", {"size": [1, 2]}, "resize_mode", {}),
    ("preparation", "letterbox", "resize_mode", {}),
    ("calibration", {"temperature": 1.0}, "threshold", {}),
    ("image_size", 33, "multiple of patch_size=8", {}),
    ("image_size", [32, 36], "multiple of patch_size=8", {}),
    ("image_size", [32, 32, 32], "(height, width)", {}),
    ("image_size", 0, ">= 1", {}),
    ("patch_size", 0, ">= 1", {}),
    ("patch_size", -8, ">= 1", {}),
    ("num_channels", 2, "1 (grey) or 3 (RGB)", {}),
    ("num_channels", 0, "1 (grey) or 3 (RGB)", {}),
    ("hidden_size", 36, "multiple of num_attention_heads=8", {"num_attention_heads": 8}),
    ("hidden_size", 30, "multiple of 4", {"num_attention_heads": 3}),
    ("hidden_size", 0, ">= 1", {}),
    (
        "decoder_hidden_size",
        28,
        "decoder_num_attention_heads=3",
        {"decoder_num_attention_heads": 3},
    ),
    ("decoder_hidden_size", 18, "multiple of 4", {"decoder_num_attention_heads": 3}),
    ("num_hidden_layers", 0, ">= 1", {}),
    ("num_attention_heads", 0, ">= 1", {}),
    ("intermediate_size", 0, ">= 1", {}),
    ("decoder_num_hidden_layers", 0, ">= 1", {}),
    ("decoder_num_attention_heads", 0, ">= 1", {}),
    ("decoder_intermediate_size", -1, ">= 1", {}),
    ("hidden_act", "gellu", "gelu", {}),
    ("layer_norm_eps", -1e-6, ">= 0", {}),
    ("layer_norm_eps", float("inf"), ">= 0", {}),
    ("initializer_range", -0.02, ">= 0", {}),
    ("mask_ratio", 1.5, "from 0 to 1", {}),
    ("mask_ratio", -0.1, "from 0 to 1", {}),
    ("mask_ratio", float("nan"), "from 0 to 1", {}),
    ("hidden_dropout_prob", 1.0, "< 1", {}),
    ("hidden_dropout_prob", -0.1, ">= 0", {}),
    ("attention_probs_dropout_prob", 1.1, "< 1", {}),
    ("drop_path_rate", 1.0, "< 1", {}),
    ("drop_path_rate", -0.1, ">= 0", {}),
    ("label_smoothing", 1.1, "from 0 to 1", {}),
    ("pooling", "max", "'cls', 'mean'", {}),
    ("num_labels", 0, ">= 1", {}),
    ("class_weights", [1.0], "3 weights", {"num_labels": 3}),
    ("class_weights", [1.0, -1.0], "above 0", {}),
    ("class_weights", [1.0, 0.0], "above 0", {}),
    ("class_weights", [float("nan"), 1.0], "above 0", {}),
    ("distillation_weight", -0.2, ">= 0", {}),
    ("distillation_weight", float("inf"), ">= 0", {}),
    ("distillation_weight", 1.2, "at most 1", {"distillation_weighting": "convex"}),
    ("distillation_weighting", "sum", "'additive', 'convex'", {}),
    ("distillation_schedule", "cosine", "'linear_warmup', 'constant'", {}),
    ("distillation_warmup_ratio", 1.5, "from 0 to 1", {}),
    ("distillation_tokens", "masked", "'visible', 'visible_cls', 'all'", {}),
    ("distillation_tokens", "all", "distillation_pooling", {}),
    ("distillation_pooling", "cls", "'none', 'features', 'logits'", {}),
    ("distillation_pooling", "logits", "'dino'", {}),
    ("distillation_head", "conv", "'linear', 'mlp', 'dino'", {}),
    ("distillation_distance", "kl", "'smooth_l1'", {}),
    ("distillation_distance", "cross_entropy", "'dino'", {}),
    ("distillation_distance", "cosine", "'dino'", {"distillation_head": "dino"}),
    ("distillation_target", "batch_norm", "'layer_norm'", {}),
    (
        "distillation_target",
        "standardize_per_position",
        "distillation_pooling",
        {"distillation_pooling": "features"},
    ),
    ("distillation_teacher_head", "frozen", "'ema', 'shared', 'joint'", {}),
    ("distillation_teacher_head", "joint", "stop-gradient", DINO),
    ("distillation_layer", 2, "0 to 1", {}),
    ("distillation_layer", -1, "0 to 1", {}),
    ("distillation_student_temperature", 0.0, "> 0", {}),
    ("distillation_teacher_temperature", -0.1, "> 0", {}),
    ("distillation_center_momentum", 1.1, "from 0 to 1", {}),
    ("distillation_teacher_momentum", -0.1, "from 0 to 1", {}),
    ("distillation_num_prototypes", 1, ">= 2", {}),
    ("distillation_head_hidden_size", 0, ">= 1", {}),
    ("distillation_bottleneck_size", 0, ">= 1", {}),
]


@pytest.mark.parametrize(("field", "value", "allowed", "others"), IMPOSSIBLE)
def test_an_impossible_value_is_named_with_what_is_allowed(field, value, allowed, others):
    with pytest.raises(ValueError) as raised:
        tiny_config(**{field: value, **others})
    message = str(raised.value)
    assert f"{field}={value!r}" in message
    assert allowed in message.split("allowed:")[1]


def test_every_own_field_is_checked():
    own = set(SSSDConfig().to_dict()) - set(ViTMAEConfig().to_dict())
    free = {"distillation_stop_gradient"}  # of two values, both possible
    assert own - free <= {case[0] for case in IMPOSSIBLE}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("distillation_stop_gradient", "False"),
        ("distillation_num_prototypes", "many"),
        ("distillation_num_prototypes", 12.0),
        ("distillation_weight", "0.2"),
        ("distillation_weight", True),
        ("distillation_layer", 1.5),
        ("drop_path_rate", None),
    ],
)
def test_a_wrong_type_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}={value!r}; allowed"):
        tiny_config(**{field: value})


@pytest.mark.parametrize(
    "field",
    ["distillation_center_momentum", "distillation_teacher_momentum", "distillation_weight",
     "distillation_student_temperature", "distillation_teacher_temperature", "drop_path_rate",
     "distillation_warmup_ratio", "label_smoothing"],
)  # fmt: skip
def test_a_whole_number_will_do_for_a_fraction(field):
    value = 1 if "temperature" in field else 0
    assert getattr(tiny_config(**{field: value}), field) == value


def test_a_value_set_after_building_is_checked_where_a_model_is_built():
    config = tiny_config()
    config.hidden_size = 30
    with pytest.raises(ValueError, match="hidden_size=30"):
        SSSDModel(config)


@pytest.mark.parametrize(
    ("mask_ratio", "refused"),
    [(0.0, True), (0.04, False), (0.0625, False), (0.9375, False), (0.95, True), (1.0, True)],
)
def test_the_mask_must_leave_something_to_see_and_to_predict(mask_ratio, refused):
    config = tiny_config(mask_ratio=mask_ratio)  # 16 patches, floor(16 (1 - ratio)) visible
    SSSDModel(config)  # masking is no matter of the encoder
    if refused:
        with pytest.raises(ValueError, match=rf"mask_ratio={mask_ratio}.*16 patches"):
            SSSDForPreTraining(config)
    else:
        SSSDForPreTraining(config)


def test_round_trip(tmp_path):
    config = tiny_config(
        image_size=[32, 48],
        num_channels=1,
        class_weights=[1.0, 2.5, 0.5],
        num_labels=3,
        id2label={0: "a", 1: "b", 2: "c"},
        label2id={"a": 0, "b": 1, "c": 2},
        distillation_layer=1,
        **DISTILLATION_PRESETS["sd_mae"],
    )
    config.save_pretrained(tmp_path)
    loaded = SSSDConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == {**config.to_dict(), "transformers_version": None} | {
        "transformers_version": loaded.transformers_version
    }
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "sssd"
    assert loaded.grid_size == (4, 6)
    assert loaded.num_patches == 24


def test_fields_are_those_of_vit_mae_with_its_defaults():
    stock, own = ViTMAEConfig().to_dict(), SSSDConfig().to_dict()
    assert set(stock) <= set(own)
    differing = {key for key in stock if stock[key] != own[key]}
    assert differing - {"model_type", "architectures"} == {"layer_norm_eps", "norm_pix_loss"}
    # MAE: nn.LayerNorm(eps=1e-6), --norm_pix_loss in the published pretraining command
    assert own["layer_norm_eps"] == 1e-6
    assert own["norm_pix_loss"] is True


# the ViT family of timm; MAE's decoder is 512 wide, 8 deep, with 16 heads
@pytest.mark.parametrize(
    ("size", "width", "heads"), [("tiny", 192, 3), ("small", 384, 6), ("base", 768, 12)]
)
@pytest.mark.parametrize("decoder", ["light", "mae"])
def test_sizes(size, width, heads, decoder):
    config = getattr(SSSDConfig, size)(decoder=decoder, image_size=112)
    assert (config.hidden_size, config.num_hidden_layers) == (width, 12)
    assert (config.num_attention_heads, config.intermediate_size) == (heads, 4 * width)
    assert config.image_size == 112
    found = (
        config.decoder_hidden_size,
        config.decoder_num_hidden_layers,
        config.decoder_num_attention_heads,
    )
    if decoder == "mae":
        assert found == (512, 8, 16)
    else:  # arXiv 2212.05677: one to four blocks, 128 to 256 wide
        assert 128 <= found[0] <= 256
        assert 1 <= found[1] <= 4
    assert config.decoder_intermediate_size == 4 * config.decoder_hidden_size


@pytest.mark.parametrize("field", [{"size": "huge"}, {"decoder": "deep"}, {"distillation": "dino"}])
def test_an_unknown_name_is_refused(field):
    with pytest.raises(ValueError, match=f"{next(iter(field))}=.*allowed"):
        SSSDConfig.from_size(**{"size": "tiny", **field})


def test_presets():
    stable = SSSDConfig.from_size("tiny")
    assert stable.to_dict() == SSSDConfig.from_size("tiny", distillation="stable").to_dict()
    assert 0.1 <= stable.distillation_weight <= 0.5
    assert stable.distillation_stop_gradient
    assert SSSDConfig.from_size("tiny", distillation="mae").distillation_weight == 0
    assert SSSDConfig.tiny(distillation="sd_mae", mask_ratio=0.6).mask_ratio == 0.6
    # Luo et al., arXiv 2203.16983: L = 0.2 L_sd + 0.8 L_rec, K = 4096, MLP 2048-2048-256
    sd_mae = SSSDConfig.from_size("tiny", distillation="sd_mae")
    expected = {
        "weight": 0.2, "weighting": "convex", "num_prototypes": 4096, "head_hidden_size": 2048,
        "bottleneck_size": 256, "student_temperature": 0.1, "teacher_temperature": 0.04,
        "center_momentum": 0.9, "stop_gradient": False, "pooling": "logits", "head": "dino",
        "distance": "cross_entropy", "teacher_head": "joint", "schedule": "constant",
    }  # fmt: skip
    for name, value in expected.items():
        assert getattr(sd_mae, f"distillation_{name}") == value
    pooled = SSSDConfig.from_size("tiny", distillation="global")
    assert (pooled.distillation_tokens, pooled.distillation_pooling) == ("all", "features")
    assert (pooled.distillation_head, pooled.distillation_distance) == ("mlp", "cosine")
    assert SSSDConfig(**TINY).hidden_size == 32
