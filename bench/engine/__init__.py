"""The engine: shapes, registry, checks, timing and result files, for every suite and every device."""
