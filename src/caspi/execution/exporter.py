"""The metrics of docs/metrics.md, for Prometheus to fetch from a pod."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from caspi.execution.standing import Standing
from caspi.launched import World
from caspi.spec.values import HourlyPrice

REASONS = ("crash", "hang", "membership")


@dataclass(slots=True)
class Membership:
    """What a pod knows of its group."""

    world: World | None = None
    """None while it waits for others."""
    restarts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(REASONS, 0)))

    @property
    def leads(self) -> bool:
        return self.world is not None and self.world.node == 0


class PodMetrics(Collector):
    """Read anew each time that they are asked for, so that they say what the disk says."""

    def __init__(
        self, round: str, membership: Membership, price: HourlyPrice | None, look: Callable[[], Standing]
    ) -> None:
        self.round, self.membership, self.price, self.look = round, membership, price, look

    def describe(self) -> Iterator[Metric]:
        """None: whoever registers this would have to read the disk to say."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        world = self.membership.world
        yield self._gauge("caspi_nodes", "Nodes that train together.", world.nodes if world else 0)
        yield self._gauge("caspi_world_size", "Training processes in all.", world.size if world else 0)
        yield self._counters(
            "caspi_restarts", "Lives of training processes begun again.", "reason", self.membership.restarts
        )
        if world and world.node == 0:
            yield from self._training(self.look(), world)

    def _training(self, stands: Standing, world: World) -> Iterator[Metric]:
        """Of one pod only, so that a sum over pods is right."""
        train, dev, forecast = (stands.last.get(kind, {}) for kind in ("train", "dev", "forecast"))
        gauges = {
            "caspi_train_step": ("Optimizer steps taken.", stands.step),
            "caspi_train_steps": ("Optimizer steps in all.", train.get("steps")),
            "caspi_train_loss": ("Of the last logged step.", train.get("loss")),
            "caspi_train_grad_norm": ("Of the last logged step.", train.get("grad_norm")),
            "caspi_train_utterances_per_second": ("Lately.", train.get("utterances_per_second")),
            "caspi_train_seconds_forecast": ("Seconds of training at its end.", forecast.get("total_seconds")),
            "caspi_dev_wer": ("Of the last score on dev.", dev.get("wer")),
            "caspi_checkpoint_step": ("Of the newest whole checkpoint.", stands.checkpoint),
            "caspi_checkpoint_timestamp_seconds": ("Of the newest whole checkpoint.", stands.saved),
        }
        for name, (text, value) in gauges.items():
            if value is not None:
                yield self._gauge(name, text, value)
        rates = GaugeMetricFamily("caspi_train_learning_rate", "Of each group that moves.", labels=["round", "group"])
        for group, rate in train.get("rates", {}).items():
            rates.add_metric([self.round, group], rate)
        yield rates
        if stands.seconds is not None:
            yield self._counter("caspi_train_seconds", "Seconds of training.", stands.seconds)
            if self.price:
                spent = stands.seconds / 3600 * world.size * self.price.amount
                yield self._counters("caspi_train_cost", "Spent so far.", "currency", {self.price.currency: spent})
        if "cost" in forecast:
            cost = GaugeMetricFamily("caspi_train_cost_forecast", "Cost at the end.", labels=["round", "currency"])
            cost.add_metric([self.round, forecast["currency"]], forecast["cost"])
            yield cost
        yield self._counters("caspi_warnings", "What looked wrong.", "name", Counter(stands.warnings))

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=["round"])
        family.add_metric([self.round], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=["round"])
        family.add_metric([self.round], value)
        return family

    def _counters(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        family = CounterMetricFamily(name, text, labels=["round", label])
        for key, value in values.items():
            family.add_metric([self.round, key], value)
        return family


def export(metrics: PodMetrics, port: int) -> Callable[[], None]:
    """Answer on `port` from a thread; call what comes back to stop. OSError when the port is taken."""
    registry = CollectorRegistry()
    registry.register(metrics)
    server, _ = start_http_server(port, registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return stop
