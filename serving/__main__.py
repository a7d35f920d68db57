"""`python -m serving`: see serving/settings.py for what can be set."""

import sys

from adapters.program import program
from serving.settings import SettingsError, from_command_line


def main() -> int:
    """Serve until told to stop. Returns the exit code: 0 after a clean shutdown, 2 if misused."""
    try:
        settings, engine_flags = from_command_line(sys.argv[1:])
        from serving.launch import serve  # after the settings: it imports vLLM, which takes seconds

        return serve(settings, engine_flags)
    except SettingsError as error:
        print(f"{program('python -m serving')}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":  # vLLM spawns processes that import this module again
    sys.exit(main())
