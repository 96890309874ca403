"""Rounds on Kubernetes: submitted, watched, cancelled. The kubernetes client stays in this package."""
