"""Hostile lists: what spreadsheets, old systems and hurried people save as CSV."""

from __future__ import annotations

import codecs

Case = tuple[str, bytes, list[str] | str]
"""Name, content, and either the names of its rows or words of the error."""

AB = ["a.wav", "b.wav"]
MANY = 100_000


def cases() -> list[Case]:
    """Below a folder with a.wav, b.wav and `new\\nline.wav`."""
    plain = "path,label\na.wav,x\nb.wav,y\n"
    columns = ",".join(f"c{number}" for number in range(MANY))
    return [
        ("byte order mark", plain.encode("utf-8-sig"), AB),
        ("two byte order marks", codecs.BOM_UTF8 * 2 + plain.encode(), "no column path"),
        ("carriage return, line feed", plain.replace("\n", "\r\n").encode(), AB),
        ("no end of the last line", plain.strip().encode(), AB),
        ("empty lines", plain.replace("\n", "\n\n\n").encode(), AB),
        ("spaces around names", b" path , label \na.wav,x\nb.wav,y\n", AB),
        ("empty lines before the header", b"\n , \npath,label\n\na.wav,x\nb.wav,y\n", AB),
        ("one name in two folders", b"path\na.wav\n/elsewhere/a.wav\n", ["a.wav", "a.wav (2)"]),
        ("all quoted", b'"path","label"\n"a.wav","x"\n"b.wav","y, ""z"""\n', AB),
        ("line feed in a quoted path", b'path\n"new\nline.wav"\n', ["new\nline.wav"]),
        ("quote that is not closed", b'path,label\na.wav,x\n"b.wav,y\n', "line 3: not readable as CSV: unexpected end"),
        ("quote closed too early", b'path,label\n"a".wav,x\n', "line 2: not readable as CSV"),
        ("quote over the field limit", b'path\n"' + b"a.wav\n" * 50_000, "field larger than field limit"),
        ("field over the limit", b"path\n" + b"x" * 200_000, "field larger than field limit"),
        ("zero byte", b"path\na.wav\0b.wav\n", "line 2: a zero byte"),
        ("100,000 columns", f"{columns},path\n{',' * MANY}a.wav\n".encode(), ["a.wav"]),
        ("100,000 columns without a path", f"{columns}\n".encode(), "c9 and 99990 more"),
        (
            "100,000 fields in a line",
            f"path\na.wav{',' * MANY}\n".encode(),
            "line 2: 100,001 fields, but the header has 1",
        ),
        ("fewer fields than columns", b"label,split,path\nx,train,a.wav\nx\n", "line 3: 1 field, but the header has 3"),
        ("more fields than columns", b"path,label\na.wav,Dog bark, loud\n", "line 2: 3 fields, but the header has 2"),
        (
            "quote in the middle",
            b'path,label\na.wav,x\nb.wav,a "big" dog\n',
            "line 3: a quote in the middle of a field",
        ),
        ("quote at the end", b'path,label\na.wav,5"\n', "line 2: a quote in the middle of a field"),
        ("quotes after spaces", b'path, label\na.wav, "x, y"\nb.wav,  "y ""z"""\n', AB),
        ("lines of commas", b"path,label\na.wav,x\n,\nb.wav,y\n,\n , \n", AB),
        ("columns in capitals", b"Path,LABEL\na.wav,x\nb.wav,y\n", AB),
        ("label and labels", b"path,label,labels\na.wav,x,y\n", "columns label and labels"),
        ("a fold that is none", b"path,fold\na.wav,first\n", "line 2: fold 'first', but a fold is a whole number"),
        ("a fold that is a fraction", b"path,fold\na.wav,1.5\n", "line 2: fold '1.5'"),
        ("path listed twice", b"path\na.wav\nb.wav\na.wav\n", "line 4: a.wav is already listed in line 2"),
        ("path listed twice by detours", b"path\na.wav\nx/../a.wav\n", "line 3: x/../a.wav is already listed"),
        ("column label twice", b"path,label,label\na.wav,x,y\n", "2 columns are called label"),
        ("utf-16", plain.encode("utf-16"), "in UTF-16 or UTF-32; save it as CSV in UTF-8"),
        ("utf-16 big endian", codecs.BOM_UTF16_BE + plain.encode("utf-16-be"), "in UTF-16"),
        ("utf-16 without a mark", plain.encode("utf-16-le"), "line 1: a zero byte"),
        ("latin-1", "path\ncafé.wav\n".encode("latin-1"), r"not UTF-8 (byte e9 after 'path\ncaf')"),
        ("semicolons", plain.replace(",", ";").encode(), "columns found: path;label"),
        ("empty", b"", "no column path (columns found: none)"),
        ("only a header", b"path,label\n", "a header but no lines"),
        ("no header", b"a.wav,x\nb.wav,y\n", "no column path (columns found: a.wav, x)"),
        ("a path of spaces", b'path,label\n"  ",x\n', "line 2: the column path is empty"),
        ("split that leaves the folder", b"path,split\na.wav,../../train\n", "line 2: split '../../train'"),
        ("split with a line feed", b'path,split\na.wav,"train\nx"\n', "split 'train\\nx'"),
        ("paths that leave the folder", b"path\na.wav\n../../outside.wav\n", ["a.wav", "../../outside.wav"]),
        ("paths of devices", b"path\na.wav\n/dev/zero\n/etc/passwd\n", ["a.wav", "dev/zero", "etc/passwd"]),
        ("label with everything", b'path,label\na.wav,"../%s\t$(x)\xe2\x80\xae\x1b[31m"\n', ["a.wav"]),
    ]
