"""Is the data worth GPU money? Findings on single utterances, estimates for whole domains, and a decision.

signals.py looks at samples and at the rate of text, leakage.py for the same audio twice, sampling.py chooses what to
listen to and turns findings into shares, gate.py decides. Whether the text is what is said needs an alignment: its
place is beside signals.py, as one more check per clip; until then `AuditResults.alignment` says "not run".
"""
