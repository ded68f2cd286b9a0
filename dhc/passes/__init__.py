"""Graph to graph: one file a pass, named pipelines in one file."""
