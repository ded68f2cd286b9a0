"""The verbs of ``dhc``, one file each."""
