"""The engine in a process of its own, without privileges; see docs/forwarder.md.

`protocol` says what is on the socket, `channel` carries it, `server` and `main` are the process,
and `client` is how a daemon speaks with it.
"""
