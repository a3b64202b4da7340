"""Why A does not reach B: `pyvxlan why`; docs/why.md.

`walk` finds the two endpoints, asks their hosts and has `judge` decide, which `words` puts into
words (both pure, on the values of `case`). `explain` and `trace` answer on each of the two hosts:
what is there, and where marked frames pass. `facts` are what they say.
"""

from pyvxlan.daemon.why.explain import Explainer
from pyvxlan.daemon.why.trace import Tracer
from pyvxlan.daemon.why.walk import EXPLAIN, TRACE, Why

__all__ = ["EXPLAIN", "TRACE", "Explainer", "Tracer", "Why"]
