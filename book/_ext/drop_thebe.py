"""Leave out the scripts of Thebe, which this book does not use.

The theme writes them into every page. One of them fails in the browser's console, and pressing its button would load a
program from outside.
"""


def _names_thebe(asset: object) -> bool:
    attributes = getattr(asset, "attributes", {})
    return "thebe" in f"{getattr(asset, 'filename', asset)} {attributes.get('body', '')}".lower()


def _drop(app, pagename, templatename, context, doctree) -> None:
    for key in ("script_files", "css_files"):
        context[key] = [asset for asset in context.get(key, []) if not _names_thebe(asset)]


def setup(app) -> dict[str, bool]:
    """Connect the filter late, after the extensions that add the scripts."""
    app.connect("html-page-context", _drop, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
