"""python-etcd3's `Watcher`, made to end.

The library's own tells its callbacks once when its stream breaks, forgets them, and then opens one
stream after the other for nobody, without a pause, for as long as the server is away. It reuses
itself across streams, which this one never does: it serves one, and its thread ends with it.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeAlias

import grpc
from etcd3.etcdrpc import WatchStub
from etcd3.exceptions import Etcd3Exception
from etcd3.watch import Watcher

Client: TypeAlias = Any
"""An `Etcd3Client`: its methods block, and any thread may call them."""


class StreamEndedError(Etcd3Exception):  # type: ignore[misc]
    """The stream of watches has ended; nothing begins on it any more."""


class StreamWatcher(Watcher):  # type: ignore[misc]
    """Watches on one stream, which is opened for the first of them.

    Args:
        client: Has the connection, and the token to send.
        ended: Called with the reason when the stream has ended, in the watcher's own thread.
        begin_s: How long a watch may take to begin.
    """

    def __init__(self, client: Client, ended: Callable[[str], None], *, begin_s: float) -> None:
        super().__init__(WatchStub(client.channel), timeout=begin_s)
        # The library's holds ten requests, and who waits for room holds the lock meanwhile.
        self._request_queue: SimpleQueue[Any] = SimpleQueue()
        self._client = client
        self._told = ended
        self._reason = ""

    def add_callback(self, *words: Any, **options: Any) -> int:
        """Begins a watch, as the library does.

        Raises:
            StreamEndedError: The stream has ended, or ended meanwhile.
            RevisionCompactedError: What it should begin with is history no more.
            WatchTimedOut: It was not confirmed in time. The confirmation may still come, and would
                then be taken for that of the next watch: the stream must not be used any more.
        """
        if self._reason:
            raise StreamEndedError(self._reason)
        watch_id: int = super().add_callback(*words, **options)
        return watch_id

    def _run(self) -> None:
        """Serves the stream until it ends; takes the place of the library's endless loop."""
        reason = "etcd ended the stream of watches"
        try:
            responses = self._watch_stub.Watch(
                iter(self._request_queue.get, None), metadata=self._client.metadata
            )
            for response in responses:
                if response.canceled and response.cancel_reason and not response.compact_revision:
                    # Refused; the library would take it for a watch that was begun.
                    reason = f"etcd ended a watch: {response.cancel_reason}"
                    responses.cancel()
                    break
                self._handle_response(response)
        except grpc.RpcError as error:
            reason = f"the stream of watches broke: {error.details() or error.code()}"
        except ValueError as error:  # the channel was closed before
            reason = f"the stream of watches can't be opened: {error}"
        finally:
            self._end(reason)

    def _end(self, reason: str) -> None:
        with self._lock:
            self._reason = reason
            self._callbacks.clear()
            if self._new_watch:
                self._new_watch.err = StreamEndedError(reason)
                self._new_watch_cond.notify_all()
        self._request_queue.put(None)  # ends gRPC's thread that waits for requests
        self._told(reason)
