"""x"""
import typer
app = typer.Typer()
@app.callback()
def _v() -> None:
    """x"""
