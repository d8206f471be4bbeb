"""The checks run when they are asked for. The project's own test command leaves them out."""
from pathlib import Path

HERE = Path(__file__).resolve().parent


def pytest_ignore_collect(collection_path, config):
    """True: leave it out. Unwritten exercises are red, and the project's tests should be green."""
    for arg in config.args:
        path = Path(config.invocation_params.dir, arg.split("::")[0]).resolve()
        if path.is_relative_to(HERE):
            return None  # pytest decides, as everywhere
    return True
