"""The command line: `erniem-fast`."""
