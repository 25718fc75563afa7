"""Which licence a text is, by sentences that only its kind has. SPDX names; "unknown" else."""

import re

_MARKS = (
    ("AGPL-3.0", r"gnu affero general public license.*version 3"),
    ("LGPL-3.0", r"gnu lesser general public license.*version 3"),
    ("GPL-3.0", r"gnu general public license.*version 3"),
    ("GPL-2.0", r"gnu general public license.*version 2"),
    ("MPL-2.0", r"mozilla public license.*(version )?2\.0"),
    ("Apache-2.0", r"apache license.*version 2\.0"),
    ("CC0-1.0", r"cc0 1\.0|creative commons.*cc0"),
    ("CC-BY-NC-4.0", r"attribution-noncommercial 4\.0"),
    ("CC-BY-SA-4.0", r"attribution-sharealike 4\.0"),
    ("CC-BY-4.0", r"attribution 4\.0 international"),
    ("Unlicense", r"free and unencumbered software released into the public domain"),
    ("BSD-3-Clause", r"redistribution and use in source and binary forms.*neither the name"),
    ("BSD-2-Clause", r"redistribution and use in source and binary forms"),
    ("ISC", r"permission to use, copy, modify, and/or distribute this software for any purpose"),
    ("MIT", r"permission is hereby granted, free of charge.*without restriction"),
)
OWN = "own"
"""Of a run that this program made: yours to license."""
UNKNOWN = "unknown"
PERMISSIVE = (
    *(OWN, "MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Unlicense"),
    *("CC0-1.0", "CC-BY-4.0", "0BSD", "MIT-0", "Zlib"),
)
FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "LICENCE.md", "COPYING", "UNLICENSE")


def recognise(text: str) -> str:
    """The SPDX name of the licence whose text this is, UNKNOWN if it is none of the common."""
    plain = re.sub(r"\s+", " ", text.lower())[:20_000]
    return next((name for name, mark in _MARKS if re.search(mark, plain)), UNKNOWN)
