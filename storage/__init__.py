"""Persistence: tables, migrations, one repository a record, and the file store. Imports nothing from studio/."""
