"""Consul as a store, through its agents' HTTP API."""

from pyvxlan.daemon.kv.consul.store import ConsulStore

__all__ = ["ConsulStore"]
