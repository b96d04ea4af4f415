from tests.bench.server import serve  # noqa: F401
