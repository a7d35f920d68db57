"""Imported first by the fork server of serving/preloading.py: it ends with the server, at any time.

Without this it would look for the server's end only after its imports, seconds later.
"""

from serving.preloading import end_with_parent

end_with_parent()
