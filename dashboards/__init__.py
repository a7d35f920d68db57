"""Prometheus rules and the Grafana dashboard of a server; see docs/operations.md."""
