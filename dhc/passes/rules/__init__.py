"""The rules of `canonicalize`, by family. Each keeps every bit of the results."""
