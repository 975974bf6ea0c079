"""What the catalog of adapters promises, on SQLite and on PostgreSQL alike."""

from dataclasses import replace

import pytest

from storage import catalog as storage_catalog
from storage.catalog import SORTS, Catalog, Search
from storage.database import Database
from storage.errors import DuplicateName, RecordNotFound
from storage.jobs import Jobs
from storage.records import AdapterRecord
from storage.repositories import Adapters, Bases, Datasets
from storage.shelf import ARCHIVED, OLD
from tests.fuzzing import seeded
from tests.records import ADAPTER, BASE, DATASET, job
