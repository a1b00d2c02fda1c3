"""Tools: check on a GPU, tune the kernels' tables, compile for GPUs that are not there, make the lengths."""
