"""scripts/embed.py: features as from the model by hand, the Parquet file as others read it."""

import csv
import json

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from tiny_runs import read
from transformers import (
    AutoImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from sssd_hf import SSSDConfig, SSSDForImageClassification, SSSDForPreTraining
from sssd_hf.cli import common, embed

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}
STATISTICS = [0.4, 0.45, 0.5], [0.2, 0.25, 0.3]


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    """54 colour images of 18 patients and a table: light below or above, in noise."""
    root = tmp_path_factory.mktemp("patients")
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(18):
        split = ("train", "train", "val", "test", "none")[patient % 5]
        label = ("down", "up")[patient // 5 % 2]
        for i in range(3):
            pixels = rng.uniform(0, 130, (40, 44, 3))
            pixels[20 * (label == "down") :][:20] += 60
            name = f"p{patient:02d}_{i}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(root / name)
            rows.append([name, label, f"P{patient}", split])
    with open(root / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "label", "patient_id", "protocol"], *rows])
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of checkpoints: both of ours, and the stock ones."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    config = SSSDConfig(**SIZES, num_channels=3)
    made = {
        "pretraining": SSSDForPreTraining(config),
        "classification": SSSDForImageClassification(config),
        "vit_mae": ViTMAEForPreTraining(ViTMAEConfig(**SIZES)),
        "vit": ViTForImageClassification(
            ViTConfig(**{k: v for k, v in SIZES.items() if not k.startswith("decoder")})
        ),
    }
    for name, model in made.items():
        folder = root / name
        if name.startswith("vit"):
            for weight in model.parameters():  # the stock tables of positions are zeros
                torch.nn.init.normal_(weight, std=0.1)
            model.save_pretrained(folder)
            processor = read(root / "pretraining" / "preprocessor_config.json")
            common.write_json(folder / "preprocessor_config.json", processor)
        else:
            common.save_checkpoint(model, folder, STATISTICS)
    return {name: (root / name, model.eval()) for name, model in made.items()}


def run(images, model, output, *options):
    argv = ["--data_dir", images, "--model_name_or_path", model, "--output_dir", output, *options]
    assert embed.main([str(word) for word in argv]) == 0
    return output / "embeddings.parquet"


GROUPS = ("--group_column_name", "patient_id", "--split_column", "protocol")


def by_hand(folder, model, paths, pooling):
    """The stock image processor, then the model."""
    processor = AutoImageProcessor.from_pretrained(folder)
    pixel_values = processor([Image.open(path) for path in paths], return_tensors="pt").pixel_values
    with torch.no_grad():
        if isinstance(model, ViTMAEForPreTraining):
            model.vit.config.mask_ratio = 0.0
            model.vit.embeddings.config.mask_ratio = 0.0
            noise = torch.arange(16.0).expand(len(paths), -1)  # keeps the order
            tokens = model.vit(pixel_values, noise=noise).last_hidden_state
        elif isinstance(model, ViTForImageClassification):
            tokens = model.vit(pixel_values).last_hidden_state
        else:
            tokens = model.encoder(pixel_values).last_hidden_state
    assert tokens.shape[1] == 17
    chosen = {"cls": tokens[:, :1], "mean": tokens, "mean_patches": tokens[:, 1:]}[pooling]
    return chosen.mean(1).numpy()


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [
        ("pretraining", "cls"),
        ("pretraining", "mean"),
        ("classification", "mean_patches"),
        ("vit_mae", "mean_patches"),
        ("vit", "cls"),
    ],
)
def test_features_are_those_of_the_model_called_by_hand(patients, models, tmp_path, kind, pooling):
    folder, model = models[kind]
    options = ("--pooling", pooling, "--per_device_eval_batch_size", 7)
    table = pd.read_parquet(run(patients, folder, tmp_path, *GROUPS, *options))
    wanted = by_hand(folder, model, [patients / name for name in table["file_name"]], pooling)
    np.testing.assert_allclose(np.stack(table["embedding"]), wanted, atol=2e-5)
    assert np.abs(wanted).std() > 1e-3


@pytest.fixture(scope="module")
def embedded(patients, models, tmp_path_factory):
    return run(patients, models["pretraining"][0], tmp_path_factory.mktemp("out"), *GROUPS)


def test_pandas_pyarrow_and_datasets_read_the_file(embedded, patients, tmp_path):
    metadata = pd.read_csv(patients / "metadata.csv").sort_values("file_name")
    table = pd.read_parquet(embedded).sort_values("file_name")
    assert table["file_name"].tolist() == metadata["file_name"].tolist()
    assert table["label"].tolist() == metadata["label"].tolist()
    assert table["group"].tolist() == metadata["patient_id"].tolist()
    parts = {"train": "train", "val": "validation", "test": "test", "none": None}
    found = [None if part != part else part for part in table["split"]]
    assert found == [parts[part] for part in metadata["protocol"]]

    schema = pq.read_schema(embedded)
    assert schema.field("embedding").type == pa.list_(pa.float32(), SIZES["hidden_size"])
    rows = datasets.Dataset.from_parquet(str(embedded), cache_dir=str(tmp_path))
    features = np.array(rows.sort("file_name")["embedding"][:], dtype=np.float32)
    np.testing.assert_array_equal(features, np.stack(table["embedding"]))
    assert features.shape == (54, SIZES["hidden_size"])


def test_the_file_says_what_made_it(embedded, models):
    described = json.loads(pq.read_schema(embedded).metadata[b"sssd_hf"])
    results = read(embedded.parent / "all_results.json")
    assert described.items() <= results.items()
    assert described["model_name_or_path"] == str(models["pretraining"][0])
    assert described["pooling"] == "mean_patches"
    assert described["preparation"]["resize_mode"] == "squash"
    assert described["image_mean"] == STATISTICS[0]
    assert described["image_size"] == [32, 32]
    assert described["versions"]["torch"] == torch.__version__
    assert len(described["weights_sha256"]) == 64
    assert results["num_images"] == 54
    assert results["split_column"] == "protocol"
    assert "embed.py" in results["command"]
    counts = {"train": 24, "validation": 12, "test": 9}
    assert results["num_images_of_splits"] == counts
    assert not list(embedded.parent.glob("*.tmp"))


def test_splits_asked_for_and_folders_without_labels(patients, models, embedded, tmp_path):
    folder = models["pretraining"][0]
    options = (*GROUPS, "--embed_splits", "test,validation")
    table = pd.read_parquet(run(patients, folder, tmp_path / "a", *options))
    assert set(table["split"]) == {"validation", "test"}
    assert len(table) == 21
    every = pd.read_parquet(embedded).set_index("file_name")["embedding"]
    for name, features in zip(table["file_name"], table["embedding"], strict=True):
        np.testing.assert_allclose(features, every[name], atol=1e-6)

    alone = tmp_path / "images"
    alone.mkdir()
    for name in ("p00_0.png", "p01_0.png"):
        (alone / name).write_bytes((patients / name).read_bytes())
    table = pd.read_parquet(run(alone, folder, tmp_path / "b"))
    assert table["file_name"].tolist() == ["p00_0.png", "p01_0.png"]
    assert table[["label", "group", "split"]].isna().all(axis=None)  # nothing was cut
    with pytest.raises(ValueError, match="--embed_splits test: there are no such images"):
        run(alone, folder, tmp_path / "b", "--embed_splits", "test")


def test_random_weights_are_refused_unless_asked_for(patients, models, embedded, tmp_path):
    folder = models["pretraining"][0]
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (broken / name).write_bytes((folder / name).read_bytes())
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layers.0.mlp.fc1.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights of the encoder, .*mlp\.fc1\.weight"):
        run(patients, broken, tmp_path, *GROUPS)
    with pytest.raises(ValueError, match=r"there is no config\.json"):
        run(patients, tmp_path, tmp_path)

    made = []
    for seed in (1, 1, 2):
        options = (*GROUPS, "--random_weights", "true", "--seed", seed)
        made.append(
            np.stack(pd.read_parquet(run(patients, folder, tmp_path, *options))["embedding"])
        )
    assert (made[0] == made[1]).all()
    trained = np.stack(pd.read_parquet(embedded)["embedding"])
    for other in (made[2], trained):
        assert np.abs(made[0] - other).max() > 0.1


def test_bad_files_stop_the_run_or_are_left_out(patients, models, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("p00_0.png", "p01_0.png"):
        (images / name).write_bytes((patients / name).read_bytes())
    (images / "bad.png").write_bytes(b"no image")
    output = tmp_path / "out"
    with pytest.raises(ValueError, match=r"bad\.png"):
        run(images, models["pretraining"][0], output)
    assert not (output / "embeddings.parquet").exists()
    path = run(images, models["pretraining"][0], output, "--skip_bad_files", "true")
    assert pd.read_parquet(path)["file_name"].tolist() == ["p00_0.png", "p01_0.png"]
    assert "bad.png" in (output / "bad_files.csv").read_text()


def test_a_write_that_fails_leaves_the_file_before(embedded, monkeypatch):
    before = embedded.read_bytes()

    def fail(table, path, **options):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="no space left"):
        embed.write_embeddings(embedded, {"file_name": ["a"]}, np.zeros((1, 2)), {})
    assert embedded.read_bytes() == before
    embedded.with_suffix(".tmp").unlink()


@pytest.fixture(scope="module")
def evaluated(patients, models, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated")
    options = ("--evaluate", "true", "--few_shot_percents", "10", "100", "--few_shot_repeats", "3")
    options += ("--num_resamples", "100", "--num_neighbors", "5")
    return run(patients, models["pretraining"][0], output, *GROUPS, *options).parent


def test_the_evaluation_is_scikit_learn_s_on_the_file_s_features(evaluated):
    results = read(evaluated / "all_results.json")
    table = pd.read_parquet(evaluated / "embeddings.parquet")
    parts = {
        part: (np.stack(rows["embedding"]).astype(float), rows["label"].to_numpy())
        for part, rows in table.groupby("split")
    }
    train, test = parts["train"], parts["test"]
    knn = KNeighborsClassifier(5, metric="cosine", weights=lambda d: 2 - d).fit(*train)
    assert results["knn"]["accuracy"] == knn.score(*test)
    scaler = StandardScaler().fit(train[0])
    linear = LogisticRegression(C=results["linear_C"], max_iter=1000)
    linear.fit(scaler.transform(train[0]), train[1])
    assert results["linear"]["accuracy"] == linear.score(scaler.transform(test[0]), test[1])
    low, high = results["linear"]["intervals"]["accuracy"]
    assert low <= results["linear"]["accuracy"] <= high
    assert results["labels"] == ["down", "up"]
    assert results["num_test_groups"] == 3
    assert "patient_id" in results["interval_method"]

    curve = pd.read_csv(evaluated / "few_shot.csv")
    assert curve["percent"].tolist() == [10] * 3 + [100]
    whole = curve.iloc[-1]
    assert whole["num_images"] == 24
    assert whole["num_groups"] == 8
    assert whole["accuracy"] == pytest.approx(results["linear"]["accuracy"])
    assert whole["C"] == results["linear_C"]
    assert [row["percent"] for row in results["few_shot"]] == [10, 100]
    for name in ("few_shot", "embedding"):
        with Image.open(evaluated / "figures" / f"{name}.png") as image:
            assert image.width == 1800


def test_no_test_label_is_used_to_choose(patients, models, evaluated, tmp_path):
    """The labels of the test images exchanged: the same strengths, the opposite figures."""
    for path in patients.glob("*.png"):
        (tmp_path / path.name).symlink_to(path)
    table = pd.read_csv(patients / "metadata.csv")
    test = table["protocol"] == "test"
    table.loc[test, "label"] = table.loc[test, "label"].map({"up": "down", "down": "up"})
    table.to_csv(tmp_path / "metadata.csv", index=False)
    options = ("--evaluate", "true", "--few_shot_percents", "10", "100", "--few_shot_repeats", "3")
    options += ("--num_resamples", "100", "--num_neighbors", "5")
    output = run(tmp_path, models["pretraining"][0], tmp_path / "out", *GROUPS, *options).parent
    first, second = (read(folder / "all_results.json") for folder in (evaluated, output))
    assert first["linear_C"] == second["linear_C"]
    assert second["linear"]["accuracy"] == pytest.approx(1 - first["linear"]["accuracy"])
    curves = [pd.read_csv(folder / "few_shot.csv") for folder in (evaluated, output)]
    assert curves[0]["C"].equals(curves[1]["C"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--evaluate", "true", "--validation_split", "train"), "both take the value"),
        (("--evaluate", "true", "--label_column_name", ""), "no labels"),
        (("--evaluate", "true", "--train_split", "train,val,none,test"), "there is no test split"),
    ],
)
def test_what_an_evaluation_lacks_is_said(patients, models, tmp_path, options, message):
    options = (*GROUPS, "--train_val_split", "0.2", *options)
    with pytest.raises(ValueError, match=message):
        run(patients, models["pretraining"][0], tmp_path, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--few_shot_percents", "0", "5"), "--few_shot_percents"),
        (("--embed_splits", "val"), "--embed_splits val"),
        (("--evaluate", "true", "--embed_splits", "test"), "needs all splits"),
    ],
)
def test_impossible_options_are_named(options, message, capsys):
    with pytest.raises(SystemExit):
        embed.main(["--data_dir", "x", *options])
    assert message in capsys.readouterr().err
