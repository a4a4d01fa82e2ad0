"""What the stages share while the service runs: one frozen value, made by service.py."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import sqlalchemy

from bridge.ambient import Clock
from bridge.catalog import Catalog, Fitness, Lifecycle, Registrar
from bridge.engine import Engine, EngineClient
from bridge.files import Files
from bridge.record import Recorder
from bridge.report.identity import Gateway
from bridge.site import Site
from bridge.study import Patient
from bridge.vault import Vault

__all__ = ["Rooms"]


@dataclass(frozen=True)
class Rooms:
    """A site's rooms. `work` is the engine while it runs, or only its counter (commands)."""

    site: Site
    database: sqlalchemy.Engine
    files: Files
    vault: Vault
    record: Recorder
    catalog: Catalog
    registrar: Registrar
    lifecycle: Lifecycle
    fitness: Fitness
    work: Engine | EngineClient
    clock: Clock
    gateway: Gateway

    def now(self) -> datetime:
        """Give the wall clock's time."""
        return self.record.now()

    def subject(self, patient: Patient, study_instance_uid: str) -> str:
        """Give the vault's reference for a patient, or for a study that names none."""
        if patient.identified:
            return self.vault.subject(patient.issuer, patient.patient_id).ref
        return self.vault.unidentified(study_instance_uid).ref

    @property
    def folder(self) -> Path:
        """The site's folder."""
        return self.site.folder
