"""Report formats that need a library: Excel workbooks and Parquet.

Both contain the values of the CSV, typed. Neither contains a clock time: equal rows give equal bytes.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any

from dfscan.errors import OutputError
from dfscan.files import writing
from dfscan.report.schema import DIGITS, Column
from dfscan.report.writers import ReportWriter, Sink, typed_cell
from dfscan.text import guard_formula, printable

if TYPE_CHECKING:
    from pyarrow import Schema

MAX_XLSX_ROWS = 1_048_575
"""Maximum number of rows that Excel opens, without the header."""
MAX_XLSX_TEXT = 32_767
MAX_XLSX_LINKS = 65_530
ROWS_PER_GROUP = 10_000
VERDICT_COLOURS = {"fake": "F8CBAD", "real": "C6E0B4", "inconclusive": "FFE699", "no_face": "DDDDDD", "error": "D9B3FF"}
COLUMN_WIDTHS = {"path": 60, "verdict": 14, "reason": 50, "sha256": 30, "checkpoint": 24}
DEFAULT_WIDTH = 12
LINK = "dumps_folder"
"""Key of a row that is not a column: the folder with the video's dumps, relative to the report."""
EPOCH = datetime(1980, 1, 1)  # the earliest date in a zip file


class XlsxWriter(ReportWriter):
    """Excel workbook: typed cells, a frozen header with filters, coloured verdicts, and a sheet about the scan.

    If a row has a `LINK`, its path is a hyperlink to it. Rows are held in memory until the end.
    """

    def __init__(self, sink: Sink, columns: Sequence[Column], *, about: Mapping[str, str]) -> None:
        super().__init__(sink, columns)
        self._about = about
        self._rows: list[tuple[list[str | int | float | None], object]] = []

    def append(self, row: Mapping[str, object]) -> None:
        """See `ReportWriter.append`.

        Raises:
            OutputError: there are more rows than Excel can open.
        """
        if len(self._rows) == MAX_XLSX_ROWS:
            raise OutputError(f"a workbook holds at most {MAX_XLSX_ROWS} rows; write .csv or .parquet instead")
        self._rows.append(([typed_cell(column, row[column.name]) for column in self._columns], row.get(LINK)))

    def close(self) -> None:
        """See `ReportWriter.close`."""
        try:
            with writing(tempfile.gettempdir()):  # openpyxl writes there first
                packed = self._packed()
        except BaseException:
            self._sink.discard()
            raise
        dated = BytesIO()
        with zipfile.ZipFile(BytesIO(packed)) as source, zipfile.ZipFile(dated, "w") as target:
            for name in source.namelist():
                data = source.read(name)
                if name == "docProps/core.xml":  # openpyxl writes the current time there
                    changed = rb"\g<1>" + f"{EPOCH.isoformat()}Z".encode()
                    data = re.sub(rb"(<dcterms:modified[^>]*>)[^<]*", changed, data)
                target.writestr(zipfile.ZipInfo(name, EPOCH.timetuple()[:6]), data, zipfile.ZIP_DEFLATED)
        self._sink.write(dated.getvalue())
        self._sink.commit()

    def _packed(self) -> bytes:
        from openpyxl import Workbook
        from openpyxl.styles import Font
        from openpyxl.utils import get_column_letter

        book = Workbook(write_only=True)
        book.properties.creator = "dfscan"
        book.properties.created = EPOCH
        sheet = book.create_sheet("report")
        letters = [get_column_letter(i) for i in range(1, len(self._columns) + 1)]
        for letter, column in zip(letters, self._columns, strict=True):
            sheet.column_dimensions[letter].width = COLUMN_WIDTHS.get(column.name, DEFAULT_WIDTH)
        sheet.freeze_panes = "B2"
        sheet.auto_filter.ref = f"A1:{letters[-1]}{len(self._rows) + 1}"
        head = [_text(sheet, column.name) for column in self._columns]
        for cell in head:
            cell.font = Font(bold=True)
        sheet.append(head)
        for i, (values, link) in enumerate(self._rows):
            cells = zip(self._columns, values, strict=True)
            link = link if i < MAX_XLSX_LINKS else None
            sheet.append([_xlsx_cell(sheet, column, value, link) for column, value in cells])
        about = book.create_sheet("about")
        about.column_dimensions["A"].width, about.column_dimensions["B"].width = 30, 100
        for name, text in self._about.items():
            about.append([_text(about, name), _text(about, text)])
        packed = BytesIO()
        book.save(packed)
        return packed.getvalue()


def _xlsx_cell(sheet: Any, column: Column, value: str | int | float | None, link: object) -> Any:
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.styles import Font, PatternFill

    if not isinstance(value, str):
        cell = WriteOnlyCell(sheet, value=value)
        if column.kind in DIGITS:
            cell.number_format = f"0.{'0' * DIGITS[column.kind]}"
        return cell
    cell = _text(sheet, guard_formula(value))
    if column.name == "verdict" and value in VERDICT_COLOURS:
        cell.fill = PatternFill("solid", fgColor=VERDICT_COLOURS[value])
    if column.name == "path" and link:
        cell.hyperlink = str(link)
        cell.font = Font(underline="single")
    return cell


def _text(sheet: Any, text: str) -> Any:
    """Return a cell with plain text, which Excel never interprets as a formula or number."""
    from openpyxl.cell import WriteOnlyCell

    exact = re.sub(r"_(?=x[0-9A-Fa-f]{4}_)", "_x005F_", printable(text))  # Excel reads _x0041_ as A
    cell = WriteOnlyCell(sheet, value=exact[:MAX_XLSX_TEXT])
    cell.data_type = "s"
    return cell


def arrow_schema(columns: Sequence[Column]) -> Schema:
    """Return the types of these columns in Parquet."""
    import pyarrow

    types = {"path": pyarrow.string(), "text": pyarrow.string(), "int": pyarrow.int64()}
    return pyarrow.schema([(column.name, types.get(column.kind, pyarrow.float64())) for column in columns])


class ParquetWriter(ReportWriter):
    """Apache Parquet: text, 64-bit integers and doubles, all nullable."""

    def __init__(self, sink: Sink, columns: Sequence[Column]) -> None:
        import pyarrow.parquet

        super().__init__(sink, columns)
        self._schema = arrow_schema(columns)
        self._packed = BytesIO()
        self._file = pyarrow.parquet.ParquetWriter(self._packed, self._schema)
        self._rows: list[dict[str, object]] = []

    def append(self, row: Mapping[str, object]) -> None:
        """See `ReportWriter.append`."""
        self._rows.append({column.name: typed_cell(column, row[column.name]) for column in self._columns})
        if len(self._rows) >= ROWS_PER_GROUP:
            self._write_group()

    def close(self) -> None:
        """See `ReportWriter.close`."""
        self._write_group()
        self._file.close()
        self._sink.write(self._packed.getvalue())
        self._sink.commit()

    def _write_group(self) -> None:
        import pyarrow

        self._file.write_table(pyarrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []
