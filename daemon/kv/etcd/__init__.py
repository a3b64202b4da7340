"""The store in etcd (API v3, servers 3.4 and later), spoken to with gRPC.

`store` is the `Store`; below it `watch` (all watches on one stream), `sessions` (leases) and
`health`; below these `channel` (members, failover, users), `messages`, and what `kv.etcd3` shares:
`keys`, `answers` and `findings`. Nothing is imported here, since these need less than the rest.
"""

import os

# gRPC's fork handlers crash a third of what pyroute2 forks to enter a namespace, and slow the rest.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # before anything imports it
# What it would print of each failed attempt, the store's own errors tell with the remedy.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
