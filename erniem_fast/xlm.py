"""XLM on packed rows."""
