"""Alembic's environment: migrations run on the connection that `storage.database` hands over."""

from alembic import context

from storage.tables import Table

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Table.metadata, transactional_ddl=False)
context.run_migrations()
