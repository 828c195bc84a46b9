"""See `python scripts/audit.py --help`."""

from sssd_hf.cli.audit import main
from sssd_hf.cli.common import run_script

if __name__ == "__main__":
    run_script(main)
