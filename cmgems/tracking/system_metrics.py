"""CPU, memory, disk, network and GPU of the machine, sampled by MLflow's monitor, for the journal."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from cmgems.config.schema import TrackingConfig


class _SystemMetrics(SystemMetricsMonitor):  # type: ignore[misc]  # MLflow is not typed
    """MLflow's monitor of the machine, for the journal: its own asks the server at each sample whether the run is
    active, and stops when there is no answer."""

    def __init__(self, run_id: str | None, log: Callable[[Mapping[str, float]], None]) -> None:
        # It makes a client of this address, which is not used: that of a database would be connected to at once.
        super().__init__(run_id, tracking_uri="http://unused")
        self._log = log

    def monitor(self) -> None:
        """Sample and log until the end."""
        while not self._shutdown_event.is_set():
            for _ in range(self.samples_before_logging):
                self.collect_metrics()
                if self._shutdown_event.wait(self.sampling_interval):
                    return
            self.publish_metrics(self.aggregate_metrics())

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Put means over the samples into the journal."""
        prefix = self._metrics_prefix + (f"{self.node_id}/" if self.node_id else "")
        self._log({prefix + name: value for name, value in metrics.items()})
        for monitor in self.monitors:
            monitor.clear_metrics()

    def finish(self) -> None:
        """Stop."""
        self._shutdown_event.set()
        if self._process is not None:
            self._process.join()


@contextmanager
def sample_system_metrics(
    settings: TrackingConfig, run_id: str | None, log: Callable[[Mapping[str, float]], None]
) -> Iterator[None]:
    """Call `log` with means of the machine's metrics now and then while this lasts, if the settings say so."""
    if not settings.system_metrics:
        yield
        return
    monitor = _SystemMetrics(run_id, log)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
