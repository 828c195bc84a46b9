"""See `python scripts/pretrain.py --help`."""

from sssd_hf.cli.common import run_script
from sssd_hf.cli.pretrain import main

if __name__ == "__main__":
    run_script(main)
