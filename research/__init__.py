"""Code behind this project's own claims: README.md says what there is.

It may import anything; nothing of the product imports it (tests/test_imports.py).
"""
