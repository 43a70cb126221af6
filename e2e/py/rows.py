"""Adds rows to an SQLite database, and prints the number of rows and a digest of them: rows.py FILE [ROWS]."""

import hashlib
import sqlite3
import sys

db = sqlite3.connect(sys.argv[1])
if len(sys.argv) > 2:
    db.execute("pragma journal_mode = wal")
    db.execute("create table if not exists rows (text)")
    db.executemany("insert into rows values (?)", ((hashlib.sha256(b"%d" % i).hexdigest() * 3,) for i in range(int(sys.argv[2]))))
    db.commit()
texts = [text for (text,) in db.execute("select text from rows order by rowid")]
print(len(texts), "rows,", hashlib.sha256("".join(texts).encode()).hexdigest())
