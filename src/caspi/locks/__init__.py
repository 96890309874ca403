"""Locks: one round, pinned by digests, for GitOps."""
