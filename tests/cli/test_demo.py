"""The demo runs through, shortened, and leaves what it promises."""

import json

from sssd_hf.cli import demo


def test_demo_leaves_checkpoint_results_and_figures(tmp_path, capsys):
    output = tmp_path / "demo"
    options = ["--output_dir", str(output), "--num_patients", "24", "--max_train_steps", "2"]
    assert demo.main(options) == 0
    text = capsys.readouterr().out
    results = json.loads((output / "all_results.json").read_text())
    assert 0 <= results["accuracy"] <= 1
    low, high = results["accuracy_interval"]
    assert low <= results["accuracy"] <= high
    assert f"{100 * results['accuracy']:.1f} % of {results['num_test_images']} slices" in text
    assert "--data_dir MY_IMAGES" in text
    for name in ("finetuned/model.safetensors", "reconstructions.png", "curves.png"):
        assert (output / name).stat().st_size > 1000
    # training saw no patient of the test split
    splits = json.loads((output / "finetuned" / "splits.json").read_text())
    patients = {
        part: {name.split("_")[0] for name in splits[part]}
        for part in ("train", "validation", "test")
    }
    assert not patients["test"] & (patients["train"] | patients["validation"])
