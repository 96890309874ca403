"""The report of a round: one HTML page that needs nothing else."""
