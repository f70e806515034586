"""Strings that break software: one list, by what they break."""

NAUGHTY: dict[str, tuple[str, ...]] = {
    "empty and blank": ("", " ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u200b", "\ufeff"),
    "reserved words": ("null", "undefined", "None", "true", "NaN", "Infinity", "-0", "0x10", "1e309"),
    "control characters": ("a\0b", "\x01\x02\x1b[31m", "\x7f", "\x85", "\u2028\u2029"),
    "surrogates and noncharacters": ("\ufffe", "\uffff", "\U0010ffff", "\ufdd0"),
    "scripts": ("Iñtërnâtiônàlizætiøn", "田中さんにあげて", "Ὕδωρ", "ÅΩ≈ç√", "⁰⁴⁵₀₁₂", "ﬃ"),
    "right to left": ("مرحبا", "\u202etest\u202c", "\u2066test\u2067"),
    "combining": ("Z̮̞̠͙͔ͅḀ̗̞͈̻̗Ḷ͙͎̯̹̞͓G̻O̭̗̮", "e\u0301", "\u0301", "a" + "\u0300" * 60),
    "emoji": ("😍", "👩‍👩‍👧‍👦", "🇺🇳", "👍🏿", "\u263a\ufe0f"),
    "case": ("İi̇ıI", "ß ẞ", "ΣΑΣ"),
    "SQL": ("1; DROP TABLE items", "' OR 1=1 --", "1'1", "%_\\", "$$;$1", ":name %(x)s {0}"),
    "HTML and scripts": (
        "<script>alert(0)</script>",
        '"><img src=x onerror=alert(1)>',
        "&lt;&#60;",
        "javascript:1",
    ),
    "shells and paths": ("$(touch /tmp/x)", "`ls`", "../../../../etc/passwd%00", "C:\\CON", "~", "*"),
    "templates and formats": ("{{7*7}}", "${7*7}", "%s%n%x", "#{1+1}", "<%= 1 %>"),
    "headers": ("a\r\nX-Evil: 1", "a\nBcc: b@example.com", "=?utf-8?Q?a?="),
    "JSON": ('{"a": 1}', "[[[[", '"\\u0000"', "\\", '"', "\\ud800"),
    "spreadsheets": ("=1+1", "@SUM(1)", "+cmd|' /C calc'!A0"),
    "length": ("x" * 120, "x" * 2001, "ж" * 5000),
}
"""Where a string is refused that is a 4xx; where it is taken it comes back as it was sent. Never a 5xx."""
