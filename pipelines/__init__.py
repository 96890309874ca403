"""The Kubeflow pipeline of a round: its definition, what it compiles to, and a run of it on this machine."""
