"""The site's models: who brings them, what people do with them, which ones are routed."""

from __future__ import annotations

from bridge.catalog.fitness import Fitness
from bridge.catalog.lifecycle import Lifecycle
from bridge.catalog.registrar import Registrar, dates
from bridge.catalog.shelf import Catalog

__all__ = ["Catalog", "Fitness", "Lifecycle", "Registrar", "dates"]
