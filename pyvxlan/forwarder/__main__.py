"""Entry point of `python -m pyvxlan.forwarder`."""

import sys

from pyvxlan.forwarder.main import run

sys.exit(run())
