"""Images a second of pretraining with each cache setting and, with --before, of another version.

    python benchmarks/pretraining_speed.py --data_dir FOLDER [--before CHECKOUT] [-- OPTIONS ...]

Runs scripts/pretrain.py on one core, the settings in turn and the turns repeated, for other work on
the machine to fall on all of them; prints medians. The data folder may also be given by SSSD_DATA.
OPTIONS go to the script, such as --split_column official_split.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
CACHES = ("memory", "disk", "none")


def run(checkout, data_dir, home, options):
    """(images a second while training, seconds of the whole script)"""
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, str(checkout / "scripts/pretrain.py"), "--data_dir", str(data_dir)]
        line += ["--output_dir", f"{folder}/out", *options]
        path = {"PYTHONPATH": str(checkout / "src"), "HF_HOME": home, "OMP_NUM_THREADS": "1"}
        started = time.perf_counter()
        done = subprocess.run(line, env={**os.environ, **path}, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if done.returncode:
            sys.exit(done.stderr)
        results = json.loads((Path(folder) / "out/all_results.json").read_text())
    return results["train_images_per_second"], seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, default=os.environ.get("SSSD_DATA"))
    parser.add_argument("--before", type=Path, help="A checkout of another version.")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("options", nargs="*", help="After --: options of the script.")
    arguments = parser.parse_args()
    if arguments.data_dir is None:
        parser.error("name a folder of images by --data_dir or SSSD_DATA")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    common = [*arguments.options, "--max_train_steps", str(arguments.steps), "--eval_epochs", "0"]
    settings = {f"--cache {cache}": (REPOSITORY, [*common, "--cache", cache]) for cache in CACHES}
    if arguments.before:
        settings["before"] = (arguments.before.resolve(), common)
    figures = {name: [] for name in settings}
    with tempfile.TemporaryDirectory() as home:
        for turn in range(arguments.repeats + 1):
            for name, (checkout, options) in settings.items():
                found = run(checkout, arguments.data_dir.resolve(), home, options)
                print(f"{name}: {found[0]:.0f} images/s, {found[1]:.0f} s", file=sys.stderr)
                if turn:  # the first turn fills caches
                    figures[name].append(found)
    print(f"{'':16s}{'images/s':>10s}{'(range)':>16s}{'whole script, s':>18s}")
    for name, pairs in figures.items():
        rates, seconds = zip(*pairs)
        spread = f"{min(rates):.0f}-{max(rates):.0f}"
        print(
            f"{name:16s}{statistics.median(rates):10.0f}{spread:>16s}"
            f"{statistics.median(seconds):18.1f}"
        )


if __name__ == "__main__":
    main()
