"""The tests on each Python that pyproject.toml names and this machine has.

One Python, some tests: .venv/bin/nox -s tests-3.13 -- -k lock
"""

import nox

nox.options.default_venv_backend = "venv"
PYTHONS = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))


@nox.session(python=PYTHONS, reuse_venv=True)
def tests(session: nox.Session) -> None:
    """Run the tests; arguments after -- go to pytest."""
    place = session.virtualenv.location
    # The environment is the one that `make test` uses, made by the same rules.
    session.run("make", f"VENV={place}", f"PYTHON={place}/bin/python", "system", f"{place}/.installed", external=True)
    session.run("pytest", "-rs", *session.posargs)
