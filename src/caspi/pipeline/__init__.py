"""A round as a Kubeflow pipeline: what its steps do, and the client that starts and watches runs."""
