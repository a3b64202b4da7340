"""Grafana's dashboards for pyvxlan, as code, with the files that Grafana and Prometheus read."""
