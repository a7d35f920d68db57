"""Load on a running server: chat users stream from the base and its adapters (docs/loadtests.md).

`scenarios.py` is the table of scenarios and `locustfile.py` their users, with the bad requests of
`hostile.py`. `__main__.py` makes a plan (`plan.py`) for a server, perhaps one that it starts
(`local_server.py`), and runs locust (`run.py`). The rest works on what a run leaves behind:
`answers.py` (records), `figures.py`, `checks.py`, `charts.py` and `report.py`.

`chaos.py` and `fleet.py` are commands of their own, over several servers (`replicas.py`), which are
forked (`preloaded.py`, `forked_server.py`), and over routers (`routers.py`).
"""
