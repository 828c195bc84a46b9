"""All benchmarks one after the other, then the table: `make bench`, or for a GPU

    python benchmarks/all.py --device cuda --minutes 8

which has never been run: there was no GPU when it was written. A benchmark that fails or that finds
no time left is named, and the others go on.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from measuring import RESULTS

# the most important first: what finds no time is left out
CPU = (
    "step memory distillation feeding end_to_end latency inference startup growth external "
    "step_compiled".split()
)
GPU = "step memory feeding distillation end_to_end latency inference step_compiled".split()
# benchmarks that are another one with an option
LINES = {"step_compiled": ["step.py", "--compile"]}
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--minutes", type=float, default=0.0, help="0: as long as it takes")
    parser.add_argument("--only", default="", help="Names of benchmarks by comma.")
    arguments, others = parser.parse_known_args()
    names = arguments.only.split(",") if arguments.only else CPU
    names = [n for n in names if n in GPU] if arguments.device == "cuda" else names
    until = time.monotonic() + 60 * arguments.minutes if arguments.minutes else float("inf")
    wrong = []
    for name in names:
        left = until - time.monotonic()
        if left < 20:
            wrong.append(f"{name} (no time left)")
            continue
        script, *options = LINES.get(name, [f"{name}.py"])
        line = [sys.executable, str(HERE / script), *options, "--device", arguments.device, *others]
        try:
            limit = None if left == float("inf") else left
            if subprocess.run(line, timeout=limit).returncode:
                wrong.append(f"{name} (failed)")
        except subprocess.TimeoutExpired:
            wrong.append(f"{name} (stopped: no time left)")
    table = [sys.executable, str(HERE / "table.py"), "--device", arguments.device]
    results = RESULTS
    if "--results" in others:
        results = Path(others[others.index("--results") + 1])
    if "--quick" in others:
        results /= "quick"
    table += ["--results", str(results)]
    subprocess.run(table)
    if wrong:
        sys.exit(f"not measured: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
