"""See `python scripts/cross_validate.py --help`."""

from sssd_hf.cli.common import run_script
from sssd_hf.cli.cross_validate import main

if __name__ == "__main__":
    run_script(main)
