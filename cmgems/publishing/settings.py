"""Settings of `cmgems publish`. Imports neither torch nor transformers."""

from pathlib import Path

from pydantic import Field

from cmgems.settings import Settings


class PublishConfig(Settings):
    """Which model is published, where to, and what only its owner knows."""

    run: Path
    """Folder of a pretraining run, as runs/logo-cm-gems-15/1."""
    to: str = Field(min_length=1)
    """A new folder, or `hub:OWNER/NAME` for a model on the Hugging Face hub."""
    step: int | None = Field(default=None, ge=0)
    """Optimizer steps of the model, one that the run has exported; empty: the last one."""
    private: bool = False
    """Only those may see the model on the hub whom its owner lets."""
    license: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9.-]*$")
    """Licence of the model by its identifier on the hub, such as apache-2.0; empty: the card names none."""
    kg_co2: float | None = Field(default=None, ge=0)
    """Emissions of the training in kg of CO2 equivalents, if they are known."""
