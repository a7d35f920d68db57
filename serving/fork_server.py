"""Imported first by the fork server of serving/preloading.py.

It ends with the server at any time: by itself it would look for the server's end only after its
imports, seconds later. And it lets vLLM name its processes (`VLLM::EngineCore`): setproctitle finds
the title by way of the environment that the process began with, and ours get another.
"""

from contextlib import suppress

from serving.preloading import be_the_fork_server

be_the_fork_server()
with suppress(ImportError):  # vLLM does without it too
    import setproctitle

    setproctitle.getproctitle()
