"""Which tunnels the forwarder probes: those to the VTEPs that it shares a network with. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class Tunnels:
    """The VTEPs of all networks that the forwarder carries.

    Kept up to date network by network, since there may be a thousand of them, each with a
    thousand VTEPs.
    """

    def __init__(self) -> None:
        self._networks: dict[int, frozenset[str]] = {}
        self._mtus: dict[str, dict[int, int]] = {}
        """MTUs by VTEP and VNI."""

    def set(self, vni: int, mtu_bytes: int, vteps: Iterable[str]) -> bool:
        """Takes the VTEPs of a network; none if it is gone. Says whether that changed anything."""
        now = frozenset(vteps)
        before = self._networks.get(vni, frozenset())
        changed = False
        for vtep in before - now:
            networks = self._mtus[vtep]
            del networks[vni]
            if not networks:
                del self._mtus[vtep]
            changed = True
        for vtep in now:
            networks = self._mtus.setdefault(vtep, {})
            changed |= networks.get(vni) != mtu_bytes
            networks[vni] = mtu_bytes
        if now:
            self._networks[vni] = now
        else:
            self._networks.pop(vni, None)
        return changed

    def wanted(self) -> Mapping[str, int]:
        """The largest MTU of the networks shared, in bytes, by VTEP."""
        return {vtep: max(mtus.values()) for vtep, mtus in self._mtus.items()}

    def networks(self, vtep: str) -> frozenset[int]:
        """The VNIs of the networks that are shared with a VTEP."""
        return frozenset(self._mtus.get(vtep, ()))
