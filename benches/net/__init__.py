"""The whole path between two containers on two hosts, measured beside its peers.

`python -m benches.net --help`, as root; docs/performance.md tells what is measured and how.
"""
