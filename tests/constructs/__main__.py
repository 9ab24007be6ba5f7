"""Writes the table of the documentation: python -m tests.constructs"""

from .table import PATH, table

PATH.write_text(table())
