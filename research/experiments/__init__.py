"""Claims put to the test: each file one claim, with its controls, seeds and standard errors."""
