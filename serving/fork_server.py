"""Imported first by the fork server of serving/preloading.py: it ends with the server, at any time.

Without this it would look for the server's end only after its imports, seconds later. The signal
comes when the thread ends that started this process: the server's main thread.
"""

import ctypes
import signal

PR_SET_PDEATHSIG = 1  # linux/prctl.h

ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
