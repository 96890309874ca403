"""What a round is: RoundSpec and ClusterSpec, read from YAML."""

from caspi.spec.cluster import ClusterSpec
from caspi.spec.load import load_cluster, load_round, parse
from caspi.spec.round import RoundSpec

__all__ = ["ClusterSpec", "RoundSpec", "load_cluster", "load_round", "parse"]
