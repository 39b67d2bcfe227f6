import pytest

from tests.reliability import campaign


def pytest_report_header():
    return f"MEMENPSF_SEED={campaign.SEED} MEMENPSF_TIMES={campaign.TIMES:g}"


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """campaign.compiled(), each program once in a run: compiled(name, *flags) -> executable."""
    done = {}

    def compile_once(program, *flags, **how):
        key = (program, flags, tuple(sorted(how.items())))
        if key not in done:
            done[key] = campaign.compiled(program, tmp_path_factory.mktemp(program), *flags, **how)
        return done[key]

    return compile_once
