"""What a stage did: records, their typed results, and the directory that holds them."""
