"""Docker's side: its network and IPAM plug-in, and the networks in its list.

`codec` reads what Docker asks, `network` and `ipam` answer, `server` carries both over the socket;
`engine` asks Docker, `steward` keeps its networks in step with the cluster's, `pairing` remembers
which is which.
"""

from pyvxlan.daemon.plugin.engine import Engine
from pyvxlan.daemon.plugin.server import TIMED, Plugin

__all__ = ["TIMED", "Engine", "Plugin"]
