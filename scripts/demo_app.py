"""See `python scripts/demo_app.py --help`."""

from sssd_hf.cli.common import run_script
from sssd_hf.cli.demo_app import main

if __name__ == "__main__":
    run_script(main)
