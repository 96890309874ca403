"""What the pods of a chart run; people rarely need these."""
