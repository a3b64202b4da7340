"""Exceptions of the daemon: one leaf per distinct reaction of a caller.

`status` is the HTTP status that the API answers; `retry` says whether the same request can
succeed later without a change to it. Every message names the value and the remedy.
"""


class DaemonError(Exception):
    """Root of everything that the daemon raises on purpose."""

    status = 500
    retry = False


class InvalidError(DaemonError):
    """A value is not acceptable; nothing was done."""

    status = 400


class NotFoundError(DaemonError):
    """What the caller named does not exist."""

    status = 404


class ConflictError(DaemonError):
    """The name, address or record is taken or has changed; nothing was done."""

    status = 409


class InUseError(ConflictError):
    """A network still has endpoints; the message names them and their hosts."""


class ExhaustedError(DaemonError):
    """A pool of addresses, VNIs or ports has nothing left to give."""

    status = 409


class ConfigError(DaemonError):
    """The configuration is wrong; the daemon does not start."""


class NetError(DaemonError):
    """The kernel refused a change to a namespace, link, address, route or rule."""

    retry = True


class DataplaneError(DaemonError):
    """The forwarder could not be reached or refused a request."""

    status = 503
    retry = True


class StoreError(DaemonError):
    """The key-value store could not be reached or refused the request."""

    status = 503
    retry = True


class StoreConflictError(StoreError):
    """A check of the transaction failed: nothing was applied; read again, then decide."""

    status = 409


class StoreUnavailableError(StoreError):
    """Surely not applied: refused before anything was sent."""


class StoreDeniedError(StoreUnavailableError):
    """The store does not let this host do that; the message names the remedy."""


class StoreUncertainError(StoreError):
    """Maybe applied: read again, then decide. A transaction is never repeated by the store."""


class NotSettledError(DaemonError):
    """The change is in the store, but this host could not apply it in time."""

    status = 504
    retry = True


class PeerError(DaemonError):
    """Another host's daemon does not answer; the message says which one and why."""

    status = 502
    retry = True


class PeerRefusedError(PeerError):
    """Another host's daemon answered, with a refusal of its own."""

    retry = False
