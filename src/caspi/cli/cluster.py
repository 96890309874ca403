"""The commands of a round on Kubernetes."""
