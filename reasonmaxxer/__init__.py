"""The command line: `reasonmaxxer fit`, `evaluate`, `grade`, `serve`, `store`, and more.

cli.py      the console script: finds the command and hands it the remaining arguments
doctor.py   versions, device, what is supported: for bug reports
extras.py   which optional packages are installed, and the command that installs the others
"""
