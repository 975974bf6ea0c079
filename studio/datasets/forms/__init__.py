"""The forms that rows of fine-tuning data have, found by themselves, and the one form that each becomes.

`find_forms` and `choose_form` look at the first rows; a `RowReader` then reads each row. What a form does with what is
out of the ordinary is written down in docs/datasets.md. To add a form: a `Form` in catalog.py, its reader in shapes.py.
"""

from studio.datasets.forms.catalog import FORMS, Fit, Form, Role, read_mapping
from studio.datasets.forms.choice import choose_form, find_forms
from studio.datasets.forms.conversation import Conversation, Turn, is_passage, to_row
from studio.datasets.forms.faults import KINDS
from studio.datasets.forms.reader import RowReader

__all__ = [
    "FORMS",
    "KINDS",
    "Conversation",
    "Fit",
    "Form",
    "Role",
    "RowReader",
    "Turn",
    "choose_form",
    "find_forms",
    "is_passage",
    "read_mapping",
    "to_row",
]
