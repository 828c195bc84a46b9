"""See `python scripts/demo.py --help`."""

from sssd_hf.cli.common import run_script
from sssd_hf.cli.demo import main

if __name__ == "__main__":
    run_script(main)
