"""The store in etcd through python-etcd3, for who has that library already.

Same keys and values as `kv.etcd`, so that hosts with either client share one store. What the
library lacks is made up for around it: `store` is the `Store`; below it `watch` (every watch begins
anew on the next connection) and `health`; below these `connection` (members, failover, users) and
`watcher` (the library's own, with one stream and an end).
"""

import pyvxlan.daemon.kv.etcd  # noqa: F401 - sets how gRPC forks, before anything imports it
