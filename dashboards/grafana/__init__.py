"""The dashboard: panels.py says what it shows, build.py writes it as Grafana reads it."""
