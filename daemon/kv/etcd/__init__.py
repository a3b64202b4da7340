"""The store in etcd (API v3, servers 3.4 and later), spoken to with gRPC.

`store` is the `Store`; below it `watch` (all watches on one stream), `sessions` (leases) and
`health`; below these `channel` (members, failover, users), `keys` and `messages`.
"""

from pyvxlan.daemon.kv.etcd.store import EtcdStore

__all__ = ["EtcdStore"]
