"""Load on a running server: streaming chat users against the base and its adapters."""
