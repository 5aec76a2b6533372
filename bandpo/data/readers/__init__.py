"""Files, folders and hub datasets become rows, each with its place for error messages."""

from bandpo.data.readers.faults import RowFault, Rows
from bandpo.data.readers.files import file_rows, is_data_file, name_of
from bandpo.data.readers.tables import ExactFloats, hub_rows

__all__ = ["ExactFloats", "RowFault", "Rows", "file_rows", "hub_rows", "is_data_file", "name_of"]
