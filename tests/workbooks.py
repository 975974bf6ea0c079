"""Small workbooks written by hand, so that no library that writes them is needed."""

import zipfile
from pathlib import Path
from xml.sax.saxutils import escape

SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
ODS = (
    'xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0" xmlns:table="urn:oasis:names:tc:opendocument:xmlns:table:1.0" '
    'xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0"'
)


def write_xlsx(path: Path, rows: dict[int, list[object]], names: tuple[str, ...] = ("Sheet1",), cells: str = "") -> Path:
    """A workbook whose sheets all hold these rows, {row number: cells}; `cells` is XML for a last row."""
    body = "".join(f'<row r="{n}">' + "".join(_cell(n, c, v) for c, v in enumerate(row)) + "</row>" for n, row in rows.items()) + cells
    sheets = "".join(f'<sheet name="{name}" sheetId="{i}" r:id="rId{i}"/>' for i, name in enumerate(names, 1))
    links = "".join(
        f'<Relationship Id="rId{i}" Type="{OFFICE}/worksheet" Target="worksheets/sheet{i}.xml"/>' for i in range(1, len(names) + 1)
    )
    # Style 1 is a date.
    styles = (
        f'<styleSheet xmlns="{SHEET}"><cellXfs count="2"><xf numFmtId="0"/><xf numFmtId="14" applyNumberFormat="1"/></cellXfs></styleSheet>'
    )
    links += f'<Relationship Id="rId99" Type="{OFFICE}/styles" Target="styles.xml"/>'
    main = f'<Relationship Id="rId1" Type="{OFFICE}/officeDocument" Target="xl/workbook.xml"/>'
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types"><Default Extension="xml" ContentType="application/xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{PACKAGE}/relationships">{main}</Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{SHEET}" xmlns:r="{OFFICE}"><sheets>{sheets}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{PACKAGE}/relationships">{links}</Relationships>',
        "xl/styles.xml": styles,
    }
    for i in range(1, len(names) + 1):
        parts[f"xl/worksheets/sheet{i}.xml"] = f'<worksheet xmlns="{SHEET}"><sheetData>{body}</sheetData></worksheet>'
    return _zip(path, parts)


def write_ods(path: Path, rows: list[list[str]], repeat: int = 1) -> Path:
    """An OpenDocument table of texts; the last cell of each row stands there `repeat` times."""
    body = ""
    for row in rows:
        texts = [f'<table:table-cell office:value-type="string"{{}}><text:p>{escape(cell)}</text:p></table:table-cell>' for cell in row]
        many = f' table:number-columns-repeated="{repeat}"' if repeat > 1 else ""
        body += "<table:table-row>" + "".join(text.format(many if text is texts[-1] else "") for text in texts) + "</table:table-row>"
    content = f'<office:document-content {ODS}><office:body><office:spreadsheet><table:table table:name="S">{body}</table:table>'
    content += "</office:spreadsheet></office:body></office:document-content>"
    kind = "application/vnd.oasis.opendocument.spreadsheet"
    entry = f'<manifest:file-entry manifest:full-path="/" manifest:media-type="{kind}"/>'
    manifest = f'<manifest:manifest xmlns:manifest="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0">{entry}</manifest:manifest>'
    return _zip(path, {"mimetype": kind, "META-INF/manifest.xml": manifest, "content.xml": content})


def _cell(row: int, column: int, value: object) -> str:
    place = f"{chr(ord('A') + column)}{row}"
    if value is None:
        return ""
    if isinstance(value, bool):
        return f'<c r="{place}" t="b"><v>{int(value)}</v></c>'
    if isinstance(value, complex):  # stands for a date: days since 1900
        return f'<c r="{place}" s="1"><v>{value.real:g}</v></c>'
    if isinstance(value, int | float):
        return f'<c r="{place}"><v>{value}</v></c>'
    return f'<c r="{place}" t="inlineStr"><is><t xml:space="preserve">{escape(str(value))}</t></is></c>'


def _zip(path: Path, parts: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, ('<?xml version="1.0" encoding="UTF-8"?>' if name != "mimetype" else "") + text)
    return path
