"""mkdocs hook for what GitHub reads otherwise: links to files outside docs/ go to the repository, pipes in code in tables need no escape.

That the links lead somewhere is checked by tests/test_docs.py.
"""

import posixpath
import re

CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"(\]\()(\.\.?/[^)#\s]*)")


def on_page_markdown(markdown, page, config, **_):
    here = posixpath.dirname(page.file.src_uri)

    def outside(match):
        path = posixpath.normpath(posixpath.join("docs", here, match[2]))
        return match[0] if path.startswith("docs/") else f"{match[1]}{config.repo_url}/blob/main/{path}"

    lines = LINK.sub(outside, markdown).split("\n")
    return "\n".join(CODE.sub(lambda code: code[0].replace("\\|", "|"), line) if line.startswith("|") else line for line in lines)
