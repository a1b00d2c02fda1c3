"""Files of texts in, files of results out: in constant memory, resumable, whole or not at all."""
