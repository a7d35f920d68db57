"""Speed and memory: commands that print a table and write JSON. Never asserted in tests."""
