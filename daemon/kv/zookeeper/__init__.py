"""`ZookeeperStore`: the store on ZooKeeper."""

from pyvxlan.daemon.kv.zookeeper.store import ZookeeperStore

__all__ = ["ZookeeperStore"]
