"""A census of Python's own standard library: every module is parsed in a container of the census app.

modal-nomad run examples/stdlib_census.py --top 15
"""

import ast
import sysconfig
import time
from pathlib import Path

import modal

app = modal.App("stdlib-census")


@app.function()
def census(path: str) -> dict:
    """Parse one module and return its facts; a file that does not parse is a fact too."""
    source = Path(path).read_bytes()
    try:
        tree = ast.parse(source, path)
    except (SyntaxError, ValueError) as error:
        return {"path": path, "error": type(error).__name__}
    functions = classes = longest = 0
    longest_name = ""
    imports = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            functions += 1
            length = node.end_lineno - node.lineno + 1
            if length > longest:
                longest, longest_name = length, node.name
        elif isinstance(node, ast.ClassDef):
            classes += 1
        elif isinstance(node, ast.Import):
            imports.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports.add(node.module.partition(".")[0])
    return {
        "path": path,
        "lines": source.count(b"\n"),
        "functions": functions,
        "classes": classes,
        "longest": longest,
        "longest_name": longest_name,
        "imports": sorted(imports),
    }


def modules() -> list[str]:
    """Return every .py file of this machine's standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return [
        str(path)
        for path in sorted(root.rglob("*.py"))
        if not {"site-packages", "dist-packages", "__pycache__"} & set(path.relative_to(root).parts)
    ]


@app.local_entrypoint()
def main(top: int = 12) -> None:
    """Parse the standard library and print what is in it.

    Args:
        top: how many modules the table shows.
    """
    # Imported here: a container needs neither.
    from collections import Counter

    from rich.console import Console
    from rich.table import Table

    paths = modules()
    root = sysconfig.get_paths()["stdlib"]
    start = time.perf_counter()
    facts = list(census.map(paths))
    seconds = time.perf_counter() - start

    parsed = [fact for fact in facts if "error" not in fact]
    table = Table(title="The longest functions of the standard library")
    for heading, side in (
        ("module", "left"),
        ("function", "left"),
        ("lines of it", "right"),
        ("functions", "right"),
        ("classes", "right"),
    ):
        table.add_column(heading, justify=side)
    for fact in sorted(parsed, key=lambda fact: -fact["longest"])[:top]:
        name = str(Path(fact["path"]).relative_to(root))
        row = (name, fact["longest_name"], fact["longest"], fact["functions"], fact["classes"])
        table.add_row(*map(str, row))
    console = Console()
    console.print(table)
    imported = Counter(name for fact in parsed for name in fact["imports"])
    favourites = ", ".join(f"{name} ({count})" for name, count in imported.most_common(5))
    console.print(f"Most imported: {favourites}.")
    console.print(
        f"{len(facts):,} modules, {sum(f['lines'] for f in parsed):,} lines, "
        f"{sum(f['functions'] for f in parsed):,} functions, {sum(f['classes'] for f in parsed):,} classes; "
        f"{len(facts) - len(parsed)} do not parse. {seconds:.1f} s, {len(facts) / seconds:,.0f} modules/s.",
        soft_wrap=True,
    )
